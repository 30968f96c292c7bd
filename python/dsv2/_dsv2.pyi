"""The part of the package that is Rust."""

from collections.abc import Sequence
from typing import Any

version: str

class Error(Exception):
    """What went wrong, in one line. All exceptions of dsv2 are of this class."""

class PtxError(Error):
    """The text is no PTX, or holds what the emulator does not know."""

class LaunchError(Error):
    """A launch whose arguments, grid or memory do not fit."""

class KernelFault(Error):
    """A thread did what it must not do: read or wrote out of bounds, read bytes that nobody wrote, waited for ever, ..."""

    kernel: str
    opcode: str
    line: int
    source: tuple[str, int] | None
    block: tuple[int, int, int]
    thread: tuple[int, int, int] | None

class RequestError(Error):
    """A request or a file is at fault: what, where, expected, found."""

class InternalError(Error):
    """A bug of dsv2 itself. Please report it."""

class Parameter:
    """A parameter of a kernel."""

    name: str
    element: str
    count: int
    bytes: int
    align: int

class Module:
    """A PTX module."""

    def __init__(self, text: str) -> None: ...
    @property
    def kernels(self) -> list[str]: ...
    @property
    def target(self) -> str: ...
    @property
    def version(self) -> tuple[int, int]: ...
    def parameters(self, kernel: str) -> list[Parameter]: ...
    def required_threads(self, kernel: str) -> tuple[int, int, int] | None: ...
    def shared_bytes(self, kernel: str) -> int: ...

class Access:
    """One side of a race."""

    kind: str
    opcode: str
    line: int
    source: tuple[str, int] | None
    block: tuple[int, int, int]
    thread: int
    text: str

class Race:
    """Two accesses of the same bytes, at least one of them a write, that nothing orders."""

    kernel: str
    space: str
    address: int
    bytes: int
    first: Access
    second: Access
    count: int
    apart: float
    """Of `rounded_stores`: how far two values are from each other at most, relative to the larger one; 0.0 of others."""
    text: str

class Use:
    """Bytes that nobody wrote, where they decided something."""

    kind: str
    kernel: str
    read: tuple[str, int, tuple[str, int] | None]
    used: tuple[str, int, tuple[str, int] | None]
    block: tuple[int, int, int]
    thread: tuple[int, int, int]
    count: int
    text: str

class Traffic:
    """Bytes of one kind of memory."""

    requests: int
    read: int
    written: int
    atomic: int

class Counts:
    """Numbers of one line, or of all of them."""

    warp_instructions: int
    thread_instructions: int
    flops: int
    global_: Traffic
    shared: Traffic
    local: Traffic
    sectors: int
    ideal_sectors: int
    wavefronts: int
    bank_conflicts: int

class Line:
    """What the instructions with one opcode on one line of the PTX did."""

    kernel: str
    line: int
    source: tuple[str, int] | None
    opcode: str
    kind: str
    counts: Counts

class Profile:
    """What one or more launches did. Its `repr` is a table."""

    @property
    def launched(self) -> tuple[int, int, int]: ...
    @property
    def total(self) -> Counts: ...
    @property
    def lines(self) -> list[Line]: ...
    @property
    def by_source(self) -> list[tuple[tuple[str, int], Counts]]: ...

class Launched:
    """What came of a launch."""

    warp_instructions: int
    thread_instructions: int
    races: list[Race] | None
    equal_stores: list[Race] | None
    rounded_stores: list[Race] | None
    unused_reads: list[Race] | None
    unwritten: list[Use]
    profile: Profile | None

class Device:
    """Memory that lives from launch to launch."""

    def __init__(self, memory: int) -> None: ...
    def allocate(self, bytes: int, name: str) -> int: ...
    def free(self, address: int) -> None: ...
    def write(self, address: int, data: Any) -> None: ...
    def read_written(self, address: int, data: Any) -> int: ...
    def read(self, address: int, bytes: int) -> bytes: ...
    def printed(self) -> str: ...
    @property
    def memory(self) -> tuple[int, int]: ...
    def launch(
        self,
        module: Module,
        kernel: str,
        *,
        grid: Sequence[int],
        block: Sequence[int],
        shared: int,
        args: list[bytes],
        unwritten: str,
        races: bool,
        profile: bool,
        threads: int,
        limit: int,
        cooperative: bool,
    ) -> Launched: ...

def command(args: list[str]) -> tuple[str, int]:
    """What `dsv2 ARGS` prints, and its exit status."""
