"""One launch of a compiled kernel of Triton."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import triton
from triton.backends.driver import decompose_descriptor, expand_signature

from dsv2 import _dsv2, emulator
from dsv2._arrays import HostArray, Transfer, host_array
from dsv2._checked import count
from dsv2._dsv2 import LaunchError, Race, Use

if TYPE_CHECKING:
    from dsv2.triton import Active

KEPT = 1000


class RaceError(_dsv2.Error):
    """Accesses of a kernel that nothing orders; stores of equal values are none. `races` has them all, `launch` what else is known of the launch."""

    def __init__(self, launch: emulator.Launch):
        self.launch = launch
        self.races: list[Race] = launch.races or []
        super().__init__(f"{self.races[0]!r}" + (f" (and {len(self.races) - 1} more)" if len(self.races) > 1 else ""))


class UnwrittenError(_dsv2.Error):
    """Bytes that nobody wrote decided something. `uses` has all places, `launch` what else is known of the launch."""

    def __init__(self, launch: emulator.Launch):
        self.launch = launch
        self.uses: list[Use] = launch.unwritten
        super().__init__(f"{self.uses[0]!r}" + (f" (and {len(self.uses) - 1} more)" if len(self.uses) > 1 else ""))


WIDTHS = {"i1": 1, "u1": 1, "i8": 1, "u8": 1, "i16": 2, "u16": 2, "i32": 4, "u32": 4, "i64": 8, "u64": 8}


class Launcher:
    """One compiled kernel."""

    def __init__(self, target: str, source: Any, metadata: Any):
        self.metadata = metadata
        if getattr(metadata, "num_ctas", 1) > 1:
            raise LaunchError(f"{metadata.name}: num_ctas={metadata.num_ctas}: the emulator has no clusters of blocks")
        if getattr(metadata, "tensordesc_meta", None):
            raise LaunchError(
                f"{metadata.name}: tensor descriptors of {target} are tensor maps (TMA), which the emulator does not have; sm_80 does without"
            )
        names = getattr(source, "fn", None) and source.fn.arg_names
        self.names = list(names or source.signature)
        self.signature = list(source.signature.values())

    def __call__(
        self, x: int, y: int, z: int, stream: Any, function: emulator.Kernel, packed: Any, launch_metadata: Any, enter: Any, leave: Any,
        *args: Any,
    ) -> None:  # fmt: skip
        x, y, z = (count(f"launch of {self.metadata.name}: grid", size) for size in (x, y, z))
        if x * y * z == 0:
            return
        if enter is not None:
            enter(launch_metadata)
        self._launch((x, y, z), function, args)
        if leave is not None:
            leave(launch_metadata)

    def _flat(self, args: tuple[Any, ...]) -> Iterator[tuple[str, str, Any]]:
        """Name, type and value of what the compiled kernel gets: no constants, tuples in pieces."""

        def walk(name: str, kind: Any, value: Any) -> Iterator[tuple[str, str, Any]]:
            if isinstance(kind, tuple):
                for index, (inner, entry) in enumerate(zip(kind, value)):
                    yield from walk(f"{name}[{index}]", inner, entry)
            elif kind.startswith("tensordesc"):
                for inner, entry in zip(expand_signature([kind], None, "nvTmaDesc"), decompose_descriptor(value)):
                    yield name, inner, entry
            elif kind != "constexpr":
                yield name, kind, value

        for name, kind, value in zip(self.names, self.signature, args):
            yield from walk(name, kind, value)

    def _launch(self, grid: tuple[int, int, int], kernel: emulator.Kernel, args: tuple[Any, ...]) -> None:
        # Triton keeps launchers: this one may be older than what is active now.
        active: Active = triton.runtime.driver.active.active_
        options, name = active.options, self.metadata.name
        machine = active.device._device
        transfer = Transfer(machine)
        flat, arrays = list(self._flat(args)), dict[int, HostArray]()
        for index, (argument, kind, value) in enumerate(flat):
            if kind.startswith("*") and value is not None and not isinstance(value, int):
                try:
                    found = host_array(getattr(value, "array", value))
                    if found is None:
                        raise LaunchError(f"expected a tensor on the CPU or wrap(array), found {type(value).__name__}")
                    arrays[index] = found
                except LaunchError as error:
                    raise LaunchError(f"launch of {name}: argument {argument}: {error}") from None
                transfer.add(found, argument)
        scratch = [0, 0]
        try:
            if active.shadow is not None:
                active.shadow.mark(transfer)
            transfer.upload()
            for index, size in enumerate((self.metadata.global_scratch_size, self.metadata.profile_scratch_size)):
                if size:
                    scratch[index] = machine.allocate(size * grid[0] * grid[1] * grid[2], "scratch memory")
            packed = [
                struct.pack("<Q", transfer.address(arrays[index])) if index in arrays else _scalar(name, argument, kind, value)
                for index, (argument, kind, value) in enumerate(flat)
            ] + [struct.pack("<Q", address) for address in scratch]
            parameters = kernel.parameters
            if len(packed) != len(parameters):
                raise LaunchError(
                    f"launch of {name}: {len(packed)} arguments where the PTX has {len(parameters)}: this Triton is unknown to dsv2"
                )
            packed = [data.ljust(parameter.bytes, b"\0") for data, parameter in zip(packed, parameters)]
            block = kernel.required_block or (32 * self.metadata.num_warps, 1, 1)
            done = machine.launch(
                kernel.module._module, kernel.name, grid=grid, block=block, shared=self.metadata.shared, args=packed,
                unwritten=options["unwritten"], races=bool(options["races"]), profile=options["profile"], threads=options["threads"],
                limit=options["limit"], cooperative=self.metadata.launch_cooperative_grid,
            )  # fmt: skip
            left = active.shadow.keep(transfer) if active.shadow is not None else {}
            transfer.download()
        finally:
            sys.stdout.write(machine.printed())
            transfer.free()
            for address in filter(None, scratch):
                machine.free(address)
        launch = emulator.Launch.of(name, grid, block, done, left)
        active.launches.append(launch)
        del active.launches[:-KEPT]
        if launch.unwritten:
            raise UnwrittenError(launch)
        if launch.races and options["races"] != "note":
            raise RaceError(launch)


def _scalar(kernel: str, name: str, kind: str, value: Any) -> bytes:
    """A number, as Triton's type has it."""
    wrong = LaunchError(f"launch of {kernel}: argument {name}: expected {kind}, found {type(value).__name__} {value!r}")
    try:
        if kind.startswith("*"):
            return struct.pack("<Q", value or 0)
        if kind in WIDTHS:
            number, bits = int(value), 8 * WIDTHS[kind]
            if not -(1 << (bits - 1)) <= number < 1 << bits:
                raise wrong
            return (number & ((1 << bits) - 1)).to_bytes(bits // 8, "little")
        if kind == "bf16":
            bits = int(np.float32(value).view(np.uint32))
            return (((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) & 0xFFFF).to_bytes(2, "little")
        return struct.pack({"fp16": "<e", "fp32": "<f", "f32": "<f", "fp64": "<d"}[kind], value)
    except (KeyError, TypeError, ValueError, struct.error, OverflowError):
        raise wrong from None
