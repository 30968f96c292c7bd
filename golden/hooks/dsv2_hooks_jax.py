"""Writes the stages of a DeepSeek-V2 in JAX to a safetensors file that `dsv2 check` reads. Needs jax, flax, safetensors.

    with record(model) as dump:
        logits = model(ids)                             # flax.nnx, or any objects with attributes
        logits = model.apply(variables, ids)            # flax.linen: record() without a model will do
    dump.write("mine.safetensors", logits=logits)       # several calls are pieces of one sequence: they are joined
    print(dump.skipped)                                 # {stage: why it is not in the file}

Modules under Hugging Face's names, inside a wrapper too; linen's `layers_0` is `layers.0`. Under `jax.jit` the values come by
way of `jax.debug.callback`; a function that was compiled before `record` hides its modules, and so does `nn.scan` over layers.
What no module returns is not seen (`q_pe`, `k_pe`, `attn_scores`).
"""

import collections.abc
import contextlib
import re

import flax.linen
import jax
import numpy as np
from safetensors.numpy import save_file

ATTENTION = "q_proj|q_a_proj|q_a_layernorm|q_b_proj|kv_a_proj_with_mqa|kv_a_layernorm|kv_b_proj|o_proj"
MLP = "gate_proj|up_proj|down_proj|gate|experts|shared_experts"
LAYER = rf"input_layernorm|post_attention_layernorm|self_attn\.({ATTENTION})|mlp(\.({MLP}))?"
WATCHED = re.compile(rf"(?:(?!layers\.)[^.]+\.)*(lm_head|score|embed_tokens|norm|layers\.\d+(\.({LAYER}))?)")


@contextlib.contextmanager
def record(model=None):
    """Collects the stages of all calls made inside: of the objects below `model`, and of all modules of flax.linen."""
    dump, changed = Dump(), []
    for path, module in objects(model) if model is not None else []:
        if stage := stage_of(path):
            dump.reasons[stage] = "never called"
            changed.append((module, type(module)))
            object.__setattr__(module, "__class__", watched(type(module), stage, dump))

    def look(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.method_name == "__call__" and (stage := stage_of(re.sub(r"_(\d+)\b", r".\1", ".".join(context.module.path)))):
            dump.see(stage, args, out)
        return out

    try:
        with flax.linen.intercept_methods(look):
            yield dump
    finally:
        for module, kind in changed:
            object.__setattr__(module, "__class__", kind)
        jax.effects_barrier()


def stage_of(path):
    """`a.model.layers.0.mlp` -> `model.layers.0.mlp`; None for what is no stage."""
    found = WATCHED.fullmatch(path)
    return found and (found[1] if found[1] in ("lm_head", "score") else f"model.{found[1]}")


def objects(value, path="", seen=None):
    """All callable objects with attributes below one, by their paths."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, (jax.Array, np.ndarray, str, bytes, type)):
        return
    seen.add(id(value))
    if isinstance(value, dict):
        below = value.items()
    elif isinstance(value, collections.abc.Sequence):
        below = enumerate(value)
    else:
        below = getattr(value, "__dict__", {}).items()
        if callable(value) and below:
            yield path, value
    for name, child in list(below):
        yield from objects(child, f"{path}.{name}" if path else str(name), seen)


def watched(kind, stage, dump):
    """The class of one object, whose results are looked at."""

    def call(self, *args, **kwargs):
        out = kind.__call__(self, *args, **kwargs)
        dump.see(stage, args, out)
        return out

    return type(kind)(kind.__name__, (kind,), {"__call__": call})


class Dump:
    """`pieces[stage]`: one array for each call. `reasons[stage]`: why there is none, should there be none."""

    def __init__(self):
        self.pieces, self.reasons = {}, {}

    @property
    def skipped(self):
        return {stage: why for stage, why in self.reasons.items() if stage not in self.pieces}

    def add(self, stage, array):
        """Keeps the values, which a traced array has only when the compiled function runs."""
        jax.debug.callback(lambda values: self.pieces.setdefault(stage, []).append(np.array(values)), array, ordered=True)

    def see(self, stage, args, out):
        """Takes the stages out of what a module was given and returned."""
        several = [a for a in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(a, jax.Array)]
        self.reasons.pop(stage, None)
        if not several:
            self.reasons[stage] = f"returned {type(out).__name__}"
        elif stage.endswith(".gate"):
            self.route(stage, several)
        else:
            if stage.endswith(".o_proj"):
                self.add(stage.removesuffix("o_proj") + "attn_output", args[0])
            self.add(stage, several[0])

    def route(self, gate, arrays):
        """Indices are integers, weights the last floats of their shape, logits the rest."""
        indices = next((a for a in arrays if not jax.numpy.issubdtype(a.dtype, jax.numpy.floating)), None)
        if indices is not None:
            self.add(gate + ".topk_indices", indices)
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
        joined = np.concatenate(pieces, axis=2 if pieces[0].ndim == 4 else 1) if len(pieces) > 1 else pieces[0]
        return joined.reshape(-1, joined.shape[-1]) if ".gate." in stage else joined

    def write(self, path, **outputs):
        """Writes all stages, each in its own type. `outputs`: `logits`, `loss`, `pooled_logits`; None is left out."""
        jax.effects_barrier()
        stages = {stage: self.join(stage, pieces) for stage, pieces in self.pieces.items()}
        if "lm_head" in stages:
            outputs.pop("logits", None)
        stages |= {name: np.asarray(value) for name, value in outputs.items() if value is not None}
        dense = [name for name in stages if name.endswith(".mlp") and name + ".down_proj" in stages]
        stages = {name: a for name, a in stages.items() if name not in dense}  # there the stage is down_proj
        stages |= {name: a.astype(np.int64) for name, a in stages.items() if name.endswith("topk_indices")}
        save_file({name: np.ascontiguousarray(a) for name, a in stages.items()}, str(path))
