"""Writes the stages of a DeepSeek-V2 in MLX to a safetensors file that `dsv2 check` reads. Needs mlx alone.

    with record(model) as dump:
        logits = model(ids)                 # once, or several times through one cache: the pieces are joined
    dump.write("mine.safetensors", logits=logits)
    print(dump.skipped)                     # {stage: why it is not in the file}

Any module tree under Hugging Face's names will do (mlx-lm's deepseek_v2), inside a wrapper too. MLX has no hooks, so each
module gets a subclass of its own class while this runs. Values stay lazy until they are written. A compiled function
(`mx.compile`) hides its modules. The rotary module is called with queries, then keys: these are `q_pe` and `k_pe`.
"""

import contextlib
import re

import mlx.core as mx

ATTENTION = "q_proj|q_a_proj|q_a_layernorm|q_b_proj|kv_a_proj_with_mqa|kv_a_layernorm|kv_b_proj|o_proj|rope"
MLP = "gate_proj|up_proj|down_proj|gate|experts|shared_experts"
LAYER = rf"input_layernorm|post_attention_layernorm|self_attn\.({ATTENTION})|mlp(\.({MLP}))?"
WATCHED = re.compile(rf"embed_tokens|norm|layers\.\d+(\.({LAYER}))?")


@contextlib.contextmanager
def record(model):
    """Collects the stages of all calls made inside."""
    dump, modules = Dump(), dict(model.named_modules())
    root = next((name[: -len("layers.0.self_attn")] for name in modules if name.endswith("layers.0.self_attn")), None)
    if root is None:
        raise ValueError("no module is called `layers.0.self_attn`: these are not Hugging Face's names")
    changed = []
    for name, module in modules.items():
        leaf = name.rpartition(".")[2]
        if leaf == "mlp" and name + ".gate" not in modules:
            continue  # of a dense layer, the stage is its down_proj
        if name.startswith(root) and WATCHED.fullmatch(name[len(root) :]):
            stage = "model." + name[len(root) :]
        elif leaf in ("lm_head", "score"):
            stage = leaf
        else:
            continue
        dump.reasons[stage] = "never called"
        changed.append((module, type(module)))
        module.__class__ = watched(type(module), stage, dump)
    try:
        yield dump
    finally:
        for module, kind in changed:
            module.__class__ = kind


def watched(kind, stage, dump):
    """The class of one module, whose results are looked at."""

    def call(self, *args, **kwargs):
        out = kind.__call__(self, *args, **kwargs)
        dump.see(stage, args, out)
        return out

    return type(kind.__name__, (kind,), {"__call__": call})


class Dump:
    """`pieces[stage]`: one array for each call. `reasons[stage]`: why there is none, should there be none."""

    def __init__(self):
        self.pieces, self.reasons = {}, {}

    @property
    def skipped(self):
        return {stage: why for stage, why in self.reasons.items() if stage not in self.pieces}

    def add(self, stage, array):
        self.pieces.setdefault(stage, []).append(array)

    def see(self, stage, args, out):
        """Takes the stages out of what a module was given and returned."""
        several = [a for a in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(a, mx.array)]
        self.reasons.pop(stage, None)
        if not several:
            self.reasons[stage] = f"returned {type(out).__name__}"
        elif stage.endswith(".rope"):
            attention = stage.removesuffix("rope")
            asked = len(self.pieces.get(attention + "q_pe", [])) == len(self.pieces.get(attention + "k_pe", []))
            self.add(attention + ("q_pe" if asked else "k_pe"), several[0])
        elif stage.endswith(".gate"):
            self.route(stage, several)
        else:
            if stage.endswith(".o_proj"):
                self.add(stage.removesuffix("o_proj") + "attn_output", args[0])
            self.add(stage, several[0])

    def route(self, gate, arrays):
        """Indices are integers, weights the last floats of their shape, logits the rest."""
        indices = next((a for a in arrays if not mx.issubdtype(a.dtype, mx.floating)), None)
        if indices is not None:
            self.add(gate + ".topk_indices", indices.astype(mx.int64))
            arrays = [a for a in arrays if a is not indices]
            if arrays and arrays[-1].shape == indices.shape:
                self.add(gate + ".topk_weights", arrays.pop())
        for logits in arrays[:1]:
            self.add(gate + ".router_logits", logits)

    def join(self, stage, pieces):
        """The pieces of one stage along the sequence, as golden/RUNNER.md has it."""
        if len(pieces) > 1 and stage.endswith(".kv_b_proj"):
            fed = sum(piece.shape[1] for piece in self.pieces[stage.removesuffix("kv_b_proj") + "o_proj"])
            pieces = pieces[-1:] if pieces[-1].shape[-2] == fed else pieces  # it expands the whole cache every time
        if pieces[0].ndim == 2 and len(pieces) > 1:  # [B*S,..]
            batch = next(p[0].shape[0] for name, p in self.pieces.items() if name.endswith(".o_proj"))
            pieces = [p.reshape(batch, -1, p.shape[-1]) for p in pieces]
        joined = mx.concatenate(pieces, axis=2 if pieces[0].ndim == 4 else 1) if len(pieces) > 1 else pieces[0]
        return joined.reshape(-1, joined.shape[-1]) if ".gate." in stage else joined

    def write(self, path, **outputs):
        """Writes all stages, each in its own type. `outputs`: `logits`, `loss`, `pooled_logits`; None is left out."""
        stages = {stage: self.join(stage, pieces) for stage, pieces in self.pieces.items()}
        if "lm_head" in stages:
            outputs.pop("logits", None)
        stages |= {name: value for name, value in outputs.items() if value is not None}
        mx.save_safetensors(str(path), stages)
