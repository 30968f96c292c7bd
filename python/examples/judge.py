"""A right dump and a wrong one, judged. Any checkpoint of Hugging Face, any inputs and any dump will do.

python examples/judge.py
"""

import tempfile
from pathlib import Path

from safetensors.numpy import load_file

import dsv2

with tempfile.TemporaryDirectory() as folder:
    case = Path(folder, "v2-lite")
    dsv2.run("materialize", "v2-lite", case)  # a small model with its inputs
    model, inputs, dump = case / "model", case / "case" / "inputs.safetensors", case / "dump.safetensors"
    dsv2.run("trace", "--model", model, "--inputs", inputs, "--output", dump, "--dtype", "bf16")
    print(dsv2.check(model, inputs, dump))

    tensors = load_file(case / "case" / "expected.safetensors")  # what Transformers computed, in f32
    tensors["model.layers.1.mlp"] = tensors["model.layers.1.mlp"] * 1.01
    report = dsv2.check(model, inputs, tensors)
    print(report)
    print(report[report.first_failing_stage])
