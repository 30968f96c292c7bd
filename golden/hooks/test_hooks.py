"""Tests the hooks of the frameworks that are installed, each on a small tree of modules: `python test_hooks.py`."""

import importlib.util
import json
import pathlib
import struct
import sys
import tempfile

VOCAB, WIDTH, LENGTH, EXPERTS, CHOSEN = 11, 8, 5, 6, 2
LAYER = "model.layers.0"
EXPECTED = {
    "model.embed_tokens": ("BF16", [1, LENGTH, WIDTH]),
    f"{LAYER}.input_layernorm": ("BF16", [1, LENGTH, WIDTH]),
    f"{LAYER}.self_attn.q_proj": ("BF16", [1, LENGTH, WIDTH]),
    f"{LAYER}.self_attn.attn_output": ("BF16", [1, LENGTH, WIDTH]),
    f"{LAYER}.self_attn.o_proj": ("BF16", [1, LENGTH, WIDTH]),
    f"{LAYER}.mlp.gate.topk_indices": ("I64", [LENGTH, CHOSEN]),
    f"{LAYER}.mlp.gate.topk_weights": ("F32", [LENGTH, CHOSEN]),
    f"{LAYER}.mlp.shared_experts": ("BF16", [1, LENGTH, WIDTH]),
    f"{LAYER}.mlp": ("BF16", [1, LENGTH, WIDTH]),
    LAYER: ("BF16", [1, LENGTH, WIDTH]),
    "model.norm": ("BF16", [1, LENGTH, WIDTH]),
    "lm_head": ("BF16", [1, LENGTH, VOCAB]),
}


def tree(Module, Linear, Norm, Embedding, choose, layers=lambda *several: list(several), method="__call__"):
    """Hugging Face's names in a framework whose modules are objects with attributes. `choose(logits)` is the router."""

    def plain(name, forward, **below):
        def init(self):
            super(kind, self).__init__()
            for key, make in below.items():
                setattr(self, key, make())

        kind = type(Module)(name, (Module,), {"__init__": init, method: forward})
        return kind

    linear, norm = lambda: Linear(WIDTH, WIDTH), lambda: Norm(WIDTH)
    Gate = plain("Gate", lambda self, x: choose(self.inner(x.reshape([-1, WIDTH]))), inner=lambda: Linear(WIDTH, EXPERTS))
    Attention = plain("Attention", lambda self, x: self.o_proj(self.q_proj(x)), q_proj=linear, o_proj=linear)
    Moe = plain("Moe", lambda self, x: (self.gate(x), self.shared_experts(x))[1], gate=Gate, shared_experts=linear)
    Layer = plain("Layer", lambda self, x: self.mlp(self.self_attn(self.input_layernorm(x))),
                  input_layernorm=norm, self_attn=Attention, mlp=Moe)  # fmt: skip
    Model = plain("Model", lambda self, ids: self.norm(self.layers[0](self.embed_tokens(ids))),
                  embed_tokens=lambda: Embedding(VOCAB, WIDTH), layers=lambda: layers(Layer()), norm=norm)  # fmt: skip
    return plain("CausalLm", lambda self, ids: self.lm_head(self.model(ids)), model=Model,
                 lm_head=lambda: Linear(WIDTH, VOCAB))()  # fmt: skip


def of_mlx():
    import mlx.core as mx
    from dsv2_hooks_mlx import record
    from mlx import nn

    def choose(logits):
        order = mx.argsort(-logits, axis=-1)[..., :CHOSEN]
        return order.astype(mx.uint32), mx.take_along_axis(mx.softmax(logits.astype(mx.float32), axis=-1), order, axis=-1)

    model = tree(nn.Module, nn.Linear, nn.RMSNorm, nn.Embedding, choose)
    model.set_dtype(mx.bfloat16)
    return record, model, model, lambda ids: mx.array([ids])


def of_paddle():
    import paddle
    from dsv2_hooks_paddle import record
    from paddle import nn

    def choose(logits):
        weights, indices = paddle.topk(nn.functional.softmax(logits.astype("float32")), CHOSEN)
        return indices, weights

    class Linear(nn.Layer):  # on a CPU, Paddle multiplies no bfloat16
        def __init__(self, width, out):
            super().__init__()
            self.weight = self.create_parameter([width, out])

        def forward(self, x):
            return (x.astype("float32") @ self.weight.astype("float32")).astype(x.dtype)

    layers = lambda *several: nn.LayerList(several)  # noqa: E731
    model = tree(nn.Layer, Linear, lambda width: Linear(width, width), nn.Embedding, choose, layers, method="forward")
    model.bfloat16()
    return record, model, model, lambda ids: paddle.to_tensor([ids])


