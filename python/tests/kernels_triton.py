"""Kernels of Triton for the tests of the driver."""

import triton
import triton.language as tl


@triton.jit
def copy(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def rows(left, right, out, stride, width, BLOCK: tl.constexpr):
    """Two views of one storage, each with its own pointer."""
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    mask = i < width
    values = tl.load(left + row * stride + i, mask=mask) - tl.load(right + row * stride + i, mask=mask)
    tl.store(out + row * width + i, values, mask=mask)


@triton.jit
def scalars(out, byte, word, long, single, flag, nothing, SIZE: tl.constexpr):
    value = byte.to(tl.float64) + word + long + single
    if flag:
        value += 0.5
    if nothing is not None:
        value += 1000
    tl.store(out, value + SIZE)


@triton.jit
def pair(both, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(both[0] + i) * both[1])


@triton.autotune(configs=[triton.Config({"BLOCK": 64}), triton.Config({"BLOCK": 128}, num_warps=8)], key=["n"])
@triton.jit
def tuned(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n) + BLOCK, mask=i < n)


@triton.heuristics({"BLOCK": lambda args: triton.next_power_of_2(args["n"])})
@triton.jit
def guessed(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n) + BLOCK, mask=i < n)


@triton.jit
def talking(x):
    tl.device_print("x:", tl.load(x + tl.arange(0, 2)))
    tl.device_assert(tl.load(x) > 0, "x begins with something positive")


@triton.jit
def dependent(x, out, n, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Programmatic dependent launch, as the field's kernels have it: only where the target has it."""
    i = tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_wait()
    tl.store(out + i, tl.load(x + i, mask=i < n), mask=i < n)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def matmul(a, b, c, SIZE: tl.constexpr):
    row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    product = tl.dot(tl.load(a + row * SIZE + column), tl.load(b + row * SIZE + column))
    tl.store(c + row * SIZE + column, product.to(tl.float16))


@triton.jit
def described(descriptor, out, SIZE: tl.constexpr):
    tl.store(out + tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :], descriptor.load([0, 0]))


@triton.jit
def maximum(x, out, BLOCK: tl.constexpr):
    """Several lanes hold the maximum, and store it."""
    tl.store(out + tl.program_id(0), tl.max(tl.load(x + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))))


@triton.jit
def total(x, out, BLOCK: tl.constexpr):
    """Several warps hold the sum, each having added in its own order."""
    values = tl.load(x + tl.arange(0, BLOCK))
    tl.store(out, tl.sum(values * values))


@triton.jit
def strike_out(x, BLOCK: tl.constexpr, APART: tl.constexpr):
    """In place: a lane stores where another one has read."""
    largest = tl.argmax(tl.load(x + tl.arange(0, BLOCK)), 0)
    if APART:
        tl.debug_barrier()
    tl.store(x + largest, 0.0)
