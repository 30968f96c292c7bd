"""Runs a case with Transformers and returns its stages, one joined tensor each.

A fresh model is built for every run: dynamic RoPE keeps state between calls, and a run must not see another's.
"""

import copy
import inspect

import numpy as np
import torch
import transformers
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM, DeepseekV2ForSequenceClassification, DynamicCache

from . import prng
from .hooks import Recorder

ARCHITECTURES = {
    "DeepseekV2ForCausalLM": DeepseekV2ForCausalLM,
    "DeepseekV2ForSequenceClassification": DeepseekV2ForSequenceClassification,
}

EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
"""Transformers' plain code, without a fused kernel."""

PLAIN = {"dtype": torch.float32, **EAGER, "local_files_only": True}
"""How Transformers loads a checkpoint."""

CACHE = next(n for n in ("cache", "past_key_values") if n in inspect.signature(DeepseekV2ForCausalLM.forward).parameters)
"""What the argument is called: `cache` from 5.24 on."""

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def provenance(generator: str) -> dict:
    """What made a golden file."""
    return {
        "generator": generator,
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
        "threads": torch.get_num_threads(),
        **EAGER,
    }


def make_config(config: dict):
    made = DeepseekV2Config.from_dict(copy.deepcopy(config))  # it writes into nested dicts
    made._attn_implementation = "eager"
    made._experts_implementation = "eager"
    return made


def checkpoint_tensors(model) -> list[tuple[str, torch.Tensor]]:
    """Names of the checkpoint with views of the module's own storage; fused experts are taken apart.

    Writing to a view sets the weight, reading one gives what a checkpoint holds.
    """
    tensors = []
    for name, parameter in model.named_parameters():  # a tied lm_head is not listed a second time
        stem, _, last = name.rpartition(".")
        if stem.endswith("mlp.experts"):
            for e in range(parameter.shape[0]):
                if last == "gate_up_proj":
                    gate, up = parameter.data[e].chunk(2, dim=0)
                    tensors += [(f"{stem}.{e}.gate_proj.weight", gate), (f"{stem}.{e}.up_proj.weight", up)]
                else:
                    tensors.append((f"{stem}.{e}.{last}.weight", parameter.data[e]))
        else:
            tensors.append((name, parameter.data))
    return tensors


def empty_model(architecture: str, config: dict):
    """A float32 model whose weights mean nothing yet."""
    return ARCHITECTURES[architecture](make_config(config)).float().eval()


