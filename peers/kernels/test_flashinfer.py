"""FlashInfer's kernels of CUDA C++, instantiated from the headers in its wheel and launched as its host code does."""

import math

import numpy as np
import torch
from dsv2.emulator import Struct, out
from flashinfer_kernels import FLASHINFER, dtype, fast_divisor, kernel, mla_plan, module, router, u32
from judged import WATCH, adapter
from tables import token_slots

CUDA = {"language": "CUDA C++"}


def norm_sizes(hidden_states):
    """Threads and shared memory as RMSNorm() has them."""
    width = hidden_states.shape[1]
    vector = math.gcd(16 // hidden_states.element_size(), width)
    return -(-min(1024, width // vector) // 32), vector


@adapter("rmsnorm", FLASHINFER, "RMSNormKernel", **CUDA)
def test_rms_norm(hidden_states, weight):
    warps, vector = norm_sizes(hidden_states)
    rows, width = hidden_states.shape
    output = torch.empty_like(hidden_states)
    WATCH.launch(
        kernel(module("pointwise"), f"13RMSNormKernelILj{vector}E{dtype(hidden_states)}"), hidden_states, weight, out(output), width,
        width, width, 0.0, 1e-6, grid=rows, block=(32, warps), shared=warps * 4,
    )  # fmt: skip
    return output


@adapter("fused_add_rmsnorm", FLASHINFER, "FusedAddRMSNormKernel", **CUDA)
def test_fused_add_rms_norm(hidden_states, residual, weight):
    warps, vector = norm_sizes(hidden_states)
    rows, width = hidden_states.shape
    output, residual = hidden_states.clone(), residual.clone()
    WATCH.launch(
        kernel(module("pointwise"), f"FusedAddRMSNormKernelILj{vector}E{dtype(hidden_states)}"), output, residual, weight, width, width,
        width, 0.0, 1e-6, grid=rows, block=(32, warps), shared=(-(-warps // 4) * 4 + width) * 4,
    )  # fmt: skip
    return output, residual


@adapter("silu_and_mul", FLASHINFER, "act_and_mul_kernel", note="silu as its Python side writes it, x / (1 + e^-x)", **CUDA)
def test_silu_and_mul(gate_up):
    tokens, both = gate_up.shape
    width = both // 2
    vector = math.gcd(16 // gate_up.element_size(), width)
    output = torch.empty(tokens, width, dtype=gate_up.dtype)
    silu = kernel(module("pointwise"), f"act_and_mul_kernelI{dtype(gate_up)}", f"Lj{vector}E")
    WATCH.launch(silu, out(output), gate_up, width, grid=tokens, block=min(width // vector, 256))
    return output


@adapter(
    "merge_state", FLASHINFER, "MergeStateKernel", without={"odd sizes": "heads of 64, 128, 256 and 512"},
    findings={"DeepSeek-V2": "blocks of more than 1024 threads"}, **CUDA,
)  # fmt: skip
def test_merge_state(v_a, s_a, v_b, s_b):
    tokens, heads, width = v_a.shape
    vector = max(16 // v_a.element_size(), width // 32)
    output, lse = torch.empty_like(v_a), torch.empty_like(s_a)
    merge = kernel(module("pointwise"), f"MergeStateKernelILj{vector}E{dtype(v_a)}")
    WATCH.launch(merge, v_a, s_a, v_b, s_b, out(output), out(lse), heads, width, grid=tokens, block=(width // vector, heads))
    return output, lse


def rope(x, cos, sin, interleaved):
    tokens, heads, width = x.shape
    output, key = torch.empty_like(x), torch.zeros(tokens, 1, width, dtype=x.dtype)
    strides = [stride for tensor in (x, key, output, key) for stride in tensor.stride()[:2]]
    turn = kernel(module("rope"), f"HeadParallelismKernelILb{int(interleaved)}", dtype(x))
    WATCH.launch(
        turn, x, key, out(output), torch.zeros_like(key), torch.cat([cos, sin], -1), torch.arange(tokens, dtype=torch.int32), tokens, heads, 1,
        width, *strides, grid=(-(-tokens // 16), heads + 1), block=(8, 16),
    )  # fmt: skip
    return output


ROPE = "BatchQKApplyRotaryPosIdsCosSinCacheHeadParallelismKernel"
OTHER_HEADS = {name: "heads of 64, 128, 256 and 512; others go to another kernel" for name in ("odd counts", "one pair")}


@adapter("rotary_interleaved", FLASHINFER, ROPE, without=OTHER_HEADS, note="heads of 64", **CUDA)
def test_rope_interleaved(x, cos, sin):
    return rope(x, cos, sin, True)


@adapter("rotary_halves", FLASHINFER, ROPE, without=OTHER_HEADS, note="heads of 64", **CUDA)
def test_rope_halves(x, cos, sin):
    return rope(x, cos, sin, False)


@adapter(
    "mla_cache_write", FLASHINFER, "AppendPagedKVMlaCacheKernel",
    without={
        "odd sizes": "latents of 512 and keys of 64", "slots beyond 64K": "latents of 512 and keys of 64", "padding": "takes no slot of -1",
    },
    **CUDA,
)  # fmt: skip
def test_append(kv_c, k_pe, slot_mapping, ckv_cache, kpe_cache):
    tokens, (pages, size, _) = len(kv_c), ckv_cache.shape
    # one sequence whose table names every page in order: position is slot
    cache = Struct(
        page_size=fast_divisor(size), head_dim_ckv=u32(512), head_dim_kpe=u32(64), batch_size=u32(1), stride_page_ckv=u32(size * 512),
        stride_page_kpe=u32(size * 64), stride_n_ckv=u32(512), stride_n_kpe=u32(64), ckv_data=ckv_cache, kpe_data=kpe_cache,
        indices=torch.arange(pages, dtype=torch.int32), indptr=torch.tensor([0, pages], dtype=torch.int32),
        last_page_len=torch.tensor([size], dtype=torch.int32), rope_pos_offset=None,
    )  # fmt: skip
    if tokens:
        WATCH.launch(
            kernel(module("page"), "AppendPagedKVMlaCacheKernel", dtype(kv_c)), cache, kv_c, k_pe, torch.zeros(tokens, dtype=torch.int32),
            slot_mapping, tokens, 512, 64, grid=4, block=64,
        )  # fmt: skip


def mla(q_nope, q_pe, ckv_cache, kpe_cache, qo_indptr, kv_indptr, kv_indices, sm_scale, kv_last_page_len, causal):
    kernels = module("mla")
    size, heads = ckv_cache.shape[1], q_nope.shape[1]
    shared = np.zeros(1, np.uint32)
    kernels["shared_bytes"].launch(shared, grid=1, block=1)
    tokens = [len(own) for own in token_slots(kv_indptr, kv_indices, size, kv_last_page_len)]
    in_x, in_y, plan, rows = mla_plan(qo_indptr.tolist(), kv_indptr.tolist(), tokens, heads, causal)
    output, lse = torch.empty_like(q_nope), torch.empty(q_nope.shape[:2])
    partial, partial_lse = torch.empty(max(rows, 1), 512, dtype=q_nope.dtype), torch.empty(max(rows, 1))
    given = [
        q_nope, q_pe, ckv_cache, kpe_cache, *map(out, (partial, partial_lse, output, lse)),
        *(plan[name] for name in (
            "q_indptr", "kv_indptr", "partial_indptr", "merge_packed_offset_start", "merge_packed_offset_end",
            "merge_partial_packed_offset_start", "merge_partial_packed_offset_end", "merge_partial_stride",
        )),
        kv_indices, *(plan[name] for name in ("q_len", "kv_len", "q_start", "kv_start", "kv_end", "work_indptr")),
        fast_divisor(size), fast_divisor(heads),
        *(u32(stride) for tensor in (q_nope, q_pe, ckv_cache, kpe_cache, output) for stride in tensor.stride()[:2]),
        np.float32(sm_scale), np.float32(1), np.float32(1), None, np.bool_(False),
    ]  # fmt: skip
    attend = kernel(kernels, "BatchMLAPagedAttentionKernel", f"KernelTraitsILb{int(causal)}", dtype(q_nope))
    params = Struct(**{f"field{place}": value for place, value in enumerate(given)})
    WATCH.launch(attend, params, grid=(in_x, in_y), block=(32, 4, 2), shared=int(shared[0]), cooperative=True)
    return output, lse


MLA = {
    "note": "a plan of our own, for 4 blocks: FlashInfer's, host code in C++, was not run", "findings": {"*": "no __syncwarp"}, **CUDA,
}  # fmt: skip
NARROW = "latents of 512 and keys of 64 in 16 bits"


@adapter(
    "mla_paged_decode", FLASHINFER, "BatchMLAPagedAttentionKernel", without={"odd sizes": NARROW, "beyond 64K tokens": NARROW}, **MLA
)
def test_mla_decode(q_nope, q_pe, ckv_cache, kpe_cache, kv_indptr, kv_indices, sm_scale, kv_last_page_len=None):
    new = torch.arange(len(q_nope) + 1)
    return mla(q_nope, q_pe, ckv_cache, kpe_cache, new, kv_indptr, kv_indices, sm_scale, kv_last_page_len, False)


@adapter("mla_paged_prefill_causal", FLASHINFER, "BatchMLAPagedAttentionKernel", without={"odd sizes": NARROW}, **MLA)
def test_mla_prefill(q_nope, q_pe, ckv_cache, kpe_cache, qo_indptr, kv_indptr, kv_indices, sm_scale, kv_last_page_len=None):
    return mla(q_nope, q_pe, ckv_cache, kpe_cache, qo_indptr, kv_indptr, kv_indices, sm_scale, kv_last_page_len, True)


@adapter("router_sigmoid_bias", FLASHINFER, "deepseek_v3_topk_kernel", **CUDA)
def test_router(router_logits, bias, top_k, n_group, topk_group, routed_scaling_factor):
    tokens, experts = router_logits.shape
    weights, indices = torch.empty(tokens, top_k), torch.empty(tokens, top_k, dtype=torch.int32)
    threads, groups = (256, 1) if n_group > 1 else (384 if experts > 128 else 128, 0)
    route = kernel(router(), "deepseek_v3_topk_kernel", f"Li{threads}ELb{groups}E")
    WATCH.launch(
        route, router_logits, weights, indices, bias, tokens, n_group, topk_group, top_k, experts, experts // n_group,
        float(routed_scaling_factor), None, grid=tokens, block=threads,
    )  # fmt: skip
    return indices, weights


def sample(name, probs, before, behind):
    """A launch of a kernel that draws, with the seed that the tests have; `before` and `behind` are the filter's arguments."""
    rows, width = probs.shape
    shared = np.zeros(2, np.uint32)
    module("sampling")["shared_bytes"].launch(shared, grid=1, block=1)
    draw = kernel(module("sampling"), f"{len(name)}{name}ILj1024", f"ELj{math.gcd(4, width)}ELb1E")
    output, valid = torch.empty(rows, dtype=torch.int32), torch.empty(rows, dtype=torch.bool)
    given = [probs, out(output), out(valid), None, *before, *behind, width, None, 2026, None, 0, 0, 0]
    WATCH.launch(draw, *given, grid=rows, block=1024, shared=int(shared[0]))
    assert valid.all()
    return output


@adapter("sampling_from_probs", FLASHINFER, "SamplingFromProbKernel", **CUDA)
def test_sampling(probs):
    return sample("SamplingFromProbKernel", probs, [], [])


@adapter("top_k_sampling_from_probs", FLASHINFER, "TopKSamplingFromProbKernel", note="a top_k of 0 becomes that of all", **CUDA)
def test_top_k_sampling(probs, top_k):
    top_k = torch.where(top_k == 0, probs.shape[1], top_k).to(torch.int32)
    return sample("TopKSamplingFromProbKernel", probs, [top_k], [0])


@adapter("top_p_sampling_from_probs", FLASHINFER, "TopPSamplingFromProbKernel", **CUDA)
def test_top_p_sampling(probs, top_p):
    return sample("TopPSamplingFromProbKernel", probs, [top_p], [0.0])


@adapter("top_p_renorm_probs", FLASHINFER, "TopPRenormProbKernel", **CUDA)
def test_top_p_renorm(probs, top_p):
    rows, width = probs.shape
    shared = np.zeros(2, np.uint32)
    module("sampling")["shared_bytes"].launch(shared, grid=1, block=1)
    output = torch.empty_like(probs)
    renorm = kernel(module("sampling"), "TopPRenormProbKernelILj1024", f"ELj{math.gcd(4, width)}Ef")
    WATCH.launch(renorm, probs, out(output), top_p, 0.0, width, grid=rows, block=1024, shared=int(shared[1]))
    return output
