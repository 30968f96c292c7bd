"""SGLang's kernels of Triton for fp8, and its sorting of tokens by expert."""

import torch
import triton.language as tl
from judged import adapter
from tables import blocks_of_experts, side_by_side, token_slots
from test_sglang import SGLANG, decode

E4M3 = torch.float8_e4m3fn
BLOCKS = [128, 128]


@adapter(
    "quantize_fp8_groups", SGLANG, "per_token_group_quant_fp8", targets=["sm_89"], note="the kernel of Triton; on CUDA it has one in C++"
)
def test_group_quant(x):
    quantize = SGLANG.function("kernels.ops.quantization.fp8_kernel", "_per_token_group_quant_8bit_raw")
    return quantize(x, 128, dtype=E4M3)


@adapter("gemm_fp8_block_scaled", SGLANG, "w8a8_block_fp8_matmul_triton", targets=["sm_89"])
def test_block_fp8_matmul(A, A_scale, B, B_scale):
    multiply = SGLANG.function("kernels.ops.gemm.fp8_kernel", "w8a8_block_fp8_matmul_triton")
    return multiply(A, B, A_scale, B_scale, BLOCKS, torch.bfloat16)


@adapter(
    "mla_cache_write_fp8", SGLANG, "set_mla_kv_buffer_triton_fp8_quant", targets=["sm_89"],
    note="both caches side by side in one buffer; divided by the scale in fp32 by PyTorch",
)  # fmt: skip
def test_set_mla_kv_buffer_fp8(kv_c, k_pe, slot_mapping, ckv_cache, kpe_cache, kv_scale):
    scatter = SGLANG.function("kernels.ops.kvcache.mla_buffer", "set_mla_kv_buffer_triton_fp8_quant")
    width = kv_c.shape[1]
    buffer = side_by_side(ckv_cache, kpe_cache).flatten(0, 1)[:, None]
    scatter(buffer, slot_mapping, kv_c.float() / kv_scale, k_pe.float() / kv_scale, E4M3, reserved_skip_index=-1)
    rows = buffer.view(torch.uint8).view(*ckv_cache.shape[:2], -1)
    return rows[..., :width].contiguous().view(E4M3), rows[..., width:].contiguous().view(E4M3)


@adapter(
    "mla_paged_decode_fp8", SGLANG, "decode_attention_fwd", targets=["sm_89"],
    outputs=["output"], note="page tables become token tables; it gives no LSE",
    findings={"*": "queries and probabilities in fp8", "empty sequences": "an empty sequence"},
)  # fmt: skip
def test_decode_fp8(q_nope, q_pe, ckv_cache, kpe_cache, kv_indptr, kv_indices, sm_scale, kv_scale, kv_last_page_len=None, splits=4):
    slots = token_slots(kv_indptr, kv_indices, ckv_cache.shape[1], kv_last_page_len)
    return decode(q_nope, q_pe, side_by_side(ckv_cache, kpe_cache), slots, sm_scale, kv_scale, splits)


GROUPS_ARE_WHOLE = "its host code wants widths that are multiples of 128"


@adapter(
    "moe_experts_fp8", SGLANG, "fused_moe_kernel, moe_sum_reduce_triton", targets=["sm_89"],
    without={"experts with none": GROUPS_ARE_WHOLE, "elsewhere": GROUPS_ARE_WHOLE},
    note="sorting by expert and SwiGLU between the products by PyTorch; rows to fp8 by its kernel of Triton",
)  # fmt: skip
def test_fused_moe_fp8(hidden_states, w13, w13_scale, w2, w2_scale, topk_indices, topk_weights):
    invoke = SGLANG.function("kernels.ops.moe.fused_moe_triton_kernels", "invoke_fused_moe_kernel")
    reduce = SGLANG.function("kernels.ops.moe.fused_moe_triton_kernels", "moe_sum_reduce_triton")
    quantize = SGLANG.function("kernels.ops.quantization.fp8_kernel", "_per_token_group_quant_8bit_raw")
    (tokens, top_k), dtype = topk_indices.shape, hidden_states.dtype
    config = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1}
    ids, experts, padded = blocks_of_experts(topk_indices, 16)
    kind = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]

    def product(rows, weights, scales, weighted, copies):
        out = torch.empty(tokens, top_k, weights.shape[1], dtype=dtype)
        rows, sizes = quantize(rows, 128, dtype=E4M3)
        invoke(
            rows, weights, None, out, sizes, scales, None, topk_weights, topk_indices, ids, experts, padded, weighted, copies, config, kind,
            True, False, False, False, False, BLOCKS,
        )  # fmt: skip
        return out

    gate, up = product(hidden_states, w13, w13_scale, False, top_k).flatten(0, 1).float().chunk(2, -1)
    down = product((torch.nn.functional.silu(gate) * up).to(dtype), w2, w2_scale, True, 1)
    output = torch.empty_like(hidden_states)
    reduce(down, output, 1.0)
    return output


@adapter(
    "moe_align_block_size",
    SGLANG,
    "moe_align_block_size_triton",
    note="the kernel that SGLang tests its own against; room filled by PyTorch, as its caller does",
)
def test_moe_align(topk_ids, num_experts, block_size):
    align = SGLANG.function("test.kernels.moe_align", "moe_align_block_size_triton")
    most = topk_ids.numel() + num_experts * (block_size - 1)
    sorted_ids = torch.full((most,), topk_ids.numel(), dtype=torch.int32)
    experts, filled = torch.empty(-(-most // block_size), dtype=torch.int32), torch.empty(1, dtype=torch.int32)
    align(topk_ids, num_experts, block_size, sorted_ids, experts, filled)
    return sorted_ids, experts, filled
