"""A launch as a page: what each line of the source cost, and who races there."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsv2.emulator import Launch

COLUMNS = ["instr.", "flop", "bytes read", "written", "sectors / ideal", "conflicts"]
STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #1b1f24; background: #fff }
pre, table { font: 12px/1.35 ui-monospace, monospace } table { border-collapse: collapse }
td { padding: 0 .6em; white-space: pre } td.n { text-align: right; color: #333 } th { text-align: right; padding: 0 .6em; font-weight: 600 }
tr.race td { background: #ffe3e0 } tr.race td.code { font-weight: 600 } td.no { color: #767676; text-align: right }
li { margin: .3em 0 }
"""


def page(launch: Launch, path: str | os.PathLike[str] | None) -> str:
    """The page; also written to `path`, if there is one."""
    grid, block = "x".join(map(str, launch.grid)), "x".join(map(str, launch.block))
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{escape(launch.kernel)}</title><style>{STYLE}</style>",
        f"<h1>{escape(launch.kernel)}</h1><p>grid {grid}, block {block}, {launch.warp_instructions} instructions of warps</p>",
        _races(launch),
        *_sources(launch),
    ]
    if launch.profile is not None:
        parts.append(f"<h2>Profile</h2><pre>{escape(repr(launch.profile))}</pre>")
    text = "\n".join(parts) + "\n"
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


def _races(launch: Launch) -> str:
    if launch.races is None:
        return ""
    if not launch.races:
        return "<p>Races: none.</p>"
    return "<h2>Races</h2><ul>" + "".join(f"<li>{escape(repr(race))}</li>" for race in launch.races) + "</ul>"


def _sources(launch: Launch) -> list[str]:
    """A table for each file of the source that is there to be read."""
    costs: dict[str, dict[int, Any]] = {}
    for (file, line), counts in launch.profile.by_source if launch.profile is not None else []:
        costs.setdefault(file, {})[line] = counts
    racing: dict[str, set[int]] = {}
    for race in launch.races or []:
        for side in (race.first, race.second):
            if side.source is not None:
                racing.setdefault(side.source[0], set()).add(side.source[1])
    return [_table(file, costs.get(file, {}), racing.get(file, set())) for file in [*costs, *(racing.keys() - costs.keys())]]


def _table(file: str, costs: dict[int, Any], racing: set[int]) -> str:
    try:
        code = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        code = []
    touched = costs.keys() | racing
    # Of a long file, what surrounds the lines that did something.
    shown = sorted({near for line in touched for near in range(max(1, line - 4), line + 5) if near <= len(code) or near in touched})
    rows, last = [], 0
    for line in shown:
        if last and line > last + 1:
            rows.append(f"<tr><td colspan={len(COLUMNS) + 2}>...</td></tr>")
        cells = "".join(f"<td class=n>{cell}</td>" for cell in _cells(costs.get(line)))
        text = escape(code[line - 1]) if line <= len(code) else ""
        rows.append(f"<tr{' class=race' if line in racing else ''}>{cells}<td class=no>{line}</td><td class=code>{text}</td></tr>")
        last = line
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    return f"<h2>{escape(file)}</h2><table><tr>{head}<th></th><th></th></tr>{''.join(rows)}</table>"


def _cells(counts: Any) -> list[str]:
    if counts is None:
        return [""] * len(COLUMNS)
    numbers = [counts.warp_instructions, counts.flops, counts.global_.read, counts.global_.written]
    cells = [f"{number:,}" if number else "" for number in numbers]
    cells.append(f"{counts.sectors:,} / {counts.ideal_sectors:,}" if counts.sectors else "")
    return [*cells, f"{counts.bank_conflicts:,}" if counts.bank_conflicts else ""]
