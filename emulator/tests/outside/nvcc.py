"""Makes tests/outside/*.ptx from the .cu files beside them, or compares with --check.

Needs nvcc without a toolkit or a GPU, from PyPI, in the interpreter's environment:

    pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl nvidia-nvvm
    python emulator/tests/outside/nvcc.py [--check]
"""

import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
# What made the committed files; another version makes other text.
VERSION = "13.5.37"


def nvcc():
    try:
        files = importlib.metadata.files("nvidia-cuda-nvcc") or []
        version = importlib.metadata.version("nvidia-cuda-nvcc")
    except importlib.metadata.PackageNotFoundError:
        sys.exit("nvidia-cuda-nvcc is not installed: see the head of this file")
    if version != VERSION:
        sys.exit(f"nvidia-cuda-nvcc is {version}; the committed files were made by {VERSION}")
    return next(str(file.locate()) for file in files if file.name == "nvcc")


def compile(compiler, source):
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "out.ptx"
        command = [compiler, "-ptx", "-arch=sm_80", "-std=c++17", "-DNDEBUG", "-w", source.name, "-o", str(out)]
        subprocess.run(command, cwd=source.parent, check=True)
        text = out.read_text()
    # Comments, and blank lines, say nothing.
    lines = [re.sub(r"\s*//.*", "", line).rstrip() for line in text.splitlines()]
    return "\n".join(line for line in lines if line) + "\n"


def main():
    compiler, check = nvcc(), "--check" in sys.argv[1:]
    wrong = []
    for source in sorted(HERE.glob("*.cu")):
        made, target = compile(compiler, source), source.with_suffix(".ptx")
        if not check:
            target.write_text(made)
        elif not target.exists() or target.read_text() != made:
            wrong.append(target.name)
    if wrong:
        sys.exit(f"not what their sources compile to: {', '.join(wrong)}")


main()
