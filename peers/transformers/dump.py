"""Runs Hugging Face Transformers on a checkpoint folder and writes every stage that forward hooks see.

    VENV/bin/python dump.py MODEL INPUTS OUTPUT f32|bf16 [--attention sdpa] [--experts grouped_mm] [--chunks 7,1,1]
"""

import argparse

import contract
import torch
import transformers
from dsv2_hooks import record
from model import CACHE, DTYPES, load
from safetensors.torch import load_file


def typed(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Floating-point inputs in the model's type. float32's minimum would be minus infinity in bfloat16."""
    if not tensor.is_floating_point():
        return tensor
    forbidden = tensor <= torch.finfo(torch.float32).min / 2
    return tensor.to(dtype).masked_fill(forbidden, torch.finfo(dtype).min) if name == "attention_mask" else tensor.to(dtype)


def prepare(args: argparse.Namespace) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The model and its inputs. Before 5.0, experts are plain modules and there is nothing to choose."""
    experts = None if transformers.__version__.startswith("4.") else args.experts
    model = load(args.model, args.dtype, attn_implementation=args.attention, experts_implementation=experts)
    return model, {name: typed(name, tensor, DTYPES[args.dtype]) for name, tensor in load_file(args.inputs).items()}


def run(loaded: tuple, args: argparse.Namespace) -> None:
    """Feeds the inputs, in pieces through one cache if there are `chunks`."""
    model, inputs = loaded
    cached = {} if args.chunks is None else {CACHE: transformers.DynamicCache(config=model.config)}
    length = inputs.get("input_ids", inputs.get("inputs_embeds")).shape[1]
    start, out = 0, None
    with torch.no_grad(), record(model) as dump:
        for size in args.chunks or [length]:
            piece = dict(inputs)
            for name in inputs.keys() & {"input_ids", "inputs_embeds", "position_ids"}:
                piece[name] = inputs[name][:, start : start + size]
            if inputs.get("attention_mask", torch.empty(0)).dim() == 2:  # it always covers the past as well
                piece["attention_mask"] = inputs["attention_mask"][:, : start + size]
            if piece.get("logits_to_keep", torch.empty(1)).dim() == 0:
                piece["logits_to_keep"] = int(piece["logits_to_keep"])
            out = model(**piece, **cached)
            start += size
    last = {"pooled_logits": out.logits} if hasattr(model, "score") else {"logits": out.logits}
    dump.write(str(args.output), past_key_values=getattr(out, CACHE), loss=out.loss, **last)


if __name__ == "__main__":
    options = {
        "--attention": {"help": "attn_implementation [default: Transformers' own choice]"},
        "--experts": {"help": "experts_implementation, from 5.0 on [default: Transformers' own choice]"},
        "--chunks": {"type": lambda text: [int(n) for n in text.split(",")]},
    }
    contract.dump(__doc__, prepare, run, options)
