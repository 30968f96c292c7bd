"""What Triton says of a kernel or its arguments comes as one line of class dsv2.Error, with the place."""

import pathlib

import numpy as np
import pytest

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

import dsv2
from dsv2 import LaunchError
from dsv2.triton import CompileError, ResourceError, activate, wrap

HERE = pathlib.Path(__file__).resolve()
X = wrap(np.zeros(64, np.float32))


def line_of(text):
    """The first line of this file that has a text."""
    return next(number for number, line in enumerate(HERE.read_text().splitlines(), 1) if text in line)


@triton.jit
def count(x, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x + i, i, mask=i < n)


@triton.jit
def helper(value):
    return value + nowhere  # noqa: F821


@triton.jit
def caller(x, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x + i, helper(i), mask=i < n)


@triton.jit
def wrong_axis(x, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x, tl.sum(i, axis=3))


@triton.jit
def square(x, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tile = x + i[:, None] * BLOCK + i[None, :]
    tl.store(tile, tl.dot(tl.load(tile), tl.load(tile)))


@pytest.mark.parametrize(
    ("launch", "kernel", "line", "said"),
    [
        (lambda: count[(1,)](X, 5, BLOCK=3), "count", "i = tl.arange(0, BLOCK)", "arange's range must be a power of 2"),
        (lambda: count[(1,)](X, None, BLOCK=64), "count", "tl.store(x + i, i, mask=i < n)", "'NoneType' object has no attribute"),
        (lambda: caller[(1,)](X, 5, BLOCK=64), "caller", "return value + nowhere", "nowhere is not defined"),
        (lambda: wrong_axis[(1,)](X, BLOCK=64), "wrong_axis", "tl.store(x, tl.sum(i, axis=3))", "invalid axis 3"),
    ],
)
def test_a_kernel_that_does_not_compile_is_told_with_its_innermost_line(launch, kernel, line, said):
    with activate("sm_80"), pytest.raises(CompileError) as caught:
        launch()
    text = str(caught.value)
    assert text.startswith(f"kernel {kernel} at {HERE}:{line_of(line)}: `{line}") and said in text, text
    assert "\n" not in text
    assert isinstance(caught.value, dsv2.Error) and isinstance(caught.value, CompilationError)


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        (lambda: count[(1,)](X, 5), "count missing 1 required positional argument: 'BLOCK'"),
        (lambda: count[(1,)](X, 5, 64, 5), "count takes 3 positional arguments but 4 were given"),
        (lambda: count[(1,)](X, 5, BLOCK=64, WIDE=3), "Keyword argument WIDE was specified but unrecognised"),
        (lambda: count[(1,)](X, "5", BLOCK=64), r"argument n: expected a tensor, wrap\(array\) of NumPy or a number, found str"),
        (lambda: count[(1,)](X.array, 5, BLOCK=64), "argument x: .* found ndarray"),
        (lambda: count[(1,)](wrap(np.zeros(4, np.complex64)), 5, BLOCK=64), "argument x: Triton has no numbers of type complex64"),
        (lambda: count[(1,)](X, 1 << 70, BLOCK=64), "argument n: expected a number of 64 bits, found 1180591620717411303424"),
        (lambda: count[(1,)](X, 5, BLOCK=64, num_warps=3), "num_warps must be a power of 2"),
        (lambda: count[1](X, 5, BLOCK=64), "grid: expected a tuple of one to three numbers, found 1"),
        (lambda: count[()](X, 5, BLOCK=64), r"grid: .* found \(\)"),
        (lambda: count[(1, 1, 1, 1)](X, 5, BLOCK=64), r"grid: .* found \(1, 1, 1, 1\)"),
        (lambda: count[lambda meta: meta["BLOCK"]](X, 5, BLOCK=64), "grid: .* found 64"),
    ],
)
def test_arguments_that_do_not_fit_are_told_with_the_line_that_launches(launch, said):
    with (
        activate("sm_80"),
        pytest.raises(LaunchError, match=f"^launch of count at {HERE}:{launch.__code__.co_firstlineno}: {said}") as caught,
    ):
        launch()
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_a_block_names_the_kernel_and_is_triton_s_exception_too():
    tile = wrap(np.zeros((256, 256), np.float32))
    with activate("sm_80"), pytest.raises(ResourceError, match="^kernel square at .*: out of resource: shared memory") as caught:
        square[(1,)](tile, BLOCK=256)
    assert isinstance(caught.value, dsv2.Error) and isinstance(caught.value, OutOfResources)
    assert caught.value.limit == 166912


def test_an_exception_of_the_caller_s_own_grid_stays_as_it_is():
    with activate("sm_80"), pytest.raises(ZeroDivisionError):
        count[lambda meta: (1 // 0,)](X, 5, BLOCK=64)


def test_afterwards_triton_s_exceptions_are_its_own():
    before = triton.JITFunction.run
    with activate("sm_80"):
        assert triton.JITFunction.run is not before
    assert triton.JITFunction.run is before
