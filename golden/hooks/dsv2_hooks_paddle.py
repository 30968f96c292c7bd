"""Writes the stages of a DeepSeek-V2 in PaddlePaddle to a safetensors file that `dsv2 check` reads. Needs paddle and safetensors.

    with paddle.no_grad(), record(model) as dump:
        out = model(ids)                    # once, or several times through one cache: the pieces are joined
    dump.write("mine.safetensors", logits=out)
    print(dump.skipped)                     # {stage: why it is not in the file}

Any layer tree under Hugging Face's names will do, inside a wrapper too. Only forward post-hooks are used: nothing is
replaced. What is no layer's output is not seen (`q_pe`, `k_pe`, `attn_scores`), and a program that was made static hides its
layers.
"""

import contextlib
import re

import paddle
from safetensors.paddle import save_file

ATTENTION = "q_proj|q_a_proj|q_a_layernorm|q_b_proj|kv_a_proj_with_mqa|kv_a_layernorm|kv_b_proj|o_proj"
MLP = "gate_proj|up_proj|down_proj|gate|experts|shared_experts"
LAYER = rf"input_layernorm|post_attention_layernorm|self_attn\.({ATTENTION})|mlp(\.({MLP}))?"
WATCHED = re.compile(rf"embed_tokens|norm|layers\.\d+(\.({LAYER}))?")


@contextlib.contextmanager
def record(model):
    """Collects the stages of all calls made inside."""
    dump, layers = Dump(), dict(model.named_sublayers())
    root = next((name[: -len("layers.0.self_attn")] for name in layers if name.endswith("layers.0.self_attn")), None)
    if root is None:
        raise ValueError("no layer is called `layers.0.self_attn`: these are not Hugging Face's names")
    hooks = []
    for name, layer in layers.items():
        leaf = name.rpartition(".")[2]
        if leaf == "mlp" and name + ".gate" not in layers:
            continue  # of a dense layer, the stage is its down_proj
        if name.startswith(root) and WATCHED.fullmatch(name[len(root) :]):
            stage = "model." + name[len(root) :]
        elif leaf in ("lm_head", "score"):
            stage = leaf
        else:
            continue
        dump.reasons[stage] = "never called"
        hooks.append(layer.register_forward_post_hook(lambda _l, args, out, stage=stage: dump.see(stage, args, out)))
    try:
        yield dump
    finally:
        for hook in hooks:
            hook.remove()


class Dump:
    """`pieces[stage]`: one tensor for each call. `reasons[stage]`: why there is none, should there be none."""

    def __init__(self):
        self.pieces, self.reasons = {}, {}

    @property
    def skipped(self):
        return {stage: why for stage, why in self.reasons.items() if stage not in self.pieces}

    def add(self, stage, tensor):
        self.pieces.setdefault(stage, []).append(tensor.detach().clone())

    def see(self, stage, args, out):
        """Takes the stages out of what a layer was given and returned."""
        several = [a for a in (out if isinstance(out, (tuple, list)) else (out,)) if paddle.is_tensor(a)]
        self.reasons.pop(stage, None)
        if not several:
            self.reasons[stage] = f"returned {type(out).__name__}"
        elif stage.endswith(".gate"):
            self.route(stage, several)
        else:
            if stage.endswith(".o_proj"):
                self.add(stage.removesuffix("o_proj") + "attn_output", args[0])
            self.add(stage, several[0])

    def route(self, gate, tensors):
        """Indices are integers, weights the last floats of their shape, logits the rest."""
        tensors = [t for t in tensors if t.ndim > 1]
        indices = next((t for t in tensors if not t.is_floating_point()), None)
        if indices is not None:
            self.add(gate + ".topk_indices", indices.astype("int64"))
            tensors = [t for t in tensors if t is not indices]
            if tensors and tensors[-1].shape == indices.shape:
                self.add(gate + ".topk_weights", tensors.pop())
        for logits in tensors[:1]:
            self.add(gate + ".router_logits", logits)

    def join(self, stage, pieces):
        """The pieces of one stage along the sequence, as golden/RUNNER.md has it."""
        if len(pieces) > 1 and stage.endswith(".kv_b_proj"):
            fed = sum(piece.shape[1] for piece in self.pieces[stage.removesuffix("kv_b_proj") + "o_proj"])
            pieces = pieces[-1:] if pieces[-1].shape[-2] == fed else pieces  # it expands the whole cache every time
        if pieces[0].ndim == 2 and len(pieces) > 1:  # [B*S,..]
            batch = next(p[0].shape[0] for name, p in self.pieces.items() if name.endswith(".o_proj"))
            pieces = [p.reshape([batch, -1, p.shape[-1]]) for p in pieces]
        joined = paddle.concat(pieces, axis=2 if pieces[0].ndim == 4 else 1) if len(pieces) > 1 else pieces[0]
        return joined.reshape([-1, joined.shape[-1]]) if ".gate." in stage else joined

    def write(self, path, **outputs):
        """Writes all stages, each in its own type. `outputs`: `logits`, `loss`, `pooled_logits`; None is left out."""
        stages = {stage: self.join(stage, pieces) for stage, pieces in self.pieces.items()}
        if "lm_head" in stages:
            outputs.pop("logits", None)
        stages |= {name: value for name, value in outputs.items() if value is not None}
        save_file({name: tensor.contiguous() for name, tensor in stages.items()}, str(path))  # bfloat16 as it is
