"""CUDA C++ by NVRTC or nvcc, whatever is installed."""

import ctypes

import numpy as np
import pytest
from conftest import have_cuda_compiler

from dsv2 import cuda
from dsv2.emulator import Struct

needs_compiler = pytest.mark.skipif(
    not have_cuda_compiler(), reason="no CUDA compiler installed: pip install nvidia-cuda-nvrtc nvidia-cuda-runtime"
)

SCALE = r"""
struct Arguments { float *data; int rows; int columns; long long stride; float scale; };

extern "C" __global__ void scale(const __grid_constant__ Arguments a) {
    int row = blockIdx.x, column = threadIdx.x;
    if (row < a.rows && column < a.columns) a.data[row * a.stride + column] *= a.scale;
}
"""


@needs_compiler
def test_a_struct_of_c_is_passed_by_value(rng):
    kernel = cuda.compile(SCALE)["scale"]
    data = rng.normal(size=(5, 40)).astype(np.float32)
    truth = data.copy()
    truth[:, :33] *= 2
    kernel.launch(Struct(data=data, rows=np.int32(5), columns=np.int32(33), stride=np.int64(40), scale=np.float32(2)), grid=5, block=64)
    np.testing.assert_array_equal(data, truth)


@needs_compiler
def test_faults_name_the_line_of_the_source(tmp_path):
    file = tmp_path / "last.cu"
    file.write_text('extern "C" __global__ void last(int *x, int n)\n{\n    x[n] = 1;\n}\n')
    with pytest.raises(cuda.emulator.KernelFault, match=r"last.cu:3") as caught:
        cuda.compile(file)["last"].launch(np.zeros(4, np.int32), 4, grid=1, block=1)
    assert caught.value.source == (str(file), 3)


@needs_compiler
def test_options_and_folders_reach_the_compiler(tmp_path):
    (tmp_path / "value.h").write_text("#define VALUE N\n")
    source = '#include "value.h"\nextern "C" __global__ void k(int *x) { *x = VALUE; }'
    x = np.zeros(1, np.int32)
    cuda.compile(source, include=[tmp_path], options=["-DN=42"])["k"].launch(x, grid=1, block=1)
    assert x[0] == 42


@needs_compiler
def test_other_targets_are_compiled_for():
    assert ".target sm_89" in cuda.ptx('extern "C" __global__ void k() {}', arch="sm_89")


@needs_compiler
def test_what_does_not_compile_is_one_line_and_a_log():
    with pytest.raises(cuda.CompileError, match="kernel.cu") as caught:
        cuda.compile('extern "C" __global__ void k(int *x) { *x = nothing; }')
    assert "\n" not in str(caught.value) and "nothing" in str(caught.value) and "nothing" in caught.value.log


def test_a_missing_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setattr(cuda, "_packages", list)
    with pytest.raises(cuda.CompileError, match="no CUDA compiler is installed: pip install nvidia-cuda-nvrtc nvidia-cuda-runtime"):
        cuda.compile('extern "C" __global__ void k() {}')
    with pytest.raises(cuda.CompileError, match="nvcc is not installed: pip install 'cuda-toolkit"):
        cuda.compile('extern "C" __global__ void k() {}', compiler="nvcc")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("nowhere.cu",), "nowhere.cu: expected a file of CUDA C++, found No such file"),
        (("int x;\n", "80"), "arch: expected such as sm_80, found '80'"),
        (("int x;\n", "sm_80", (), (), "gcc"), "compiler: expected nvcc or nvrtc, found 'gcc'"),
    ],
)
def test_a_wrong_request_is_one_line(args, line):
    with pytest.raises(cuda.CompileError) as caught:
        cuda.compile(*args)
    assert line in str(caught.value)


@needs_compiler
def test_names_of_cpp_find_their_kernels():
    source = "template <int N> __global__ void k(int *x) { *x = N; }\ntemplate __global__ void k<7>(int *);\n"
    module = cuda.compile(source + "namespace a { __global__ void other(int *x) { *x = 1; } }")
    x = np.zeros(1, np.int32)
    module["k"].launch(x, grid=1, block=1)
    assert x[0] == 7
    module["other"].launch(x, grid=1, block=1)
    assert x[0] == 1
    with pytest.raises(cuda.emulator.PtxError, match='no kernel "nothing"'):
        module["nothing"]


@needs_compiler
def test_structs_of_ctypes_are_taken_as_they_are():
    class Two(ctypes.Structure):
        _fields_ = [("a", ctypes.c_int8), ("b", ctypes.c_double)]

    x = np.zeros(1)
    source = 'struct Two { char a; double b; };\nextern "C" __global__ void k(Two t, double *x) { *x = t.a + t.b; }'
    cuda.compile(source)["k"].launch(Two(2, 0.5), x, grid=1, block=1)
    assert x[0] == 2.5


@needs_compiler
def test_a_text_is_told_from_a_file_and_one_option_from_several():
    module = cuda.compile('extern "C" __global__ void k(int *x) { x[0] = N; } // one line', options="-DN=4")
    x = np.zeros(1, np.int32)
    module["k"].launch(x, grid=1, block=1)
    assert x[0] == 4
    with pytest.raises(cuda.CompileError, match="expected CUDA C\\+\\+, or the name of a file of it, found nothing"):
        cuda.compile(" ")
    with pytest.raises(cuda.CompileError, match="nowhere.cu: expected a file of CUDA C"):
        cuda.compile("nowhere.cu")