def of_nnx():
    import jax
    import jax.numpy as jnp
    from dsv2_hooks_jax import record
    from flax import nnx

    def choose(logits):
        weights, indices = jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32)), CHOSEN)
        return indices, weights

    bf16 = {"param_dtype": jnp.bfloat16, "dtype": jnp.bfloat16, "rngs": nnx.Rngs(0)}
    parts = [lambda *sizes, kind=kind: kind(*sizes, **bf16) for kind in (nnx.Linear, nnx.RMSNorm, nnx.Embed)]
    model = tree(nnx.Module, *parts, choose, lambda *m: nnx.List(m))
    return record, model, model, lambda ids: jnp.array([ids])


def of_nnx_compiled():
    from flax import nnx

    record, model, call, ids = of_nnx()
    return record, model, lambda x: nnx.jit(lambda m, x: m(x))(model, x), ids


def of_linen():
    import jax
    import jax.numpy as jnp
    from dsv2_hooks_jax import record
    from flax import linen as nn

    bf16 = {"param_dtype": jnp.bfloat16, "dtype": jnp.bfloat16}

    class Gate(nn.Module):
        @nn.compact
        def __call__(self, x):
            logits = nn.Dense(EXPERTS, **bf16)(x.reshape(-1, WIDTH))
            return jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32)), CHOSEN)[::-1]

    class Attention(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(WIDTH, name="o_proj", **bf16)(nn.Dense(WIDTH, name="q_proj", **bf16)(x))

    class Moe(nn.Module):
        @nn.compact
        def __call__(self, x):
            Gate(name="gate")(x)
            return nn.Dense(WIDTH, name="shared_experts", **bf16)(x)

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Moe(name="mlp")(Attention(name="self_attn")(nn.RMSNorm(name="input_layernorm", **bf16)(x)))

    class Model(nn.Module):
        @nn.compact
        def __call__(self, ids):
            x = nn.Embed(VOCAB, WIDTH, name="embed_tokens", **bf16)(ids)
            return nn.RMSNorm(name="norm", **bf16)(Layer(name="layers_0")(x))

    class CausalLm(nn.Module):
        @nn.compact
        def __call__(self, ids):
            return nn.Dense(VOCAB, name="lm_head", **bf16)(Model(name="model")(ids))

    model, ids = CausalLm(), lambda ids: jnp.array([ids])
    variables = model.init(jax.random.key(0), ids([1]))
    return record, None, lambda x: model.apply(variables, x), ids


def read(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return {n: (t["dtype"], t["shape"], data[8 + length :][slice(*t["data_offsets"])]) for n, t in header.items()}


def test(make, folder):
    """All stages, in their own types; the same whether they are fed at once or in pieces; and nothing left behind."""
    record, model, call, ids = make()
    dumps = []
    for pieces in ([[3, 1, 4, 1, 5]], [[3, 1, 4], [1], [5]]):
        with record(model) if model is not None else record() as dump:
            for piece in pieces:
                call(ids(piece))
        dump.write(folder / "dump.safetensors")
        assert dump.skipped == {}, dump.skipped
        dumps.append(read(folder / "dump.safetensors"))
        found = {name: tensor[:2] for name, tensor in dumps[-1].items()}
        assert found == EXPECTED, found
    indices = f"{LAYER}.mlp.gate.topk_indices"
    assert dumps[0][indices] == dumps[1][indices]
    call(ids([1]))
    assert len(dump.pieces["lm_head"]) == 3, "a call after the recording is not recorded"


if __name__ == "__main__":
    tests = {"mlx": [of_mlx], "paddle": [of_paddle], "flax": [of_nnx, of_nnx_compiled, of_linen]}
    for package, makes in tests.items():
        if importlib.util.find_spec(package) is None:
            print(f"not installed: {package}")
            continue
        for make in makes:
            with tempfile.TemporaryDirectory() as folder:
                test(make, pathlib.Path(folder))
            print(f"ok: {make.__name__}")
    sys.exit(0)
