"""Liger's kernels of Triton, by the functions that its autograd classes call."""

import torch
from engines import Engine
from judged import adapter

LIGER = Engine(
    "liger-kernel",
    "liger_kernel",
    own=(
        "liger_kernel.utils", "liger_kernel.ops.utils", "liger_kernel.ops.rms_norm", "liger_kernel.ops.fused_add_rms_norm", "liger_kernel.ops.swiglu",
        "liger_kernel.ops.cross_entropy", "liger_kernel.ops.rope",
    ),
)  # fmt: skip


@adapter("rmsnorm", LIGER, "rms_norm_forward", note="casting mode `llama`")
def test_rms_norm(hidden_states, weight):
    forward = LIGER.function("ops.rms_norm", "rms_norm_forward")
    return forward(hidden_states, weight, 1e-6, 0.0, "llama", True)[0]


@adapter("fused_add_rmsnorm", LIGER, "fused_add_rms_norm_forward", note="casting mode `llama`")
def test_fused_add_rms_norm(hidden_states, residual, weight):
    forward = LIGER.function("ops.fused_add_rms_norm", "fused_add_rms_norm_forward")
    return forward(hidden_states, residual, weight, 1e-6, 0.0, "llama")[:2]


@adapter("silu_and_mul", LIGER, "swiglu_forward")
def test_swiglu(gate_up):
    forward = LIGER.function("ops.swiglu", "swiglu_forward")
    gate, up = (part.contiguous() for part in gate_up.chunk(2, -1))
    return forward(gate, up)[2]


@adapter("rotary_halves", LIGER, "rope_forward")
def test_rope(x, cos, sin):
    forward = LIGER.function("ops.rope", "rope_forward")
    heads = x.transpose(0, 1)[None].clone()
    angles = [torch.cat([part, part], -1)[None] for part in (cos, sin)]
    turned, _, _, _ = forward(heads, heads[:, :1].clone(), *angles)
    return turned[0].transpose(0, 1)


@adapter("cross_entropy", LIGER, "cross_entropy_forward", findings={"bf16": "losses of 16 bits"})
def test_cross_entropy(logits, labels):
    forward = LIGER.function("ops.cross_entropy", "cross_entropy_forward")
    losses = forward(logits.clone(), labels.long(), None, -100, 0.0, 0.0, "none", None, False)[0]
    return losses.float()
