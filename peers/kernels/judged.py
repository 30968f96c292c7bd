"""Adapters: a kernel of somebody else's behind the contract of an operator, judged on all of its workloads.

    @adapter("rmsnorm", LIGER, "rms_norm_forward")
    def test_rms_norm(hidden_states, weight): ...

is `@dsv2.operator("rmsnorm")`, with the emulator around the call: the first call of a workload runs under the race detector and
is counted, the second one must give the same bits. What came of it is a row of results.json (`pytest peers/kernels --record`).
A row that is not right stands in FINDINGS, and the test holds it to that: it fails if the finding is gone, too, or if results.json
says something else.
"""

import functools
import inspect
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import dsv2
import page
import pytest
import torch
from dsv2 import operators
from dsv2.emulator import Kernel, Launch
from dsv2.triton import activate
from engines import Engine
from findings import FINDINGS
from tables import lengths
from wheels import KEPT, NotRun

ROWS: list[dict[str, Any]] = []

# Whether a finding is what a test expects, and not a failure.
KNOWN = True

# The rows of results.json by their keys, which a run must repeat; empty while new ones are written, and with --findings.
RECORDED: dict[tuple, dict[str, Any]] = {}

# Where the wheels' files are: not part of what is said of them.
PLACE = f"{KEPT}/"


@dataclass
class Watch:
    """What the launches of one call came to."""

    races: bool = True
    launches: list[Launch] = field(default_factory=list)

    def launch(self, kernel: Kernel, *args: Any, **sizes: Any) -> Launch:
        """A launch of a kernel of CUDA C++."""
        run = kernel.launch(*args, **sizes, races=self.races, profile=self.races, unwritten="follow")
        self.launches.append(run)
        return run


# The call that is running. Adapters of CUDA C++ launch by it; Triton's driver notes by itself.
WATCH = Watch()


def adapter(
    operator: str,
    engine: Engine,
    kernel: str,
    *,
    targets: Sequence[str] = ("sm_80",),
    language: str = "Triton",
    outputs: list[str] | None = None,
    without: Mapping[str, str] | None = None,
    findings: Mapping[str, str] | None = None,
    note: str = "",
) -> Callable[[Callable], Callable]:
    """Makes a test of a callable that takes the operator's inputs and calls somebody's kernel, compiled for each of the targets.

    outputs: those that the kernel has, if not all. without: workloads that the kernel is not for, and why. findings: the name in
    FINDINGS of what is wrong on a workload, or on all ("*"). note: what else the adapter does, for the page.
    """
    without, findings = without or {}, findings or {}
    workloads = [workload for workload in operators.contract(operator).workloads if workload not in without]

    def decorate(function: Callable) -> Callable:
        state: dict[str, Any] = {}
        file = pathlib.Path(inspect.getfile(function)).name

        @functools.wraps(function)
        def called(**inputs: Any) -> Any:
            WATCH.races, WATCH.launches = "launches" not in state, []
            state.setdefault("given", inputs)
            target = state["target"]
            capability = divmod(int(target.removeprefix("sm_")), 10)
            card = mock.patch.object(torch.cuda, "get_device_capability", lambda *_: capability)
            with card, activate(target, races="note" if WATCH.races else False, profile=WATCH.races) as runs:
                try:
                    return function(**inputs)
                finally:
                    state.setdefault("launches", [*runs.launches, *WATCH.launches])

        report = functools.partial(state.__setitem__, "report")
        test = dsv2.operator(operator, workloads=workloads, outputs=outputs, report=report, device="cpu")(called)

        def judged(workload: str, target: str) -> None:
            __tracebackhide__ = True
            state.clear()
            state["target"] = target
            row = {
                "library": engine.wheel, "version": engine.version, "kernel": kernel, "language": language, "operator": operator,
                "target": target, "workload": workload, "test": function.__name__, "file": file, "note": note, "without": dict(without),
            }  # fmt: skip
            try:
                test(workload)
                verdict, said = "pass", ""
            except NotRun as why:
                ROWS.append({**row, "verdict": "not run", "said": str(why)})
                pytest.skip(f"not run: {why}")
            except AssertionError as wrong:
                verdict, said = "fail", str(wrong)
            except dsv2.Error as error:
                verdict, said = "fault", str(error)
            finding = findings.get(workload, findings.get("*"))
            launches: list[Launch] = state.get("launches", [])
            races = [race for launch in launches for race in launch.races or []]
            said, wrong = said.replace(PLACE, ""), _outputs(state)
            row.update(
                _measured(state, launches), races=len(races), verdict=verdict, said=" ".join(said.split()), finding=finding, wrong=wrong,
                launches=len(launches), tools=page.tools(language),
                same_bits=True if verdict == "pass" else False if "other bits" in said else None,
            )  # fmt: skip
            ROWS.append(row)
            held = {output["output"] for output in state.get("report", {}).get("outputs", []) if output["disposition"] != "not-held"}
            unwritten = [repr(use).replace(PLACE, "") for launch in launches for use in launch.unwritten]
            _hold(row, said, wrong, held, [repr(race).replace(PLACE, "") for race in races], unwritten)
            _as_recorded(row)

        if len(targets) == 1:

            def made(workload: str) -> None:
                __tracebackhide__ = True
                judged(workload, targets[0])

            made.pytestmark = test.pytestmark
        else:
            made = judged
            made.pytestmark = [*test.pytestmark, pytest.mark.parametrize("target", targets).mark]
        for attribute in ("__name__", "__doc__", "__module__"):
            setattr(made, attribute, getattr(function, attribute))
        return made

    return decorate


