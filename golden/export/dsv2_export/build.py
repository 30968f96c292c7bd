"""Makes a case, and makes it again to see whether anything moved."""

import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch

from . import format, metrics, prng, run
from .cases import Case

MINIMUM_MARGIN = 1e-3
"""Logits. float32 errors of the router stay below 1e-5, so no conforming float32 run may choose otherwise."""

DRIFT = 1e-5
"""Relative L2 at which `check` calls a stage moved; other thread counts and kernels stay below 1e-6 or so."""


def build(case: Case, retrain: bool = False) -> None:
    prng.check_test_vector()
    start = zlib.crc32(case.name.encode()) % 10000
    for attempt in range(200):
        with tempfile.TemporaryDirectory() as scratch:
            if _attempt(case, start, attempt, Path(scratch) / "checkpoint", retrain and attempt == 0):
                return
    raise RuntimeError(f"{case.name}: no seed gives a routing margin of {MINIMUM_MARGIN}")


def _attempt(case: Case, start: int, attempt: int, checkpoint: Path, retrain: bool) -> bool:
    """One seed. Trained weights cannot be seeded anew, so there the inputs are."""
    spec = {
        "schema": "dsv2-case/1",
        "name": case.name,
        "description": case.description,
        "features": case.features,
        "dialect": case.dialect,
        "architecture": case.architecture,
        "config": case.config,
        "weights": {"kind": "generated", "seed": start + attempt, "rules": case.rules},
        "options": case.options,
    }
    trained = case.checkpoint is not None and "trained" in case.checkpoint
    inputs = case.inputs(np.random.default_rng([start, attempt if trained else 0]), case.config)
    if trained:
        from .trained import trained_checkpoint

        trained_checkpoint(case, checkpoint, retrain)
    else:
        weights = run.generate_weights(case.architecture, case.config, spec["weights"])
        if case.checkpoint is not None:
            format.write_checkpoint(checkpoint, case.config, weights, **case.checkpoint)
    if case.checkpoint is not None:
        spec["weights"] = {"kind": "checkpoint", "path": "checkpoint"}
        weights = checkpoint

    stages = run.run(spec, inputs, weights, torch.float32)
    excluded = metrics.excluded_rows(inputs)
    margin = routing_margin(stages, case.config, excluded)
    if margin < MINIMUM_MARGIN:
        return False

    expected = {name: tensor.numpy() for name, tensor in stages.items()}
    baselines = measure_baselines(spec, inputs, weights, stages, excluded)
    spec["inputs"] = {name: format.describe(array) for name, array in inputs.items()}
    spec["stages"] = {}
    for name, array in expected.items():
        assert name.endswith("topk_indices") or not np.isnan(array).any(), f"{case.name}: NaN in {name}"
        spec["stages"][name] = format.describe(array)
        if name in baselines:
            spec["stages"][name]["baseline"] = baselines[name]
    if np.isfinite(margin):
        spec["routing"] = {"min_margin": float(f"{margin:.4g}")}
    spec["provenance"] = run.provenance("golden/export")
    folder = format.write_case(spec, inputs, expected, checkpoint if case.checkpoint is not None else None)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1024
    head = baselines.get("lm_head", baselines.get("score"))
    print(
        f"{case.name:26} {size:5.0f} KiB  attempt {attempt:2}  margin {margin:8.2g}  "
        f"head l2: f32 {head['f32']['l2']:.1e}  bf16 {head['bf16']['l2']:.1e}",
        flush=True,
    )
    return True


def sliced_head(spec: dict, inputs: dict) -> bool:
    return "logits_to_keep" in spec["options"] or "logits_to_keep" in inputs


def routing_margin(stages: dict, config: dict, excluded) -> float:
    margin = np.inf
    for name, logits in stages.items():
        if name.endswith("router_logits"):
            rows = metrics.compared(name, logits.numpy(), excluded, False)
            margin = min(margin, metrics.routing_margin(rows, config))
    return margin


def measure_baselines(spec: dict, inputs: dict, weights, stages: dict, excluded) -> dict:
    """How far plain float32 and plain bfloat16 are from float64, experts chosen alike."""
    forced = run.choices(stages)
    truth = run.run(spec, inputs, weights, torch.float64, forced)
    low = run.run(spec, inputs, weights, torch.bfloat16, forced)
    baselines = {}
    for name in stages:
        if name.endswith("topk_indices"):
            continue
        b = truth[name].double().numpy()
        baselines[name] = {}
        for dtype, other in (("f32", stages), ("bf16", low)):
            found = metrics.stage_metrics(name, other[name].double().numpy(), b, excluded, sliced_head(spec, inputs))
            assert np.isfinite(list(found.values())).all(), f"{spec['name']}: {name} has no finite {dtype} baseline"
            baselines[name][dtype] = format.round_metrics(found)
    return baselines


def check(case: dict, inputs: dict, expected: dict) -> bool:
    """Runs a committed case again; prints the first stage that moved, in forward order, and the worst one."""
    folder = format.CASES / case["name"]
    if case["weights"]["kind"] == "generated":
        weights = run.generate_weights(case["architecture"], case["config"], case["weights"])
    else:
        weights = folder / case["weights"]["path"]
    try:
        stages = run.run(case, inputs, weights, torch.float32)
    except Exception as error:  # another version may not run it at all: that is an answer, too
        print(f"BROKE  {case['name']}: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
        return False
    excluded = metrics.excluded_rows(inputs)
    problems = []
    worst = 0.0
    for name in [*stages, *(name for name in expected if name not in stages)]:
        if name not in stages or name not in expected:
            problems.append((name, np.inf))
            continue
        a, b = stages[name].numpy(), expected[name]
        if a.shape != b.shape:
            problems.append((name, np.inf))
        elif name.endswith("topk_indices"):
            rows = (metrics.compared(name, np.sort(x, -1), excluded, False) for x in (a, b))
            if not np.array_equal(*rows):
                problems.append((name, np.inf))
        else:
            error = metrics.stage_metrics(name, a, b, excluded, sliced_head(case, inputs))["l2"]
            worst = max(worst, error)
            if not error <= DRIFT:
                problems.append((name, error))
    if problems:
        name, error = problems[0]
        print(f"MOVED  {case['name']}: first {name} (l2 {error:.2g}), {len(problems)} stages in all", flush=True)
        return False
    print(f"ok     {case['name']:26} largest l2 {worst:.1e}", flush=True)
    return True
