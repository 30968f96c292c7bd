"""What tests found in somebody's kernel that the contract does not allow. Each was looked at twice by hand, and has a
reproduction of its own, in plain Triton or CUDA, in findings/.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """`text`: for the page. `reproduce`: a file of findings/. The rest is all that a test may report, as regular expressions:
    `outputs`: what the judge says of each output that is wrong. `fault`: why the call ended. `races`: both places of each race.
    `unwritten`: what depends on bytes that nobody wrote, and where they were read.
    """

    text: str
    reproduce: str
    outputs: Mapping[str, str] = field(default_factory=dict)
    fault: str = "(?!)"
    races: str = ""
    unwritten: str = ""


# What TF32 makes of numbers near 1: half a unit in the last place is 2^-11, 4.9e-4.
TF32 = r"over-budget, l2 ([1-9]\.\de-04|[1-3]\.\de-03), .*"

# A logarithm of sums is nearer than they are.
TF32_OF_A_SUM = r"over-budget, l2 ([5-9]\.\de-05|[1-9]\.\de-04|[1-3]\.\de-03), .*"

# The buffer of vLLM's top-k is stored at line 197 and read at line 241.
READ = r"depends on bytes that nobody wrote, of global memory at \S+, read by _topk_topp_kernel at \S+topk_topp_triton\.py:241 "

FINDINGS = {
    "no __syncwarp": Finding(
        "`write_o` (attention/mla.cuh) writes its tile of the output to shared memory with one assignment of lanes and reads it with "
        "another, and nothing stands between the two. By CUDA's rules this needs `__syncwarp()`. The stores stand before any branch of "
        "the lanes, so that no wrong result is expected in practice, and all results were right here, where lanes go in step; "
        "compute-sanitizer should say the same of the races. With `__syncwarp()` in the place of the empty line 895 the detector finds "
        "nothing: `sed -i '895s/^/__syncwarp();/' target/kernels/flashinfer-python-0.7.4/flashinfer/data/include/flashinfer/attention/"
        "mla.cuh`, and the tests with `--findings` are green. With `FLASHINFER_STMATRIX_M8N8X4_ENABLED`, on sm_90, another instruction "
        "stands there, which was not looked at.",
        "test_warp_tile.py",
        races=r"write at \S+/mla\.cuh:8(8[6-9]|9[0-3]) .* and read at \S+/permuted_smem\.cuh:185 ",
    ),
    "no barrier around a buffer in global memory": Finding(
        "`_topk_topp_kernel` gathers the largest values of a row in a buffer in global memory (`tl.store(BUFFER_ROW + write_pos, ...)`, "
        "lines 197, 508 and 699 of topk_topp_triton.py) and reads them back in the same program by other threads. Triton puts no barrier "
        "between stores and loads of global memory (triton-lang/triton#1615, #9887; `tl.debug_barrier()` is the workaround). Of the "
        "tiles only the last is exposed: the sums of the next one order those before. On the emulator values are missed every time; on a "
        "GPU, where none was tried, it depends on how far apart the warps run. Top-k takes this kernel on a GPU whenever vLLM does not "
        "sample by FlashInfer; top-p alone only from 65 rows on. Up to 64 rows vLLM splits the rows over other kernels, which are right "
        "here on all workloads. With a barrier behind line 197 all workloads of top-k are right and no race is left: `sed -i "
        "'197{p;s/tl.store.*/tl.debug_barrier()/}' target/kernels/vllm-0.33.0/vllm/v1/sample/ops/topk_topp_triton.py`, and the test with "
        "`--findings` is green. Lines 508 and 699 were not run.",
        "test_buffer_without_barrier.py",
        outputs={"renorm_probs": r"over-budget, (l2 .*, )?what is to be kept is 0, .*"},
        fault=r"_topk_topp_kernel at \S+topk_topp_triton\.py:\d+ [^:]*: (what is stored in global memory|a branch or a predicate) "
        + READ
        + r".*",
        races=r"topk_topp_triton\.py:(197 .* and read at \S+topk_topp_triton\.py:241|241 .* and write at \S+topk_topp_triton\.py:197) ",
        unwritten=r"^_topk_topp_kernel at .*" + READ,
    ),
    "blocks of more than 1024 threads": Finding(
        "`MergeState` (attention/cascade.cuh) launches head_dim / vec_size x num_heads threads: 32 x 128 for the latents of all heads of "
        "DeepSeek-V2, which no GPU takes. The launch fails, and says so; results are not wrong. It is known (sgl-project/sglang#23993 "
        "falls back), and hits heads that are not absorbed, too: 16 x 128 threads. Up to 32 heads of 256 or 512, 64 of 128 are possible "
        "in 16 bits; SGLang goes round it.",
        "test_wide_block.py",
        fault=r"launch of \S*MergeStateKernel\S*: a block of \[32, 128, 1\] threads; at most 1024 are possible",
    ),
    "a merge of nothing": Finding(
        "Where neither part of a head has a key, the logarithms of both denominators are minus infinity, and their difference is NaN; the "
        "contract asks for 0 and minus infinity. The same was reported for vLLM (vllm-project/vllm#28181, #39148) and FlashInfer "
        "(flashinfer-ai/flashinfer#4051); both have a case for it now. Whether SGLang ever merges two empty parts was not looked at.",
        "test_empty_merge.py",
        outputs={"v_merged": r"non-finite, .*NaN in place of 0\.0", "s_merged": r"non-finite, .*NaN in place of -inf"},
    ),
    "an empty sequence": Finding(
        "The output of a sequence without tokens is 0 divided by a sum of 0: NaN, where the contract asks for 0 (FlashInfer's kernel has a "
        "case for it). vLLM pads decode batches of CUDA graphs with such rows (vllm-project/vllm#57017, with DeepSeek-V2-Lite; fix in "
        "#57094); SGLang's Triton backend pads with sequences of one token, so that it should not arise there.",
        "test_empty_sequence.py",
        outputs={"output": r"non-finite, .*NaN in place of 0\.0"},
    ),
    "TF32": Finding(
        "Inputs in fp32 are multiplied in TF32, with 11 bits where bf16 has 8, as `tl.dot` does unless `input_precision` says otherwise. "
        "Made chiefly for 16 bits; vLLM's experts take fp32 as well, and then multiply with 11 bits. With `TRITON_F32_DEFAULT=ieee` "
        "all of them pass.",
        "test_tf32.py",
        outputs={"output": TF32, "lse": TF32_OF_A_SUM},
    ),
    "queries and probabilities in fp8": Finding(
        "Where the cache is in fp8, its decode rounds the queries and the probabilities to fp8 as well (`q.to(K_Buffer.dtype.element_ty)`, "
        "`p.to(v.dtype)` in decode_attention.py), so that tensor cores multiply fp8 with fp8. A choice, and no mistake; but an output is "
        "then 1 to 3 % from the truth, where the contract, whose cache alone is in fp8, allows 0.4 % in bf16. For one GPU of AMD the "
        "same file widens the keys instead.",
        "test_fp8_queries.py",
        outputs={"output": r"over-budget, l2 (9\.\de-03|[1-3]\.\de-02), .*"},
    ),
    "losses of 16 bits": Finding(
        'The loss of each row is kept in the type of the logits, as PyTorch\'s own does (`F.cross_entropy`, `reduction="none"`): with '
        "logits in bf16 it is rounded to 8 bits after it was computed in fp32. The contract asks for fp32. Only the returned loss is "
        "meant, nothing is said of gradients.",
        "test_rounded_loss.py",
        outputs={"losses": r"over-budget, l2 [12]\.\de-03, .*"},
    ),
}