def generate_weights(architecture: str, config: dict, weights: dict) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint from their rules, float32 and bfloat16-exact."""
    return {
        name: prng.generate(name, tuple(view.shape), prng.find_rule(name, weights["rules"]), weights["seed"])
        for name, view in checkpoint_tensors(empty_model(architecture, config))
    }


def build_model(case: dict, weights, dtype: torch.dtype):
    """`weights` is a dict of float32 arrays, or a checkpoint folder that Transformers itself loads."""
    architecture = case["architecture"]
    if isinstance(weights, dict):
        model = empty_model(architecture, case["config"])
        views = dict(checkpoint_tensors(model))
        missing = views.keys() ^ weights.keys()
        if missing:
            raise KeyError(f"tensors of the model and of the weights differ: {sorted(missing)[:5]}")
        with torch.no_grad():
            for name, view in views.items():
                view.copy_(torch.from_numpy(np.ascontiguousarray(weights[name], np.float32)))
    else:
        model = ARCHITECTURES[architecture].from_pretrained(weights, **PLAIN).eval()
    # `.to(bfloat16)` would round the rotary frequencies, which loading in bfloat16 does not: keep them as they were.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model = model.to(dtype)
    for name, buffer in buffers.items():
        model.get_submodule(name.rpartition(".")[0]).register_buffer(name.rpartition(".")[2], buffer, persistent=False)
    return model


def _tensor(name: str, array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(array, order="C"))
    if not tensor.is_floating_point():
        return tensor
    if name == "attention_mask":  # float32's minimum is minus infinity in bfloat16, and would make rows of NaN
        forbidden = tensor <= torch.finfo(torch.float32).min / 2
        return tensor.to(dtype).masked_fill(forbidden, torch.finfo(dtype).min)
    return tensor.to(dtype)


def run(case: dict, inputs: dict[str, np.ndarray], weights, dtype: torch.dtype, forced=None) -> dict[str, torch.Tensor]:
    """All stages in forward order. `forced`: stage `...topk_indices` -> [B*S,k] of the run to replay."""
    model = build_model(case, weights, dtype)
    options = case.get("options", {})
    given = {name: _tensor(name, array, dtype) for name, array in inputs.items()}
    tokens = given.get("input_ids", given.get("inputs_embeds"))
    batch, length = tokens.shape[:2]
    use_cache = options.get("use_cache", True)
    cache = DynamicCache(config=model.config) if use_cache else None
    chunks = options.get("chunks", [length])
    assert sum(chunks) == length, "chunks do not add up to the sequence"

    recorder = Recorder(model)
    start = 0
    last = None
    for size in chunks:
        end = start + size
        call = {"use_cache": use_cache, CACHE: cache}
        for name in ("input_ids", "inputs_embeds", "position_ids"):
            if name in given:
                call[name] = given[name][:, start:end]
        mask = given.get("attention_mask")
        if mask is not None:
            # A 2-D mask must always cover the past as well.
            queries = slice(start, end) if mask.dim() == 4 and mask.shape[2] > 1 else slice(None)
            call["attention_mask"] = mask[:, :end] if mask.dim() == 2 else mask[:, :, queries, :end]
        for name in ("labels", "num_items_in_batch", "logits_to_keep"):
            if name in given:
                call[name] = given[name]
        if "logits_to_keep" in options:
            call["logits_to_keep"] = options["logits_to_keep"]
        if forced is not None:
            recorder.forced = {
                int(stage.split(".")[2]): indices.reshape(batch, length, -1)[:, start:end].flatten(0, 1)
                for stage, indices in forced.items()
            }
        with recorder, torch.no_grad():
            last = model(**call)
        start = end

    stages = {name: join(name, pieces, batch) for name, pieces in recorder.stages.items()}
    if forced is None:
        sort_choices(stages)
    if "labels" in given:
        stages["loss"] = last.loss.detach()
    if case["architecture"] == "DeepseekV2ForSequenceClassification":
        stages["pooled_logits"] = last.logits.detach()
    if cache is not None and case["dialect"] == "hf":
        for i, layer in enumerate(cache.layers):
            stages[f"past_key_values.{i}.compressed_kv"] = layer.keys.squeeze(1)
            stages[f"past_key_values.{i}.k_pe"] = layer.values.squeeze(1)
    return stages


def fed_by_generate(config: dict, input_ids: np.ndarray) -> dict[str, np.ndarray]:
    """What `generate` makes of ids alone: the first call of the model, seen from before it. Weights play no part."""
    model = empty_model("DeepseekV2ForCausalLM", config)
    seen = {}

    def look(_module, _args, kwargs):
        for name in ("input_ids", "attention_mask", "position_ids"):
            seen.setdefault(name, kwargs[name].numpy().copy())

    model.register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad():
        model.generate(torch.from_numpy(input_ids), max_new_tokens=1, do_sample=False)
    return seen


def join(name: str, pieces: list[torch.Tensor], batch: int) -> torch.Tensor:
    """The pieces of a chunked run, along the sequence."""
    if len(pieces) == 1:
        return pieces[0]
    if name.endswith(".kv_b_proj"):  # expands the whole cache every time
        return pieces[-1]
    if name.endswith((".attn_scores", ".attn_weights")):
        fill = float("-inf") if name.endswith("scores") else 0.0
        total = pieces[-1].shape[-1]
        pieces = [torch.nn.functional.pad(p, (0, total - p.shape[-1]), value=fill) for p in pieces]
    if pieces[0].dim() == 4:  # [B,H,S,.]
        return torch.cat(pieces, dim=2)
    if pieces[0].dim() == 2:  # [B*S,.]
        return torch.cat([p.unflatten(0, (batch, -1)) for p in pieces], dim=1).flatten(0, 1)
    return torch.cat(pieces, dim=1)


def sort_choices(stages: dict[str, torch.Tensor]) -> None:
    """Experts by falling weight, then by rising index: the router leaves them in no defined order."""
    for name in [n for n in stages if n.endswith(".topk_indices")]:
        weights_name = name.replace("topk_indices", "topk_weights")
        indices, weights = stages[name].numpy(), stages[weights_name].numpy()
        order = np.lexsort((indices, -weights), axis=-1)
        stages[name] = torch.from_numpy(np.take_along_axis(indices, order, -1))
        stages[weights_name] = torch.from_numpy(np.take_along_axis(weights, order, -1))


def choices(stages: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a replay needs of a run."""
    return {name: tensor for name, tensor in stages.items() if name.endswith(".topk_indices")}
