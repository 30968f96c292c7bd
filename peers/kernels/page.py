"""results.json, and from it the part of docs/kernels.md between two marks.

python peers/kernels/page.py        # renders anew, runs nothing
"""

import importlib.metadata
import json
import pathlib

from findings import FINDINGS

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
PAGE = HERE.parents[1] / "docs" / "kernels.md"
BEGIN, END = "<!-- begin: peers/kernels/page.py -->\n", "<!-- end: peers/kernels/page.py -->\n"
TOOLS = {
    "Triton": ("triton", "torch"),
    "CUDA C++": ("torch", "nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-runtime", "nvidia-cuda-cccl", "nvidia-curand"),
}


def tools(language: str) -> dict[str, str]:
    """The versions of what a kernel of this language is compiled and run with here."""
    return {name: importlib.metadata.version(name).partition("+")[0] for name in TOOLS[language]}


def recorded() -> dict[tuple, dict]:
    """The rows of results.json."""
    return {key(row): row for row in json.loads(RESULTS.read_text())["rows"]} if RESULTS.exists() else {}


def record(rows: list[dict]) -> None:
    """Puts rows in the place of those with the same kernel, target and workload; what was not run keeps its row, with the versions
    that it ran with.
    """
    new = {key(row): row for row in rows}
    kept = recorded()
    kept.update({place: row for place, row in new.items() if row["verdict"] != "not run" or place not in kept})
    ordered = sorted(kept.values(), key=lambda row: (row["library"], row["operator"], row["kernel"], row["target"], row["test"]))
    lines = ",\n".join(json.dumps(row, sort_keys=True) for row in ordered)
    RESULTS.write_text(f'{{"rows": [\n{lines}\n]}}\n')
    write()


def write() -> None:
    """Puts what `rendered` makes into the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + rendered() + END + after)


def rendered() -> str:
    """The tables and the findings."""
    results = json.loads(RESULTS.read_text())
    kernels: dict[tuple, list[dict]] = {}
    for row in results["rows"]:
        kernels.setdefault(key(row)[:5], []).append(row)
    numbers = {name: place for place, name in enumerate(_found(results["rows"]), 1)}
    targets: dict[tuple, set[str]] = {}
    for row in results["rows"]:
        targets.setdefault((row["library"], row["test"]), set()).add(row["target"])
    several = {test for test, of_it in targets.items() if len(of_it) > 1}
    lines = [
        *_versions(results["rows"]),
        "",
        "| kernel | operator | target | right on | worst error, of its budget | memory | same bits | races | bytes asked / needed | findings | `pytest peers/kernels/` |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_line(rows, numbers, several) for rows in kernels.values()),
        "",
        *_notes(kernels),
        "",
        "### Findings",
        "",
        *(_finding(place, name, results["rows"]) for name, place in numbers.items()),
    ]
    return "\n".join(lines) + "\n"


def key(row: dict) -> tuple:
    """What a row is of."""
    return row["library"], row["operator"], row["kernel"], row["target"], row["test"], row["workload"]


def _versions(rows: list[dict]) -> list[str]:
    """With what the rows ran. A line for each set of versions."""
    sets: dict[tuple, set[str]] = {}
    for row in rows:
        if row["verdict"] != "not run":
            sets.setdefault((row["language"], *row["tools"].items()), set()).add(row["test"])
    several = len({language for language, *_ in sets}) < len(sets)
    return [
        f"{language} ran with {', '.join(f'{name} {version}' for name, version in versions)}"
        + (f": {', '.join(sorted(tests))}." if several else ".")
        for (language, *versions), tests in sorted(sets.items())
    ]


def _found(rows: list[dict]) -> list[str]:
    names = {row.get("finding") for row in rows if row["verdict"] != "not run"}
    return [name for name in FINDINGS if name in names]


def _line(rows: list[dict], numbers: dict[str, int], several: set[tuple]) -> str:
    first = rows[0]
    run = [row for row in rows if row["verdict"] != "not run"]
    head = f"| {first['library']} {first['version']} `{first['kernel']}` | `{first['operator']}` | {first['target']}"
    one = f" and {first['target']}" if (first["library"], first["test"]) in several else ""
    command = f"`{first['file']} -k '{first['test']}[{one}'`"
    if not run:
        return f"{head} | not run | | | | | | | {command} |"
    right = [row for row in run if row["verdict"] == "pass"]
    worst = max((row["worst"] for row in right if row["worst"]), key=lambda worst: worst["ratio"], default=None)
    races = max(row["races"] for row in run)
    asked = sorted(row["asked"] / row["needed"] for row in right if row["asked"] and row["needed"])
    found = sorted({numbers[row["finding"]] for row in run if row["finding"]})
    cells = [
        f"{len(right)} of {len(run)}",
        f"{worst['error']:.1e}, {worst['ratio']:.2f} ({worst['output']}, {worst['measure']})" if worst else "",
        _memory(run),
        _same_bits(run),
        str(races or "none"),
        f"{asked[0]:.1f} to {asked[-1]:.1f}" if asked else "",
        ", ".join(f"[{place}](#finding-{place})" for place in found),
        command,
    ]
    return f"{head} | {' | '.join(cells)} |"


def _memory(run: list[dict]) -> str:
    """Whether something was out of bounds, or unwritten and used or left. A fault ends a call."""
    launched = [row for row in run if row["launches"]]
    faults = sum(row["verdict"] == "fault" or "nobody wrote" in row["said"] for row in launched)
    said = f"{faults} faults" if faults else "clean"
    return said if len(launched) == len(run) else f"{said}, of {len(launched)} that ran"


def _same_bits(run: list[dict]) -> str:
    """Two calls are compared where the first one is right."""
    if any(row["same_bits"] is False for row in run):
        return "no"
    compared = sum(row["same_bits"] is True for row in run)
    return "yes" if compared == len(run) else f"yes, of {compared} compared"


def _notes(kernels: dict[tuple, list[dict]]) -> list[str]:
    """What adapters do beside the call, and which workloads they leave out."""
    lines = []
    for rows in kernels.values():
        first = rows[0]
        said = [first["note"]] if first["note"] else []
        said += [f"not asked: {workload!r} ({why})" for workload, why in first["without"].items()]
        said += sorted({f"not run: {row['said']}" for row in rows if row["verdict"] == "not run"})
        if said:
            lines.append(f"* {first['library']} `{first['kernel']}`, `{first['operator']}`, {first['target']}: {'; '.join(said)}")
    return lines


def _finding(place: int, name: str, rows: list[dict]) -> str:
    finding = FINDINGS[name]
    where = [row for row in rows if row.get("finding") == name]
    kernels = ", ".join(dict.fromkeys(f"{row['library']} {row['version']} `{row['kernel']}`" for row in where))
    workloads = ", ".join(dict.fromkeys(row["workload"] for row in where))
    tests = " ".join(dict.fromkeys(f"peers/kernels/{row['file']}" for row in where))
    names = " or ".join(dict.fromkeys(row["test"] for row in where))
    return (
        f'<a id="finding-{place}"></a>**{place}. {name[0].upper()}{name[1:]}** ({kernels}; {workloads}). {finding.text} '
        f"See it: `pytest {tests} -k '{names}' --findings`; in the small: "
        f"[{finding.reproduce}](../peers/kernels/findings/{finding.reproduce}), `pytest peers/kernels/findings/{finding.reproduce}`.\n"
    )


if __name__ == "__main__":
    write()
