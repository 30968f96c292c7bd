"""Error of one stage against another, and which rows count.

All arithmetic is float64. A row is a slice along the last axis. Rows of padding are never compared: implementations
legitimately differ there (uniform attention, zero, not computed at all).
"""

import numpy as np


MASKED = np.finfo(np.float32).min / 2
"""Entries of an additive mask, or scores, at or below this mean "not allowed"."""


def excluded_rows(inputs: dict[str, np.ndarray]) -> np.ndarray | None:
    """[B,S] bool of the positions that are never compared, or None if all are."""
    mask = inputs.get("attention_mask")
    if mask is None:
        return None
    if mask.ndim == 2:
        excluded = mask == 0
    else:
        seen = (mask > MASKED).any(-1).all(1)  # in every head
        excluded = ~np.broadcast_to(seen, (len(seen), mask.shape[-1]))
    return excluded if excluded.any() else None


def compared(stage: str, array: np.ndarray, excluded: np.ndarray | None, sliced_head: bool) -> np.ndarray:
    """The compared rows of a stage as [rows, last axis]; a scalar stays one."""
    keep = kept_rows(stage, array.shape, excluded, sliced_head)
    if keep is not None:
        return array[keep]
    return array.reshape(-1, array.shape[-1]) if array.ndim else array


def kept_rows(stage: str, shape, excluded: np.ndarray | None, sliced_head: bool) -> np.ndarray | None:
    """Bool array over all axes but the last, or None if every row of this stage is compared."""
    if excluded is None or stage in ("loss", "pooled_logits") or stage.startswith("model.rotary_emb."):
        return None
    if stage == "lm_head" and sliced_head:
        return None
    keep = ~excluded
    if len(shape) == 2:  # [B*S, .]
        return keep.reshape(-1)
    if len(shape) == 3:  # [B, S, .]
        return keep
    return np.broadcast_to(keep[:, None, :], shape[:3])  # [B, H, S, .]


def measure(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """l2, row, max and gain of `a` against the truth `b`; both [rows, last axis] or scalars."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if not np.array_equal(np.isneginf(a), np.isneginf(b)):
        return dict(l2=np.inf, row=np.inf, max=np.inf, gain=np.inf)
    a, b = np.where(np.isneginf(a), 0.0, a), np.where(np.isneginf(b), 0.0, b)
    if not b.any():
        error = 1.0 if a.any() else 0.0
        return dict(l2=error, row=error, max=error, gain=error)
    d = a - b
    if b.ndim == 0:
        error = float(abs(d) / abs(b))
        return dict(l2=error, row=error, max=error, gain=error)
    row_norm = np.sqrt((b * b).sum(-1))
    row_floor = 0.1 * np.sqrt((row_norm**2).mean())
    return dict(
        l2=float(np.sqrt((d * d).sum() / (b * b).sum())),
        row=float((np.sqrt((d * d).sum(-1)) / np.maximum(row_norm, row_floor)).max()),
        max=float(np.abs(d).max() / np.sqrt((b * b).mean())),
        gain=float(abs((a * b).sum() / (b * b).sum() - 1.0)),
    )


def stage_metrics(stage: str, a, b, excluded, sliced_head: bool) -> dict[str, float]:
    return measure(compared(stage, a, excluded, sliced_head), compared(stage, b, excluded, sliced_head))


def routing_margin(logits: np.ndarray, config: dict) -> float:
    """The smallest change of one logit against another, over all rows, that changes a choice of experts.

    Inside the selected groups the k-th against the (k+1)-th logit; between groups the M-th against the (M+1)-th
    maximum. Infinite where nothing can be chosen otherwise.
    """
    experts, k = logits.shape[-1], config["num_experts_per_tok"]
    margins = [np.inf]
    allowed = np.ones_like(logits, bool)
    if config.get("topk_method", "greedy") == "group_limited_greedy":
        groups, chosen = config["n_group"], config["topk_group"]
        best = logits.reshape(len(logits), groups, -1).max(-1)
        order = np.sort(best, -1)[:, ::-1]
        if chosen < groups:
            margins.append((order[:, chosen - 1] - order[:, chosen]).min())
        allowed = np.repeat(best >= order[:, chosen - 1 : chosen], experts // groups, axis=1)
    inside = np.sort(np.where(allowed, logits, -np.inf), -1)[:, ::-1]
    if k < experts:
        margins.append((inside[:, k - 1] - inside[:, k]).min())
    return float(min(margins))
