"""Goldens of two parts of DeepSeek-V3: its router, and its module for multi-token prediction.

    python -m dsv2_export.deepseek_v3            # writes golden/deepseek_v3
    python -m dsv2_export.deepseek_v3 check      # computes them again and compares

They are no cases of the suite (DeepSeek-V2 has neither part); `reference/tests/deepseek_v3.rs` reads them. Everything
is Transformers' own: the router is its module, and the multi-token prediction module is found, renamed and loaded by
`MtpModel.from_pretrained` from a checkpoint with the published names, `model.layers.{num_hidden_layers}.*`.
float32, one thread, eager: Transformers' code has float32 islands that `.double()` does not reach.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.modeling_layers import MtpModel
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from . import format, prng
from .cases import PINS
from .run import PLAIN, checkpoint_tensors, provenance

TARGET = format.GOLDEN / "deepseek_v3"

MINIMUM_MARGIN = 1e-4
"""Of choice values and of group scores: far above the rounding of float32."""

DRIFT = 1e-5


def router(description, experts, groups, k, factor, normalised=True, bias=0.1, shift=0.0):
    """`groups`: how many there are, and how many of them a token may visit."""
    n_group, topk_group = groups
    return {
        "description": description,
        "bias": bias,
        "shift": shift,
        "config": {
            "n_routed_experts": experts,
            "n_group": n_group,
            "topk_group": topk_group,
            "num_experts_per_tok": k,
            "norm_topk_prob": normalised,
            "routed_scaling_factor": factor,
        },
    }


TOKENS, HIDDEN_SIZE, GAIN = 24, 8, 2.0
"""Of every router."""

NEGATIVE = (
    "biases as large as the scores; many choice values are negative, and a kept one may be below 0, "
    "which is what a mask of zeros would get wrong"
)
TINY = "scores near 1e-20, where the constant in the denominator counts"
ROUTERS = {
    "like-v3": router("V3's structure: 4 of 8 groups, normalised", 32, groups=(8, 4), k=8, factor=2.5),
    "not-normalised": router(
        "the weights are the scores times the factor", 16, groups=(4, 2), k=3, factor=2.5, normalised=False
    ),
    "one-group": router("no restriction to groups", 12, groups=(1, 1), k=5, factor=1.0),
    "pairs": router("a group's score is the sum of all it has", 12, groups=(6, 2), k=4, factor=1.5),
    "bias-decides": router(NEGATIVE, 16, groups=(4, 2), k=6, factor=2.5, bias=1.0),
    "tiny-scores": router(TINY, 8, groups=(2, 1), k=2, factor=2.5, bias=0.5, shift=-47.0),
    "one-expert": router("k = 1: normalised, so that every weight is the factor", 8, groups=(4, 2), k=1, factor=2.5),
}

RULES = [
    {"suffix": "norm.weight", "mean": 1.0, "std": 0.3},
    {"suffix": "embed_tokens.weight", "mean": 0.0, "std": 1.0},
    {"suffix": "e_score_correction_bias", "mean": 0.0, "std": 0.2},
    {"suffix": "bias", "mean": 0.0, "std": 0.5},
    {"suffix": "q_proj.weight", "gain": 1.5},
    {"suffix": "q_b_proj.weight", "gain": 1.5},
    {"suffix": "mlp.gate.weight", "gain": 1.5},
    {"suffix": "lm_head.weight", "gain": 2.0},
    {"suffix": "weight", "gain": 1.0},
]

SMALL = {
    "model_type": "deepseek_v3", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 40, "moe_intermediate_size": 10,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256,
    "q_lora_rank": 14, "kv_lora_rank": 12, "qk_nope_head_dim": 6, "qk_rope_head_dim": 8, "v_head_dim": 10,
    "first_k_dense_replace": 1, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 3,
    "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True, "num_nextn_predict_layers": 1,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1,
                     "mscale": 1.0, "mscale_all_dim": 1.0},
}  # fmt: skip

MODULES = {
    "like-v3": SMALL,
    "no-yarn": SMALL | {"rope_scaling": None, "q_lora_rank": None, "attention_bias": True, "norm_topk_prob": False,
                        "rms_norm_eps": 1e-3, "n_shared_experts": 2},
}  # fmt: skip


def margin(choice: np.ndarray, config: dict) -> float:
    """How far the nearest change of any choice is, in choice values."""
    groups = np.sort(choice.reshape(len(choice), config["n_group"], -1), -1)
    scores = groups[..., -2:].sum(-1)
    ranked = np.sort(scores, -1)[:, ::-1]
    kept = config["topk_group"]
    gaps = [ranked[:, kept - 1] - ranked[:, kept]] if kept < config["n_group"] else []
    threshold = ranked[:, kept - 1, None]
    size = groups.shape[-1]
    ranked = np.sort(np.where(np.repeat(scores >= threshold, size, -1), choice, np.nan), -1)  # those kept, rising, then NaN
    ranked = ranked[:, : kept * size]
    gaps += [np.diff(ranked)[:, -config["num_experts_per_tok"] :].ravel()]
    return float(np.concatenate(gaps).min())


def run_router(name: str, case: dict) -> dict[str, np.ndarray]:
    config = DeepseekV3Config(hidden_size=HIDDEN_SIZE, **case["config"])
    for seed in range(1000):
        random = np.random.default_rng([seed, *name.encode()])
        experts = case["config"]["n_routed_experts"]
        hidden = random.standard_normal((TOKENS, HIDDEN_SIZE))
        hidden[:, 0] = 1.0  # so that the first column of the weight shifts all logits
        weight = random.standard_normal((experts, HIDDEN_SIZE)) * GAIN / np.sqrt(HIDDEN_SIZE)
        weight[:, 0] += case["shift"]
        hidden, weight = prng.bf16_exact(hidden), prng.bf16_exact(weight)
        bias = prng.bf16_exact(random.standard_normal(experts) * case["bias"])
        module = DeepseekV3TopkRouter(config).eval()
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(weight))
            module.e_score_correction_bias.copy_(torch.from_numpy(bias))
            logits, weights, indices = (t.numpy() for t in module(torch.from_numpy(hidden)))
        choice = 1 / (1 + np.exp(-logits.astype(np.float64))) + bias
        if margin(choice, case["config"]) >= MINIMUM_MARGIN:
            break
    else:
        raise RuntimeError(f"{name}: no seed gives a margin of {MINIMUM_MARGIN}")
    # torch.topk(sorted=False): in no order. Here: by falling choice value.
    order = np.argsort(-np.take_along_axis(choice, indices, -1), -1)
    return {
        "hidden": hidden,
        "weight": weight,
        "e_score_correction_bias": bias,
        "router_logits": logits,
        "topk_indices": np.take_along_axis(indices, order, -1),
        "topk_weights": np.take_along_axis(weights, order, -1),
    }


def weight_shapes(config: dict) -> dict[str, tuple]:
    """The published names: those of the model, and those of the module for multi-token prediction behind it."""
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**config))
    shapes = {name: tuple(view.shape) for name, view in checkpoint_tensors(model)}
    shapes |= {name: tuple(b.shape) for name, b in model.named_buffers() if name.endswith("e_score_correction_bias")}
    layers, width = config["num_hidden_layers"], config["hidden_size"]
    last, module = f"model.layers.{layers - 1}.", f"model.layers.{layers}."
    shapes |= {name.replace(last, module): shape for name, shape in shapes.items() if name.startswith(last)}
    shapes |= {module + f"{name}.weight": (width,) for name in ("enorm", "hnorm", "shared_head.norm")}
    return shapes | {module + "eh_proj.weight": (width, 2 * width)}


def run_module(name: str, config: dict) -> tuple[dict[str, np.ndarray], int]:
    """The tensors, and the seed of the weights."""
    for seed in range(100):
        weights = {n: prng.generate(n, s, prng.find_rule(n, RULES), seed) for n, s in weight_shapes(config).items()}
        ids = np.random.default_rng([seed, *name.encode()]).integers(0, config["vocab_size"], (2, 13))
        with tempfile.TemporaryDirectory() as scratch:
            format.write_checkpoint(Path(scratch), config | {"architectures": ["DeepseekV3ForCausalLM"]}, weights, "F32")
            model = DeepseekV3ForCausalLM.from_pretrained(scratch, **PLAIN).eval()
            # Which of the checkpoint's layers are such modules is known for 61 layers only: "model.layers.61.*".
            model._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{config['num_hidden_layers']}\."]
            module = MtpModel.from_pretrained(model).eval()
            module.config._attn_implementation = module.config._experts_implementation = "eager"
        routed = []
        gate = module.layers[0].mtp_block.mlp.gate
        gate.register_forward_hook(lambda _, __, output, routed=routed: routed.append(output))
        input_ids = torch.from_numpy(ids)
        positions = torch.arange(1, ids.shape[1])[None]  # of the tokens that are embedded, as `generate(use_mtp=True)` has it
        with torch.no_grad():
            hidden = model.model(input_ids[:, :-1]).last_hidden_state
            output = module.forward_layer(0, hidden, positions, None, input_ids=input_ids[:, 1:])
            logits = module._project_to_logits(output)
            drafted, drafted_logits, _ = module(input_ids[:, 1:], hidden, None, positions, None)
        assert torch.equal(drafted_logits[:, 0], logits[:, -1]) and torch.equal(drafted[:, 0], logits[:, -1].argmax(-1))
        router_logits = routed[0][0]
        choice = router_logits.double().sigmoid() + gate.e_score_correction_bias
        if margin(choice.numpy(), config) >= MINIMUM_MARGIN:
            break
    else:
        raise RuntimeError(f"{name}: no seed gives a margin of {MINIMUM_MARGIN}")
    return {
        "input_ids": ids,
        "position_ids": positions.numpy(),
        "last_hidden_states": hidden.numpy(),
        "router_logits": router_logits.numpy(),
        "hidden_states": output.numpy(),
        "logits": logits.numpy(),
    }, seed


def build() -> tuple[dict, dict[str, np.ndarray]]:
    tensors = {}
    description = {"schema": "dsv2-deepseek-v3/1", "routers": {}, "modules": {}}
    for name, case in ROUTERS.items():
        tensors |= {f"routers.{name}.{tensor}": array for tensor, array in run_router(name, case).items()}
        description["routers"][name] = {"description": case["description"]} | case["config"]
    for name, config in MODULES.items():
        arrays, seed = run_module(name, config)
        tensors |= {f"modules.{name}.{tensor}": array for tensor, array in arrays.items()}
        description["modules"][name] = {"config": config, "weights": {"seed": seed, "rules": RULES}}
    description["provenance"] = provenance("golden/export, python -m dsv2_export.deepseek_v3")
    return description, {name: format.contiguous(array) for name, array in tensors.items()}


def main() -> int:
    assert transformers.__version__ == PINS["hf"], f"needs transformers {PINS['hf']}"
    prng.check_test_vector()
    description, tensors = build()
    if sys.argv[1:] == ["check"]:
        committed = load_file(TARGET / "expected.safetensors")
        moved = committed.keys() ^ tensors.keys()
        moved |= {name for name in committed.keys() & tensors.keys() if differ(committed[name], tensors[name])}
        print(f"{len(committed)} tensors, moved: {sorted(moved) or 'none'}")
        return 1 if moved else 0
    TARGET.mkdir(exist_ok=True)
    (TARGET / "cases.json").write_text(json.dumps(description, indent=1) + "\n")
    save_file(tensors, TARGET / "expected.safetensors")
    (TARGET / "expected.safetensors").chmod(0o644)
    print(f"{len(tensors)} tensors, {sum(p.stat().st_size for p in TARGET.iterdir()) / 1024:.0f} KiB")
    return 0


def differ(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return True
    if a.dtype == np.int64:
        return not np.array_equal(a, b)
    return np.linalg.norm(a - b) > DRIFT * np.linalg.norm(a)


if __name__ == "__main__":
    sys.exit(main())
