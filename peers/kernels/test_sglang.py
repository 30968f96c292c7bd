"""SGLang's kernels of Triton, by the host functions that its layers call."""

import math
import types

import torch
import triton.language as tl
from engines import Engine
from judged import adapter
from tables import blocks_of_experts, indptr, token_slots

LOG2_E = math.log2(math.e)
NVIDIA = {
    "is_cuda": lambda: True, "is_hip": lambda: False, "is_sm90_supported": lambda: False, "get_device_core_count": lambda *_: 108,
}  # fmt: skip

SGLANG = Engine(
    "sglang",
    "sglang",
    own=(
        "sglang.kernels.ops.attention.score_mod", "sglang.kernels.ops.attention.decode_attention",
        "sglang.kernels.ops.attention.extend_attention", "sglang.kernels.ops.attention.merge_state",
        "sglang.kernels.ops.kvcache.mla_buffer", "sglang.kernels.ops.moe.fused_moe_triton_kernels",
        "sglang.kernels.ops.gemm.fp8_kernel", "sglang.kernels.ops.quantization.fp8_kernel", "sglang.test.kernels.moe_align",
    ),
    values={
        "sglang.srt.utils": NVIDIA,
        "sglang.srt.platforms": {"current_platform": types.SimpleNamespace(capabilities=types.SimpleNamespace(supports_triton=True))},
    },
)  # fmt: skip


@adapter(
    "mla_paged_decode", SGLANG, "decode_attention_fwd", targets=["sm_80", "sm_90"],
    outputs=["output"], note="page tables become token tables; it gives no LSE",
    findings={"empty sequences": "an empty sequence", "odd sizes": "TF32"},
)  # fmt: skip
def test_decode(q_nope, q_pe, ckv_cache, kpe_cache, kv_indptr, kv_indices, sm_scale, kv_last_page_len=None, splits=4):
    slots = token_slots(kv_indptr, kv_indices, ckv_cache.shape[1], kv_last_page_len)
    return decode(q_nope, q_pe, torch.cat([ckv_cache, kpe_cache], -1), slots, sm_scale, 1.0, splits)


