"""Asks `dsv2`: makes the folders of cases, and judges dumps."""

import itertools
import json
import math
import pathlib
import struct
import subprocess
import tempfile

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
        self.explains = "--explain" in self._run("check", "--help").stdout

    def _run(self, *arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run([self.path, *map(str, arguments)], capture_output=True, text=True)

    def materialize(self, case: str) -> pathlib.Path:
        """The folder of a case, made on first use."""
        folder = self.folder / case
        if not folder.exists():
            done = self._run("materialize", case, folder)
            if done.returncode:
                raise RuntimeError(done.stderr.strip())
        return folder

    def trace(self, model: pathlib.Path, inputs: pathlib.Path, output: pathlib.Path, stages: str) -> None:
        """The f64 reference's stages."""
        done = self._run("trace", "--model", model, "--inputs", inputs, "--output", output, "--dtype", "f64", "--stages", stages)
        if done.returncode:
            raise RuntimeError(done.stderr.strip())

    def check(self, request: dict, *more: str) -> dict:
        """What `check --json` says; `request` holds model, inputs, candidate, dtype and perhaps chunks."""
        options = [part for name, value in request.items() if value for part in (f"--{name}", value)]
        done = self._run("check", "--json", *options, *more)
        if done.returncode not in (0, 1):
            raise RuntimeError(done.stderr.strip())
        return json.loads(done.stdout)

    def explain(self, request: dict, coarse: bool) -> list[dict]:
        """The changes of the model that reproduce a dump which is not the model's: {"what", "error"}.

        Rules first, as `check --explain` knows them, then dialects, then keys of config.json that may have been overlooked.
        For a `coarse` implementation, which computes in 16 bits whatever it is asked for, once more and less closely.
        """
        if self.explains:
            found = self.check(request, "--explain").get("explanation") or []
            if found:
                return [{"what": one["what"], "error": three_digits(one["error"])} for one in found]
        rules = [(what, request, ("--dialect", dialect)) for dialect, what in DIALECTS.items()]
        with tempfile.TemporaryDirectory() as folder:
            overlooked = [
                (f"{keys} of config.json has no effect", request | {"model": without}, ())
                for keys, without in without_keys(pathlib.Path(request["model"]), pathlib.Path(folder))
            ]
            found = self._reproductions(rules) or self._reproductions(overlooked)
            if found or not coarse:
                return found
            inexact = f"as exact as 16-bit arithmetic (l2 error below {COARSE:.1e})"
            rules = [("no other rule, but only " + inexact, request, ()), *rules, *overlooked]
            coarser = [(what, changed | {"dtype": "bf16"}, options) for what, changed, options in rules]
            found = self._reproductions(coarser, COARSE)
            return [one if inexact in one["what"] else one | {"what": f"{one['what']}; only {inexact}"} for one in found]

    def _reproductions(self, changes: list[tuple], limit: float = math.inf) -> list[dict]:
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
    return {"verdict": answer["verdict"], "stage": named, **l2, "note": stage.get("note"), "stages": len(compared(answer))}


def three_digits(value: float | None) -> float | None:
    """More would only make the files differ from run to run."""
    return None if value is None else float(f"{value:.2e}")


def without_keys(model: pathlib.Path, folder: pathlib.Path):
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
        part = {"mlp_bias": ".mlp.", "attention_bias": ".self_attn."}.get(keys[0])
        for file in model.glob("model*"):
            if part and file.suffix == ".safetensors":
                keep_tensors(file, target / file.name, lambda name, part=part: not (name.endswith(".bias") and part in name))
            else:
                (target / file.name).symlink_to(file.resolve())
        yield " together with ".join(f"`{name}`" for name in names), target


def keep_tensors(source: pathlib.Path, target: pathlib.Path, keep, more: dict[str, int] | None = None) -> None:
    """Copies tensors of a safetensors file, and adds `more` scalars of int64; without any library."""
    data = source.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    found, start = json.loads(data[8 : 8 + length]), 8 + length
    header, body = {}, b""
    for name, entry in found.items():
        if name != "__metadata__" and keep(name):
            begin, end = entry["data_offsets"]
            header[name] = entry | {"data_offsets": [len(body), len(body) + end - begin]}
            body += data[start + begin : start + end]
    for name, value in (more or {}).items():
        header[name] = {"dtype": "I64", "shape": [], "data_offsets": [len(body), len(body) + 8]}
        body += struct.pack("<q", value)
    text = json.dumps(header).encode()
    target.write_bytes(struct.pack("<Q", len(text)) + text + body)
