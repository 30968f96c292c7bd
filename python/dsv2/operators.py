"""Contracts of single operators: a kernel, called on every workload, and judged.

    import dsv2

    @dsv2.operator("mla_paged_decode")
    def test_my_decode(q_nope, q_pe, ckv_cache, kpe_cache, kv_indptr, kv_indices, sm_scale, kv_last_page_len=None):
        return my_decode(q_nope, q_pe, ...)  # output, lse

is a test for pytest, with a parameter for each workload. Tensors are PyTorch's where it is installed, on a GPU if there is one
(else `dsv2.triton` runs kernels on the CPU), and NumPy's where it is not.
"""

from __future__ import annotations

import functools
import inspect
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dsv2 import _requests as request
from dsv2._dsv2 import RequestError
from dsv2._judge import _file, run
from dsv2._poison import PATTERNS, poisoned, raw_bytes, untouched
from dsv2._rows import alone, has_rows, part, rows_to_try
from dsv2._tensors import bits, copy, default_device, held, known_device, tensor


@dataclass(frozen=True)
class Contract:
    """What an operator is called, given and returns; and the names of its workloads, with those of their files."""

    name: str
    description: str
    inputs: dict[str, dict[str, Any]]
    """Of each input `shape` (names of axes), `dtype` ("activation": that of the workload) and `description`."""
    outputs: dict[str, dict[str, Any]]
    """The same of each output."""
    garbage: list[str]
    """What of the inputs has no meaning."""
    workloads: dict[str, dict[str, str]]
    """The `dtype` and the `file` of each."""
    rows: dict[str, Any] | None = None
    """What can be given alone, a token or a sequence: the `axis` along which such rows lie, and the inputs that are `offsets` of
    them along others. None if nothing can."""


@functools.cache
def contracts() -> dict[str, Contract]:
    """All operators, by name."""
    listed = json.loads(run("operator", "list", "--json")[0])["operators"]
    known = {field.name for field in fields(Contract)}
    return {operator["name"]: Contract(**{key: value for key, value in operator.items() if key in known}) for operator in listed}


def contract(name: str) -> Contract:
    """The operator of this name. Raises RequestError if there is none."""
    if not isinstance(name, str) or name not in contracts():
        raise RequestError(f"operator {name!r}: expected one of {', '.join(contracts())}")
    return contracts()[name]


def inputs(operator: str, workload: str, device: str | None = None) -> dict[str, Any]:
    """A workload's inputs by name, the same ones every time; scalars are Python's numbers.

    device: "numpy", or a device of PyTorch; by default "cuda" where PyTorch has one, "cpu" where it is installed, else "numpy".
    Raises ImportError where NumPy is to hold bf16 and ml_dtypes is not installed.
    """
    known = contract(operator)
    request.workload(known, workload)
    device = default_device() if device is None else known_device(device)
    with tempfile.TemporaryDirectory() as folder:
        run("operator", "inputs", operator, Path(folder) / "in", "--workload", workload)
        data = (Path(folder) / "in" / known.workloads[workload]["file"]).read_bytes()
    length = int.from_bytes(data[:8], "little")
    tensors = {name: spec for name, spec in json.loads(data[8 : 8 + length]).items() if name != "__metadata__"}
    made = {}
    for name in known.inputs:
        if name in tensors:
            spec = tensors[name]
            begin, end = (8 + length + offset for offset in spec["data_offsets"])
            made[name] = tensor(data[begin:end], spec["dtype"], spec["shape"], device)
    return made


