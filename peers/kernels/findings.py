"""What tests found in somebody's kernel that the contract does not allow. Each was looked at twice by hand, and has a
reproduction of its own, in plain Triton or CUDA, in findings/.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """`says`: a regular expression that what the test reports must match. `text`: for the page. `reproduce`: a file of findings/."""

    says: str
    text: str
    reproduce: str


FINDINGS = {
    "no __syncwarp": Finding(
        r"race: .*mla\.cuh:8(8[6-9]|9[0-3]) .*permuted_smem\.cuh:185",
        "`write_o` (attention/mla.cuh) writes its tile of the output to shared memory with one assignment of lanes and reads it with "
        "another, and nothing stands between the two. Lanes of a warp may run apart since sm_70: a lane may read what another has not "
        "written yet. All results were right here, as the emulator's lanes go in step. With `__syncwarp()` behind the loop of stores "
        "the detector finds nothing (128 pairs of instructions before). With `FLASHINFER_STMATRIX_M8N8X4_ENABLED`, on sm_90, another "
        "instruction stands there, which was not looked at.",
        "test_warp_tile.py",
    ),
    "no barrier around a buffer in global memory": Finding(
        r"topk_topp_triton\.py:|renorm_probs: over-budget: what is to be kept is 0",
        "`_topk_topp_kernel` gathers the largest values of a row in a buffer (`tl.store(BUFFER_ROW + write_pos, ...)`, lines 197, 465, 530, "
        "699 and 785 of topk_topp_triton.py) and reads them back in the same program, in another order. Triton orders the threads of a "
        "program around shared memory, not around stores and loads of global memory (triton-lang/triton#10924): a thread may read what another has "
        "not written yet, or what was there before. Where a reduction happens to stand between the two, its barrier hides it. On the "
        "emulator, where a warp runs until it waits, some of the most likely tokens get a probability of 0 every time; on a GPU it is a "
        "matter of timing. With `tl.debug_barrier()` before and behind each of the five stores all workloads are right and no race is "
        "left; with the tiles for GPUs (8192 and 4096, 8 warps) the races are there, too.",
        "test_buffer_without_barrier.py",
    ),
    "blocks of more than 1024 threads": Finding(
        r"a block of \[32, 128, 1\] threads; at most 1024",
        "`MergeState` (attention/cascade.cuh) launches head_dim / vec_size x num_heads threads: 32 x 128 for the latents of all heads of "
        "DeepSeek-V2, which no GPU takes. The launch fails, and says so; results are not wrong. Up to 32 heads of 512 are possible.",
        "test_wide_block.py",
    ),
    "a merge of nothing": Finding(
        r"v_merged: non-finite; .*NaN in place of 0",
        "Where neither part of a head has a key, both denominators are minus infinity, and their difference is NaN; the contract asks "
        "for 0 and minus infinity. vLLM's and FlashInfer's kernels for the same have a case for it. Whether SGLang ever merges two empty "
        "parts was not looked at.",
        "test_empty_merge.py",
    ),
    "an empty sequence": Finding(
        r"output: non-finite; at \[0, 0, 0\] NaN in place of 0",
        "The output of a sequence without tokens is 0 divided by a sum of 0: NaN, where the contract asks for 0 (FlashInfer's kernel has a "
        "case for it). Whether the engines ever ask for one was not looked at.",
        "test_empty_sequence.py",
    ),
    "TF32": Finding(
        r"over-budget, l2 [0-9.]+e-04|over-budget, l2 2\.2e-03",
        "Inputs in fp32 are multiplied in TF32, with 10 bits, as `tl.dot` does unless `input_precision` says otherwise. These kernels are "
        "made for 16 bits; whoever gives them fp32 gets less. With `TRITON_F32_DEFAULT=ieee` all of them pass.",
        "test_tf32.py",
    ),
    "losses of 16 bits": Finding(
        r"losses: over-budget, l2 2\.2e-03",
        "The loss of each row is kept in the type of the logits: with logits in bf16 it is rounded to 8 bits after it was computed in "
        "fp32. The contract asks for fp32.",
        "test_rounded_loss.py",
    ),
}
