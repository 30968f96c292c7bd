"""Reads every stage out of an unmodified Transformers model.

Most stages are outputs of modules: forward hooks. Three are not: the rotated query and key parts and the attention
scores are local variables of the attention module, so the two module-level functions that make them are wrapped while
a recording is on. Nothing in the model's arithmetic is replaced: the wrappers call the originals and look on.

The one deliberate intervention is *replay*: with `forced` expert indices the router keeps its own scores, but the
choice is the given one. It takes routing flips out of the error of a low-precision run.
"""

import contextlib

import torch
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as modeling

NEGLIGIBLE = torch.finfo(torch.float32).min / 2
"""Scores at or below this are masked, whatever finite number the implementation used for minus infinity."""

ATTENTION_MODULES = (
    "q_proj",
    "q_a_proj",
    "q_a_layernorm",
    "q_b_proj",
    "kv_a_proj_with_mqa",
    "kv_a_layernorm",
    "kv_b_proj",
    "o_proj",
)


class Recorder:
    """Collects `stages[name]`, one tensor per forward call, while the context is open.

    `forced[layer]` is [rows, k] for the current call, where rows are b * S + s.
    """

    def __init__(self, model):
        self.model = model
        self.stages: dict[str, list[torch.Tensor]] = {}
        self.forced: dict[int, torch.Tensor] | None = None
        self._layer = None
        self._undo = contextlib.ExitStack()

    def record(self, name: str, tensor: torch.Tensor) -> None:
        self.stages.setdefault(name, []).append(tensor.detach().clone())

    def __enter__(self):
        base = self.model.model
        self._watch(base.embed_tokens, "model.embed_tokens")
        self._hook(base.rotary_emb, self._rotary)
        for i, layer in enumerate(base.layers):
            self._watch_layer(i, layer)
        self._watch(base.norm, "model.norm")
        for head in ("lm_head", "score"):
            if hasattr(self.model, head):
                self._watch(getattr(self.model, head), head)
        self._wrap_function("apply_rotary_emb", self._rotated)
        self._wrap_function("eager_attention_forward", self._attention)
        return self

    def __exit__(self, *error):
        self._undo.close()

    # -- attaching

    def _hook(self, module, function) -> None:
        self._undo.callback(module.register_forward_hook(function).remove)

    def _watch(self, module, name: str, reshape=lambda t: t) -> None:
        self._hook(module, lambda _m, _args, out: self.record(name, reshape(out[0] if isinstance(out, tuple) else out)))

    def _watch_layer(self, i: int, layer) -> None:
        prefix = f"model.layers.{i}"
        self._watch(layer.input_layernorm, f"{prefix}.input_layernorm")
        attention = layer.self_attn

        def enter(_module, _args, _kwargs):
            self._layer = i

        self._undo.callback(attention.register_forward_pre_hook(enter, with_kwargs=True).remove)
        for name in ATTENTION_MODULES:
            module = getattr(attention, name, None)
            if module is not None:
                # The latent is passed on as a single head [B,1,T,c] since 5.15: drop the axis.
                self._watch(module, f"{prefix}.self_attn.{name}", lambda t: t.squeeze(1) if t.dim() == 4 else t)
        self._watch(layer.post_attention_layernorm, f"{prefix}.post_attention_layernorm")
        mlp = layer.mlp
        if hasattr(mlp, "experts"):
            self._watch_router(i, mlp)
            self._watch(mlp.experts, f"{prefix}.mlp.experts")
            self._watch(mlp.shared_experts, f"{prefix}.mlp.shared_experts")
            self._watch(mlp, f"{prefix}.mlp")
        else:
            for name in ("gate_proj", "up_proj", "down_proj"):
                self._watch(getattr(mlp, name), f"{prefix}.mlp.{name}")
        self._watch(layer, prefix)

    def _watch_router(self, i: int, moe) -> None:
        if hasattr(moe, "route_tokens_to_experts"):  # before 5.13 the choice is a method of the MoE module
            original = moe.route_tokens_to_experts

            def route(router_logits):
                indices, weights = original(router_logits)
                logits = router_logits.reshape(-1, router_logits.shape[-1])
                weights, indices = self._routed(i, logits, weights, indices, moe.routed_scaling_factor)
                return indices, weights

            moe.route_tokens_to_experts = route
            self._undo.callback(lambda: delattr(moe, "route_tokens_to_experts"))
        else:

            def gate(_module, _args, out):
                logits, weights, indices = out
                return logits, *self._routed(i, logits, weights, indices, moe.gate.routed_scaling_factor)

            self._hook(moe.gate, gate)

    def _wrap_function(self, name: str, wrapper) -> None:
        original = getattr(modeling, name)
        setattr(modeling, name, lambda *args, **kwargs: wrapper(original, *args, **kwargs))
        self._undo.callback(setattr, modeling, name, original)

    # -- what is read where

    def _rotary(self, _module, _args, freqs_cis):
        self.record("model.rotary_emb.cos", freqs_cis.real)
        self.record("model.rotary_emb.sin", freqs_cis.imag)

    def _rotated(self, original, *args, **kwargs):
        q_pe, k_pe = original(*args, **kwargs)
        self.record(f"model.layers.{self._layer}.self_attn.q_pe", q_pe)
        self.record(f"model.layers.{self._layer}.self_attn.k_pe", k_pe)
        return q_pe, k_pe

    def _attention(self, original, module, query, key, value, attention_mask, scaling, **kwargs):
        """The scores are made a second time with the very operations of the original, which keeps them to itself."""
        prefix = f"model.layers.{self._layer}.self_attn"
        scores = torch.matmul(query, modeling.repeat_kv(key, module.num_key_value_groups).transpose(2, 3)) * scaling
        if attention_mask is not None and attention_mask.dtype == torch.float64:
            # A float64 model masks with float64's minimum, which its float32 softmax reads as minus infinity: rows of
            # padding become NaN and spread. Mask as in float32.
            attention_mask = attention_mask.clamp(min=torch.finfo(torch.float32).min)
        if attention_mask is not None:
            scores = scores + attention_mask
        self.record(f"{prefix}.attn_scores", scores.masked_fill(scores <= NEGLIGIBLE, float("-inf")))
        output, weights = original(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        self.record(f"{prefix}.attn_weights", weights)
        self.record(f"{prefix}.attn_output", output.flatten(2))
        return output, weights

    def _routed(self, layer: int, logits, weights, indices, scaling_factor):
        if self.forced is not None:
            indices = self.forced[layer]
            weights = logits.softmax(-1, dtype=torch.float32).gather(1, indices) * scaling_factor
        prefix = f"model.layers.{layer}.mlp.gate"
        self.record(f"{prefix}.router_logits", logits)
        self.record(f"{prefix}.topk_indices", indices)
        self.record(f"{prefix}.topk_weights", weights)
        return weights, indices
