"""vLLM's kernels of Triton, by the host functions that its layers call."""

import math
import sys
import types
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from engines import Engine
from judged import adapter
from tables import block_table, blocks_of_experts, lengths

LOG2_E = math.log2(math.e)
NVIDIA = types.SimpleNamespace(
    is_rocm=lambda: False, is_cuda=lambda: True, is_xpu=lambda: False, is_cuda_alike=lambda: False,  # "alike": another way for small batches
    fp8_dtype=lambda: torch.float8_e4m3fn, get_device_capability=lambda *_: (8, 0),
)  # fmt: skip

VLLM = Engine(
    "vllm",
    "vllm",
    own=(
        "vllm.v1.attention.ops.triton_decode_attention", "vllm.v1.attention.ops.triton_merge_attn_states",
        "vllm.model_executor.layers.fused_moe.fused_moe", "vllm.model_executor.layers.fused_moe.moe_fused_mul_sum",
        "vllm.v1.sample.ops.topk_topp_triton", "vllm.model_executor.warmup.jit_warmup",
        "vllm.model_executor.warmup.jit_warmup_triton_helper", "vllm.utils.math_utils",
        "vllm.model_executor.layers.quantization.utils.fp8_utils",
    ),
    values={
        "vllm.triton_utils": {"tl": tl, "triton": triton},
        "vllm.platforms": {"current_platform": NVIDIA},
        "vllm.utils.platform_utils": {"num_compute_units": lambda *_: 108},
        "vllm.model_executor.layers.fused_moe.utils": {"resolve_moe_use_td": lambda: False, "enable_swap_ab": lambda *_: False},
        "vllm.model_executor.layers.quantization.utils.quant_utils": {"get_fp8_min_max": lambda: (-448.0, 448.0)},
    },
)  # fmt: skip


@adapter(
    "mla_paged_decode", VLLM, "decode_attention_fwd", targets=["sm_80", "sm_90"],
    note="both caches side by side; its natural LSE times log2 e",
    findings={"empty sequences": "an empty sequence", "odd sizes": "TF32"},
)  # fmt: skip
def test_decode(q_nope, q_pe, ckv_cache, kpe_cache, kv_indptr, kv_indices, sm_scale, kv_last_page_len=None, splits=4):
    forward = VLLM.function("v1.attention.ops.triton_decode_attention", "decode_attention_fwd")
    size, width = ckv_cache.shape[1:]
    buffer = torch.cat([ckv_cache, kpe_cache], -1)[:, :, None]
    batch, heads, _ = q_nope.shape
    output, lse = torch.empty_like(q_nope), torch.empty(batch, heads)
    partial = torch.empty(batch, heads, splits, width + 1)
    forward(
        torch.cat([q_nope, q_pe], -1), buffer, buffer[..., :width], output, lse, block_table(kv_indptr, kv_indices),
        lengths(kv_indptr, size, kv_last_page_len), partial, splits, sm_scale, page_size=size, is_mla=True,
    )  # fmt: skip
    return output, lse * LOG2_E


@adapter("merge_state", VLLM, "merge_attn_states", note="LSE in natural logarithms, heads before tokens")
def test_merge_attn_states(v_a, s_a, v_b, s_b):
    merge = VLLM.function("v1.attention.ops.triton_merge_attn_states", "merge_attn_states")
    output, lse = torch.empty_like(v_a), torch.empty(s_a.shape[::-1])
    a, b = ((part / LOG2_E).T.contiguous() for part in (s_a, s_b))
    merge(output, v_a, a, v_b, b, lse)
    return output, lse.T.contiguous() * LOG2_E


@adapter(
    "moe_experts",
    VLLM,
    "fused_moe_kernel",
    findings={"odd sizes": "TF32"},
    note="sorting by expert, SwiGLU and the sum over experts by PyTorch",
)
def test_fused_moe(hidden_states, w13, w2, topk_indices, topk_weights):
    invoke = VLLM.function("model_executor.layers.fused_moe.fused_moe", "invoke_fused_moe_triton_kernel")
    (tokens, top_k), dtype = topk_indices.shape, hidden_states.dtype
    config = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 32, "BLOCK_SIZE_K": 32, "GROUP_SIZE_M": 1}
    ids, experts, padded = blocks_of_experts(topk_indices, 16)
    kind = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}[dtype]

    def product(rows, weights, weighted, copies):
        out = torch.empty(tokens, top_k, weights.shape[1], dtype=dtype)
        invoke(
            rows,
            weights,
            out,
            None,
            None,
            topk_weights,
            ids,
            experts,
            padded,
            weighted,
            copies,
            config,
            kind,
            False,
            False,
            False,
            False,
            False,
        )
        return out

    gate, up = product(hidden_states, w13, False, top_k).flatten(0, 1).float().chunk(2, -1)
    down = product((torch.nn.functional.silu(gate) * up).to(dtype), w2, True, 1)
    return down.float().sum(1).to(dtype)


@adapter("moe_sum", VLLM, "moe_fused_mul_sum", note="the factor as the weight of every expert")
def test_moe_fused_mul_sum(expert_outputs, routed_scaling_factor):
    add = VLLM.function("model_executor.layers.fused_moe.moe_fused_mul_sum", "moe_fused_mul_sum")
    output = torch.empty(len(expert_outputs), expert_outputs.shape[2], dtype=expert_outputs.dtype)
    weights = torch.full(expert_outputs.shape[:2], float(routed_scaling_factor))
    add(expert_outputs, weights, output)
    return output


class Gpu(NamedTuple):
    """What vLLM asks of a GPU's `torch.device`."""

    type: str = "cuda"
    index: int = 0


class OnGpu(torch.Tensor):
    """A tensor that says to vLLM that it is on a GPU, as kernels and tiles are chosen by it; to all others it is on the CPU."""

    @property
    def device(self):
        asks = sys._getframe(1).f_globals.get("__name__", "")
        return Gpu() if asks.startswith("vllm.") else super().device


def filtered(probs, top_k, top_p):
    kernels = VLLM.module("v1.sample.ops.topk_topp_triton")
    kernels._TRITON_BUFFER_CACHE.clear()  # scratch memory: new in each call, so that nothing in it is another call's
    kernels._TRITON_SPLIT_CACHE.clear()
    kernels._TRITON_TABLE_CACHE.clear()
    masked = kernels.apply_top_k_top_p_triton(probs.log().as_subclass(OnGpu), top_k, top_p)
    return torch.softmax(masked.as_subclass(torch.Tensor), -1)


FILTERED = "kernels and tiles as vLLM takes them on a GPU; logarithms before and softmax behind it by PyTorch"


NO_BARRIER = "no barrier around a buffer in global memory"


@adapter("top_k_renorm_probs", VLLM, "_topk_topp_kernel", findings={"DeepSeek-V2": NO_BARRIER, "odd sizes": NO_BARRIER}, note=FILTERED)
def test_top_k(probs, top_k):
    return filtered(probs, torch.where(top_k == 0, probs.shape[1], top_k).to(torch.int32), None)


@adapter("top_p_renorm_probs", VLLM, "_topp_split_*", note=f"{FILTERED}; up to 64 rows, where they go to these kernels")
def test_top_p(probs, top_p):
    return filtered(probs, None, top_p)
