"""Renders docs/implementations.md: the tables from the rows of results.json, the words from page.md."""

import collections
import re

from peers import HERE, JUDGED

VERDICTS = {"pass": "pass", "fail": "FAIL", "crashed": "CRASHED", "not supported": "NOT SUPPORTED", "inconclusive": "INCONCLUSIVE"}


def number(value: float) -> str:
    """2.3e-4"""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def span(texts: list[str]) -> str:
    """One text, or the first and the last of several in order."""
    return " to ".join(dict.fromkeys((texts[0], texts[-1])))


def spread(values: list[float | None]) -> str:
    """One number, or from the least to the largest."""
    known = sorted(value for value in values if value is not None)
    return span([number(value) for value in known]) if known else "—"


def tensors(rows: list[dict]) -> str:
    """How many tensors were compared."""
    counts = sorted(row["stages"] for row in rows)
    return f"{span([str(count) for count in counts])} tensor{'s' * (counts[-1] > 1)}"


def cause(row: dict) -> str:
    """What would have to be changed in the model to give what the implementation gives."""
    if row["verdict"] != "fail":
        return row.get("message", "")
    found = [one["what"] for one in row.get("explanation") or []]
    return " Or: ".join(found[:3]) or "no single change of the reference that we know reproduces it"


def table(rows: list[dict]) -> list[str]:
    """Runs with the same outcome share a line."""
    alike = collections.defaultdict(list)
    for row in rows:
        place = row["stage"] if row["verdict"] == "fail" else ""
        outcome = (row["dtype"] != "f32", list(VERDICTS).index(row["verdict"]), place, re.sub(r"\d+", "", cause(row)))
        alike[outcome].append(row)
    lines = ["| type | verdict | local | propagated | budget | cause, or message | cases |", "|---|---|---|---|---|---|---|"]
    for (_, _, place, _), members in sorted(alike.items()):
        first = members[0]  # the causes of the others may differ in a number
        at = f" at `{place}`" if place else f", {tensors(members)}" if first["verdict"] == "pass" else ""
        errors = " | ".join(spread([row.get(kind) for row in members]) for kind in ("local", "propagated", "budget"))
        cases = ", ".join(row["case"] + ("†" if "without" in row else "") for row in members)
        why = cause(first).replace("|", r"\|")
        lines.append(f"| {first['dtype']} | {VERDICTS[first['verdict']]}{at} | {errors} | {why} | {cases} |")
    return lines


def render(rows: list[dict]) -> str:
    """The whole page."""
    summary = [
        f"| implementation | version | settings | type | {' | '.join(VERDICTS.values())} |",
        "|---|---|---|---|" + "---|" * len(VERDICTS),
    ]
    text = (HERE / "page.md").read_text()
    for peer in JUDGED:
        runs = collections.defaultdict(list)
        for row in rows:
            if row["implementation"] == peer.id:
                runs[row["version"], row["settings"]].append(row)
        if not runs:
            summary.append(f"| {peer.title} | | NOT RUN |" + " |" * (1 + len(VERDICTS)))
        newest_first = sorted(runs, key=lambda run: [-int(part) if part.isdigit() else 0 for part in run[0].split(".")])
        sections = []
        for version, settings in newest_first:
            members = runs[version, settings]
            for dtype in sorted({row["dtype"] for row in members}, key=lambda dtype: dtype != "f32"):
                counts = collections.Counter(row["verdict"] for row in members if row["dtype"] == dtype)
                cells = " | ".join(str(counts[verdict]) for verdict in VERDICTS)
                summary.append(f"| {peer.title} | {version} | {settings} | {dtype} | {cells} |")
            dates = span(sorted(row["date"] for row in members))
            sections += [f"### {version}, {settings} ({dates})", "", *table(members), ""]
        text = text.replace(f"{{{peer.id}}}", "\n".join(sections).rstrip() or "NOT RUN.")
    return text.replace("{summary}", "\n".join(summary))
