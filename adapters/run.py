"""Puts the golden cases to other people's implementations and writes CONFORMANCE.md.

    python adapters/run.py --dsv2 target/release/dsv2 --with transformers=VENV/bin/python --with candle=PATH/dsv2-adapter-candle

`--with` may be given several times, also for several versions of one implementation. What is not given keeps its rows in
results.json. Without `--with`, CONFORMANCE.md is rendered from results.json. Needs Python 3.10 and no package.
"""

import argparse
import contextlib
import datetime
import fnmatch
import json
import pathlib
import subprocess
import sys
import tempfile

from implementations import HERE, IMPLEMENTATIONS, Implementation, Setting, read_cases
from judge import Dsv2, keep_tensors, summary
from table import render

REPOSITORY = HERE.parent
RESULTS = HERE / "results.json"


class Runner:
    """Runs one adapter, through the fork server if it is in Python."""

    def __init__(self, implementation: Implementation, program: str):
        self.command = implementation.command(program)
        self.server = None
        if implementation.package is not None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.server = subprocess.Popen(self.command, text=True, **pipes)

    def run(self, arguments: list[str]) -> tuple[int, str]:
        """The exit status, and the last line printed."""
        if self.server is None:
            done = subprocess.run([*self.command, *arguments], capture_output=True, text=True)
            return done.returncode, next(iter(done.stderr.strip().splitlines()[-1:]), "")
        print(json.dumps(arguments), file=self.server.stdin, flush=True)
        line = self.server.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.command[-1]} does not start: run it by hand to see why")
        answer = json.loads(line)
        return answer["status"], answer["message"]

    def close(self) -> None:
        if self.server is not None:
            self.server.communicate()


def judge_run(
    dsv2: Dsv2, run: Runner, implementation: Implementation, version: str, setting: Setting, dtype: str, case: dict
) -> dict:
    """One line of results.json."""
    model = dsv2.materialize(case["name"])
    inputs, candidate = model / "inputs.safetensors", model.with_suffix(".candidate")
    candidate.unlink(missing_ok=True)
    dropped = sorted(case["inputs"].keys() - {"input_ids"}) if implementation.plain else []
    if dropped or implementation.last_position:
        more = {"logits_to_keep": 1} if implementation.last_position else {}
        keep_tensors(inputs, inputs := model / "narrow-inputs.safetensors", lambda name: name == "input_ids", more)
    options = implementation.options(setting, version, case)
    status, message = run.run([str(model), str(inputs), str(candidate), dtype, *options])
    row = {"implementation": implementation.id, "version": version, "settings": setting.label, "dtype": dtype}
    row |= {"case": case["name"], "date": datetime.date.today().isoformat()}
    if dropped:
        row["without"] = dropped
    if status:
        return row | {"verdict": "not supported" if status == 2 else "crashed", "message": message.replace(str(model), "MODEL")}
    chunks = ",".join(map(str, case["options"].get("chunks", [])))
    request = {"model": model, "inputs": inputs, "candidate": candidate, "dtype": dtype, "chunks": chunks}
    row |= {key: value for key, value in summary(dsv2.check(request)).items() if value is not None}
    if row["verdict"] == "fail":
        row["explanation"] = dsv2.explain(request, implementation.coarse)
    return row


def key(row: dict) -> tuple:
    order = [implementation.id for implementation in IMPLEMENTATIONS]
    version = tuple(-int(part) if part.isdigit() else 0 for part in row["version"].split("."))
    return (order.index(row["implementation"]), version, row["settings"], row["dtype"] != "f32", row["case"])


def save(rows: list[dict]) -> None:
    """One row, one line: small differences between runs are small differences of the file."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in sorted(rows, key=key))
    RESULTS.write_text(f"[\n{lines}\n]\n")
    (REPOSITORY / "CONFORMANCE.md").write_text(render(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dsv2", default="dsv2", help="the program [default: dsv2]")
    parser.add_argument("--with", dest="programs", action="append", default=[], metavar="ID=PROGRAM")
    parser.add_argument("--case", default="*", help="only cases whose name matches")
    args = parser.parse_args()
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    known = {implementation.id: implementation for implementation in IMPLEMENTATIONS}
    programs = [given.partition("=")[::2] for given in args.programs]
    for name, program in programs:
        if name not in known or not program:
            parser.error(f"--with: expected ID=PROGRAM with an ID of {', '.join(known)}, found {name}={program}")
    with tempfile.TemporaryDirectory() as folder:
        for name, program in programs:
            implementation, version = known[name], known[name].version(program)
            dsv2 = Dsv2(args.dsv2, pathlib.Path(folder))
            cases = [
                c
                for c in read_cases(REPOSITORY / "golden/cases")
                if implementation.takes(c) and fnmatch.fnmatch(c["name"], args.case)
            ]
            with contextlib.closing(Runner(implementation, program)) as run:
                for setting in implementation.settings:
                    for dtype in setting.dtypes:
                        new = [judge_run(dsv2, run, implementation, version, setting, dtype, case) for case in cases]
                        replaced = {key(row) for row in new}
                        rows = [row for row in rows if key(row) not in replaced] + new
                        passed = sum(row["verdict"] == "pass" for row in new)
                        print(f"{name} {version}, {setting.label}, {dtype}: {passed} of {len(new)} pass", file=sys.stderr)
                        save(rows)
    save(rows)


if __name__ == "__main__":
    main()
