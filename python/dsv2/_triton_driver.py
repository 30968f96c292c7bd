"""Triton's driver and compiler for kernels on the emulator."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.backends.nvidia.compiler import CUDABackend, get_ptxas, sm_arch_from_capability
from triton.compiler import CompiledKernel

from dsv2 import _dsv2, emulator
from dsv2._dsv2 import LaunchError
from dsv2._triton_launch import Launcher

if TYPE_CHECKING:
    from dsv2.triton import Active

# What the programs of each target ask for: shared memory of a block in bytes, multiprocessors.
TARGETS = {"sm_80": (166912, 108), "sm_89": (101376, 142), "sm_90": (232448, 132)}


class Compiler(CUDABackend):
    """Triton's own, but for the last step: what is run is the PTX itself. ptxas still says whether the target has it all."""

    def add_stages(self, stages: Any, options: Any, language: Any) -> None:
        super().add_stages(stages, options, language)
        stages["cubin"] = lambda source, metadata: _accepted(source, metadata["name"], self.target.arch)

    def hash(self) -> str:
        return f"{super().hash()}-dsv2"


def _accepted(source: str, name: str, arch: int) -> bytes:
    """The PTX, if the assembler takes it for the target."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.ptx")
        file.write_text(source)
        words = [get_ptxas(arch).path, "--opt-level=0", f"--gpu-name={sm_arch_from_capability(arch)}", str(file), "-o", str(file) + ".o"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), f"status {done.returncode}")
        at = re.search(r"line (\d+)", said)
        text = f"line {at[1]}: `{source.splitlines()[int(at[1]) - 1].strip()}`: " if at else ""
        raise _dsv2.PtxError(f"kernel {name}, {text}sm_{arch} does not take it: {said.rpartition(': ')[2]}")
    return source.encode()


class Driver(DriverBase):
    """What Triton asks of a driver."""

    def __init__(self, active: Active):
        super().__init__()
        self.active_ = active
        self.target = GPUTarget("cuda", int(active.options["target"].removeprefix("sm_")), 32)
        self.utils = Utils(active.options["target"])
        self.launcher_cls = lambda source, metadata: Launcher(active.options["target"], source, metadata)

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        # Triton keeps compiled kernels by device: no GPU has such a number.
        return -self.target.arch

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_device_capability(self, device: int | None = None) -> tuple[int, int]:
        return divmod(self.target.arch, 10)

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        import torch

        return torch.cpu

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise LaunchError(f"the emulator has no launcher in C++ ({ty})")

    def get_benchmarker(self) -> Any:
        def refuse(call: Any, **_: Any) -> Any:
            raise LaunchError("the emulator measures no time: nothing can be tuned by it")

        return refuse

    def allocate_default_profile_scratch(self, size: int, alignment: int, stream: Any) -> Any:
        return None


def _unload(before: Callable[[Any], None], ours: type = emulator.Module) -> Callable[[Any], None]:
    """In place of `CompiledKernel.__del__`: a kernel of ours is no driver's to unload, least of all when Python ends."""

    def unload(kernel: Any) -> None:
        if type(getattr(kernel, "module", None)) is not ours:
            before(kernel)

    return unload


CompiledKernel.__del__ = _unload(CompiledKernel.__del__)


class Utils:
    """Modules and properties of the device."""

    def __init__(self, target: str):
        self.target = target

    def load_binary(self, name: str, ptx: bytes, shared: int, device: int) -> tuple[Any, Any, int, int, int]:
        """(module, function, registers, spills, threads of a block at most)"""
        module = emulator.load(ptx.decode())
        kernel = module[name]
        try:
            kernel.shared_bytes  # looks at every instruction
        except _dsv2.PtxError as error:
            raise _dsv2.PtxError(f"{error} (compiled for {self.target})") from None
        return module, kernel, 0, 0, 1024

    def unload_module(self, module: Any) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        shared, multiprocessors = TARGETS[self.target]
        return {
            "max_shared_mem": shared, "max_num_regs": 65536, "multiprocessor_count": multiprocessors, "warpSize": 32,
            "sm_clock_rate": 1410000, "mem_clock_rate": 1215000, "mem_bus_width": 5120,
        }  # fmt: skip
