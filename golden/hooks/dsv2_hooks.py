"""Writes the stages of a DeepSeek-V2 in PyTorch to a safetensors file that `dsv2 check` reads. Needs torch and safetensors.

    with record(model) as dump:
        out = model(input_ids=ids)          # once, or several times through one cache: the pieces are joined
    dump.write("mine.safetensors", past_key_values=out.past_key_values, logits=out.logits, loss=out.loss)
    print(dump.skipped)                     # {stage: why it is not in the file}

Any module tree under Hugging Face's names will do, inside a wrapper too. Only forward hooks are used: nothing is replaced,
so fused kernels stay fused. What is no module's output is not seen: `q_pe`, `k_pe` (but the cache's is), `attn_scores`.
"""

import contextlib

import torch
from safetensors.torch import save_file

DENSE = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
SPARSE = ("mlp.gate", "mlp.experts", "mlp.shared_experts", "mlp")
QUERY = ("self_attn.q_a_proj", "self_attn.q_a_layernorm", "self_attn.q_b_proj")
ALWAYS = tuple(f"self_attn.{leaf}" for leaf in ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj"))
NORMS = ("input_layernorm", "post_attention_layernorm")
ROUTER = ("router_logits", "topk_indices", "topk_weights")


@contextlib.contextmanager
def record(model):
    """Collects the stages of all forward calls made inside."""
    dump, modules = Dump(), dict(model.named_modules())
    root = next((name[: -len("layers.0.self_attn")] for name in modules if name.endswith("layers.0.self_attn")), None)
    if root is None:
        raise ValueError("no module is called `layers.0.self_attn`: these are not Hugging Face's names")
    names = {f"model.{leaf}": root + leaf for leaf in ("embed_tokens", "rotary_emb", "norm")}
    for i in range(len(modules[root + "layers"])):
        own = f"{root}layers.{i}."
        query = QUERY if own + QUERY[0] in modules else ("self_attn.q_proj",)
        mlp = SPARSE if own + "mlp.gate" in modules else DENSE
        leaves = ("self_attn", *query, *ALWAYS, *NORMS, *mlp)
        names |= {f"model.layers.{i}": own[:-1]} | {f"model.layers.{i}.{leaf}": own + leaf for leaf in leaves}
    names |= {leaf: name for name in modules if (leaf := name.rpartition(".")[2]) in ("lm_head", "score")}
    with contextlib.ExitStack() as hooks:
        for stage, name in names.items():
            if name in modules:
                hook = modules[name].register_forward_hook(lambda _m, args, out, stage=stage: dump.see(stage, args, out))
                hooks.callback(hook.remove)
            for leaf in stages_of(stage):
                dump.reasons[leaf] = "never called" if name in modules else "no such module"
        yield dump


def stages_of(module):
    """The stages that must come of a module, by the module's name."""
    if module.endswith(".gate"):
        return [f"{module}.{leaf}" for leaf in ROUTER]
    if module.endswith(".rotary_emb"):
        return [module + ".cos", module + ".sin"]
    return [] if module.endswith(".self_attn") else [module]


class Dump:
    """`pieces[stage]`: one tensor for each forward call. `reasons[stage]`: why there is none, should there be none."""

    def __init__(self):
        self.pieces, self.reasons = {}, {}

    @property
    def skipped(self):
        return {stage: why for stage, why in self.reasons.items() if stage not in self.pieces}

    def add(self, stage, tensor):
        if torch.is_tensor(tensor):
            self.pieces.setdefault(stage, []).append(tensor.detach().to("cpu", copy=True))
        else:
            self.reasons[stage] = f"returned {type(tensor).__name__}"

    def see(self, module, args, out):
        """Takes the stages out of what a module was given and returned."""
        self.reasons |= dict.fromkeys(stages_of(module), "not among what the module returned")
        several = out if isinstance(out, (tuple, list)) else (out,)
        first = next(iter(several), None)
        if module.endswith(".rotary_emb"):
            if torch.is_tensor(first) and first.is_complex():
                several = (first.real, first.imag)
            for leaf, table in zip(stages_of(module), several if len(several) == 2 else [several] * 2):
                self.add(leaf, table)
        elif module.endswith(".gate"):  # (logits, weights, indices), (indices, weights) or logits
            self.route(module, several)
        elif module.endswith(".self_attn"):  # a fused kernel returns no weights
            for weights in [t for t in several[1:] if torch.is_tensor(t) and t.dim() == 4][:1]:
                self.add(module + ".attn_weights", weights)
        else:
            if module.endswith(".experts"):  # where the router is no module of its own, the experts are told its choice
                gate = module.removesuffix("experts") + "gate"
                if len(self.pieces.get(f"{gate}.topk_indices", [])) == len(self.pieces.get(module, [])):
                    self.route(gate, args[1:])
            if module.endswith(".o_proj") and args:
                self.add(module.removesuffix("o_proj") + "attn_output", args[0])
            self.add(module, first)

    def route(self, gate, tensors):
        """Tells the router's tensors apart: indices are integers, weights the last floats of their shape, logits the rest."""
        tensors = [t.flatten(0, -2) for t in tensors if torch.is_tensor(t) and t.dim() > 1]
        indices = next((t for t in tensors if not t.is_floating_point()), None)
        if indices is not None:
            self.add(f"{gate}.topk_indices", indices.long())
            tensors = [t for t in tensors if t is not indices]
            if tensors and tensors[-1].shape == indices.shape:
                self.add(f"{gate}.topk_weights", tensors.pop())
        for logits in tensors[:1]:
            self.add(f"{gate}.router_logits", logits)

    def join(self, stage, pieces):
        """The pieces of one stage along the sequence, as golden/RUNNER.md has it."""
        if len(pieces) == 1:
            return pieces[0]
        if stage.endswith(".kv_b_proj"):
            fed = sum(piece.shape[1] for piece in self.pieces[stage.removesuffix("kv_b_proj") + "o_proj"])
            if pieces[-1].shape[-2] == fed:
                return pieces[-1]  # it expands the whole cache every time
        if stage.endswith(".attn_weights"):
            pieces = [torch.nn.functional.pad(p, (0, pieces[-1].shape[-1] - p.shape[-1])) for p in pieces]
        if pieces[0].dim() == 2:  # [B*S,..]
            batch = next(p[0].shape[0] for name, p in self.pieces.items() if name.endswith(".o_proj"))
            return torch.cat([p.unflatten(0, (batch, -1)) for p in pieces], dim=1).flatten(0, 1)
        return torch.cat(pieces, dim=2 if pieces[0].dim() == 4 else 1)

    def write(self, path, past_key_values=None, **outputs):
        """Writes all stages, each in its own type. `outputs`: `logits`, `loss`, `pooled_logits`; None is left out."""
        stages = {stage: self.join(stage, pieces) for stage, pieces in self.pieces.items()}
        if "lm_head" in stages:
            outputs.pop("logits", None)
        stages |= {name: value.detach().cpu() for name, value in outputs.items() if value is not None}
        layers = getattr(past_key_values, "layers", past_key_values or [])
        for i, layer in enumerate(layers):
            keys, values = (layer.keys, layer.values) if hasattr(layer, "keys") else layer[:2]
            latent = stages.get(f"model.layers.{i}.self_attn.kv_a_layernorm")
            if latent is None or keys.shape[-1] != latent.shape[-1] or (keys.dim() == 4 and keys.shape[1] != 1):
                self.reasons[f"past_key_values.{i}"] = f"keys of shape {list(keys.shape)} are no latents"
                continue
            stages[f"past_key_values.{i}.compressed_kv"] = keys.detach().cpu()
            stages[f"past_key_values.{i}.k_pe"] = values.detach().cpu()
        save_file({name: tensor.contiguous().clone() for name, tensor in stages.items()}, path)
