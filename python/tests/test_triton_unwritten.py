"""Memory that `torch.empty` made is unwritten until somebody writes it, and what depends on it is found."""

import numpy as np
import pytest

pytest.importorskip("triton", reason="not installed: triton")
torch = pytest.importorskip("torch", reason="not installed: torch")

import kernels_triton as kernels

from dsv2 import KernelFault
from dsv2.triton import UnwrittenError, activate


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.fill_(1),
        lambda x: x.data.fill_(1),
        lambda x: x.numpy().fill(1),
        lambda x: np.from_dlpack(x.detach()).fill(1),
        lambda x: x.view(torch.uint8).numpy().fill(1),
        lambda x: memoryview(x.numpy()).cast("B").__setitem__(slice(None), bytes(4 * len(x))),
    ],
)
@pytest.mark.parametrize("count", [1, 2, 64])
@pytest.mark.parametrize("inference", [False, True])
def test_whoever_writes_what_torch_empty_made_has_written_it(runs, write, count, inference):
    with torch.inference_mode(inference):
        x, out = torch.empty(count), torch.ones(count)
        with pytest.raises(UnwrittenError):
            kernels.copy[(1,)](x, out, count, BLOCK=64)
        write(x)
        kernels.copy[(1,)](x, out, count, BLOCK=64)
    assert torch.equal(out, x)


def test_what_is_written_in_part_is_unwritten_in_the_rest(runs):
    for write in (lambda part: part.zero_(), lambda part: part.numpy().fill(0)):
        x, out = torch.empty(64), torch.empty(64)
        write(x[:40])
        kernels.copy[(1,)](x, out, 40, BLOCK=64)
        assert runs.last.left == {"x": 96, "out": 96}
        with pytest.raises(UnwrittenError, match="depends on bytes that nobody wrote"):
            kernels.copy[(1,)](x, out, 41, BLOCK=64)
        write(x[40:])
        kernels.copy[(1,)](x, out, 64, BLOCK=64)
        assert torch.equal(out, torch.zeros(64))


def test_what_torch_empty_made_is_unwritten_until_it_is_written(runs):
    x, out = torch.empty(64), torch.empty(64)
    with pytest.raises(UnwrittenError, match="what is stored in global memory depends on bytes that nobody wrote, .*kernels_triton.py"):
        kernels.copy[(1,)](x, out, 64, BLOCK=64)
    x.zero_()
    kernels.copy[(1,)](x, out[:32], 32, BLOCK=64)
    assert runs.last.left == {"out": 128}
    kernels.copy[(1,)](out[:32], x, 32, BLOCK=64)
    with pytest.raises(UnwrittenError, match="depends on bytes that nobody wrote"):
        kernels.copy[(1,)](out, x, 64, BLOCK=64)
    with activate("sm_80", unwritten="ignore"):
        kernels.copy[(1,)](torch.empty(64), x, 64, BLOCK=64)
    with activate("sm_80", unwritten="stop"), pytest.raises(KernelFault, match="not initialised: byte 0 of x"):
        kernels.copy[(1,)](torch.empty(64), x, 64, BLOCK=64)


def test_memory_that_comes_again_is_another_tensor_s(runs):
    target = torch.zeros(4096)
    for _ in range(20):
        torch.empty(4096)
        again = torch.ones(4096)  # often at the same address
        kernels.copy[(4,)](again, target, 4096, BLOCK=1024)
        assert (target == 1).all()
