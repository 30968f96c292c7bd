"""Triton kernels on the emulator, host code unmodified: `kernel[grid](...)` with CPU tensors.

    import dsv2.triton

    with dsv2.triton.activate("sm_80", races=True) as runs:
        add[(4,)](x, y, out, n, BLOCK=256)      # tensors of PyTorch, on the CPU; or wrap(array) of NumPy
    print(runs.last)

Needs triton 3.9 and no GPU. Kernels are compiled by Triton for the target, down to PTX.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from dsv2 import emulator
from dsv2._arrays import no_numbers
from dsv2._checked import count, flag, one_of
from dsv2._dsv2 import LaunchError
from dsv2._shadow import Shadow

try:
    import triton
    from triton.backends import Backend, backends
    from triton.runtime import autotuner
    from triton.runtime.jit import JITFunction
except ImportError as error:
    raise ImportError(f"dsv2.triton needs triton 3.9 or newer (pip install triton): {error}") from None

from dsv2._triton_driver import TARGETS, Compiler, Driver
from dsv2._triton_errors import CompileError, ResourceError, in_one_line
from dsv2._triton_launch import RaceError, UnwrittenError

__all__ = ["Active", "AutotuneWarning", "CompileError", "RaceError", "ResourceError", "UnwrittenError", "activate", "wrap"]

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
        if no_numbers(array.dtype):
            raise LaunchError(f"wrap: expected numbers, found an array of {array.dtype}")
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
    unwritten: bytes that nobody wrote, among them those of what `torch.empty` made meanwhile and nobody wrote since, by whatever
        means. "follow": UnwrittenError where they decide an address, a branch or an output; "stop": KernelFault where they
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
    before, nvidia = config._active, backends["nvidia"]
    prune, run = autotuner.Autotuner.prune_configs, autotuner.Autotuner.run
    launch = JITFunction.run
    backends["nvidia"] = Backend(compiler=Compiler, driver=nvidia.driver)
    config.set_active(Driver(active))
    autotuner.Autotuner.prune_configs = _chooser(prune, dict(wishes))
    autotuner.Autotuner.run = _remembering_apart(run)
    JITFunction.run = in_one_line(launch)

    def undo() -> None:
        autotuner.Autotuner.prune_configs, autotuner.Autotuner.run, JITFunction.run = prune, run, launch
        backends["nvidia"] = nvidia
        config._active = before

    active._undo.append(undo)
    if active.shadow is not None:
        active._undo.append(active.shadow.watch_torch())
    _ACTIVE.append(active)
    return active


def _remembering_apart(run: Callable[..., Any]) -> Callable[..., Any]:
    """In place of `Autotuner.run`: what was chosen before, on a GPU or with other wishes, is not chosen now, nor this then."""
    chosen: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()

    def run_apart(tuner: Any, *args: Any, **kwargs: Any) -> Any:
        before, tuner.cache = tuner.cache, chosen.setdefault(tuner, {})
        try:
            return run(tuner, *args, **kwargs)
        finally:
            tuner.cache = before

    return run_apart


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
                f"{name} is not tuned on the emulator; it takes {how} of {len(configs)}: {fits[0]}", AutotuneWarning, stacklevel=5
            )
        return fits[:1]

    return choose
