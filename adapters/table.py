"""Renders CONFORMANCE.md from the rows of results.json."""

import collections
import re

from implementations import IMPLEMENTATIONS
from notes import INTRO, NOTES

VERDICTS = {"pass": "pass", "fail": "FAIL", "crashed": "CRASHED", "not supported": "NOT SUPPORTED"}


def number(value: float) -> str:
    """2.3e-4"""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def spread(values: list[float | None]) -> str:
    """One number, or from the least to the largest."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return "—"
    low, high = number(known[0]), number(known[-1])
    return low if low == high else f"{low} to {high}"


def tensors(rows: list[dict]) -> str:
    """How many tensors were compared."""
    counts = sorted({row["stages"] for row in rows})
    return f"{' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} tensor{'s' * (counts[-1] > 1)}"


def cause(row: dict) -> str:
    """What would have to be changed in the model to give what the implementation gives."""
    if row["verdict"] != "fail":
        return row.get("message", "")
    found = row.get("explanation") or []
    return (
        " Or: ".join(one["what"] for one in found[:3]) if found else "no single change of the reference that we know reproduces it"
    )


def groups(rows: list[dict]) -> list[str]:
    """Lines of a table: runs with the same outcome share one."""
    alike = collections.defaultdict(list)
    for row in rows:
        place = row.get("stage") if row["verdict"] == "fail" else None
        alike[
            (row["dtype"] != "f32", row["dtype"], list(VERDICTS).index(row["verdict"]), place or "", re.sub(r"\d+", "", cause(row)))
        ].append(row)
    lines = ["| type | verdict | local | propagated | budget | cause, or message | cases |", "|---|---|---|---|---|---|---|"]
    for (_, dtype, verdict, place, _), members in sorted(alike.items()):
        why = cause(members[0])  # they may differ in a number
        name = list(VERDICTS.values())[verdict]
        at = f" at `{place}`" if place else f", {tensors(members)}" if name == "pass" else ""
        errors = " | ".join(spread([row.get(kind) for row in members]) for kind in ("local", "propagated", "budget"))
        cases = ", ".join(row["case"] + ("†" if "without" in row else "") for row in members)
        lines.append(f"| {dtype} | {name}{at} | {errors} | {why.replace('|', chr(92) + '|')} | {cases} |")
    return lines


def render(rows: list[dict]) -> str:
    """The whole file."""
    runs = collections.defaultdict(list)
    for row in rows:
        runs[row["implementation"], row["version"], row["settings"]].append(row)
    summary = [
        "| implementation | version | settings | type | pass | FAIL | CRASHED | NOT SUPPORTED |",
        "|---|---|---|---|---|---|---|---|",
    ]
    sections = []
    for implementation in IMPLEMENTATIONS:
        own = [(name, members) for name, members in runs.items() if name[0] == implementation.id]
        if not own:
            summary.append(f"| {implementation.title} | | NOT RUN | | | | | |")
            continue
        own.sort(key=lambda run: [-int(part) if part.isdigit() else 0 for part in run[0][1].split(".")])
        sections += [f"## {implementation.title}", "", f"Compared: {implementation.exposes}. {NOTES[implementation.id]}", ""]
        for (_, version, settings), members in own:
            for dtype in sorted({row["dtype"] for row in members}, key=lambda dtype: dtype != "f32"):
                counts = collections.Counter(row["verdict"] for row in members if row["dtype"] == dtype)
                cells = " | ".join(str(counts[verdict]) for verdict in VERDICTS)
                summary.append(f"| {implementation.title} | {version} | {settings} | {dtype} | {cells} |")
            dates = sorted({row["date"] for row in members})
            sections += [
                f"### {version}, {settings} ({' to '.join(dict.fromkeys((dates[0], dates[-1])))})",
                "",
                *groups(members),
                "",
            ]
    legend = "† with the token ids only: the masks and positions of the case are left out on both sides."
    return "\n".join([INTRO, *summary, "", legend, "", *sections]).rstrip() + "\n"
