"""Known bugs in kernels of CUDA C++: each is found, and its right twin passes."""

from pathlib import Path

import numpy as np
import pytest
from conftest import agrees, have_cuda_compiler

from dsv2 import KernelFault, cuda
from dsv2.emulator import Struct, out

pytestmark = pytest.mark.skipif(
    not have_cuda_compiler(), reason="no CUDA compiler installed: pip install nvidia-cuda-nvrtc nvidia-cuda-runtime"
)

SOURCE = Path(__file__).with_name("planted.cu")


@pytest.fixture(scope="module")
def right():
    return cuda.compile(SOURCE)


@pytest.fixture(scope="module")
def wrong():
    return cuda.compile(SOURCE, options=["-DBUG"])


def f32(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def test_a_missing_barrier_is_a_race(right, wrong, rng):
    x, sums = f32(rng, 3, 128), np.zeros(3, np.float32)
    run = right["block_sum"].launch(x, out(sums), grid=3, block=128, races=True)
    assert not run.races and agrees(sums, x.sum(-1, dtype=np.float64), x.sum(-1))
    run = wrong["block_sum"].launch(x, out(sums), grid=3, block=128, races=True)
    race = run.races[0]
    assert race.space == "shared" and race.first.source[0].endswith("planted.cu") and race.first.source[1] == 9


def test_a_barrier_that_some_do_not_reach_is_named(right, wrong, rng):
    x, sums = f32(rng, 6, 32), np.zeros(6, np.float32)
    assert not right["row_sums"].launch(x, out(sums), 6, grid=2, block=128, races=True).races
    assert agrees(sums, x.sum(-1, dtype=np.float64), x.sum(-1))
    with pytest.raises(KernelFault, match="divergent barrier.*\n.*planted.cu:2") as caught:
        wrong["row_sums"].launch(x, out(sums), 6, grid=2, block=128)
    assert caught.value.kernel == "row_sums"


def test_a_tile_that_is_too_small_is_out_of_bounds(right, wrong, rng):
    x, turned = f32(rng, 32, 32), np.zeros((32, 32), np.float32)
    run = right["turn"].launch(x, out(turned), grid=1, block=(32, 32), races=True, profile=True)
    np.testing.assert_array_equal(turned, x.T)
    assert not run.races and run.profile.total.bank_conflicts == 0
    with pytest.raises(KernelFault, match="shared memory .* out of bounds"):
        wrong["turn"].launch(x, out(turned), grid=1, block=(32, 32))


def test_shared_memory_that_nobody_wrote_is_not_read(right, wrong, rng):
    ids, counts = rng.integers(0, 8, 100).astype(np.int32), np.zeros(8, np.int32)
    right["count"].launch(ids, counts, 100, grid=1, block=128)
    assert counts.tolist() == np.bincount(ids, minlength=8).tolist()
    with pytest.raises(KernelFault, match="of shared memory .* not initialised"):
        wrong["count"].launch(ids, counts, 100, grid=1, block=128)


def test_a_wide_access_at_an_odd_pitch_is_misaligned(right, rng):
    rows = np.zeros((3, 64), np.float32)
    x = f32(rng, 3, 68)
    right["copy_rows"].launch(x, out(rows), 68, grid=3, block=16)
    np.testing.assert_array_equal(rows, x[:, :64])
    with pytest.raises(KernelFault, match="is not a multiple of 16"):
        right["copy_rows"].launch(f32(rng, 3, 65), out(rows), 65, grid=3, block=16)


def test_a_copy_that_nobody_waits_for_is_not_there(right, wrong, rng):
    x, there = f32(rng, 128), np.zeros(128, np.float32)
    assert not right["fetch"].launch(x, out(there), grid=1, block=32, races=True).races
    np.testing.assert_array_equal(there, x)
    with pytest.raises(KernelFault, match="of shared memory .* not initialised"):
        wrong["fetch"].launch(x, out(there), grid=1, block=32)


def test_fields_in_another_order_are_seen(right, wrong):
    rows = np.full((4, 6), -1, np.float32)
    right["fill"].launch(Struct(rows=np.int32(4), columns=np.int32(6), data=out(rows)), grid=4, block=32)
    np.testing.assert_array_equal(rows, np.repeat(np.arange(4.0), 6).reshape(4, 6))
    run = wrong["fill"].launch(Struct(rows=np.int32(4), columns=np.int32(6), data=out(rows)), grid=4, block=32)
    assert run.left == {"fill_param_0": 4 * 2 * 4}


def test_a_shuffle_names_the_lanes_that_are_there(right, wrong):
    x, first = np.arange(20, dtype=np.int32) + 5, np.zeros(20, np.int32)
    right["last_lanes"].launch(x, out(first), 20, grid=1, block=32)
    assert (first == 5).all()
    with pytest.raises(KernelFault, match="warp-wide instruction|member"):
        wrong["last_lanes"].launch(x, out(first), 20, grid=1, block=32)


def test_the_end_of_a_sequence_that_is_another_ones(right, wrong, rng):
    x, starts = f32(rng, 30), np.array([0, 7, 8, 30], np.int32)
    sums = np.zeros(3, np.float32)
    truth = [x[a:b].sum(dtype=np.float64) for a, b in zip(starts, starts[1:])]
    right["sequence_sums"].launch(x, starts, out(sums), 3, grid=1, block=32)
    assert agrees(sums, truth, [x[a:b].sum() for a, b in zip(starts, starts[1:])])
    with pytest.raises(KernelFault, match="byte 16 of .*sequence_sums_param_1, which has 16"):
        wrong["sequence_sums"].launch(x, starts, out(sums), 3, grid=1, block=32)


def test_a_sum_in_a_byte_is_a_wrong_result(right, wrong, rng):
    x, y = (rng.integers(-100, 100, 64).astype(np.int8) for _ in range(2))
    truth = int(x.astype(int) @ y.astype(int))
    for module, is_right in ((right, True), (wrong, False)):
        dot = np.zeros(1, np.int32)
        module["byte_dot"].launch(x, y, out(dot), 64, grid=1, block=1)
        assert (dot[0] == truth) == is_right


def test_a_warp_that_was_not_brought_together_is_a_race(right, wrong, rng):
    x, turned = f32(rng, 128), np.zeros(128, np.float32)
    assert not right["turn_warp"].launch(x, out(turned), grid=1, block=32, races=True).races
    np.testing.assert_array_equal(turned, x)
    race = wrong["turn_warp"].launch(x, out(turned), grid=1, block=32, races=True).races[0]
    assert race.space == "shared" and {race.first.kind, race.second.kind} == {"read", "write"}


def test_the_last_of_several_copies_is_waited_for(right, wrong, rng):
    x, there = f32(rng, 3 * 128), np.zeros(3 * 128, np.float32)
    assert not right["fetch_ahead"].launch(x, out(there), 3, grid=1, block=32, races=True).races
    np.testing.assert_array_equal(there, x)
    with pytest.raises(KernelFault, match="not initialised: .*an asynchronous copy is not waited for"):
        wrong["fetch_ahead"].launch(x, out(there), 3, grid=1, block=32)


def test_a_buffer_is_not_filled_while_others_read_it(right, wrong, rng):
    x, sums = f32(rng, 3, 64), np.zeros(64, np.float32)
    assert not right["rounds"].launch(x, out(sums), 3, grid=1, block=64, races=True).races
    assert agrees(sums, x[:, ::-1].sum(0, dtype=np.float64), x[:, ::-1].sum(0))
    race = wrong["rounds"].launch(x, out(sums), 3, grid=1, block=64, races=True).races[0]
    assert {race.first.kind, race.second.kind} == {"read", "write"}


def test_a_step_of_shuffles_that_is_left_out_is_a_wrong_result(right, wrong, rng):
    x = f32(rng, 4, 32)
    for module, is_right in ((right, True), (wrong, False)):
        sums = np.zeros(4, np.float32)
        module["warp_sum"].launch(x, out(sums), grid=4, block=32)
        assert agrees(sums, x.sum(-1, dtype=np.float64), x.sum(-1)) == is_right
