"""Reading and writing case folders.

A folder appears whole or not at all: it is written beside its place and renamed. `case.json` is laid out for people:
one stage a line, in forward order.
"""

import hashlib
import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
from safetensors.numpy import load_file, save_file

GOLDEN = Path(__file__).resolve().parents[2]
CASES = GOLDEN / "cases"
SCHEMA = GOLDEN / "schema" / "case.schema.json"

DTYPES = {"int64": "I64", "float32": "F32", "bool": "BOOL"}


def describe(array: np.ndarray) -> dict:
    return {"dtype": DTYPES[str(array.dtype)], "shape": list(array.shape)}


def contiguous(array: np.ndarray) -> np.ndarray:
    """In row-major order; unlike `np.ascontiguousarray` it leaves a scalar a scalar."""
    return np.array(array, order="C")


def round_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """Four digits: a baseline is a yardstick, and more would be noise in the diff."""
    return {key: float(f"{value:.4g}") for key, value in metrics.items()}


def dump_json(case: dict) -> str:
    """JSON with one line for each entry of the long tables."""
    lines = []
    for key, value in case.items():
        if key in ("config", "inputs", "stages", "provenance"):
            entries = [f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()]
            text = "{\n" + ",\n".join(entries) + "\n  }"
        elif key == "weights" and "rules" in value:
            rules = ",\n".join(f"      {json.dumps(rule)}" for rule in value["rules"])
            text = f'{{"kind": "generated", "seed": {value["seed"]}, "rules": [\n{rules}\n    ]}}'
        else:
            text = json.dumps(value)
        lines.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def validate(case: dict) -> None:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator(schema).validate(case)


def write_case(case: dict, inputs: dict, expected: dict, checkpoint: Path | None, root: Path = CASES) -> Path:
    """Adds digests, validates, writes. `checkpoint` is a folder to copy in."""
    target = root / case["name"]
    scratch = root / f".{case['name']}.tmp"
    root.mkdir(parents=True, exist_ok=True)
    if scratch.exists():
        shutil.rmtree(scratch)
    scratch.mkdir()
    save_file({k: contiguous(v) for k, v in inputs.items()}, scratch / "inputs.safetensors")
    save_file({k: contiguous(v) for k, v in expected.items()}, scratch / "expected.safetensors")
    if checkpoint is not None:
        shutil.copytree(checkpoint, scratch / "checkpoint")
    files = sorted(p for p in scratch.rglob("*") if p.is_file())
    case["provenance"]["sha256"] = {p.relative_to(scratch).as_posix(): sha256(p) for p in files}
    validate(case)
    (scratch / "case.json").write_text(dump_json(case))
    for path in scratch.rglob("*.safetensors"):
        path.chmod(0o644)  # the library writes them for their owner only
    if target.exists():
        shutil.rmtree(target)
    scratch.rename(target)
    return target


def read_case(folder: Path) -> tuple[dict, dict, dict]:
    """case.json, inputs and expected stages of a committed case; its digests are checked."""
    case = json.loads((folder / "case.json").read_text())
    for name, digest in case["provenance"]["sha256"].items():
        if sha256(folder / name) != digest:
            raise ValueError(f"{case['name']}: {name} is not the file that was recorded (sha256 differs)")
    inputs, expected = load_file(folder / "inputs.safetensors"), load_file(folder / "expected.safetensors")
    for described, arrays in ((case["inputs"], inputs), (case["stages"], expected)):
        found = {name: describe(array) for name, array in arrays.items()}
        if found != {name: {"dtype": d["dtype"], "shape": d["shape"]} for name, d in described.items()}:
            raise ValueError(f"{case['name']}: case.json does not describe its tensors")
    return case, inputs, expected


def write_checkpoint(folder: Path, config: dict, tensors: dict, dtype: str, shards: int = 1, forms=()) -> None:
    """A Hugging Face checkpoint folder; `dtype` is F32, F16 or BF16, `shards` > 1 adds an index; `forms` are functions that
    bring the tensors into another form (`forms.py`), one after the other."""
    import torch
    from safetensors.torch import save_file as save_torch

    torch_dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    converted = {k: torch.from_numpy(np.ascontiguousarray(v)).to(torch_dtype) for k, v in tensors.items()}
    for form in forms:
        converted = {k: v.contiguous() for k, v in form(converted).items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    meta = {"format": "pt"}
    if shards == 1:
        save_torch(converted, folder / "model.safetensors", meta)
        return
    names = list(converted)
    size = sum(t.numel() * t.element_size() for t in converted.values())
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        save_torch({name: converted[name] for name in part}, folder / file, meta)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
