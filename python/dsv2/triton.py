"""Triton kernels on the emulator, host code unmodified: `kernel[grid](...)` with CPU tensors.

    import dsv2.triton

    with dsv2.triton.activate("sm_80", races=True) as runs:
        add[(4,)](x, y, out, n, BLOCK=256)      # tensors of PyTorch, on the CPU; or wrap(array) of NumPy
    print(runs.last)

Needs triton 3.9 and no GPU. Kernels are compiled by Triton for the target, down to PTX.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dsv2 import _dsv2, emulator
from dsv2._checked import count, flag, one_of
from dsv2._dsv2 import LaunchError
from dsv2._shadow import Shadow

try:
    import triton
    from triton.backends import Backend, backends
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase
    from triton.backends.nvidia.compiler import CUDABackend, get_ptxas, sm_arch_from_capability
    from triton.compiler import CompiledKernel
    from triton.runtime import autotuner
except ImportError as error:
    raise ImportError(f"dsv2.triton needs triton 3.9 or newer (pip install triton): {error}") from None

from dsv2._triton_launch import Launcher, RaceError, UnwrittenError

__all__ = ["Active", "AutotuneWarning", "RaceError", "UnwrittenError", "activate", "wrap"]

# What the programs of each target ask for: shared memory of a block in bytes, multiprocessors.
TARGETS = {"sm_80": (166912, 108), "sm_89": (101376, 142), "sm_90": (232448, 132)}


# What is active, the newest at the end: each puts back what it found, so the newest goes first.
_ACTIVE: list[Active] = []
_LOCK = threading.Lock()


class AutotuneWarning(UserWarning):
    """A kernel was not tuned: which configuration it took."""


class wrap:
    """An array of NumPy as an argument of a Triton kernel. What the kernel writes is in the array. Any shape and strides."""

    def __init__(self, array: np.ndarray):
        if not isinstance(array, np.ndarray):
            raise LaunchError(f"wrap: expected an array of NumPy, found {type(array).__name__}")
        self.array = array
        self.dtype, self.shape, self.ndim = array.dtype, array.shape, array.ndim

    def data_ptr(self) -> int:
        return self.array.__array_interface__["data"][0]

    def stride(self, axis: int | None = None) -> Any:
        """In elements, as PyTorch counts them."""
        strides = tuple(stride // self.array.itemsize for stride in self.array.strides)
        return strides if axis is None else strides[axis]

    def numel(self) -> int:
        return self.array.size

    def element_size(self) -> int:
        return self.array.itemsize

    def __repr__(self) -> str:
        return f"wrap({self.dtype}{list(self.shape)})"


class Active:
    """The driver while it is active: what was launched, and `deactivate`. Also a context manager."""

    def __init__(self, options: dict[str, Any]):
        self.options = options
        self.launches: list[emulator.Launch] = []
        """The last 1000, the newest at the end."""
        self.device = emulator.Device()
        self.shadow = Shadow() if options["unwritten"] != "ignore" else None
        self.thread = threading.get_ident()
        self._undo: list[Callable[[], None]] = []

    @property
    def last(self) -> emulator.Launch:
        """The newest launch."""
        if not self.launches:
            raise LaunchError("nothing was launched yet")
        return self.launches[-1]

    def deactivate(self) -> None:
        """Gives Triton its own driver back, or that of the `activate` before. Raises LaunchError if a later one is active still."""
        with _LOCK:
            if not self._undo:
                return
            if _ACTIVE[-1] is not self:
                raise LaunchError("deactivate: what was activated later is active still, and must be deactivated first")
            while self._undo:
                self._undo.pop()()
            _ACTIVE.pop()

    def __enter__(self) -> Active:
        return self

    def __exit__(self, *_: object) -> None:
        self.deactivate()

    def __iter__(self) -> Iterator[emulator.Launch]:
        return iter(self.launches)

    def __repr__(self) -> str:
        return f"Triton on the emulator as {self.options['target']}: {len(self.launches)} launches"


def activate(
    target: str = "sm_80",
    *,
    races: bool | str = False,
    profile: bool = False,
    unwritten: str = "follow",
    autotune: Mapping[str, int | Mapping[str, Any] | Callable[[Any], bool]] | None = None,
    threads: int = 0,
    limit: int = emulator.LIMIT,
) -> Active:
    """Makes Triton compile for `target` ("sm_80", "sm_89" or "sm_90") and run on the emulator, until `deactivate` or the end of a
    `with`.

    races: look for accesses that nothing orders, and raise RaceError ("note": go on, they are in `Launch.races`). profile: count,
        see `Launch.profile`.
    unwritten: bytes that nobody wrote, among them those of what `torch.empty` made meanwhile and neither kernels nor PyTorch
        wrote since. "follow": UnwrittenError where they decide an address, a branch or an output; "stop": KernelFault where they
        are read; "ignore": nothing.
    autotune: which configuration a kernel of `@triton.autotune` takes, by the kernel's name: its number, some of its values
        (`{"BLOCK": 64}`), or a function of `triton.Config`. Nothing is measured: without it, it is the first one. An
        AutotuneWarning says which it was.
    """
    if races != "note":
        races = flag('races (or "note")', races)
    wishes = {} if autotune is None else autotune
    if not isinstance(wishes, Mapping) or not all(isinstance(name, str) and _is_wish(wish) for name, wish in wishes.items()):
        raise LaunchError(f"autotune: expected a number, values or a function for each kernel's name, found {autotune!r}")
    options = dict(
        target=one_of("target", target, TARGETS), races=races, profile=flag("profile", profile),
        unwritten=one_of("unwritten", unwritten, emulator.UNWRITTEN), threads=count("threads", threads), limit=count("limit", limit, 1, 64),
    )  # fmt: skip
    if triton.knobs.runtime.interpret:
        raise LaunchError("TRITON_INTERPRET is set: then Triton compiles nothing, and there is no PTX to run")
    with _LOCK:
        if _ACTIVE and _ACTIVE[-1].thread != threading.get_ident():
            raise LaunchError("activate: it is active in another thread, and Triton has one driver for all of them")
        return _activated(options, wishes)


def _is_wish(wish: Any) -> bool:
    """Whether this says which configuration a kernel takes."""
    return isinstance(wish, Mapping) or callable(wish) or (isinstance(wish, int) and not isinstance(wish, bool))


def _activated(options: dict[str, Any], wishes: Mapping[str, Any]) -> Active:
    active = Active(options)
    config = triton.runtime.driver
    before, nvidia, prune = config._active, backends["nvidia"], autotuner.Autotuner.prune_configs
    backends["nvidia"] = Backend(compiler=_Compiler, driver=nvidia.driver)
    config.set_active(_Driver(active))
    autotuner.Autotuner.prune_configs = _chooser(prune, dict(wishes))

    def undo() -> None:
        autotuner.Autotuner.prune_configs = prune
        backends["nvidia"] = nvidia
        config._active = before

    active._undo.append(undo)
    if active.shadow is not None:
        active._undo.append(active.shadow.watch_torch())
    _ACTIVE.append(active)
    return active


def _chooser(prune: Callable[..., Any], wanted: dict[str, Any]) -> Callable[..., Any]:
    """In place of `Autotuner.prune_configs`: leaves one configuration, so that nothing is measured."""
    said: weakref.WeakSet[Any] = weakref.WeakSet()

    def choose(tuner: Any, kwargs: Any) -> list[Any]:
        configs, name = prune(tuner, kwargs), tuner.base_fn.__name__
        wish = wanted.get(name, 0)
        if isinstance(wish, int):
            fits = [configs[wish]] if -len(configs) <= wish < len(configs) else []
        elif callable(wish):
            fits = [config for config in configs if wish(config)]
        else:
            fits = [config for config in configs if wish.items() <= config.all_kwargs().items()]
        if not fits:
            raise LaunchError(f"autotune: {name} has no such configuration as {wish!r}; it has {'; '.join(map(str, configs))}")
        if tuner not in said:
            said.add(tuner)
            how = "as asked" if name in wanted else "the first"
            warnings.warn(
                f"{name} is not tuned on the emulator; it takes {how} of {len(configs)}: {fits[0]}", AutotuneWarning, stacklevel=4
            )
        return fits[:1]

    return choose


class _Compiler(CUDABackend):
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


class _Driver(DriverBase):
    """What Triton asks of a driver."""

    def __init__(self, active: Active):
        super().__init__()
        self.active_ = active
        self.target = GPUTarget("cuda", int(active.options["target"].removeprefix("sm_")), 32)
        self.utils = _Utils(active.options["target"])
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


class _Utils:
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
