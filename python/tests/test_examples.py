"""The examples, as a reader would run them."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import have_cuda_compiler, need

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*words) -> str:
    # Not from beside the sources of the package: it is the one that is installed.
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_ptx():
    lines = run(EXAMPLES / "ptx.py").splitlines()
    assert "neighbours: race on 4 bytes of shared memory" in lines[0] and "no race" in lines


@pytest.mark.skipif(not have_cuda_compiler(), reason="no CUDA compiler installed: pip install nvidia-cuda-nvrtc nvidia-cuda-runtime")
def test_cuda_struct(tmp_path):
    page = tmp_path / "page.html"
    assert run(EXAMPLES / "cuda_struct.py", page).splitlines() == ["32 columns: 992 bank conflicts", "33 columns: 0 bank conflicts"]
    assert "tile[threadIdx.y][threadIdx.x] = x.data" in page.read_text()


@need("triton")
def test_softmax():
    assert "1 passed, 1 xfailed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLES / "test_softmax.py")


@need("safetensors")
def test_judge():
    text = run(EXAMPLES / "judge.py")
    assert text.startswith("pass: ") and "first wrong stage: model.layers.1.mlp\nfail: " in text
