"""FlashInfer's templates, compiled from its wheel's headers by nvcc of PyPI, and the structs that its host code fills."""

import functools
import pathlib

import numpy as np
from dsv2 import cuda
from dsv2.emulator import Kernel, Module, Struct
from engines import Engine
from wheels import Unfit, folder

HERE = pathlib.Path(__file__).resolve().parent
FLASHINFER = Engine("flashinfer-python", "flashinfer", own=())
NAMES = {"bfloat16": "13__nv_bfloat16", "float16": "6__half", "float32": "f"}


@functools.cache
def module(name: str, arch: str = "sm_80") -> Module:
    """The kernels that flashinfer/NAME.cu instantiates. Raises Unfit where it does not compile."""
    return _compiled(name, (HERE / "flashinfer" / f"{name}.cu").read_text(), arch)


def _compiled(name: str, source: str, arch: str, *more: pathlib.Path) -> Module:
    data = folder("flashinfer-python") / "flashinfer" / "data"
    parts = ("include", "cutlass/include", "cccl/libcudacxx/include", "cccl/cub", "cccl/thrust")
    try:
        return cuda.compile(
            source, arch=arch, include=[*(data / part for part in parts), *more], options=["--expt-relaxed-constexpr"], compiler="nvcc"
        )
    except cuda.CompileError as error:
        raise Unfit(f"flashinfer-python {FLASHINFER.version}, {name}: {error}") from None


@functools.cache
def router() -> Module:
    """The router of DeepSeek-V3: the kernels of its source file, without the host code behind them."""
    csrc = folder("flashinfer-python") / "flashinfer" / "data" / "csrc"
    text = (csrc / "fused_moe" / "noAuxTcKernels.cu").read_text()
    kernels, found, _ = text.partition("template <typename InputT, typename BiasT, typename OutputT, typename IdxT>\nvoid invokeNoAuxTc")
    if not found:
        raise Unfit(f"flashinfer-python {FLASHINFER.version}: noAuxTcKernels.cu is not what the adapter was written for")
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
        raise Unfit(f"flashinfer-python {FLASHINFER.version}: expected one kernel with {', '.join(parts)}, found {len(found)}")
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


# Keys of a piece of a tile, where its keys are split.
PIECE = 128


def mla_plan(qo_indptr, kv_begins, kv_lengths, heads: int, causal: bool, blocks: int = 4):
    """A plan of our own for the kernel: (blocks in x, blocks in y, arrays by name, rows of partial results).

    A tile is 64 rows (a row is a token's head) for each block in x, and goes with all its keys to one block in y, in turn. The
    tiles with the most keys go in pieces of PIECE keys, one tile for each block, as each block can merge one.
    """
    names = ("q_indptr", "kv_indptr", "partial_indptr", "q_len", "kv_len", "q_start", "kv_start", "kv_end")
    new = [int(end) - int(begin) for begin, end in zip(qo_indptr, qo_indptr[1:])]
    in_x = 2 if max(new) * heads > 64 else 1
    in_y, height = blocks // in_x, 64 * in_x
    tiles = []
    for sequence, (queries, tokens) in enumerate(zip(new, kv_lengths)):
        for first in range(0, queries * heads, height):
            rows = min(height, queries * heads - first)
            unseen = queries - 1 - (first + rows - 1) // heads if causal else 0  # keys behind the last query of the tile
            tiles.append((sequence, first, rows, max(int(tokens) - unseen, 0)))
    split = [tile for tile in sorted(tiles, key=lambda tile: -tile[3])[:blocks] if tile[3] > PIECE]
    work: list[list[tuple[int, ...]]] = [[] for _ in range(in_y)]
    merges, partial, turn = [], 0, 0
    for tile in tiles:
        sequence, first, rows, keys = tile
        step, begin = (PIECE, partial) if tile in split else (max(keys, 1), -1)
        pieces = range(0, max(keys, 1), step)
        for piece, start in enumerate(pieces):
            work[turn % in_y].append((
                int(qo_indptr[sequence]), int(kv_begins[sequence]), -1 if begin < 0 else begin + piece * rows, new[sequence],
                int(kv_lengths[sequence]), first, start, min(start + step, keys),
            ))  # fmt: skip
            turn += 1
        if begin >= 0:
            to = int(qo_indptr[sequence]) * heads + first
            partial += len(pieces) * rows
            merges.append((to, to + rows, begin, partial, rows))
    merges += [(0, 0, 0, 0, 0)] * (blocks - len(merges))
    columns = dict(zip(names, zip(*(piece for own in work for piece in own))))
    columns["work_indptr"] = tuple(sum(map(len, work[:index])) for index in range(in_y + 1))
    merging = ("packed_offset_start", "packed_offset_end", "partial_packed_offset_start", "partial_packed_offset_end", "partial_stride")
    columns.update((f"merge_{name}", column) for name, column in zip(merging, zip(*merges)))
    return in_x, in_y, {name: np.array(column, np.int32) for name, column in columns.items()}, partial
