"""The judge from Python: a right dump, a wrong one, and requests that are at fault."""

import numpy as np
import pytest
from conftest import need

import dsv2

safetensors = pytest.importorskip("safetensors.numpy", reason="not installed: safetensors")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A golden case on disk, and what its f32 reference computes."""
    folder = tmp_path_factory.mktemp("case") / "v2-lite"
    text, status = dsv2.run("materialize", "v2-lite", folder)
    assert status == 0 and "v2-lite" in text
    model, inputs, dump = folder / "model", folder / "case" / "inputs.safetensors", folder / "dump.safetensors"
    assert dsv2.run("trace", "--model", model, "--inputs", inputs, "--output", dump, "--dtype", "f32")[1] == 0
    return model, inputs, dump


def test_a_right_dump_passes_from_a_file_and_from_arrays(case):
    model, inputs, dump = case
    report = dsv2.check(model, inputs, dump)
    assert report.passes and report.verdict == "pass" and report.first_failing_stage is None
    assert report.dtype == "f32" and report["lm_head"].disposition == "pass" and repr(report).startswith("pass: ")
    tensors = safetensors.load_file(dump)
    same = dsv2.check(model, safetensors.load_file(inputs), tensors, dtype="f32")
    assert same.passes and same.compared == report.compared


def test_a_wrong_stage_is_named(case, tmp_path):
    model, inputs, dump = case
    tensors = safetensors.load_file(dump)
    name = "model.layers.1.self_attn.o_proj"
    tensors[name] = tensors[name] * np.float32(1.01)
    report = dsv2.check(model, inputs, tensors, report=tmp_path / "out")
    assert not report.passes and report.verdict == "fail" and report.first_failing_stage == name
    assert report[name].local["l2"] > report[name].budget["l2"] and name in repr(report)
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model": "nowhere"}, "nowhere"),
        ({"tensors": {"nothing": np.zeros(3, np.float32)}}, "stage"),
        ({"tensors": {"lm_head": object()}}, "tensors: expected a dict of arrays of numbers"),
        ({"dtype": "f33"}, "f33"),
        ({"no_such_option": 1}, "--no-such-option"),
    ],
)
def test_a_request_at_fault_is_one_line(case, change, line):
    model, inputs, dump = case
    request = {"model": model, "inputs": inputs, "tensors": dump, **change}
    with pytest.raises(dsv2.RequestError, match=line) as caught:
        dsv2.check(**request)
    assert "\n" not in str(caught.value)


def test_the_command_line_is_the_package(case, capsys, monkeypatch):
    from dsv2.__main__ import main

    model, inputs, dump = map(str, case)
    monkeypatch.setattr("sys.argv", ["dsv2", "check", "--model", model, "--inputs", inputs, "--candidate", dump])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0 and "pass: " in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["dsv2", "check", "--model", "nowhere"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("dsv2: ")


@need("torch", "transformers")
def test_hooks_of_pytorch_make_a_dump_that_passes(case, tmp_path):
    import torch
    from safetensors.torch import load_file
    from transformers import DeepseekV2ForCausalLM

    from dsv2.hooks.torch import record

    model_folder, inputs, _ = case
    model = DeepseekV2ForCausalLM.from_pretrained(
        model_folder, dtype=torch.float32, experts_implementation="eager", attn_implementation="eager"
    ).eval()
    with torch.no_grad(), record(model) as dump:
        result = model(**load_file(inputs))
    dump.write(tmp_path / "mine.safetensors", past_key_values=result.past_key_values, logits=result.logits)
    report = dsv2.check(model_folder, inputs, tmp_path / "mine.safetensors")
    assert report.passes, report


@pytest.mark.parametrize(
    ("name", "modules"), [("torch", ["torch", "safetensors"]), ("mlx", ["mlx"]), ("paddle", ["paddle"]), ("jax", ["jax", "flax"])]
)
def test_each_framework_has_its_hooks(name, modules):
    import importlib

    for module in modules:
        pytest.importorskip(module, reason=f"not installed: {module}")
    assert callable(importlib.import_module(f"dsv2.hooks.{name}").record)
