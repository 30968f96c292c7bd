"""Two tiny models trained for a few minutes: weights with the statistics that random numbers lack.

Training sharpens attention (scores several times larger), makes the rotary key the most sensitive part, narrows the
routing margins and grows outlier channels. The corpus is the source text of Python's standard library, byte by byte.

The weights are committed with their cases. Training again gives a model as good but, on another machine or another
Python, not the same one; `build` therefore keeps the committed weights unless it is told to retrain.
"""

import shutil
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch

from . import format, prng, run

HELD_OUT = ("textwrap.py", "heapq.py", "bisect.py", "fnmatch.py")
"""Never trained on: the cases read their tokens here."""

STEPS, WARM_UP, BATCH, LENGTH = 2000, 60, 8, 96
LEARNING_RATE, WEIGHT_DECAY, CLIP = 4e-3, 0.1, 1.0

_trained: dict[str, dict[str, np.ndarray]] = {}


def corpus(held_out: bool) -> np.ndarray:
    folder = Path(sysconfig.get_path("stdlib"))
    files = [p for p in sorted(folder.glob("*.py")) if (p.name in HELD_OUT) == held_out]
    return np.frombuffer(b"\n".join(p.read_bytes() for p in files), np.uint8)


def held_out_ids(batch: int, length: int):
    """An input builder like those of cases.py: pieces of held-out text."""

    def build(rng, _config):
        text = corpus(held_out=True)
        starts = rng.integers(0, len(text) - length, batch)
        return {"input_ids": np.stack([text[s : s + length] for s in starts]).astype(np.int64)}

    return build


def balance_losses(config: dict, logits: torch.Tensor, indices: torch.Tensor, batch: int) -> torch.Tensor:
    """The paper's balance losses (equations 23 to 31), per sequence and then averaged.

    Expert level always; device and communication level where routing is limited to groups, each group a device.
    """
    experts, k = config["n_routed_experts"], config["num_experts_per_tok"]
    probabilities = logits.softmax(-1).reshape(batch, -1, experts)
    chosen = torch.zeros_like(logits).scatter_(1, indices, 1.0).reshape(batch, -1, experts)
    length = chosen.shape[1]
    f = chosen.sum(1) * experts / (k * length)
    p = probabilities.mean(1)
    if config["topk_method"] == "greedy":
        return 0.001 * (f * p).sum(-1).mean()
    devices, limit = config["n_group"], config["topk_group"]
    f_device = f.reshape(batch, devices, -1).mean(-1)
    p_device = p.reshape(batch, devices, -1).sum(-1)
    sent = (chosen.reshape(batch, length, devices, -1).sum(-1) > 0).float()
    f_sent = sent.sum(1) * devices / (limit * length)
    losses = 0.003 * (f * p).sum(-1) + 0.05 * (f_device * p_device).sum(-1) + 0.02 * (f_sent * p_device).sum(-1)
    return losses.mean()


def train(architecture: str, config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Trains from Transformers' own initialisation; returns checkpoint tensors rounded to bfloat16."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    text = corpus(held_out=False)
    model = run.ARCHITECTURES[architecture](run.make_config(config)).float().train()
    balance: list[torch.Tensor] = []
    for layer in model.model.layers:
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.register_forward_hook(
                lambda _m, _args, out: balance.append(balance_losses(config, out[0], out[2], BATCH))
            )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY, foreach=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min((s + 1) / WARM_UP, 0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * s / STEPS))),
    )
    began, running = time.monotonic(), None
    for step in range(STEPS):
        starts = rng.integers(0, len(text) - LENGTH, BATCH)
        ids = torch.from_numpy(np.stack([text[s : s + LENGTH] for s in starts]).astype(np.int64))
        balance.clear()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        (loss + sum(balance)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 250 == 249:
            seconds = time.monotonic() - began
            print(f"  step {step + 1:5}  loss {running:.3f} nats per byte  {seconds:.0f} s", flush=True)
    return {name: prng.bf16_exact(view.numpy()) for name, view in run.checkpoint_tensors(model)}


def trained_checkpoint(case, folder: Path, retrain: bool) -> None:
    """The case's checkpoint folder: the committed one, or a new one."""
    committed = format.CASES / case.name / "checkpoint"
    if case.name not in _trained and committed.exists() and not retrain:
        shutil.copytree(committed, folder)
        return
    if case.name not in _trained:
        print(f"training {case.name}", flush=True)
        _trained[case.name] = train(case.architecture, case.config)
    format.write_checkpoint(folder, case.config, _trained[case.name], "BF16")
