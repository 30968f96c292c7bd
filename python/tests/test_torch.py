"""Tensors of PyTorch, handed to PTX as they are."""

import numpy as np
import pytest
from conftest import have_cuda_compiler

torch = pytest.importorskip("torch", reason="not installed: torch")

from torch._subclasses import FakeTensorMode

from dsv2 import KernelFault, LaunchError, cuda
from dsv2.emulator import Struct, out, strided

pytestmark = pytest.mark.skipif(
    not have_cuda_compiler(), reason="no CUDA compiler installed: pip install nvidia-cuda-nvrtc nvidia-cuda-runtime"
)

SOURCE = r"""
struct Pair { const float *left, *right; };
extern "C" __global__ void add(const __grid_constant__ Pair x, float *out, int stride) {
    out[threadIdx.x] = x.left[threadIdx.x * stride] + x.right[threadIdx.x * stride];
}
extern "C" __global__ void halve(unsigned short *bf16, float *wide) {
    wide[threadIdx.x] = __uint_as_float((unsigned)bf16[threadIdx.x] << 16) / 2;
}
"""


@pytest.fixture(scope="module")
def module():
    return cuda.compile(SOURCE)


def test_bfloat16_goes_by_its_bits(module):
    x, wide = torch.randn(40).bfloat16(), torch.empty(40)
    module["halve"].launch(x, out(wide), grid=1, block=40)
    assert torch.equal(wide, x.float() / 2)


def test_views_tensors_and_arrays_of_one_storage_are_one_allocation(module):
    both = torch.arange(64.0).reshape(2, 32)
    left, right = both[0], both.numpy()[1]
    result = np.zeros(32, np.float32)
    module["add"].launch(Struct(left=left, right=right), out(result), 1, grid=1, block=32)
    np.testing.assert_array_equal(result, both.sum(0).numpy())
    # 33 threads: the left row ends in the right one, as on a device; the right one ends at the end.
    with pytest.raises(KernelFault, match="byte 256 of .*, which has 256"):
        module["add"].launch(Struct(left=left, right=right), np.zeros(33, np.float32), 1, grid=1, block=33)


def test_a_transposed_tensor_goes_only_if_the_kernel_knows(module):
    x, result = torch.arange(64.0).reshape(32, 2), torch.zeros(32)
    column = x.T[1]
    with pytest.raises(LaunchError, match=r"argument 0 \(add_param_0\): float32\[32\] has gaps"):
        module["add"].launch(Struct(left=column, right=column), result, 2, grid=1, block=32)
    module["add"].launch(Struct(left=strided(column), right=strided(column)), result, 2, grid=1, block=32)
    assert torch.equal(result, 2 * column)


def _without_memory(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: torch.zeros(40, device="meta"), r"a tensor float32\[40\] on meta: the emulator takes tensors on the CPU"),
        (lambda: torch.zeros(40, 2).to_sparse(), r"in layout torch.sparse_coo: expected torch.strided"),
        (lambda: torch.zeros(40, dtype=torch.complex64).conj(), r"a tensor complex64\[40\] with a conjugation"),
        (lambda: torch.zeros(40, 2)[:, 0], r"float32\[40\] has gaps"),
        (lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "a nested tensor: expected one of one shape"),
        (lambda: _without_memory(torch.zeros(40)), r"a Tensor float32\[40\] of which 0 bytes are in memory"),
        (lambda: FakeTensorMode().from_tensor(torch.zeros(40)), r"a FakeTensor float32\[40\] of which 0 bytes are in memory"),
    ],
)
def test_a_tensor_that_cannot_go_is_one_line(module, make, line):
    with pytest.raises(LaunchError, match=line) as caught:
        module["halve"].launch(make(), torch.zeros(40), grid=1, block=40)
    assert "\n" not in str(caught.value) and "argument 0 (halve_param_0)" in str(caught.value)


def test_a_tensor_of_a_transformation_cannot_go(module):
    def halved(x):
        module["halve"].launch(x, torch.zeros(40), grid=1, block=40)
        return x

    with pytest.raises(LaunchError, match=r"argument 0 \(halve_param_0\): a \w+ "):
        torch.func.vmap(halved)(torch.zeros(3, 40))


def test_what_requires_a_gradient_goes_too(module):
    x, wide = torch.ones(4, dtype=torch.bfloat16), torch.zeros(4, requires_grad=True)
    module["halve"].launch(x, wide, grid=1, block=4)
    assert wide.tolist() == [0.5] * 4
