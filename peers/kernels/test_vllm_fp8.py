"""vLLM's kernels of Triton for fp8."""

import functools
import math

import torch
import triton.language as tl
from judged import adapter
from tables import block_table, blocks_of_experts, lengths, side_by_side
from test_vllm import VLLM

LOG2_E = math.log2(math.e)
BLOCKS = [128, 128]


def quantized(x):
    """Rows in fp8, and a scale for each 128 numbers."""
    quantize = VLLM.function("model_executor.layers.quantization.utils.fp8_utils", "per_token_group_quant_fp8")
    return quantize(x, 128, use_ue8m0=False)


@adapter(
    "quantize_fp8_groups", VLLM, "per_token_group_quant_fp8", targets=["sm_89"], note="the kernel of Triton; on CUDA it has one in C++"
)
def test_group_quant(x):
    return quantized(x)


@adapter("gemm_fp8_block_scaled", VLLM, "w8a8_triton_block_scaled_mm", targets=["sm_89"])
def test_block_scaled_mm(A, A_scale, B, B_scale):
    multiply = VLLM.function("model_executor.layers.quantization.utils.fp8_utils", "w8a8_triton_block_scaled_mm")
    return multiply(A, B, A_scale, B_scale, BLOCKS, torch.bfloat16)


@adapter(
    "mla_paged_decode_fp8", VLLM, "decode_attention_fwd", targets=["sm_90"],
    note="both caches side by side; its natural LSE times log2 e",
    findings={"empty sequences": "an empty sequence", "odd sizes": "TF32"},
)  # fmt: skip
def test_decode_fp8(q_nope, q_pe, ckv_cache, kpe_cache, kv_indptr, kv_indices, sm_scale, kv_scale, kv_last_page_len=None, splits=4):
    forward = VLLM.function("v1.attention.ops.triton_decode_attention", "decode_attention_fwd")
    size, width = ckv_cache.shape[1:]
    buffer = side_by_side(ckv_cache, kpe_cache)[:, :, None]
    batch, heads, _ = q_nope.shape
    output, lse = torch.empty_like(q_nope), torch.empty(batch, heads)
    partial, scale = torch.empty(batch, heads, splits, width + 1), torch.tensor(kv_scale)
    forward(
        torch.cat([q_nope, q_pe], -1), buffer, buffer[..., :width], output, lse, block_table(kv_indptr, kv_indices),
        lengths(kv_indptr, size, kv_last_page_len), partial, splits, sm_scale, page_size=size, k_scale=scale, v_scale=scale, is_mla=True,
    )  # fmt: skip
    return output, lse * LOG2_E


GROUPS_ARE_WHOLE = "its host code wants widths that are multiples of 128"


@adapter(
    "moe_experts_fp8", VLLM, "fused_moe_kernel", targets=["sm_89"],
    without={"experts with none": GROUPS_ARE_WHOLE, "elsewhere": GROUPS_ARE_WHOLE},
    note="sorting by expert, SwiGLU and the sum over experts by PyTorch; rows to fp8 by its kernel of Triton",
)  # fmt: skip
def test_fused_moe_fp8(hidden_states, w13, w13_scale, w2, w2_scale, topk_indices, topk_weights):
    invoke = VLLM.function("model_executor.layers.fused_moe.fused_moe", "invoke_fused_moe_triton_kernel")
    (tokens, top_k), dtype = topk_indices.shape, hidden_states.dtype
    config = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1}
    ids, experts, padded = blocks_of_experts(topk_indices, 16)
    kind = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]
    launch = functools.partial(
        invoke,
        use_fp8_w8a8=True,
        use_int8_w8a8=False,
        use_int8_w8a16=False,
        use_int4_w4a16=False,
        per_channel_quant=False,
        block_shape=BLOCKS,
    )

    def product(rows, weights, scales, weighted, copies):
        out = torch.empty(tokens, top_k, weights.shape[1], dtype=dtype)
        rows, sizes = quantized(rows)
        launch(rows, weights, out, sizes, scales, topk_weights, ids, experts, padded, weighted, copies, config, kind)
        return out

    gate, up = product(hidden_states, w13, w13_scale, False, top_k).flatten(0, 1).float().chunk(2, -1)
    down = product((torch.nn.functional.silu(gate) * up).to(dtype), w2, w2_scale, True, 1)
    return down.float().sum(1).to(dtype)
