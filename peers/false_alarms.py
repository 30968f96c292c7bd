"""Counts false alarms: runs Hugging Face Transformers, which is right, on the golden cases and has `dsv2 check` judge dumps.

    python peers/false_alarms.py --dsv2 target/release/dsv2 --with VENV_5_23/bin/python --with VENV_5_24/bin/python [--case 'v2*']

Every case of the dialect `hf`, in f32, bf16 and f16, eager and as it comes, as five kinds of dump. Right runs must never
fail. The exit status is 1 if one does. `--keep DIR` keeps model, inputs and dump of every alarm; `--work DIR` keeps what
Transformers computed, so that the next time only the judging is done.
Needs Python 3.11 on Linux and no package; the Pythons that `--with` names need torch, safetensors and Transformers from 5.15 on.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import fnmatch
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import tensors
from checks import Dsv2
from peers import HERE, JUDGED
from programs import Dumps

TRANSFORMERS = next(peer for peer in JUDGED if peer.id == "transformers")
SETTINGS = {
    "eager": ["--attention", "eager", "--experts", "eager"],
    "sdpa, eager experts": ["--experts", "eager"],
    "as it comes": [],
}
"""As it comes, the experts go through grouped_mm, which does not take the odd widths of many cases."""
DTYPES = ("f32", "bf16", "f16")
WIDTH = {"F32": 4, "BF16": 2, "F16": 2}
INSIDE = ("cos", "sin", "q_pe", "k_pe", "compressed_kv", "attn_scores", "attn_weights", "attn_output", "topk_indices",
          "topk_weights", "loss")  # fmt: skip
"""What no module returns by itself."""

Stages = dict[str, tensors.Tensor]
Dump = tuple[Stages, list[list[int]] | None]
"""Tensors, and the positions whose logits they are if they are not those that the case asks for."""


def kinds(stages: Stages, case: dict, mask: list[list[int]] | None) -> dict[str, Dump]:
    """What programs give of themselves, cut out of all that there is: the kinds of `dsv2 mutants --dump`."""
    logits = {name: stages[name] for name in ("lm_head", "pooled_logits") if name in stages}
    last_layer = case["config"]["num_hidden_layers"] - 1
    returned = [f"model.layers.{i}" for i in range(last_layer)] + ["model.embed_tokens", "model.norm"]
    found: dict[str, Dump] = {
        "all": (stages, None),
        "hooks": ({name: t for name, t in stages.items() if name.rpartition(".")[2] not in INSIDE}, None),
        "hidden-states": ({name: stages[name] for name in returned if name in stages} | logits, None),
        "logits": (logits, None),
    }
    chosen = {"labels", "logits_to_keep"} & (case["inputs"].keys() | case["options"].keys()) or "chunks" in case["options"]
    if "lm_head" in logits and not chosen and (mask is None or all(map(any, mask))):
        dtype, (batch, length, vocab), data = logits["lm_head"]
        rows = [max(t for t in range(length) if mask is None or mask[b][t]) for b in range(batch)]
        size = vocab * WIDTH[dtype]
        starts = [(b * length + row) * size for b, row in enumerate(rows)]
        kept = b"".join(data[start : start + size] for start in starts)
        found["last-token"] = ({"lm_head": (dtype, [batch, 1, vocab], kept)}, [[row] for row in rows])
    return found


def padding(inputs: Stages) -> list[list[int]] | None:
    """The 2-D mask, if there is one."""
    dtype, shape, data = inputs.get("attention_mask", ("", [], b""))
    if len(shape) != 2:
        return None
    width = len(data) // (shape[0] * shape[1])
    values = [int(any(data[at : at + width])) for at in range(0, len(data), width)]
    return [values[b * shape[1] : (b + 1) * shape[1]] for b in range(shape[0])]


def ask(dsv2: Dsv2, folder: pathlib.Path, dump: Dump, chunks: str, keep: pathlib.Path | None) -> tuple[str, str]:
    """The verdict on a dump, and one line about it. A kept alarm is a folder with all that repeats it."""
    stages, positions = dump
    with tempfile.TemporaryDirectory() as scratch:
        candidate, inputs = pathlib.Path(scratch) / "candidate.safetensors", folder / "case/inputs.safetensors"
        tensors.write(candidate, stages)
        if positions:
            flat = b"".join(row.to_bytes(8, "little") for (row,) in positions)
            given = tensors.read(inputs) | {"logits_to_keep": ("I64", [len(positions), 1], flat)}
            tensors.write(inputs := pathlib.Path(scratch) / "inputs.safetensors", given)
        request = {"model": folder / "model", "inputs": inputs, "candidate": candidate, "chunks": chunks}
        try:
            answer = dsv2.check(request)
            verdict, line = answer["verdict"], answer.get("failure") or ""
        except RuntimeError as refused:
            verdict, line = "refused", str(refused)
        if keep and verdict in ("fail", "refused"):
            keep.mkdir(parents=True)
            shutil.copytree(folder / "model", keep / "model")
            for file in (candidate, inputs):
                shutil.copy(file, keep / file.name)
            (keep / "options").write_text(f"--chunks {chunks}\n" if chunks else "")
        return verdict, line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--with", dest="pythons", action="append", required=True, metavar="PYTHON")
    parser.add_argument("--dsv2", default="dsv2", help="the program [default: dsv2]")
    parser.add_argument("--case", default="*", help="only cases whose name matches")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="with commas between them [default: %(default)s]")
    parser.add_argument("--work", type=pathlib.Path, metavar="DIR", help="a folder for cases and dumps, to be used again")
    parser.add_argument("--keep", type=pathlib.Path, metavar="DIR", help="a new folder for what repeats each alarm")
    args = parser.parse_args()
    cases = [json.loads(path.read_text()) for path in sorted((HERE.parent / "golden/cases").glob("*/case.json"))]
    cases = [case for case in cases if case["dialect"] == "hf" and fnmatch.fnmatch(case["name"], args.case)]
    alarms = 0
    for python in args.pythons:
        version, counts, not_run = TRANSFORMERS.version(python), collections.Counter(), collections.Counter()
        with (
            tempfile.TemporaryDirectory() as room,
            contextlib.closing(Dumps(TRANSFORMERS, python)) as dumps,
            concurrent.futures.ThreadPoolExecutor(2) as pool,
        ):
            work = args.work or pathlib.Path(room)
            work.mkdir(parents=True, exist_ok=True)
            dsv2, asked = Dsv2(args.dsv2, work), []
            for case in cases:
                folder = dsv2.materialize(case["name"])
                mask = padding(tensors.read(folder / "case/inputs.safetensors"))
                chunks = ",".join(map(str, case["options"].get("chunks", [])))
                for setting, options in SETTINGS.items():
                    for dtype in args.dtypes.split(","):
                        dump = folder / f"{version}, {setting}, {dtype}.safetensors"
                        arguments = [folder / "model", folder / "case/inputs.safetensors", dump, dtype, *options]
                        more = ["--chunks", chunks] if chunks else []
                        status, message = (0, "") if dump.exists() else dumps.make([*map(str, arguments), *more])
                        if status:
                            not_run[setting, message.partition(":")[0]] += 1
                            continue
                        for kind, cut in kinds(tensors.read(dump), case, mask).items():
                            keep = args.keep and args.keep / f"{version} {case['name']} {setting} {dtype} {kind}"
                            future = pool.submit(ask, dsv2, folder, cut, chunks, keep)
                            asked.append((case["name"], setting, dtype, kind, future))
            for name, setting, dtype, kind, future in asked:
                verdict, line = future.result()
                counts[kind, dtype, verdict] += 1
                if verdict in ("fail", "refused"):
                    alarms += 1
                    print(f"{verdict}: {version} {name}, {setting}, {dtype}, {kind}: {line}", flush=True)
        print_table(version, counts, not_run)
    return 1 if alarms else 0


def print_table(version: str, counts: collections.Counter, not_run: collections.Counter) -> None:
    """A row for each kind of dump and type; the columns are verdicts."""
    verdicts = ["pass", "inconclusive", "not-judged", "fail", "refused"]
    print(f"\nTransformers {version}\n\n| dump | type | runs | " + " | ".join(verdicts) + " |\n|---|---|" + "---:|" * 6)
    for kind, dtype in dict.fromkeys(key[:2] for key in counts):
        row = [counts[kind, dtype, verdict] for verdict in verdicts]
        print(f"| {kind} | {dtype} | {sum(row)} | " + " | ".join(map(str, row)) + " |")
    total = {verdict: sum(n for key, n in counts.items() if key[2] == verdict) for verdict in verdicts}
    runs = sum(counts.values())
    share = total["inconclusive"] / max(runs, 1)
    print(f"\n{runs} dumps of right runs: {total['fail'] + total['refused']} false alarms, {share:.1%} inconclusive, ", end="")
    print(f"{total['not-judged']} not judged")
    for (setting, what), n in not_run.items():
        print(f"not run, {setting}: {n} ({what})")


if __name__ == "__main__":
    sys.exit(main())
