"""The judge of the whole model: `dsv2 check`, from Python."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv2 import _dsv2
from dsv2._dsv2 import RequestError
from dsv2._requests import numbers

FileName = str | os.PathLike[str]


def run(*args: Any) -> tuple[str, int]:
    """What `dsv2 ARGS` prints, and its exit status: 0 all is right, 1 it is not. Raises RequestError where the status is 2."""
    return _dsv2.command([os.fspath(arg) if isinstance(arg, os.PathLike) else str(arg) for arg in args])


@dataclass(frozen=True)
class Stage:
    """What came of one stage. `local` and `propagated` errors and their budgets have `l2`, `row`, `max` and `gain`."""

    stage: str
    disposition: str
    local: dict[str, float] | None
    budget: dict[str, float] | None
    propagated: dict[str, float] | None
    json: dict[str, Any]
    """All there is to know of it, as in report.json."""

    def __repr__(self) -> str:
        error = self.local or self.propagated
        l2 = "" if error is None else f", l2 error {_number(error['l2']):.1e}"
        budget = "" if self.budget is None else f", budget {_number(self.budget['l2']):.1e}"
        return f"{self.stage}: {self.disposition}{l2}{budget}"


class Report:
    """What `dsv2 check --json` prints, as an object: its keys are attributes."""

    def __init__(self, values: dict[str, Any]):
        self.json = values
        self.stages = [
            Stage(**{key: stage.get(key) for key in ("stage", "disposition", "local", "budget", "propagated")}, json=stage)
            for stage in values["stages"]
        ]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["json"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def passes(self) -> bool:
        """Whether the verdict is `pass`: not `fail`, `inconclusive` or `not-judged`."""
        return self.json["verdict"] == "pass"

    def __getitem__(self, stage: str) -> Stage:
        try:
            return next(found for found in self.stages if found.stage == stage)
        except StopIteration:
            raise KeyError(stage) from None

    def __repr__(self) -> str:
        compared = self.json["compared"]
        said = self.json["failure"] or f"{compared['stages']} stages, {compared['elements']} numbers, as {self.json['dtype']} computes them"
        lines = [f"{self.json['verdict']}: {said}"]
        if self.json["first_failing_stage"]:
            lines.insert(0, f"first wrong stage: {self.json['first_failing_stage']}")
        if self.json["inconclusive"]:
            lines.append(str(self.json["inconclusive"]))
        return "\n".join(lines + list((self.json["hint"] or {}).get("says", [])))


def check(
    model: FileName,
    inputs: FileName | Mapping[str, Any],
    tensors: FileName | Sequence[FileName] | Mapping[str, Any],
    *,
    expected: FileName | Mapping[str, Any] | None = None,
    report: FileName | None = None,
    **options: Any,
) -> Report:
    """Judges a dump: is it the model, and if not, which stage is wrong?

    model: a checkpoint folder of Hugging Face. inputs: a file (safetensors, .npz, .pt), or a dict: `input_ids` [B,S], ...
    tensors: a file, several of a parallel run, or a dict, from names of stages (`model.layers.0.self_attn.o_proj` [B,S,D],
        `lm_head` [B,S,V]) to arrays of NumPy or tensors of PyTorch.
    expected: what they should be, if not what the reference says. report: a folder for report.json, junit.xml, report.html.
    options: those of `dsv2 check`, such as dtype="bf16", cache="fp8", dialect="deepseek", chunks=[7, 1], decode=1,
        layers="10..12", ids_only=True, use_cache=False, explain=True, memory_limit="8GB".

    Raises RequestError if the request or a file is at fault. A dump that does not conform is no error: see `Report.verdict`.
    """
    with tempfile.TemporaryDirectory() as folder:
        several = tensors if isinstance(tensors, (list, tuple)) else [tensors]
        args = ["--model", model, "--inputs", _file(inputs, folder, "inputs")]
        for index, one in enumerate(several):
            args += ["--candidate", _file(one, folder, f"tensors{index or ''}")]
        if expected is not None:
            args += ["--expected", _file(expected, folder, "expected")]
        if report is not None:
            args += ["--report", report]
        for name, value in options.items():
            args += _option(name, value)
        text, _ = run("check", "--json", *args)
    return Report(json.loads(text))


def _option(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if value is None or (value is False and name != "use_cache"):
        return []
    if value is True and name != "use_cache":
        return [flag]
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    return [f"{flag}={str(value).lower() if isinstance(value, bool) else value}"]


def _file(tensors: FileName | Mapping[str, Any], folder: str, name: str) -> FileName:
    """A file of these tensors, if they are in none."""
    if not isinstance(tensors, Mapping):
        return tensors
    for key, value in tensors.items():
        numbers(f"{key} in {name}", value)
    path = Path(folder) / f"{name}.safetensors"
    torch = sys.modules.get("torch")
    try:
        from safetensors import SafetensorError
    except ImportError:
        raise RequestError(f"{name}: a dict of tensors needs safetensors: pip install safetensors") from None
    try:
        if torch is not None and any(isinstance(value, torch.Tensor) for value in tensors.values()):
            from safetensors.torch import save_file

            values = {key: torch.as_tensor(value).detach().cpu().contiguous().clone() for key, value in tensors.items()}
        else:
            import numpy
            from safetensors.numpy import save_file

            values = {key: numpy.ascontiguousarray(value) for key, value in tensors.items()}
            for key, value in values.items():
                if value.dtype.hasobject:
                    raise TypeError(f"{type(tensors[key]).__name__} as {key}")
        save_file(values, path)
    except (TypeError, ValueError, KeyError, SafetensorError) as error:
        raise RequestError(f"{name}: expected a dict of arrays of numbers, found {' '.join(str(error).split())}") from None
    return path


def _number(value: float | str) -> float:
    return float(value)
