#!/usr/bin/env python3
"""Compiles CUDA C++ to PTX with one pinned NVRTC, without a GPU, a driver or a CUDA toolkit.

    pip install nvidia-cuda-nvrtc-cu12==12.4.127
    python optimized/nvrtc.py FILE.cu ...            writes FILE.ptx beside each
    python optimized/nvrtc.py --check FILE.cu ...    compares instead; exits with 1 if one differs

PTX of NVRTC 12.4 is version 8.4, which drivers from 550 on accept. The output is the same bytes on every machine: the
path in the `.file` line, the only thing that depends on the place, is cut to the file's name.
"""

import argparse
import ctypes
import importlib.util
import re
import sys
from pathlib import Path

VERSION = (12, 4)
OPTIONS = ["--gpu-architecture=compute_80", "--std=c++17", "-lineinfo", "-default-device"]


def library() -> ctypes.CDLL:
    """NVRTC of the pip package, its builtins first: they are not found otherwise."""
    package = importlib.util.find_spec("nvidia.cuda_nvrtc") if importlib.util.find_spec("nvidia") else None
    if package is None:
        sys.exit("NVRTC: expected the package nvidia-cuda-nvrtc-cu12==12.4.127, found none")
    folder = Path(next(iter(package.submodule_search_locations))) / "lib"
    for builtins in folder.glob("libnvrtc-builtins.so*"):
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(str(next(folder.glob("libnvrtc.so*"))))
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    if (major.value, minor.value) != VERSION:
        sys.exit(f"NVRTC: expected version {VERSION[0]}.{VERSION[1]}, found {major.value}.{minor.value}")
    return nvrtc


def text(nvrtc: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> str:
    """The PTX or the log of a program; both end in NUL, which no reader wants."""
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
    return buffer.value.decode()


def compile_to_ptx(nvrtc: ctypes.CDLL, path: Path) -> str:
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), path.read_bytes(), path.name.encode(), 0, None, None
    )
    options = [option.encode() for option in [*OPTIONS, f"--include-path={path.parent}"]]
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    if status != 0:
        sys.exit(f"{path}: {text(nvrtc, 'ProgramLog', program)}")
    ptx = text(nvrtc, "PTX", program)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return re.sub(r'(?m)^(\s*\.file\s+\d+\s+)"[^"]*?([^"/]+)"', r'\1"\2"', ptx)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the PTX that is there")
    parser.add_argument("sources", nargs="+", type=Path, metavar="FILE.cu")
    arguments = parser.parse_args()
    nvrtc = library()
    different = []
    for source in arguments.sources:
        ptx, beside = compile_to_ptx(nvrtc, source), source.with_suffix(".ptx")
        if not arguments.check:
            beside.with_suffix(".ptx.new").write_text(ptx)
            beside.with_suffix(".ptx.new").rename(beside)
        elif not beside.exists() or beside.read_text() != ptx:
            different.append(str(beside))
    if different:
        sys.exit(f"not what their sources compile to: {', '.join(different)}")


if __name__ == "__main__":
    main()
