"""Derives stages of committed cases from one another in plain numpy float64, without Transformers' code.

If a hook read the wrong tensor, or a name stood for something else, an equation below would not hold. Weights of
checkpoint cases are read from the files here, so that Transformers' loading is seen from outside as well.
"""

import json
import math

import numpy as np

from . import format, metrics, run

TOLERANCE = 2e-6
"""Relative L2 of a derived stage: one float32 operation or a few."""


def softmax(x: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # rows without any key
        e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[float])(x)


ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "gelu_pytorch_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def read_weights(case: dict) -> dict[str, np.ndarray]:
    if case["weights"]["kind"] == "generated":
        return run.generate_weights(case["architecture"], case["config"], case["weights"])
    from safetensors.torch import load_file

    tensors = {}
    for file in sorted((format.CASES / case["name"] / case["weights"]["path"]).glob("*.safetensors")):
        tensors.update({name: tensor.float().numpy() for name, tensor in load_file(file).items()})
    return plain(tensors)


def plain(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint in another form (`forms.py`): scales multiplied in, experts taken apart."""
    made = {}
    for name, tensor in tensors.items():
        if (scale := tensors.get(f"{name}_scale_inv")) is not None:
            scale = scale.reshape(tensor.shape[:-2] + (scale.shape[-2:] or (1, 1)))
            rows, columns = (a // b for a, b in zip(tensor.shape[-2:], scale.shape[-2:], strict=True))
            tensor = tensor * scale.repeat(rows, axis=-2).repeat(columns, axis=-1)
        path, _, last = name.rpartition(".")
        if not path.endswith(".mlp.experts"):
            made[name] = tensor
            continue
        parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(last, ())
        for part, halves in zip(parts, np.split(tensor, len(parts), axis=1) if parts else (), strict=True):
            made |= {f"{path}.{e}.{part}.weight": matrix for e, matrix in enumerate(halves)}
    return made


class Derivation:
    """One case: `s` its stages, `w` its weights, `c` its config; `expect` compares a derived stage."""

    def __init__(self, case: dict, inputs: dict, expected: dict):
        self.case, self.inputs, self.c = case, inputs, case["config"]
        self.s = {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in expected.items()}
        self.w = {name: a.astype(np.float64) for name, a in read_weights(case).items()}
        self.excluded = metrics.excluded_rows(inputs)
        self.sliced = "logits_to_keep" in case["options"] or "logits_to_keep" in inputs
        self.rope = self.c.get("rope_scaling") or self.c.get("rope_parameters") or {}
        self.failures: list[str] = []
        self.count = 0

    def expect(self, name: str, derived: np.ndarray) -> None:
        self.count += 1
        if self.s[name].shape != derived.shape:
            self.failures.append(f"{name}: shape {self.s[name].shape}, derived {derived.shape}")
            return
        error = metrics.stage_metrics(name, derived, self.s[name], self.excluded, self.sliced)["l2"]
        if not error <= TOLERANCE:
            self.failures.append(f"{name}: l2 {error:.2g}")

    def linear(self, x: np.ndarray, module: str) -> np.ndarray:
        return x @ self.w[f"{module}.weight"].T + self.w.get(f"{module}.bias", 0.0)

    def norm(self, x: np.ndarray, module: str, eps: float) -> np.ndarray:
        return self.w[f"{module}.weight"] * x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)

    def mlp(self, x: np.ndarray, module: str) -> np.ndarray:
        act = ACTIVATIONS[self.c["hidden_act"]]
        gated = act(self.linear(x, f"{module}.gate_proj")) * self.linear(x, f"{module}.up_proj")
        return self.linear(gated, f"{module}.down_proj")

    def scale(self) -> float:
        plain = (self.c["qk_nope_head_dim"] + self.c["qk_rope_head_dim"]) ** -0.5
        all_dim, factor = self.rope.get("mscale_all_dim", 0), self.rope.get("factor", 1)
        if self.case["dialect"] == "hf-pre-5.15" or not all_dim or factor <= 1:
            return plain
        return plain * (0.1 * all_dim * math.log(factor) + 1) ** 2

    def mask(self, batch: int, length: int) -> np.ndarray:
        """[B,1,S,T] added to the scores."""
        given = self.inputs.get("attention_mask")
        if given is not None and given.ndim == 4:
            return np.where(given <= metrics.MASKED, -np.inf, given)
        allowed = np.broadcast_to(np.tril(np.ones((length, length), bool)), (batch, length, length)).copy()
        if given is not None:
            allowed &= given[:, None, :].astype(bool)
        elif not self.case["options"]["use_cache"] and "position_ids" in self.inputs:
            positions = np.broadcast_to(self.inputs["position_ids"], (batch, length))
            segment = np.cumsum(np.diff(positions, axis=1, prepend=positions[:, :1] - 1) != 1, axis=1)
            allowed &= segment[:, :, None] == segment[:, None, :]
        return np.where(allowed, 0.0, -np.inf)[:, None]

    def rotated(self, x: np.ndarray) -> np.ndarray:
        """x [B,S,heads,r], consecutive pairs; cos and sin as recorded."""
        cos, sin = (self.s[f"model.rotary_emb.{f}"][:, :, None, :] for f in ("cos", "sin"))
        re, im = x[..., 0::2], x[..., 1::2]
        out = np.stack([re * cos - im * sin, re * sin + im * cos], -1)
        return out.reshape(x.shape).transpose(0, 2, 1, 3)

    def inverse_frequencies(self) -> np.ndarray | None:
        """float32, in the order of operations that gives Transformers' bits: every power is exact until rounded once,
        all else is float32 arithmetic. None where they depend on the calls (dynamic)."""
        r, one = self.c["qk_rope_head_dim"], np.float32(1)
        theta = self.c.get("rope_theta") or self.rope["rope_theta"]
        exponents = np.arange(0, r, 2, dtype=np.float32) / np.float32(r)
        power = np.power(float(theta), exponents.astype(np.float64)).astype(np.float32)
        plain = one / power
        kind = self.rope.get("rope_type") or self.rope.get("type", "default")
        if kind in ("default", "linear"):
            return plain / np.float32(self.rope.get("factor", 1))
        if kind != "yarn":
            return None
        p = self.rope
        low, high = (
            r * math.log(p["original_max_position_embeddings"] / (beta * 2 * math.pi)) / (2 * math.log(theta))
            for beta in (p["beta_fast"], p["beta_slow"])
        )
        if p.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, r - 1)
        width = high - low if high != low else 0.001
        ramp = np.clip((np.arange(r // 2, dtype=np.float32) - np.float32(low)) / np.float32(width), 0, 1)
        stretched = one / (np.float32(p["factor"]) * power)
        keep = one - ramp
        return stretched * (one - keep) + plain * keep

    def attention_factor(self) -> float:
        p = self.rope
        if (p.get("rope_type") or p.get("type")) != "yarn":
            return 1.0
        if "attention_factor" in p:
            return p["attention_factor"]
        mscale = lambda m: 0.1 * m * math.log(p["factor"]) + 1  # noqa: E731
        if p.get("mscale") and p.get("mscale_all_dim"):
            return mscale(p["mscale"]) / mscale(p["mscale_all_dim"])
        return mscale(1)

    def check_rotary(self) -> None:
        frequencies = self.inverse_frequencies()
        if frequencies is None:
            return
        length = self.s["model.norm"].shape[1]
        positions = self.inputs.get("position_ids", np.arange(length)[None]).astype(np.float32)
        # The float32 rounding of frequency and angle is part of the model: far out it is a hundredth of a radian.
        angles = (positions[..., None] * frequencies).astype(np.float64)
        for name, function in (("cos", np.cos), ("sin", np.sin)):
            derived = function(angles) * self.attention_factor()
            worst = np.abs(derived - self.s[f"model.rotary_emb.{name}"]).max()
            self.count += 1
            if worst > 3e-7:
                self.failures.append(f"model.rotary_emb.{name}: off by {worst:.2g}")

    def check_layer(self, i: int, x: np.ndarray) -> np.ndarray:
        s, c, prefix = self.s, self.c, f"model.layers.{i}"
        attention = f"{prefix}.self_attn"
        batch, length, _ = x.shape
        heads, nope, rope, v = (
            c[key] for key in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        )
        self.expect(f"{prefix}.input_layernorm", self.norm(x, f"{prefix}.input_layernorm", c["rms_norm_eps"]))
        h = s[f"{prefix}.input_layernorm"]
        if c["q_lora_rank"] is None:
            q_name = f"{attention}.q_proj"
            self.expect(q_name, self.linear(h, q_name))
        else:
            q_name = f"{attention}.q_b_proj"
            self.expect(f"{attention}.q_a_proj", self.linear(h, f"{attention}.q_a_proj"))
            latent = self.norm(s[f"{attention}.q_a_proj"], f"{attention}.q_a_layernorm", 1e-6)
            self.expect(f"{attention}.q_a_layernorm", latent)
            self.expect(q_name, self.linear(s[f"{attention}.q_a_layernorm"], q_name))
        q = s[q_name].reshape(batch, length, heads, nope + rope)
        kv_a = f"{attention}.kv_a_proj_with_mqa"
        self.expect(kv_a, self.linear(h, kv_a))
        latent = s[kv_a][..., : c["kv_lora_rank"]]
        self.expect(f"{attention}.kv_a_layernorm", self.norm(latent, f"{attention}.kv_a_layernorm", 1e-6))
        self.expect(f"{attention}.q_pe", self.rotated(q[..., nope:]))
        self.expect(f"{attention}.k_pe", self.rotated(s[kv_a][..., None, c["kv_lora_rank"] :]))
        self.expect(f"{attention}.kv_b_proj", self.linear(s[f"{attention}.kv_a_layernorm"], f"{attention}.kv_b_proj"))

        kv = s[f"{attention}.kv_b_proj"].reshape(batch, length, heads, nope + v).transpose(0, 2, 1, 3)
        scores = q[..., :nope].transpose(0, 2, 1, 3) @ kv[..., :nope].swapaxes(2, 3)
        scores = scores + s[f"{attention}.q_pe"] @ s[f"{attention}.k_pe"].swapaxes(2, 3)
        self.expect(f"{attention}.attn_scores", scores * self.scale() + self.mask(batch, length))
        weights = softmax(s[f"{attention}.attn_scores"])
        self.expect(f"{attention}.attn_weights", weights)
        output = (s[f"{attention}.attn_weights"] @ kv[..., nope:]).transpose(0, 2, 1, 3)
        self.expect(f"{attention}.attn_output", output.reshape(batch, length, -1))
        self.expect(f"{attention}.o_proj", self.linear(s[f"{attention}.attn_output"], f"{attention}.o_proj"))
        middle = x + s[f"{attention}.o_proj"]
        norm = f"{prefix}.post_attention_layernorm"
        self.expect(norm, self.norm(middle, norm, c["rms_norm_eps"]))
        check_mlp = self.check_moe if i >= c["first_k_dense_replace"] else self.check_dense
        out = check_mlp(f"{prefix}.mlp", s[norm])
        self.expect(prefix, middle + out)
        if f"past_key_values.{i}.k_pe" in s:
            self.expect(f"past_key_values.{i}.compressed_kv", s[f"{attention}.kv_a_layernorm"])
            self.expect(f"past_key_values.{i}.k_pe", s[f"{attention}.k_pe"][:, 0])
        return s[prefix]

    def check_dense(self, module: str, h: np.ndarray) -> np.ndarray:
        for name in ("gate_proj", "up_proj"):
            self.expect(f"{module}.{name}", self.linear(h, f"{module}.{name}"))
        self.expect(f"{module}.down_proj", self.mlp(h, module))
        return self.s[f"{module}.down_proj"]

    def check_moe(self, module: str, h: np.ndarray) -> np.ndarray:
        s, c = self.s, self.c
        rows = h.reshape(-1, h.shape[-1])
        self.expect(f"{module}.gate.router_logits", rows @ self.w[f"{module}.gate.weight"].T)
        p = softmax(s[f"{module}.gate.router_logits"])
        allowed = p.copy()
        if c["topk_method"] == "group_limited_greedy":
            groups = p.reshape(len(p), c["n_group"], -1)
            kept = np.argsort(-groups.max(-1), -1)[:, : c["topk_group"]]
            open_groups = np.zeros(groups.shape[:2], bool)
            np.put_along_axis(open_groups, kept, True, 1)
            allowed = (groups * open_groups[..., None]).reshape(p.shape)
        indices = np.argsort(-allowed, -1, kind="stable")[:, : c["num_experts_per_tok"]]
        recorded = s[f"{module}.gate.topk_indices"]
        differing = (np.sort(indices, -1) != np.sort(recorded, -1)).any(-1)
        if self.excluded is not None:
            differing &= ~self.excluded.reshape(-1)
        if differing.any():
            self.failures.append(f"{module}.gate.topk_indices: {differing.sum()} rows differ")
        self.count += 1
        weights = np.take_along_axis(p, recorded, -1) * c["routed_scaling_factor"]
        self.expect(f"{module}.gate.topk_weights", weights)
        routed = np.zeros_like(rows)
        for row, (chosen, weight) in enumerate(zip(recorded, s[f"{module}.gate.topk_weights"])):
            for e, g in zip(chosen, weight):
                routed[row] += g * self.mlp(rows[row], f"{module}.experts.{e}")
        self.expect(f"{module}.experts", routed)
        self.expect(f"{module}.shared_experts", self.mlp(h, f"{module}.shared_experts"))
        self.expect(module, s[f"{module}.experts"].reshape(h.shape) + s[f"{module}.shared_experts"])
        return s[module]

    def check_head(self) -> None:
        h = self.s["model.norm"]
        if "score" in self.s:
            self.expect("score", h @ self.w["score.weight"].T)
            ids, pad = self.inputs["input_ids"], self.c.get("pad_token_id")
            last = [max(np.flatnonzero(row != pad), default=0) if pad is not None else -1 for row in ids]
            self.expect("pooled_logits", self.s["score"][np.arange(len(ids)), last])
            return
        keep = self.inputs.get("logits_to_keep", self.case["options"].get("logits_to_keep", 0))
        if np.ndim(keep) == 2:
            kept = h[keep] if keep.dtype == bool else np.take_along_axis(h, keep[..., None], 1)
        else:
            kept = h[:, keep] if np.ndim(keep) == 1 else h[:, -int(keep) :]
        embedding = "lm_head.weight" if "lm_head.weight" in self.w else "model.embed_tokens.weight"
        self.expect("lm_head", kept @ self.w[embedding].T)

    def check_loss(self) -> None:
        labels = self.inputs["labels"]
        if "score" in self.s:
            z, kind = self.s["pooled_logits"], self.case["options"]["problem_type"]
            if kind == "regression":
                loss = ((z.squeeze() - labels.squeeze()) ** 2).mean()
            elif kind == "single_label_classification":
                loss = -np.log(softmax(z))[np.arange(len(z)), labels].mean()
            else:
                loss = (np.logaddexp(0, z) - z * labels).mean()
        else:
            target, z = labels[:, 1:].ravel(), self.s["lm_head"][:, :-1]
            p = softmax(z.reshape(-1, z.shape[-1]))[target != -100, target[target != -100]]
            loss = -np.log(p).sum() / self.inputs.get("num_items_in_batch", len(p))
        self.expect("loss", np.float64(loss))

    def run(self) -> None:
        x = self.inputs.get("inputs_embeds")
        if x is None:
            self.expect("model.embed_tokens", self.w["model.embed_tokens.weight"][self.inputs["input_ids"]])
            x = self.s["model.embed_tokens"]
        x = x.astype(np.float64)
        self.check_rotary()
        for i in range(self.c["num_hidden_layers"]):
            x = self.check_layer(i, x)
        self.expect("model.norm", self.norm(x, "model.norm", self.c["rms_norm_eps"]))
        self.check_head()
        if "labels" in self.inputs:
            self.check_loss()
        if self.count != len(self.s) and self.inverse_frequencies() is not None:
            self.failures.append(f"{len(self.s)} stages, but {self.count} derived")


def run_all(cases) -> bool:
    good = True
    for case, inputs, expected in cases:
        if case["weights"]["kind"] == "checkpoint":
            path = format.CASES / case["name"] / case["weights"]["path"] / "config.json"
            assert json.loads(path.read_text()) == case["config"], f"{case['name']}: two configurations"
        derivation = Derivation(case, inputs, expected)
        derivation.run()
        good &= not derivation.failures
        print(f"{'FAIL' if derivation.failures else 'ok  '} {case['name']:26} {derivation.count} stages derived")
        for failure in derivation.failures:
            print(f"       {failure}")
    return good