def _outputs(state: Mapping[str, Any]) -> dict[str, str]:
    """What the judge says of each output that is wrong, shortly."""
    wrong = {}
    for output in state.get("report", {}).get("outputs", []):
        if output["disposition"] in ("pass", "not-held"):
            continue
        l2 = (output["error"] or {}).get("l2")
        said = [output["disposition"], *([f"l2 {float(l2):.1e}"] if l2 is not None else []), *([output["note"]] if output["note"] else [])]
        said += [f"{output['worst']['got']} in place of {output['worst']['want']}"] if output["worst"] else []
        wrong[output["output"]] = ", ".join(said)
    return wrong


def _hold(row: dict[str, Any], said: str, wrong: dict[str, str], held: set[str], races: list[str], unwritten: list[str]) -> None:
    """Fails unless a row is right, or wrong as its finding says and in no other way."""
    __tracebackhide__ = True
    trouble = ([said] if row["verdict"] != "pass" else []) + [f"race: {race}" for race in races] + unwritten
    if row["finding"] is None or not KNOWN:
        if trouble:
            pytest.fail("\n".join(trouble), pytrace=False)
        return
    expected, name = FINDINGS[row["finding"]], row["finding"]
    if not trouble:
        pytest.fail(f"{name} is not there any more: take it from the adapter", pytrace=False)
    other = [f"expected {output} to be wrong, too" for output in expected.outputs if output in held - set(wrong)]
    other += [f"{output}: {what}" for output, what in wrong.items() if not re.fullmatch(expected.outputs.get(output, "(?!)"), what)]
    if row["verdict"] == "fail" and not wrong:
        other.append(said)  # something else than what the judge says of the outputs
    if row["verdict"] == "fault" and not re.fullmatch(expected.fault, said):
        other.append(said)
    if expected.races and not races:
        other.append("expected races")
    other += [f"race: {race}" for race in races if not re.search(expected.races or "(?!)", race)]
    other += [use for use in unwritten if not re.search(expected.unwritten or "(?!)", use)]
    if other:
        pytest.fail(f"beside {name!r}:\n" + "\n".join(other), pytrace=False)


def _as_recorded(row: dict[str, Any]) -> None:
    """Fails unless results.json says the same of this row."""
    __tracebackhide__ = True
    if not RECORDED:
        return
    before = RECORDED.get(page.key(row))
    for name in ("verdict", "races", "finding", "wrong"):
        if before is None or before[name] != row[name]:
            found = None if before is None else before[name]
            pytest.fail(f"results.json says {name} {found!r}, found {row[name]!r}: pytest peers/kernels --record", pytrace=False)


def _measured(state: dict[str, Any], launches: list[Launch]) -> dict[str, Any]:
    """Numbers of a row: the error that is nearest to its budget, bytes."""
    counts = [launch.profile.total.global_ for launch in launches if launch.profile is not None]
    row = {
        "asked": sum(traffic.read + traffic.written + traffic.atomic for traffic in counts),
        "needed": needed(state.get("given", {})),
        "worst": None,
    }
    for output in state.get("report", {}).get("outputs", []):
        for measure, error in (output["error"] or {}).items():
            budget = float((output["budget"] or {}).get(measure, "nan"))
            ratio = float(error) / budget if budget else float("inf") if float(error) else 0.0
            if row["worst"] is None or not ratio <= row["worst"]["ratio"]:
                row["worst"] = {"output": output["output"], "measure": measure, "error": float(error), "budget": budget, "ratio": ratio}
    return row


def needed(given: Mapping[str, Any]) -> int:
    """Bytes of the inputs that say something, each once: of a cache the slots that tokens have, of experts those that are asked."""
    total = 0
    for name, value in given.items():
        if not isinstance(value, torch.Tensor):
            continue
        rows = len(value) if value.dim() else 1
        used = rows
        if name.endswith("_cache") and "kv_indices" in given:
            last = given.get("kv_last_page_len")
            used = int(lengths(given["kv_indptr"], value.shape[1], last).sum()) / value.shape[1]
        elif name.endswith("_cache"):
            continue  # written, not read
        elif name in ("w13", "w2"):
            used = len({expert for expert in given["topk_indices"].flatten().tolist() if expert >= 0})
        total += int(value.numel() * value.element_size() * used / max(rows, 1))
    return total
