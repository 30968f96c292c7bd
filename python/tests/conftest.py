"""What the tests share. What is not installed is skipped, and pytest says which and why (-ra)."""

import importlib.util

import numpy as np
import pytest

# The judge's factor and floor of the l2 error of f32 (metrics/src/budget.rs).
FACTOR, FLOOR = 2.9, 1.2e-7


def need(*modules: str):
    """Skips a file where one of these is not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def have_cuda_compiler() -> bool:
    from dsv2 import cuda

    try:
        cuda.ptx('extern "C" __global__ void k() {}')
    except cuda.CompileError:
        return False
    return True


def l2(got, truth) -> float:
    """Relative error in the Euclidean norm, in f64."""
    got, truth = np.asarray(got, np.float64), np.asarray(truth, np.float64)
    return float(np.linalg.norm(got - truth) / np.linalg.norm(truth))


def agrees(got, truth, plain) -> bool:
    """Whether an error is what a plain computation in the same type explains, by the judge's own budget."""
    return l2(got, truth) <= FACTOR * max(l2(plain, truth), FLOOR)


@pytest.fixture
def rng():
    return np.random.default_rng(18)


@pytest.fixture
def runs():
    """Triton on the emulator."""
    from dsv2.triton import activate

    with activate("sm_80") as runs:
        yield runs
