"""Forms in which checkpoints lie on disk: the tensors of the plain form, brought into another one."""

import re

import torch

LARGEST = 448.0
"""Of e4m3."""

EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")


def fused(tensors: dict) -> dict:
    """The experts of a layer in two tensors, as Transformers writes with `save_original_format=False`."""
    made, experts = {}, {}
    for name, tensor in tensors.items():
        if found := EXPERT.fullmatch(name):
            experts.setdefault((found[1], found[3]), []).append(tensor)
        else:
            made[name] = tensor
    for path in dict.fromkeys(path for path, _ in experts):
        gate, up, down = (torch.stack(experts[path, part]) for part in ("gate_proj", "up_proj", "down_proj"))
        made |= {f"{path}.gate_up_proj": torch.cat([gate, up], dim=1), f"{path}.down_proj": down}
    return made


def fp8(tensors: dict, block: list[int] | None, static: bool = False) -> dict:
    """All matrices but embedding, router and head in 8 bits, with a scale for each block (or matrix). `static`: with the
    scales of activations that some engines use, and Transformers' dequantisation drops.

    Not for fused experts: Transformers 5.23 takes their scales for tensors that it does not know, and the codes for weights.
    """
    made = {}
    for name, tensor in tensors.items():
        if tensor.dim() < 2 or name in ("model.embed_tokens.weight", "lm_head.weight") or name.endswith("mlp.gate.weight"):
            made[name] = tensor
            continue
        rows, columns = block or tensor.shape[-2:]
        tiles = tensor.float().unflatten(-2, (-1, rows)).unflatten(-1, (-1, columns))
        scale = tiles.abs().amax(dim=(-3, -1)) / LARGEST
        codes = tiles / scale.unsqueeze(-1).unsqueeze(-3)
        made[name] = codes.flatten(-2).flatten(-3, -2).to(torch.float8_e4m3fn)
        made[f"{name}_scale_inv"] = scale if block else scale.reshape(())
        if static:
            made[f"{name.removesuffix('weight')}activation_scale"] = torch.tensor(0.02)
    return made


def untied(tensors: dict) -> dict:
    """A tied model that holds another head all the same (the embedding of the next token), and what no model has."""
    head = tensors["model.embed_tokens.weight"].roll(1, dims=0)
    return {**tensors, "lm_head.weight": head, "model.layers.7.eh_proj.weight": torch.ones(2, 2)}
