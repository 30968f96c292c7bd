"""FlashInfer's templates, compiled from its wheel's headers by nvcc of PyPI, and the structs that its host code fills."""

import functools
import pathlib

import numpy as np
from dsv2 import cuda
from dsv2.emulator import Kernel, Module, Struct
from engines import Engine
from wheels import NotRun, folder

HERE = pathlib.Path(__file__).resolve().parent
FLASHINFER = Engine("flashinfer-python", "flashinfer", own=())
NAMES = {"bfloat16": "13__nv_bfloat16", "float16": "6__half", "float32": "f"}


@functools.cache
def module(name: str, arch: str = "sm_80") -> Module:
    """The kernels that flashinfer/NAME.cu instantiates. Raises NotRun where it does not compile any more."""
    return _compiled(name, (HERE / "flashinfer" / f"{name}.cu").read_text(), arch)


def _compiled(name: str, source: str, arch: str, *more: pathlib.Path) -> Module:
    data = folder("flashinfer-python") / "flashinfer" / "data"
    parts = ("include", "cutlass/include", "cccl/libcudacxx/include", "cccl/cub", "cccl/thrust")
    try:
        return cuda.compile(
            source, arch=arch, include=[*(data / part for part in parts), *more], options=["--expt-relaxed-constexpr"], compiler="nvcc"
        )
    except cuda.CompileError as error:
        raise NotRun(f"flashinfer-python {FLASHINFER.version}, {name}: {error}") from None


@functools.cache
def router() -> Module:
    """The router of DeepSeek-V3: the kernels of its source file, without the host code behind them."""
    csrc = folder("flashinfer-python") / "flashinfer" / "data" / "csrc"
    text = (csrc / "fused_moe" / "noAuxTcKernels.cu").read_text()
    kernels, found, _ = text.partition("template <typename InputT, typename BiasT, typename OutputT, typename IdxT>\nvoid invokeNoAuxTc")
    if not found:
        raise NotRun(f"flashinfer-python {FLASHINFER.version}: noAuxTcKernels.cu is not what the adapter was written for")
    kept = [line for line in kernels.splitlines() if not any(name in line for name in ("tvm", "envUtils", "noAuxTcKernels.h"))]
    ends = [
        f"template __global__ void deepseek_v3_topk_kernel<float, float, float, int, {most}, {groups}>(float *, float *, int *, float *, "
        "int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, double, int16_t *);"
        for most, groups in (("NumDeepseekExperts", "true"), ("NumKimiK2Experts", "false"), ("MaxNumExpertsUnit", "false"))
    ]
    source = "\n".join(["#include <cstdint>", *kept, *ends, "}"])
    more = [
        csrc / "fused_moe",
        csrc / "nv_internal",
        csrc / "nv_internal" / "include",
        *(path.parent for path in csrc.rglob("moeTopKFuncs.cuh")),
    ]
    return _compiled("noAuxTcKernels.cu", source, "sm_80", *more)


def kernel(of: Module, *parts: str) -> Kernel:
    """The one kernel whose mangled name has all these parts."""
    found = [name for name in of if all(part in name for part in parts)]
    if len(found) != 1:
        raise NotRun(f"flashinfer-python {FLASHINFER.version}: expected one kernel with {', '.join(parts)}, found {len(found)}")
    return of[found[0]]


def dtype(tensor) -> str:
    """A tensor's type as it stands in mangled names."""
    return NAMES[str(tensor.dtype).removeprefix("torch.")]


def u32(value) -> np.uint32:
    return np.uint32(int(value))


def fast_divisor(divisor: int) -> Struct:
    """`uint_fastdiv`: what cuda::fast_mod_div<uint32_t> computes of a divisor, and the divisor."""
    shift = divisor.bit_length() - 1
    multiplier = add = 0
    if divisor & (divisor - 1):
        quotient, rest = divmod(1 << (32 + shift), divisor)
        threshold = divisor - (1 << shift)
        multiplier, add = (quotient + (rest >= threshold)) & 0xFFFFFFFF, int(rest < threshold)
    return Struct(divisor=u32(divisor), multiplier=u32(multiplier), add=u32(add), shift=np.int32(shift), again=u32(divisor))


def mla_plan(qo_indptr, kv_begins, kv_lengths, heads: int, causal: bool, blocks: int = 4):
    """Which block does what, and how partial results are merged: FlashInfer's plan, for so many blocks (it takes one for each
    multiprocessor). (blocks in x, blocks in y, arrays by name, rows of partial results).
    """
    lengths = [int(end - begin) for begin, end in zip(qo_indptr, qo_indptr[1:])]
    in_x = 2 if sum(lengths) * heads // len(lengths) > 64 else 1
    clusters, tile = blocks // in_x, 64 * in_x
    tiles = []
    for sequence, (new, tokens) in enumerate(zip(lengths, kv_lengths)):
        count = -(-new * heads // tile)
        for index in reversed(range(count)):
            end = tokens
            if causal and index + 1 < count:
                end = max(min(tokens - new + -(-(index + 1) * tile // heads), tokens), 0)
            tiles.append((sequence, index, end))
    share = max(-(-sum(end for *_, end in tiles) // clusters), 1)
    limit = next((most for least, most in ((8, 32), (16, 64), (32, 128), (64, 192)) if share <= least), -(-share // 256) * 256)
    works: list[list[dict[str, int]]] = [[] for _ in range(clusters)]
    costs, merges, partial = [0] * clusters, [], 0
    for sequence, index, end in tiles:
        packed = lengths[sequence] * heads
        rows = min(tile, packed - index * tile)
        split, begin, left = end > limit, 0, end
        if split:
            chunks = max(end * in_x // limit, 1)
            step = -(-rows // chunks)
            for offset in range(0, rows, step):
                first = int(qo_indptr[sequence]) * heads + index * tile
                merges.append((
                    first + offset, first + min(offset + step, rows), partial + offset, partial + -(-end // limit) * rows, rows
                ))  # fmt: skip
        while True:
            cluster = costs.index(min(costs))
            taken = min(left, limit)
            costs[cluster] += 2 * tile + taken
            works[cluster].append({
                "q_indptr": int(qo_indptr[sequence]), "kv_indptr": int(kv_begins[sequence]), "partial_indptr": partial if split else -1,
                "q_len": lengths[sequence], "kv_len": kv_lengths[sequence], "q_start": index * tile, "kv_start": begin, "kv_end": begin + taken,
            })  # fmt: skip
            partial += rows if split else 0
            begin, left = begin + taken, left - taken
            if not left:
                break
    flat = [work for own in works for work in own]
    arrays = {
        name: [work[name] for work in flat]
        for name in ("q_indptr", "kv_indptr", "partial_indptr", "q_len", "kv_len", "q_start", "kv_start", "kv_end")
    }
    arrays["work_indptr"] = [sum(len(own) for own in works[:index]) for index in range(clusters + 1)]
    padded = merges + [(0, 0, 0, 0, 0)] * (blocks - len(merges))
    names = (
        "merge_packed_offset_start",
        "merge_packed_offset_end",
        "merge_partial_packed_offset_start",
        "merge_partial_packed_offset_end",
        "merge_partial_stride",
    )
    arrays.update({name: [entry[place] for entry in padded] for place, name in enumerate(names)})
    return in_x, clusters, {name: np.array(values or [0], np.int32) for name, values in arrays.items()}, partial
