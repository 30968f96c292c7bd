"""What came of a launch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from dsv2 import _html
from dsv2._dsv2 import Profile, Race, Use


@dataclass(repr=False)
class Launch:
    """What came of a launch."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    warp_instructions: int
    thread_instructions: int
    races: list[Race] | None
    """The races, one for each pair of lines; None if nobody looked."""
    equal_stores: list[Race] | None
    """Races of stores of equal values, which harm nobody: compilers emit them. None if nobody looked."""
    rounded_stores: list[Race] | None
    """Races of lanes or warps that by one instruction store the same but for rounding; the text says how far apart. None if nobody looked."""
    unused_reads: list[Race] | None
    """Races of reads whose value the thread throws away, so that it does not matter which it was. None if nobody looked."""
    profile: Profile | None
    """What it cost; None if nobody counted."""
    unwritten: list[Use] = field(default_factory=list)
    """Where bytes that nobody wrote decided something, if they were followed."""
    left: dict[str, int] = field(default_factory=dict)
    """How many bytes the kernel left unwritten, by the parameter's name: of arrays that `out` marked, or `torch.empty` made."""

    @classmethod
    def of(cls, kernel: str, grid: tuple[int, int, int], block: tuple[int, int, int], done: Any, left: dict[str, int]) -> Launch:
        """What the device says, and what came back."""
        counts = done.warp_instructions, done.thread_instructions
        races = done.races, done.equal_stores, done.rounded_stores, done.unused_reads
        return cls(kernel, grid, block, *counts, *races, done.profile, done.unwritten, left)

    def __repr__(self) -> str:
        lines = [f"{self.kernel}: grid {self.grid}, block {self.block}, {self.warp_instructions} instructions of warps"]
        if self.races is not None:
            lines += [f"races: {len(self.races) or 'none'}", *(f"  {race!r}" for race in self.races)]
            lines += [f"differ by rounding: {race!r}" for race in self.rounded_stores or []]
            lines += [f"read and thrown away: {race!r}" for race in self.unused_reads or []]
        lines += [f"unwritten bytes: {use!r}" for use in self.unwritten]
        lines += [f"left unwritten: {count} bytes of {name}" for name, count in self.left.items()]
        lines += [] if self.profile is None else [repr(self.profile)]
        return "\n".join(lines)

    def html(self, path: str | os.PathLike[str] | None = None) -> str:
        """Races and profile beside the lines of the source, as a page; written to `path`, if there is one."""
        return _html.page(self, path)

    def _repr_html_(self) -> str:
        return _html.page(self, None)
