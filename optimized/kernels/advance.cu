// The end of a decode step: what was chosen is the input of the next step, and every sequence is one token longer.
//
//   token_b = filler if the sequence has ended, else chosen_b; it has ended if token_b is one of ends
//   position_b += 1,  length_b += 1,  slot_b = the place of token length_b - 1,  uniform_b = draws[drawn_b, b],  drawn_b += 1
//
// So a step needs nothing from the host, and can be captured. chosen, tokens, positions, lengths, slots, ended, drawn: [B] i32;
// ends: [E] i32; block_table: [B, max_pages]; draws: [steps, B] f32 (or null) and uniforms: [B] f32. The slot of a token for
// which the table has no room is -1, which no cache has.
//
// Bytes: 4 B (11 + E), small whatever they are.
#include "dev.cuh"

struct Step {
    const int *chosen, *ends, *block_table;
    const float* draws;
    int *tokens, *positions, *lengths, *slots, *ended, *drawn;
    float* uniforms;
    int batch, end_count, filler, max_pages, page_size, steps;
};

KERNEL(128) advance_i32(Step step) {
    int b = blockIdx.x * blockDim.x + threadIdx.x;
    if (b >= step.batch) return;
    int token = step.ended[b] ? step.filler : step.chosen[b];
    #pragma unroll 1
    for (int i = 0; i < step.end_count; i++)
        if (token == step.ends[i]) step.ended[b] = 1;
    int place = step.lengths[b], page = place / step.page_size;
    step.tokens[b] = token;
    step.positions[b]++;
    step.lengths[b] = place + 1;
    int first = page < step.max_pages ? step.block_table[(long long)b * step.max_pages + page] : -1;
    step.slots[b] = first < 0 ? -1 : first * step.page_size + place % step.page_size;
    if (!step.draws) return;
    int next = step.drawn[b];
    step.uniforms[b] = next < step.steps ? step.draws[(long long)next * step.batch + b] : 0.0f;
    step.drawn[b] = next + 1;
}
