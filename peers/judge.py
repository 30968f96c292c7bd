"""Puts the golden cases to other people's implementations and writes docs/implementations.md.

    python peers/judge.py --dsv2 target/release/dsv2 --with transformers=VENV/bin/python --with candle=PATH/dsv2-peer-candle

`--with` may be given several times, also for several versions of one peer. What is not given keeps its rows in
results.json. Without `--with`, the page is rendered from results.json. Needs Python 3.11 on Linux and no package.
"""

import argparse
import contextlib
import datetime
import fnmatch
import json
import pathlib
import sys
import tempfile

import tensors
from checks import Dsv2, summary
from page import render
from peers import HERE, JUDGED, Peer, add_programs
from programs import Dumps

IDS_SUFFICE = """v2 v2-lite v2-5 tight-groups many-groups mscale-differs mscale-lone one-shared-expert first-k-dense-0
    all-dense all-experts one-expert-per-token bias-lite epsilon-inner-norms gelu-tanh relu rope-default rope-linear
    rope-dynamic yarn-betas yarn-attention-factor checkpoint-tied checkpoint-sharded small-variance odd-dims one-token
    trained-tiny-greedy trained-tiny-grouped""".split()
"""Cases that say something with token ids alone: what is given of masks and positions is left out."""


def cases_for(peer: Peer, pattern: str) -> list[dict]:
    """By name. Those of an older dialect are no question to anybody."""
    cases = [json.loads(path.read_text()) for path in sorted((HERE.parent / "golden/cases").glob("*/case.json"))]
    asked = [case for case in cases if case["dialect"] == "hf" and (case["name"] in IDS_SUFFICE or not peer.ids_only)]
    return [case for case in asked if fnmatch.fnmatch(case["name"], pattern)]


def judge(dsv2: Dsv2, dumps: Dumps, peer: Peer, setting: dict, dtype: str, case: dict) -> dict:
    """What the row of a case says beyond its name."""
    folder = dsv2.materialize(case["name"])
    model, inputs, candidate = folder / "model", folder / "case/inputs.safetensors", folder / "candidate"
    candidate.unlink(missing_ok=True)
    row = {}
    dropped = sorted(case["inputs"].keys() - {"input_ids"}) if peer.ids_only else []
    if dropped or peer.last_position:
        kept = {"input_ids": tensors.read(inputs)["input_ids"]}
        if peer.last_position:
            kept["logits_to_keep"] = ("I64", [], (1).to_bytes(8, "little"))
        tensors.write(inputs := folder / "case/narrow-inputs.safetensors", kept)
    if dropped:
        row["without"] = dropped
    chunks = ",".join(map(str, case["options"].get("chunks", [])))
    options = [*setting["options"], *(["--chunks", chunks] if chunks else [])]
    status, message = dumps.make([str(model), str(inputs), str(candidate), dtype, *options])
    if status:
        return row | {"verdict": "not supported" if status == 2 else "crashed", "message": message.replace(str(model), "MODEL")}
    request = {"model": model, "inputs": inputs, "candidate": candidate, "dtype": dtype, "chunks": chunks}
    row |= summary(dsv2.check(request))
    if row["verdict"] == "fail":
        row["explanation"] = dsv2.explain(request, peer.coarse)
    return row


def key(row: dict) -> tuple:
    order = [peer.id for peer in JUDGED]
    version = tuple(-int(part) if part.isdigit() else 0 for part in row["version"].split("."))
    return (order.index(row["implementation"]), version, row["settings"], row["dtype"] != "f32", row["case"])


def save(rows: list[dict], args: argparse.Namespace) -> None:
    """One row, one line: small differences between runs are small differences of the file."""
    rows = sorted(rows, key=key)
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    args.results.write_text(f"[\n{lines}\n]\n")
    args.page.write_text(render(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_programs(parser, JUDGED, required=False)
    parser.add_argument("--dsv2", default="dsv2", help="the program [default: dsv2]")
    parser.add_argument("--case", default="*", help="only cases whose name matches")
    path = {"type": pathlib.Path, "metavar": "FILE"}
    parser.add_argument("--results", **path, default=HERE / "results.json", help="the rows [default: peers/results.json]")
    page = HERE.parent / "docs/implementations.md"
    parser.add_argument("--page", **path, default=page, help="what is rendered [default: docs/implementations.md]")
    args = parser.parse_args()
    rows = json.loads(args.results.read_text()) if args.results.exists() else []
    save(rows, args)
    for peer, program in args.programs:
        version, cases, today = peer.version(program), cases_for(peer, args.case), datetime.date.today().isoformat()
        with tempfile.TemporaryDirectory() as folder, contextlib.closing(Dumps(peer, program)) as dumps:
            dsv2 = Dsv2(args.dsv2, pathlib.Path(folder))
            for setting in peer.settings:
                for dtype in setting["dtypes"]:
                    names = {"implementation": peer.id, "version": version, "settings": setting["label"], "dtype": dtype}
                    new = [
                        names | {"case": case["name"], "date": today} | judge(dsv2, dumps, peer, setting, dtype, case)
                        for case in cases
                    ]
                    replaced = {key(row) for row in new}
                    rows = [row for row in rows if key(row) not in replaced] + new
                    passed = sum(row["verdict"] == "pass" for row in new)
                    print(f"{peer.id} {version}, {setting['label']}, {dtype}: {passed} of {len(new)} pass", file=sys.stderr)
                    save(rows, args)


if __name__ == "__main__":
    main()
