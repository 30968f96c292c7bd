"""CUDA C++ to kernels on the emulator, by a compiler from PyPI: no toolkit, no driver, no GPU.

    from dsv2 import cuda

    module = cuda.compile('extern "C" __global__ void twice(float *x) { x[threadIdx.x] *= 2; }', arch="sm_80")
    module["twice"].launch(x, grid=1, block=32)

Either package will do:

    pip install nvidia-cuda-nvrtc nvidia-cuda-runtime                       # NVRTC: kernels and the headers of CUDA
    pip install 'cuda-toolkit[nvcc,cccl]'                                   # nvcc: files as they are, compiler and headers of one release
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsv2 import _dsv2, emulator
from dsv2._checked import several
from dsv2.emulator import Module, Struct

__all__ = ["CompileError", "Module", "Struct", "compile", "ptx"]

NVRTC = "pip install nvidia-cuda-nvrtc nvidia-cuda-runtime"
NVCC = "pip install 'cuda-toolkit[nvcc,cccl]'"


class CompileError(_dsv2.Error):
    """The source does not compile. The first line says where and why; `log` is all that the compiler said."""

    def __init__(self, message: str, log: str = ""):
        super().__init__(message)
        self.log = log


def compile(
    source: str | os.PathLike[str],
    arch: str = "sm_80",
    include: Sequence[str | os.PathLike[str]] = (),
    options: Sequence[str] = (),
    compiler: str | None = None,
) -> Module:
    """The kernels of a text or a file of CUDA C++.

    arch: "sm_80", "sm_89", "sm_90a", ... include: folders of headers. options: for the compiler, such as "-DN=4".
    compiler: "nvcc" or "nvrtc"; if nobody says, nvcc where it is installed. Kernels keep plain names with `extern "C"`.
    """
    text = ptx(source, arch, include, options, compiler)
    return emulator.load(text)


def ptx(
    source: str | os.PathLike[str],
    arch: str = "sm_80",
    include: Sequence[str | os.PathLike[str]] = (),
    options: Sequence[str] = (),
    compiler: str | None = None,
) -> str:
    """The same as PTX."""
    if not isinstance(arch, str) or not re.fullmatch(r"(sm|compute)_\d+[af]?", arch):
        raise CompileError(f"arch: expected such as sm_80, found {arch!r}")
    if compiler not in (None, "nvcc", "nvrtc"):
        raise CompileError(f"compiler: expected nvcc or nvrtc, found {compiler!r}")
    if not isinstance(source, (str, os.PathLike)):
        raise CompileError(f"source: expected CUDA C++, or the name of a file of it, found {type(source).__name__}")
    include = several("include", include, (str, os.PathLike), "folders", CompileError)
    options = several("options", options, (str,), "words", CompileError)
    for what, words in (("source", [source]), ("include", include), ("options", options)):
        for word in words:
            _plain(what, os.fspath(word))
    folders = _packages()
    nvcc = next((found for folder in folders if (found := folder / "bin" / "nvcc").is_file()), None)
    nvrtc = next((found for folder in folders for found in sorted((folder / "lib").glob("libnvrtc.so*"))), None)
    # the compiler's own headers before those of another version
    own = [found.parents[1] for found in (nvcc if compiler != "nvrtc" else None, nvrtc) if found is not None][:1]
    folders = own + [folder for folder in folders if folder not in own]
    headers = [Path(folder) for folder in include] + [folder / "include" for folder in folders if (folder / "include").is_dir()]
    if not isinstance(source, os.PathLike) and not source.strip():
        raise CompileError("source: expected CUDA C++, or the name of a file of it, found nothing")
    if isinstance(source, os.PathLike) or not any(mark in source for mark in "\n{};"):
        path = Path(source)
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise CompileError(f"{path}: expected a file of CUDA C++, found {getattr(error, 'strerror', None) or 'no text'}") from None
        headers.insert(0, path.resolve().parent)
        name = str(path)
    else:
        text, name = source, "kernel.cu"
    if compiler == "nvcc" and nvcc is None:
        raise CompileError(f"nvcc is not installed: {NVCC}")
    if compiler == "nvrtc" and nvrtc is None:
        raise CompileError(f"NVRTC is not installed: {NVRTC}")
    if nvcc is not None and compiler != "nvrtc":
        return _by_nvcc(nvcc, text, name, arch, headers, options)
    if nvrtc is not None:
        return _by_nvrtc(nvrtc, text, name, arch, headers, options)
    raise CompileError(f"no CUDA compiler is installed: {NVRTC} (or, for nvcc, {NVCC})")


def _plain(what: str, text: Any) -> None:
    """What a compiler of C can be handed: NVRTC would take a text for one that ends at its first zero."""
    if isinstance(text, str) and ("\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text)):
        raise CompileError(f"{what}: expected text, found a zero or a half of a surrogate pair in it")


def _packages() -> list[Path]:
    """The folders of the packages nvidia-*: nvidia/cu13, or nvidia/cuda_nvcc and its like of CUDA 12. The newest first."""
    found = importlib.util.find_spec("nvidia")
    roots = list(found.submodule_search_locations or []) if found is not None else []
    return sorted((folder for root in roots for folder in Path(root).iterdir() if folder.name.startswith("cu")), reverse=True)


def _by_nvcc(nvcc: Path, text: str, name: str, arch: str, headers: list[Path], options: Sequence[str]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        if name == "kernel.cu":
            Path(folder, name).write_text(text)
        made = Path(folder, "out.ptx")
        source = name if name != "kernel.cu" else str(Path(folder, name))
        includes = [f"-I{folder}" for folder in headers]
        command = [str(nvcc), "-ptx", f"-arch={arch}", "-lineinfo", "-std=c++17", *includes, *options, "-o", str(made), source]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        log = done.stdout + done.stderr
        if done.returncode or not made.exists():
            raise CompileError(_first_error(log.replace(f"{folder}/", ""), name), log)
        return made.read_text()


def _by_nvrtc(path: Path, text: str, name: str, arch: str, headers: list[Path], options: Sequence[str]) -> str:
    # Its builtins first: they are not found otherwise.
    for builtins in path.parent.glob("libnvrtc-builtins.so*"):
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(str(path))
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p

    def call(function: str, *args: object) -> int:
        return getattr(nvrtc, function)(*args)

    def said(what: str) -> str:
        size = ctypes.c_size_t()
        call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        call(f"nvrtcGet{what}", program, buffer)
        return buffer.value.decode(errors="replace")

    program = ctypes.c_void_p()
    if status := call("nvrtcCreateProgram", ctypes.byref(program), text.encode(), name.encode(), 0, None, None):
        raise CompileError(f"NVRTC: {nvrtc.nvrtcGetErrorString(status).decode()}")
    try:
        virtual = arch.replace("sm_", "compute_")
        words = [
            f"--gpu-architecture={virtual}",
            "-lineinfo",
            "--std=c++17",
            "-default-device",
            *(f"-I{folder}" for folder in headers),
            *options,
        ]
        encoded = [word.encode() for word in words]
        status = call("nvrtcCompileProgram", program, len(encoded), (ctypes.c_char_p * len(encoded))(*encoded))
        log = said("ProgramLog")
        if status:
            raise CompileError(_first_error(log, name) if log.strip() else f"NVRTC: {nvrtc.nvrtcGetErrorString(status).decode()}", log)
        return said("PTX")
    finally:
        call("nvrtcDestroyProgram", ctypes.byref(program))


def _first_error(log: str, name: str) -> str:
    """The line of a compiler's log that matters most."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    found = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "the compiler gave no reason")
    return found if name in found else f"{name}: {found}"
