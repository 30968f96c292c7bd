"""Known bugs in kernels of Triton: each is found, and its right twin passes. Budgets are the judge's."""

import numpy as np
import pytest
from conftest import agrees, need

pytestmark = need("triton")
pytest.importorskip("triton", reason="not installed: triton")

try:
    import torch
except ImportError:
    torch = None
import planted_triton as kernels

from dsv2 import KernelFault
from dsv2.triton import RaceError, UnwrittenError, activate, wrap

needs_torch = need("torch")


@pytest.fixture
def runs():
    with activate("sm_80", races=True) as runs:
        yield runs


@pytest.fixture
def unwatched():
    with activate("sm_80") as runs:
        yield runs


def f32(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def test_a_mask_that_is_one_too_long_is_out_of_bounds(runs, rng):
    x, y, out = f32(rng, 1001), f32(rng, 1001), np.zeros(1001, np.float32)
    kernels.add[(4,)](wrap(x), wrap(y), wrap(out), 1001, BLOCK=256, BUG=False)
    np.testing.assert_array_equal(out, x + y)
    with pytest.raises(KernelFault, match=r"planted_triton.py:\d+ .*thread .* out of bounds: byte 4004 of [xy], which has 4004"):
        kernels.add[(4,)](wrap(x), wrap(y), wrap(out), 1001, BLOCK=256, BUG=True)


def test_a_wrong_stride_is_a_wrong_result(runs, rng):
    whole = f32(rng, 6, 80)
    x = whole[:, :48]
    for bug in (False, True):
        out = np.zeros((6, 48), np.float32)
        kernels.scale_rows[(6,)](wrap(x), wrap(out), 48, 80, BLOCK=64, BUG=bug)
        assert agrees(out, 2 * x.astype(np.float64), 2 * x) != bug


def test_a_wrong_stride_leaves_the_array_at_its_end(unwatched, rng):
    x, out = f32(rng, 6, 48), np.zeros((6, 48), np.float32)
    with pytest.raises(KernelFault, match="out of bounds: byte 1152 of x, which has 1152"):
        kernels.scale_rows[(6,)](wrap(x), wrap(out), 48, 64, BLOCK=64, BUG=False)


def test_a_wrong_fill_of_masked_values_is_a_wrong_result(unwatched, rng):
    x = f32(rng, 5, 50) - 4
    wide = np.exp(x.astype(np.float64))
    plain = np.exp(x - x.max(-1, keepdims=True))
    for bug in (False, True):
        out = np.zeros_like(x)
        kernels.softmax[(5,)](wrap(x), wrap(out), 50, BLOCK=64, BUG=bug)
        assert agrees(out, wide / wide.sum(-1, keepdims=True), plain / plain.sum(-1, keepdims=True)) != bug


def attention(q, k, v, scale, dtype):
    q, k, v = (array.astype(dtype) for array in (q, k, v))
    weights = np.exp(q @ k.T * dtype(scale))
    return (weights @ v) / weights.sum(-1, keepdims=True)


def test_a_missing_scale_is_a_wrong_result(unwatched, rng):
    q, k, v = f32(rng, 3, 64), f32(rng, 21, 64), f32(rng, 21, 64)
    truth, plain = (attention(q, k, v, 0.125, dtype) for dtype in (np.float64, np.float32))
    for bug in (False, True):
        out = np.zeros_like(q)
        kernels.attention[(3,)](wrap(q), wrap(k), wrap(v), wrap(out), 21, 0.125, BLOCK=32, WIDTH=64, BUG=bug)
        assert agrees(out, truth, plain) != bug


@needs_torch
def test_a_piece_that_was_left_out_is_not_read(unwatched, rng):
    x = torch.from_numpy(f32(rng, 300))
    parts, out = torch.empty(8), torch.empty(1)
    kernels.partial_sums[(8,)](x, parts, 300, SPLIT=64, BUG=False)
    assert unwatched.last.left == {"parts": 3 * 4}
    kernels.sum_of_parts[(1,)](parts, out, 5, 8, BLOCK=8, BUG=False)
    assert agrees(out, [x.double().sum()], [x.sum()])
    with pytest.raises(
        UnwrittenError, match=r"what is stored in global memory depends on bytes that nobody wrote, .* read by sum_of_parts"
    ):
        kernels.sum_of_parts[(1,)](parts, out, 5, 8, BLOCK=8, BUG=True)


def test_blocks_that_read_what_others_write_race(runs, rng):
    x = f32(rng, 512)
    kernels.shift[(4,)](wrap(x), 512, BLOCK=128, BUG=False)
    with pytest.raises(RaceError, match="shift: race on .* of global memory") as caught:
        kernels.shift[(4,)](wrap(x), 512, BLOCK=128, BUG=True)
    race = caught.value.races[0]
    assert {race.first.kind, race.second.kind} == {"read", "write"}


def test_counts_without_an_atomic_race(runs, rng):
    ids, counts = rng.integers(0, 6, 500).astype(np.int32), np.zeros(6, np.int32)
    kernels.histogram[(4,)](wrap(ids), wrap(counts), 500, BLOCK=128, BUG=False)
    assert counts.tolist() == np.bincount(ids, minlength=6).tolist()
    with pytest.raises(RaceError, match="histogram: race on 4 bytes of global memory"):
        kernels.histogram[(4,)](wrap(ids), wrap(counts), 500, BLOCK=128, BUG=True)


def test_a_sum_in_a_narrow_type_is_a_wrong_result(unwatched, rng):
    a, b = f32(rng, 32, 512).astype(np.float16), f32(rng, 512, 32).astype(np.float16)
    truth = a.astype(np.float64) @ b.astype(np.float64)
    for bug in (False, True):
        out = np.zeros((32, 32), np.float16)
        kernels.matmul[(1,)](wrap(a), wrap(b), wrap(out), K=512, SIZE=32, STEP=32, BUG=bug)
        plain = (a.astype(np.float32) @ b.astype(np.float32)).astype(np.float16)
        assert agrees(out, truth, plain) != bug


def test_garbage_behind_a_list_is_no_row(unwatched, rng):
    table, out = f32(rng, 10, 20), np.ones((4, 20), np.float32)
    ids = np.array([3, 0, 9, 123456], np.int32)
    kernels.gather[(4,)](wrap(table), wrap(ids), wrap(out), 3, 20, BLOCK=32, BUG=False)
    np.testing.assert_array_equal(out, np.concatenate([table[[3, 0, 9]], np.zeros((1, 20))]))
    with pytest.raises(KernelFault, match="out of bounds: byte 9876480 of table, which has 800"):
        kernels.gather[(4,)](wrap(table), wrap(ids), wrap(out), 3, 20, BLOCK=32, BUG=True)


def test_a_mean_over_the_block_is_a_wrong_result(unwatched, rng):
    x, weight = f32(rng, 4, 100), f32(rng, 100)

    def norm(dtype):
        values = x.astype(dtype)
        return values / np.sqrt((values * values).mean(-1, keepdims=True) + dtype(1e-6)) * weight.astype(dtype)

    for bug in (False, True):
        out = np.zeros_like(x)
        kernels.rms_norm[(4,)](wrap(x), wrap(weight), wrap(out), 100, 1e-6, BLOCK=128, BUG=bug)
        assert agrees(out, norm(np.float64), norm(np.float32)) != bug


@needs_torch
def test_a_grid_that_is_one_too_small_leaves_bytes_unwritten(unwatched, rng):
    x = torch.from_numpy(f32(rng, 1000))
    for blocks, left in ((4, {}), (1000 // 256, {"out": (1000 - 3 * 256) * 4})):
        out = torch.empty(1000)
        kernels.add[(blocks,)](x, x, out, 1000, BLOCK=256, BUG=False)
        assert unwatched.last.left == left


def softmax(scores, dtype):
    scores = scores.astype(dtype)
    values = np.exp(scores - scores.max(-1, keepdims=True))
    return values / values.sum(-1, keepdims=True)


def test_an_exponential_that_overflows_is_no_number(unwatched, rng):
    scores = f32(rng, 3, 50) + 100
    for bug in (False, True):
        out = np.zeros_like(scores)
        kernels.weights[(3,)](wrap(scores), wrap(out), 50, BLOCK=64, BUG=bug)
        assert agrees(out, softmax(scores, np.float64), softmax(scores, np.float32)) != bug
        assert np.isnan(out).any() == bug


def test_a_page_that_is_one_off_is_another_page_or_none(unwatched, rng):
    cache, pages = f32(rng, 6, 4, 16), np.array([3, 0, 5], np.int32)
    rows = cache[pages].reshape(12, 16)
    for bug in (False, True):
        out = np.zeros((11, 16), np.float32)
        kernels.paged_rows[(11,)](wrap(cache), wrap(pages), wrap(out), 11, PAGE=4, WIDTH=16, BUG=bug)
        assert np.array_equal(out, rows[:11]) != bug
    with pytest.raises(KernelFault, match="out of bounds: byte 12 of pages, which has 12"):
        kernels.paged_rows[(12,)](wrap(cache), wrap(pages), wrap(np.zeros_like(rows)), 12, PAGE=4, WIDTH=16, BUG=True)


def test_a_wrong_stride_of_heads_is_a_wrong_result(unwatched, rng):
    whole = f32(rng, 3, 4, 24)
    heads = whole[..., :16]
    for bug in (False, True):
        out = np.zeros((3, 4), np.float32)
        kernels.head_sums[(3, 4)](wrap(heads), wrap(out), 96, 24, WIDTH=16, BUG=bug)
        assert agrees(out, heads.sum(-1, dtype=np.float64), heads.sum(-1)) != bug


def test_a_maximum_that_is_out_of_date_is_a_wrong_result(unwatched, rng):
    scores, values = f32(rng, 50) + np.arange(50, dtype=np.float32) / 4, f32(rng, 50, 32)  # each block has a new maximum
    truth, plain = (softmax(scores, dtype) @ values.astype(dtype) for dtype in (np.float64, np.float32))
    for bug in (False, True):
        out = np.zeros(32, np.float32)
        kernels.online[(1,)](wrap(scores), wrap(values), wrap(out), 50, BLOCK=16, WIDTH=32, BUG=bug)
        assert agrees(out, truth, plain) != bug


def test_a_diagonal_that_forgets_the_cache_is_a_wrong_result(unwatched, rng):
    scores = f32(rng, 4, 20)
    seen = np.where(np.arange(20) <= np.arange(4)[:, None] + 16, scores, -np.inf)
    for bug in (False, True):
        out = np.zeros((4, 20), np.float32)
        kernels.causal[(4,)](wrap(scores), wrap(out), 20, 4, BLOCK=32, BUG=bug)
        assert agrees(out, softmax(seen, np.float64), softmax(seen, np.float32)) != bug


def test_the_matrix_of_another_expert_is_a_wrong_result(unwatched, rng):
    x, matrices, experts = f32(rng, 5, 16), f32(rng, 6, 8, 16), np.array([2, 0, 5, 1, 5], np.int32)
    truth, plain = (np.einsum("tk,tnk->tn", x.astype(dtype), matrices[experts].astype(dtype)) for dtype in (np.float64, np.float32))
    for bug in (False, True):
        out = np.zeros((5, 8), np.float32)
        kernels.expert_rows[(5,)](wrap(x), wrap(matrices), wrap(experts), wrap(out), K=16, N=8, BUG=bug)
        assert agrees(out, truth, plain) != bug


def test_of_equal_scores_both_are_chosen(unwatched):
    scores = np.array([[1, 3, 2, 3, 0], [5, 1, 1, 4, 0]], np.float32)
    for bug, expected in ((False, [[1, 3], [0, 3]]), (True, [[1, 2], [0, 3]])):
        chosen = np.zeros((2, 2), np.int32)
        kernels.two_best[(2,)](wrap(scores), wrap(chosen), 5, BLOCK=8, BUG=bug)
        assert chosen.tolist() == expected
