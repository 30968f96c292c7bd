"""A loss that is stored in bf16 has 8 bits, in whatever it was computed."""

import pytest
import torch
import triton
import triton.language as tl
from dsv2.triton import activate


@triton.jit
def loss(logits, out, BLOCK: tl.constexpr):
    z = tl.load(logits + tl.arange(0, BLOCK)).to(tl.float32)
    tl.store(out, tl.log(tl.sum(tl.exp(z - tl.max(z)))) + tl.max(z) - tl.sum(tl.where(tl.arange(0, BLOCK) == 0, z, 0.0)))


@pytest.mark.parametrize(("dtype", "least", "most"), [(torch.bfloat16, 1e-4, 4e-3), (torch.float32, 0, 1e-6)])
def test_the_type_that_holds_it(dtype, least, most):
    logits = (torch.randn(1024, generator=torch.Generator().manual_seed(3)) * 4).bfloat16()
    out = torch.zeros(1, dtype=dtype)
    with activate("sm_80"):
        loss[(1,)](logits, out, BLOCK=1024)
    truth = torch.nn.functional.cross_entropy(logits.double()[None], torch.tensor([0]))
    assert least <= abs(out.double() - truth) / truth <= most
