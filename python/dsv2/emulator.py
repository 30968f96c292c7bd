"""CUDA kernels on the CPU: PTX is run instruction by instruction, and every access is checked.

    import numpy as np
    from dsv2 import emulator

    module = emulator.load("saxpy.ptx")
    x, y = np.ones(1000, np.float32), np.zeros(1000, np.float32)
    run = module["saxpy"].launch(x, y, 2.0, 1000, grid=4, block=256, races=True, profile=True)
    assert not run.races
    print(run.profile)

Arrays are NumPy's or CPU tensors of PyTorch. They are passed by address: views of one storage reach the kernel as one
allocation, and what the kernel writes is in them when `launch` returns.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv2 import _dsv2
from dsv2._arrays import Out, Transfer, host_array
from dsv2._checked import count, flag, one_of, several
from dsv2._device import Device, DeviceArray, default
from dsv2._dsv2 import KernelFault, LaunchError, Parameter, Profile, PtxError, Race, Use
from dsv2._launch import Launch
from dsv2._pack import Struct, leaves, pack

__all__ = [
    "Device",
    "DeviceArray",
    "Kernel",
    "KernelFault",
    "Launch",
    "LaunchError",
    "Module",
    "Parameter",
    "Profile",
    "PtxError",
    "Race",
    "Struct",
    "Use",
    "load",
    "out",
    "strided",
]

LIMIT = 1 << 30
# What happens when bytes are read that nobody wrote.
UNWRITTEN = ("stop", "follow", "ignore")


def load(source: str | os.PathLike[str]) -> Module:
    """The kernels of a PTX text, or of a file of PTX."""
    if not isinstance(source, (str, os.PathLike)):
        raise PtxError(f"source: expected a file of PTX, or its text, found {type(source).__name__}")
    if not isinstance(source, os.PathLike) and not source.strip():
        raise PtxError("source: expected a file of PTX, or its text, found nothing")
    if isinstance(source, os.PathLike) or "\n" not in source:
        path = Path(source)
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise PtxError(f"{path}: expected a file of PTX, found {getattr(error, 'strerror', None) or 'no text'}") from None
        try:
            return Module(text)
        except PtxError as error:
            raise PtxError(f"{path}: {error}") from None
    return Module(source)


def out(array: Any) -> Out:
    """An array whose bytes count as unwritten when the launch begins: the kernel must not read them before it wrote them, and
    `Launch.left` says if it left some as they were. The array has no gaps: any shape, contiguous.
    """
    return Out(array)


@dataclass
class Strided:
    """See `strided`."""

    array: Any


def strided(array: Any) -> Strided:
    """An array with gaps between its elements, for a kernel that knows its strides."""
    return Strided(array)


class Module(Mapping[str, "Kernel"]):
    """The kernels of one PTX text, by name. A name of C++ will do, if only one kernel has it."""

    def __init__(self, text: str):
        self.ptx = text
        try:
            self._module = _dsv2.Module(text)
        except UnicodeEncodeError:
            raise PtxError("source: expected text, found a half of a surrogate pair in it") from None
        self._kernels = {name: Kernel(self, name) for name in self._module.kernels}

    @property
    def target(self) -> str:
        """`.target`, such as `sm_80`."""
        return self._module.target

    @property
    def version(self) -> tuple[int, int]:
        """`.version`, such as `(8, 4)`."""
        return self._module.version

    def __getitem__(self, name: str) -> Kernel:
        if not isinstance(name, str):
            raise PtxError(f"a kernel of the module: expected its name, found {name!r}")
        if name in self._kernels:
            return self._kernels[name]
        # A name of C++, as the compiler writes it: its length before it.
        mangled = [kernel for kernel in self._kernels if kernel.startswith("_Z") and f"{len(name)}{name}" in kernel]
        if len(mangled) != 1:
            raise PtxError(f'no kernel "{name}" in the module; it has: {", ".join(self)}')
        return self._kernels[mangled[0]]

    def __contains__(self, name: object) -> bool:
        return name in self._kernels

    def __iter__(self) -> Iterator[str]:
        return iter(self._kernels)

    def __len__(self) -> int:
        return len(self._kernels)

    def __repr__(self) -> str:
        return "\n".join([f"PTX for {self.target}, {len(self)} kernels", *(f"  {kernel!r}" for kernel in self.values())])


class Kernel:
    """A kernel of a module."""

    def __init__(self, module: Module, name: str):
        self.module, self.name = module, name

    @property
    def parameters(self) -> list[Parameter]:
        """Its parameters, in order: `name`, `element` (`u64`, `f32`, `b8`), `count`, `bytes`, `align`."""
        return self.module._module.parameters(self.name)

    @property
    def shared_bytes(self) -> int:
        """Bytes of its static shared memory. Raises PtxError, if the kernel holds an instruction that is not supported."""
        return self.module._module.shared_bytes(self.name)

    @property
    def required_block(self) -> tuple[int, int, int] | None:
        """The threads of a block, if the kernel says them (`.reqntid`, `__launch_bounds__` does not)."""
        return self.module._module.required_threads(self.name)

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(map(repr, self.parameters))})"

    def launch(
        self,
        *args: Any,
        grid: int | tuple[int, ...],
        block: int | tuple[int, ...] | None = None,
        shared: int = 0,
        device: Device | None = None,
        names: list[str] | None = None,
        unwritten: str = "stop",
        races: bool = False,
        profile: bool = False,
        cooperative: bool = False,
        threads: int = 0,
        limit: int = LIMIT,
    ) -> Launch:
        """Runs the kernel and waits for its end; Ctrl-C ends it.

        args: one for each parameter. Arrays of NumPy and CPU tensors of PyTorch, of any shape, without gaps (else `strided`);
            `out(array)`; a DeviceArray; numbers, which take the parameter's type and must fit it; structs by value: `Struct`,
            `ctypes.Structure`, records of NumPy, bytes; None for a null pointer.
        grid: blocks in x, y, z. block: threads of each. shared: bytes of dynamic shared memory.
        device: where DeviceArrays are. names: of the arguments, for messages.
        unwritten: what happens when bytes are read that nobody wrote. "stop": KernelFault. "follow": the values are followed, and
            `Launch.unwritten` tells where they decide something. "ignore": nothing.
        races: look for accesses that nothing orders. profile: count. cooperative: all blocks run at once, and may wait for
            each other at barriers of the grid.
        threads: of the host, 0 for all cores. limit: warp instructions after which a block counts as endless.

        Raises LaunchError if arguments do not fit, PtxError for instructions that are not known, KernelFault if a thread does
        what it must not do.
        """
        parameters = self.parameters
        if device is not None and not isinstance(device, Device):
            raise LaunchError(f"launch of {self.name}: device: expected a Device of dsv2.emulator, found {device!r}")
        options = dict(
            unwritten=one_of("unwritten", unwritten, UNWRITTEN), races=flag("races", races), profile=flag("profile", profile),
            threads=count("threads", threads), limit=count("limit", limit, 1, 64), cooperative=flag("cooperative", cooperative),
        )  # fmt: skip
        if len(args) != len(parameters):
            raise LaunchError(f"launch of {self.name}: expected {len(parameters)} arguments ({self!r}), found {len(args)}")
        names = [parameter.name for parameter in parameters] if names is None else several("names", names, (str,), "names")
        if len(names) != len(parameters):
            raise LaunchError(f"names: expected {len(parameters)}, one for each argument, found {len(names)}")
        machine = (device or default())._device
        transfer = Transfer(machine)
        known: dict[int, Any] = {}

        def address(value: Any) -> int | None:
            if isinstance(value, DeviceArray):
                return value.address
            found = known.get(id(value))
            return None if found is None else transfer.address(found)

        def packed(index: int) -> bytes:
            try:
                return pack(parameters[index], args[index], address)
            except LaunchError as error:
                raise LaunchError(f"launch of {self.name}: argument {index} ({names[index]}): {error}") from None

        for index, arg in enumerate(args):
            for leaf in leaves(arg):
                try:
                    self._take(leaf, names[index], known, transfer, device)
                except LaunchError as error:
                    raise LaunchError(f"launch of {self.name}: argument {index} ({names[index]}): {error}") from None
        sizes = self._sizes(grid, block)
        try:
            transfer.upload()
            done = machine.launch(
                self.module._module, self.name, grid=sizes[0], block=sizes[1], shared=count("shared", shared),
                args=[packed(index) for index in range(len(args))], **options,
            )  # fmt: skip
            left = transfer.download()
        finally:
            sys.stdout.write(machine.printed())
            transfer.free()
        return Launch.of(self.name, *sizes, done, left)

    def _take(self, leaf: Any, name: str, known: dict[int, Any], transfer: Transfer, device: Device | None) -> None:
        """Notes an array of the arguments."""
        if isinstance(leaf, DeviceArray):
            if leaf.device is not (device or default()):
                raise LaunchError("an array of another device")
            return
        value = leaf.array if isinstance(leaf, (Out, Strided)) else leaf
        array = host_array(value)
        if array is None:
            if value is not leaf:
                raise LaunchError(f"{type(leaf).__name__.lower()}() of {type(value).__name__}: expected an array")
            return
        if not array.contiguous and not isinstance(leaf, Strided):
            raise LaunchError(
                f"{array.said} has gaps between its elements: make it contiguous, or strided(..) if the kernel knows its strides"
            )
        known[id(leaf)] = array
        transfer.add(array, name, isinstance(leaf, Out))

    def _sizes(self, grid: Any, block: Any) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        if block is None:
            block = self.required_block
        if block is None:
            raise LaunchError(f"launch of {self.name}: block is missing, and the kernel does not say it (.reqntid)")
        return _three("grid", grid), _three("block", block)


def _three(what: str, value: Any) -> tuple[int, int, int]:
    sizes = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not 1 <= len(sizes) <= 3:
        raise LaunchError(f"{what}: expected one to three numbers, found {value!r}")
    x, y, z = (*(count(what, size) for size in sizes), 1, 1)[:3]
    return x, y, z