def decode(q_nope, q_pe, cache, slots, sm_scale, kv_scale, splits):
    """On a cache of latents and keys side by side, in which `slots` are those of each sequence."""
    forward = SGLANG.function("kernels.ops.attention.decode_attention", "decode_attention_fwd")
    batch, heads, width = q_nope.shape
    buffer = cache.flatten(0, 1)[:, None]
    output = torch.empty_like(q_nope)
    partial, lse = torch.empty(batch, heads, splits, width), torch.empty(batch, heads, splits)
    used = torch.tensor([max(1, min(splits, len(own) // 32)) for own in slots], dtype=torch.int32)
    queries = torch.cat([q_nope, q_pe], -1)
    forward(
        queries, buffer, buffer[..., :width], output, indptr(slots), torch.cat(slots), partial, lse, used, splits, sm_scale, kv_scale, kv_scale
    )  # fmt: skip
    return output


def extend(queries, new, buffer, width, qo_indptr, before, sm_scale):
    """New tokens `new` [N,H,d] with values in their first `width`; `before`: slots of `buffer` that each sequence had."""
    forward = SGLANG.function("kernels.ops.attention.extend_attention", "extend_attention_fwd")
    keys, values = new if isinstance(new, tuple) else (new, new[..., :width].contiguous())
    key_buffer, value_buffer = buffer if isinstance(buffer, tuple) else (buffer, buffer[..., :width])
    output = torch.empty(*queries.shape[:2], width, dtype=queries.dtype)
    lse = torch.empty(queries.shape[:2])
    longest = int((qo_indptr[1:] - qo_indptr[:-1]).max())
    slots = torch.cat([*before, torch.zeros(0, dtype=torch.int64)])
    forward(
        queries, keys, values, output, key_buffer, value_buffer, qo_indptr, indptr(before), slots, None, True, None, longest, 1.0, 1.0,
        sm_scale=sm_scale, lse_extend=lse,
    )  # fmt: skip
    return output, lse * LOG2_E


TF32 = {"odd sizes": "TF32"}


@adapter(
    "mla_paged_prefill_causal", SGLANG, "extend_attention_fwd", findings=TF32,
    note="page tables become token tables; its natural LSE times log2 e",
)  # fmt: skip
def test_extend(q_nope, q_pe, ckv_cache, kpe_cache, qo_indptr, kv_indptr, kv_indices, sm_scale, kv_last_page_len=None):
    width = ckv_cache.shape[-1]
    slots = token_slots(kv_indptr, kv_indices, ckv_cache.shape[1], kv_last_page_len)
    buffer = torch.cat([ckv_cache, kpe_cache], -1).flatten(0, 1)[:, None]
    lengths = (qo_indptr[1:] - qo_indptr[:-1]).tolist()
    new = torch.cat([own[len(own) - length :] for own, length in zip(slots, lengths)])
    before = [own[: len(own) - length] for own, length in zip(slots, lengths)]
    return extend(torch.cat([q_nope, q_pe], -1), buffer[new].contiguous(), buffer, width, qo_indptr, before, sm_scale)


@adapter(
    "mla_ragged_prefill_causal",
    SGLANG,
    "extend_attention_fwd",
    findings=TF32,
    note="keys of before as a cache; its natural LSE times log2 e",
)
def test_ragged_extend(q, k, v, qo_indptr, kv_indptr, sm_scale):
    places = [torch.arange(int(begin), int(end)) for begin, end in zip(kv_indptr, kv_indptr[1:])]
    lengths = (qo_indptr[1:] - qo_indptr[:-1]).tolist()
    new = torch.cat([own[len(own) - length :] for own, length in zip(places, lengths)])
    before = [own[: len(own) - length] for own, length in zip(places, lengths)]
    return extend(q, (k[new].contiguous(), v[new].contiguous()), (k, v), v.shape[-1], qo_indptr, before, sm_scale)


@adapter("merge_state", SGLANG, "merge_state_triton", findings={"no keys": "a merge of nothing"}, note="LSE in natural logarithms")
def test_merge_state(v_a, s_a, v_b, s_b):
    merge = SGLANG.function("kernels.ops.attention.merge_state", "merge_state_triton")
    merged, lse = merge(v_a, s_a / LOG2_E, v_b, s_b / LOG2_E)
    return merged, lse * LOG2_E


@adapter("mla_cache_write", SGLANG, "set_mla_kv_buffer_triton", note="both caches side by side in one buffer")
def test_set_mla_kv_buffer(kv_c, k_pe, slot_mapping, ckv_cache, kpe_cache):
    scatter = SGLANG.function("kernels.ops.kvcache.mla_buffer", "set_mla_kv_buffer_triton")
    width = kv_c.shape[1]
    buffer = torch.cat([ckv_cache, kpe_cache], -1).flatten(0, 1)[:, None]
    if len(kv_c):
        scatter(buffer, slot_mapping, kv_c[:, None], k_pe[:, None], reserved_skip_index=-1)
    rows = buffer.view(*ckv_cache.shape[:2], -1)
    return rows[..., :width].contiguous(), rows[..., width:].contiguous()


@adapter("moe_sum", SGLANG, "moe_sum_reduce_triton")
def test_moe_sum(expert_outputs, routed_scaling_factor):
    reduce = SGLANG.function("kernels.ops.moe.fused_moe_triton_kernels", "moe_sum_reduce_triton")
    output = torch.empty(len(expert_outputs), expert_outputs.shape[2], dtype=expert_outputs.dtype)
    reduce(expert_outputs, output, routed_scaling_factor)
    return output


@adapter(
    "moe_experts", SGLANG, "fused_moe_kernel, moe_sum_reduce_triton", findings=TF32,
    note="sorting by expert and SwiGLU between the products by PyTorch",
)  # fmt: skip
def test_fused_moe(hidden_states, w13, w2, topk_indices, topk_weights):
    invoke = SGLANG.function("kernels.ops.moe.fused_moe_triton_kernels", "invoke_fused_moe_kernel")
    reduce = SGLANG.function("kernels.ops.moe.fused_moe_triton_kernels", "moe_sum_reduce_triton")
    (tokens, top_k), dtype = topk_indices.shape, hidden_states.dtype
    config = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 32, "BLOCK_SIZE_K": 32, "GROUP_SIZE_M": 1}
    ids, experts, padded = blocks_of_experts(topk_indices, 16)
    kind = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}[dtype]

    def product(rows, weights, out, weighted, copies):
        invoke(
            rows, weights, None, out, None, None, None, topk_weights, topk_indices, ids, experts, padded, weighted, copies, config, kind,
            False, False, False, False, False,
        )  # fmt: skip

    gate_up = torch.empty(tokens, top_k, w13.shape[1], dtype=dtype)
    product(hidden_states, w13, gate_up, False, top_k)
    gate, up = gate_up.flatten(0, 1).float().chunk(2, -1)
    down = torch.empty(tokens, top_k, w2.shape[1], dtype=dtype)
    product((torch.nn.functional.silu(gate) * up).to(dtype), w2, down, True, 1)
    output = torch.empty_like(hidden_states)
    reduce(down, output, 1.0)
    return output