def check(operator: str, workload: str, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Judges what a kernel returned for a workload: `verdict` is "pass", "fail" or "not-judged"; `outputs` says of each why."""
    request.workload(contract(operator), workload)
    if not isinstance(outputs, Mapping):
        raise RequestError(f"outputs of {operator}: expected a dict of arrays by name, found {type(outputs).__name__}")
    with tempfile.TemporaryDirectory() as folder:
        path = _file({name: held(value) for name, value in outputs.items()}, folder, "outputs")
        text, _ = run("operator", "check", operator, path, "--workload", workload, "--json")
    return json.loads(text)["workloads"][0]


def operator(
    name: str,
    *,
    device: str | None = None,
    repeats: int = 2,
    workloads: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    batch_invariant: bool = False,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Callable[[Callable], Callable]:
    """Makes a test of all workloads of a callable that takes an operator's inputs by name.

    It returns the outputs: one, a tuple in the contract's order, or a dict; what it writes in place need not be returned.
    A test fails if an output is wrong, missing (but for those that `outputs` leaves out) or of another type than the contract's,
    or holds what `torch.empty` or `numpy.empty` left in it, if an input was changed that is no output (clone it first where a
    kernel works in place), or if two calls with the same inputs give other bits (repeats=1: is not looked at).
    batch_invariant: a row alone (a token, a sequence) must have the bits that it has among others. Of each workload the first, the
    last and six rows between are tried; all of one with eight or fewer.
    report: is called with what `check` says of each workload, before the test fails over it.
    """
    known = contract(name)
    request.repeats(repeats)
    request.some_outputs(known, outputs)
    if report is not None:
        request.function(f"report of {name}", report)
    request.rows(known, batch_invariant)
    device = None if device is None else known_device(device)
    chosen = list(known.workloads) if workloads is None else request.several(f"workloads of {name}", workloads)
    for workload in chosen:
        request.workload(known, workload)

    def decorate(kernel: Callable) -> Callable:
        request.function(name, kernel)
        try:
            import pytest
        except ImportError:
            raise RequestError(f"operator {name!r}: a test needs pytest: pip install pytest") from None

        @pytest.mark.parametrize("workload", chosen)
        def test(workload: str) -> None:
            __tracebackhide__ = True
            try:
                given = inputs(name, workload, device)
            except ImportError as missing:
                pytest.skip(str(missing))
            try_kernel(name, workload, kernel, given, repeats, outputs, batch_invariant, report)

        # pytest must see the parameter `workload`, and the name and place of what was decorated
        for attribute in ("__name__", "__qualname__", "__doc__", "__module__"):
            setattr(test, attribute, getattr(kernel, attribute, getattr(test, attribute)))
        test.kernel = kernel
        return test

    return decorate


def try_kernel(
    name: str,
    workload: str,
    kernel: Callable,
    given: Mapping[str, Any],
    repeats: int = 2,
    outputs: Sequence[str] | None = None,
    batch_invariant: bool = False,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Calls a kernel on copies of these inputs and judges it as `operator` does; the report of `check`. Raises AssertionError."""
    __tracebackhide__ = True
    known = contract(name)
    request.workload(known, workload)
    request.repeats(repeats)
    request.some_outputs(known, outputs)
    request.rows(known, batch_invariant)
    request.function(name, kernel)
    if report is not None:
        request.function(f"report of {name}", report)
    if not isinstance(given, Mapping):
        raise RequestError(f"inputs of {name}: expected a dict by name, as operators.inputs makes it, found {type(given).__name__}")
    if not given or (unknown := [key for key in given if key not in known.inputs]):
        found = ", ".join(map(str, unknown)) if given else "none"
        raise RequestError(f"inputs of {name}: expected those that operators.inputs makes, of {', '.join(known.inputs)}; found {found}")
    for key, value in given.items():
        request.numbers(f"input {key} of {name}", value)
    said, results = f"{name}, workload {workload!r}", []
    for call in range(repeats):
        pattern = PATTERNS[call % len(PATTERNS)]
        own = {key: copy(value) for key, value in given.items()}
        with poisoned(pattern):
            made = _called(name, kernel, own)
        # copies: a kernel may return the same buffer every time
        returned = {key: copy(value) for key, value in _named(known, made, own).items()}
        results.append(returned)
        missing = [key for key in (outputs if outputs is not None else known.outputs) if key not in returned]
        assert not missing, f"{said}: the kernel did not return {', '.join(missing)}"
        for key in filter(known.outputs.get, returned):
            wanted, found = known.outputs[key]["dtype"], str(returned[key].dtype)
            wanted = known.workloads[workload]["dtype"] if wanted == "activation" else wanted
            found = found.removeprefix("torch.")
            integers = wanted.startswith("int") and found.startswith(("int", "uint"))
            assert integers or found == wanted, f"{said}: {key} is of type {found}, expected {wanted}"
            axes, shape = known.outputs[key]["shape"], tuple(returned[key].shape)
            assert len(shape) <= len(axes), f"{said}: {key} has the shape {_shape(shape)}, expected [{', '.join(axes)}]"
            left = 0 if _may_be_left(known.outputs[key]) else int(untouched(returned[key], pattern).sum())
            if left:
                key = f"{key} {_shape(returned[key].shape)}"
                raise AssertionError(f"{said}: nobody wrote {left} of the elements of {key}: they hold what was there before")
        changed = [key for key, value in own.items() if key not in known.outputs and bits(value) != bits(given[key])]
        assert not changed, f"{said}: the kernel changed its inputs {', '.join(changed)}"
    judged = check(name, workload, results[0])
    if report is not None:
        _with_these(f"report of {name}", report, judged)
    assert judged["verdict"] == "pass", _said(name, judged)
    for call, later in enumerate(results[1:], 1):
        other = [key for key in later if _settled(known, key, later, call) != _settled(known, key, results[0], 0)]
        assert not other, f"{said}: two calls with the same inputs give other bits of {', '.join(other)}"
    if batch_invariant:
        _alone(known, said, kernel, given, results[0])
    return judged


def _may_be_left(output: Mapping[str, Any]) -> bool:
    """Whether an output ends in what does not count, so that it may be left unwritten: the judge knows how much of it does."""
    return isinstance(output.get("judged"), Mapping) and bool({"blocks_of", "expert_of_block"} & set(output["judged"]))


def _settled(known: Contract, key: str, returned: Mapping[str, Any], call: int) -> bytes | Any:
    """The bits of what one of the calls returned, without those that nobody had to write and nobody wrote."""
    if key not in known.outputs or not _may_be_left(known.outputs[key]):
        return bits(returned[key])
    raw = raw_bytes(returned[key]).copy()
    raw[untouched(returned[key], PATTERNS[call % len(PATTERNS)])] = 0
    return raw.tobytes()


def _alone(known: Contract, said: str, kernel: Callable, given: Mapping[str, Any], together: dict[str, Any]) -> None:
    """Calls a kernel with single rows and compares their bits."""
    __tracebackhide__ = True
    for row in rows_to_try(known, given):
        own, before = alone(known, given, row), alone(known, given, row)
        with poisoned(PATTERNS[0]):
            made = _called(known.name, kernel, own)
        returned = _named(known, made, own)
        missing = [name for name in together if name not in returned]
        assert not missing, f"{said}: for row {row} alone the kernel did not return {', '.join(missing)}"
        changed = [name for name, value in own.items() if name not in known.outputs and bits(value) != bits(before[name])]
        assert not changed, f"{said}: for row {row} alone the kernel changed its inputs {', '.join(changed)}"
        for name, value in returned.items():
            shape = known.outputs[name]["shape"] if name in known.outputs else []
            if name not in together or not has_rows(known, shape):
                continue
            wanted = part(known, given, shape, together[name], row)
            kinds = [f"{found.dtype} {_shape(found.shape)}".removeprefix("torch.") for found in (value, wanted)]
            assert kinds[0] == kinds[1], f"{said}: row {row} alone has {name} of {kinds[0]}, among others of {kinds[1]}"
            assert bits(value) == bits(wanted), f"{said}: row {row} alone has other bits of {name} than among others"


def _said(name: str, report: dict[str, Any]) -> str:
    lines = [f"{name}, workload {report['workload']!r} ({report['instance']}): {report['verdict']}"]
    for output in report["outputs"]:
        line = f"  {output['output']}: {output['disposition']}"
        if output["error"] and output["budget"]:
            over = [key for key in output["error"] if float(output["error"][key]) > float(output["budget"][key])]
            line += "".join(f", {key} {float(output['error'][key]):.1e} of {float(output['budget'][key]):.1e}" for key in over)
        if output["note"]:
            line += f": {output['note']}"
        if output["worst"]:
            line += f"; at {output['worst']['index']} {output['worst']['got']} in place of {output['worst']['want']}"
        lines.append(line)
    return "\n".join(lines)


def _named(known: Contract, returned: Any, own: dict[str, Any]) -> dict[str, Any]:
    """What was returned, by the names of the contract, and what was written in place."""
    if returned is None:
        returned = {}
    elif not isinstance(returned, Mapping):
        several = returned if isinstance(returned, (tuple, list)) else (returned,)
        if len(several) > len(known.outputs):
            raise RequestError(
                f"{known.name}: expected at most {len(known.outputs)} outputs ({', '.join(known.outputs)}), found {len(several)}"
            )
        returned = dict(zip(known.outputs, several))
    in_place = {name: own[name] for name in known.outputs if name in own}
    named = {name: value for name, value in {**in_place, **returned}.items() if value is not None}
    for name, value in named.items():
        request.array(f"output {name} of {known.name}", value)
    return named


def _shape(shape: Sequence[int]) -> str:
    return f"[{'x'.join(map(str, shape))}]"


def _called(name: str, kernel: Callable, given: dict[str, Any]) -> Any:
    """Calls a kernel with the inputs, by name where it can be."""
    by_name, in_order = dict(given), []
    try:
        parameters = inspect.signature(kernel).parameters.values()
    except (TypeError, ValueError):
        parameters = None
    said = getattr(kernel, "__name__", kernel)
    if parameters is not None:
        for parameter in parameters:
            if parameter.kind is parameter.POSITIONAL_ONLY and parameter.name in by_name:
                in_order.append(by_name.pop(parameter.name))
            elif parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is not parameter.empty:
                in_order.append(parameter.default)
        names = {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}
        unknown = [name for name in by_name if name not in names]
        if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            raise RequestError(f"{said}: expected parameters {', '.join(unknown)}, found none of these names")
    return _with_these(f"{said}, a kernel of {name}", kernel, *in_order, **by_name)


def _with_these(what: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Calls a function; that it does not take what it is given is told in one line."""
    try:
        return function(*args, **kwargs)
    except TypeError as wrong:
        # What is wrong inside of it has its own place.
        if wrong.__traceback__ is not None and wrong.__traceback__.tb_next is None:
            raise RequestError(f"{what}: {' '.join(str(wrong).split())}") from None
        raise
