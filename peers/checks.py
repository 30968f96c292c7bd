"""Asks `dsv2`: makes the folders of cases, judges dumps, and looks for the causes of failures."""

import itertools
import json
import math
import pathlib
import subprocess
import tempfile
from collections.abc import Iterator

import tensors

COARSE = 4 * 2.0**-8
"""What a few roundings to a 16-bit type come to, relative."""

DIALECTS = {
    "hf-pre-5.15": "the softmax scale without mscale², as Transformers had it before 5.15",
    "deepseek": "the rule of DeepSeek's own code (dialect `deepseek`)",
}


class Dsv2:
    """The program at `path`. `folder` is where cases are kept."""

    def __init__(self, path: str, folder: pathlib.Path):
        self.path, self.folder = path, folder

    def run(self, *arguments: object, accepted: tuple[int, ...] = (0,)) -> str:
        """What it prints."""
        done = subprocess.run([self.path, *map(str, arguments)], capture_output=True, text=True)
        if done.returncode not in accepted:
            raise RuntimeError(done.stderr.strip())
        return done.stdout

    def materialize(self, case: str) -> pathlib.Path:
        """The folder of a case, with `model` and `case` in it, made on first use."""
        folder = self.folder / case
        if not folder.exists():
            self.run("materialize", case, folder)
        return folder

    def check(self, request: dict, *more: str) -> dict:
        """What `check --json` says; `request` holds model, inputs, candidate, dtype and perhaps chunks."""
        options = [part for name, value in request.items() if value for part in (f"--{name}", value)]
        return json.loads(self.run("check", "--json", *options, *more, accepted=(0, 1)))

    def explain(self, request: dict, coarse: bool) -> list[dict]:
        """The changes of the model that reproduce a dump which is not the model's: {"what", "error"}.

        Rules first, as `check --explain` knows them, then dialects, then keys of config.json that may have been overlooked.
        For a `coarse` peer, which computes in 16 bits whatever it is asked for, once more and less closely.
        """
        if found := self.check(request, "--explain").get("explanation"):
            return [{"what": " and ".join(change["what"] for change in one["changes"]), "error": three_digits(one["error"])} for one in found]
        rules = [(what, request, ("--dialect", dialect)) for dialect, what in DIALECTS.items()]
        with tempfile.TemporaryDirectory() as folder:
            overlooked = [
                (f"{keys} of config.json has no effect", request | {"model": without}, ())
                for keys, without in without_keys(pathlib.Path(request["model"]), pathlib.Path(folder))
            ]
            found = self.reproductions(rules) or self.reproductions(overlooked)
            if found or not coarse:
                return found
            inexact = f"as exact as 16-bit arithmetic (l2 error below {COARSE:.1e})"
            rules = [("no other rule, but only " + inexact, request, ()), *rules, *overlooked]
            coarser = [(what, changed | {"dtype": "bf16"}, options) for what, changed, options in rules]
            found = self.reproductions(coarser, COARSE)
            return [one if inexact in one["what"] else one | {"what": f"{one['what']}; only {inexact}"} for one in found]

    def reproductions(self, changes: list[tuple], limit: float = math.inf) -> list[dict]:
        """The first of these changes under which the dump passes, with an error below the limit."""
        for what, changed, options in changes:
            try:
                answer = self.check(changed, *options)
            except RuntimeError:  # there is no such model
                continue
            error = max(stage["propagated"]["l2"] for stage in compared(answer))
            if answer["verdict"] == "pass" and error < limit:
                return [{"what": what, "error": three_digits(error)}]
        return []


def compared(answer: dict) -> list[dict]:
    """The stages of an answer that have an error."""
    return [stage for stage in answer["stages"] if stage.get("propagated")]


def summary(answer: dict) -> dict:
    """An answer in a few words: the first wrong stage if there is one, else the logits; and how many stages there were."""
    stages = {stage["stage"]: stage for stage in answer["stages"]}
    last = [*[name for name in ("pooled_logits", "lm_head") if name in stages], compared(answer)[-1]["stage"]]
    named = answer["first_failing_stage"] or last[0]
    stage = stages[named]
    l2 = {key: three_digits((stage.get(key) or {}).get("l2")) for key in ("local", "propagated", "budget")}
    found = {"verdict": answer["verdict"], "stage": named, **l2, "note": stage.get("note"), "stages": len(compared(answer))}
    return {key: value for key, value in found.items() if value is not None}


def three_digits(value: float | None) -> float | None:
    """More would only make the files differ from run to run."""
    return None if value is None else float(f"{value:.2e}")


def without_keys(model: pathlib.Path, folder: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
    """The model without a key of config.json (if it is about biases, without them), or without two that scale positions."""
    config = json.loads((model / "config.json").read_text())
    scaling = config.get("rope_scaling") or {}
    nested = [*itertools.combinations(scaling, 1), *itertools.combinations(scaling, 2)]
    for section, keys in [*[("rope_scaling", keys) for keys in nested], *[(None, (key,)) for key in config]]:
        kept = {key: value for key, value in (config[section] if section else config).items() if key not in keys}
        names = [f"{section}.{key}" if section else key for key in keys]
        target = folder / "+".join(names)
        target.mkdir()
        (target / "config.json").write_text(json.dumps(config | {section: kept} if section else kept))
        biases = {"mlp_bias": ".mlp.", "attention_bias": ".self_attn."}.get(keys[0])
        for file in model.glob("model*"):
            if biases and file.suffix == ".safetensors":
                found = tensors.read(file).items()
                kept = {name: tensor for name, tensor in found if not (name.endswith(".bias") and biases in name)}
                tensors.write(target / file.name, kept)
            else:
                (target / file.name).symlink_to(file.resolve())
        yield " together with ".join(f"`{name}`" for name in names), target
