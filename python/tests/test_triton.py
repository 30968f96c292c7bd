"""The driver of Triton: host code as it is, on the emulator."""

import warnings

import numpy as np
import pytest
from conftest import agrees, need

triton = pytest.importorskip("triton", reason="not installed: triton")

try:
    import torch
except ImportError:
    torch = None
import kernels_triton as kernels

from dsv2 import KernelFault, LaunchError, PtxError
from dsv2.triton import AutotuneWarning, activate, wrap

needs_torch = need("torch")


@pytest.mark.parametrize("target", ["sm_80", "sm_89", "sm_90"])
def test_each_target_runs_what_it_compiles(target):
    x, out = np.arange(1000, dtype=np.float32), np.zeros(1000, np.float32)
    with activate(target, profile=True) as runs:
        kernel = kernels.copy[(4,)](wrap(x), wrap(out), 1000, BLOCK=256)
    np.testing.assert_array_equal(out, x)
    assert f".target {target}" in kernel.asm["ptx"]
    assert runs.last.profile.total.global_.written == 4000 and runs.last.grid == (4, 1, 1)


@needs_torch
def test_views_of_one_storage_are_one_allocation(runs):
    buffer = torch.arange(6 * 80, dtype=torch.float32).reshape(6, 80)
    out = torch.empty(6, 32)
    kernels.rows[(6,)](buffer[:, 40:], buffer, out, 80, 32, BLOCK=32)
    assert (out == 40).all()
    with pytest.raises(KernelFault, match="out of bounds: byte 2080 of left, right, which has 1920"):
        kernels.rows[(7,)](buffer[:, 40:], buffer, out, 80, 32, BLOCK=32)


def test_scalars_have_the_types_of_triton(runs):
    out = np.zeros(1, np.float64)
    kernels.scalars[(1,)](wrap(out), 100, -5, 1 << 40, 0.25, True, None, SIZE=3)
    assert out[0] == 100 - 5 + (1 << 40) + 0.25 + 0.5 + 3


@needs_torch
def test_tuples_arrive_in_pieces(runs):
    out = torch.empty(16)
    kernels.pair[(1,)]((torch.arange(16.0), 3), out, BLOCK=16)
    assert (out == 3 * torch.arange(16)).all()


def test_an_empty_grid_launches_nothing(runs):
    kernels.copy[(0,)](wrap(np.zeros(4, np.float32)), wrap(np.zeros(4, np.float32)), 4, BLOCK=16)
    assert runs.launches == []
    with pytest.raises(LaunchError, match="nothing was launched yet"):
        _ = runs.last


@pytest.mark.parametrize(
    ("wish", "block", "said"),
    [
        (None, 64, "tuned is not tuned on the emulator; it takes the first of 2: BLOCK: 64"),
        (1, 128, "it takes as asked of 2: BLOCK: 128"),
        ({"BLOCK": 128}, 128, "BLOCK: 128"),
        (lambda config: config.num_warps == 8, 128, "num_warps: 8"),
    ],
)
def test_autotune_takes_one_configuration_and_says_which(wish, block, said):
    x, out = np.zeros(300, np.float32), np.zeros(300, np.float32)
    wishes = {} if wish is None else {"tuned": wish}
    with activate("sm_80", autotune=wishes), pytest.warns(AutotuneWarning, match=said):
        kernels.tuned[lambda meta: (triton.cdiv(300, meta["BLOCK"]),)](wrap(x), wrap(out), 300)
    assert (out == block).all()


def test_a_configuration_that_is_not_there_is_named():
    with (
        activate("sm_80", autotune={"tuned": {"BLOCK": 32}}),
        pytest.raises(LaunchError, match="tuned has no such configuration as {'BLOCK': 32}"),
    ):
        kernels.tuned[(1,)](wrap(np.zeros(4, np.float32)), wrap(np.zeros(4, np.float32)), 4)


def test_heuristics_are_triton_s_own(runs):
    x, out = np.zeros(100, np.float32), np.zeros(100, np.float32)
    kernels.guessed[(1,)](wrap(x), wrap(out), 100)
    assert (out == 128).all()


def test_kernels_print_and_assert(runs, capsys):
    kernels.talking[(1,)](wrap(np.array([1.5, -2], np.float32)), num_warps=1, debug=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["pid (0, 0, 0) idx (0) x: 1.500000", "pid (0, 0, 0) idx (1) x: -2.000000"]
    with pytest.raises(KernelFault, match="kernels_triton.py.*the assertion `x begins with something positive` failed"):
        kernels.talking[(1,)](wrap(np.array([-1, 1], np.float32)), num_warps=1, debug=True)
    assert "x: -1.000000" in capsys.readouterr().out, "a launch that failed has printed, too"


@pytest.mark.parametrize(("target", "pdl"), [("sm_80", False), ("sm_90", True)])
def test_dependent_launches_run_where_the_target_has_them(target, pdl):
    x, out = np.arange(20, dtype=np.float32), np.zeros(20, np.float32)
    with activate(target):
        kernels.dependent[(1,)](wrap(x), wrap(out), 20, BLOCK=32, PDL=pdl, launch_pdl=pdl)
    np.testing.assert_array_equal(out, x)


def test_what_the_target_lacks_is_refused_by_name(runs):
    x = np.zeros(20, np.float32)
    with pytest.raises(
        PtxError, match=r"kernel dependent, line \d+: `griddepcontrol.wait ?;`: sm_80 does not take it: .* requires .target sm_90"
    ) as caught:
        kernels.dependent[(1,)](wrap(x), wrap(x.copy()), 20, BLOCK=32, PDL=True, launch_pdl=True)
    assert "\n" not in str(caught.value)


def test_what_the_emulator_lacks_is_refused_by_name():
    a = np.ones((64, 64), np.float16)
    with (
        activate("sm_90"),
        pytest.raises(PtxError, match=r"kernel matmul, line \d+: `\S+`: .*not (supported|emulated).*compiled for sm_90"),
    ):
        kernels.matmul[(1,)](wrap(a), wrap(a), wrap(a.copy()), SIZE=64)


@needs_torch
def test_descriptors_are_pointers_before_sm_90(runs):
    from triton.tools.tensor_descriptor import TensorDescriptor

    x, out = torch.arange(256.0).reshape(16, 16), torch.zeros(16, 16)
    kernels.described[(1,)](TensorDescriptor.from_tensor(x, [16, 16]), out, SIZE=16)
    assert (out == x).all()
    with activate("sm_90"), pytest.raises((LaunchError, PtxError), match="tensor maps|sm_90"):
        kernels.described[(1,)](TensorDescriptor.from_tensor(x, [16, 16]), out, SIZE=16)


def test_clusters_are_refused():
    x = np.zeros(16, np.float32)
    with activate("sm_90"), pytest.raises(LaunchError, match="copy: num_ctas=2: the emulator has no clusters"):
        kernels.copy[(1,)](wrap(x), wrap(x.copy()), 16, BLOCK=16, num_ctas=2)


@needs_torch
def test_tensors_elsewhere_are_refused(runs):
    x = torch.zeros(16)
    with pytest.raises(
        LaunchError, match=r"launch of copy: argument out: a tensor float32\[16\] on meta: the emulator takes tensors on the CPU"
    ):
        kernels.copy[(1,)](x, torch.zeros(16, device="meta"), 16, BLOCK=16)


def test_a_kernel_runs_in_the_activation_that_is_active(runs):
    x = np.ones(16, np.float32)
    kernels.copy[(1,)](wrap(x), wrap(x.copy()), 16, BLOCK=16)
    with activate("sm_80", profile=True) as others:
        kernels.copy[(1,)](wrap(x), wrap(x.copy()), 16, BLOCK=16)
    kernels.copy[(1,)](wrap(x), wrap(x.copy()), 16, BLOCK=16)
    assert len(runs.launches) == 2 and len(others.launches) == 1 and others.last.profile is not None


def test_deactivation_leaves_triton_as_it_was():
    from triton.backends import backends
    from triton.runtime import autotuner

    before = (
        triton.runtime.driver._active,
        backends["nvidia"],
        autotuner.Autotuner.prune_configs,
        autotuner.Autotuner.run,
        torch and torch.empty,
    )
    with activate("sm_80"):
        assert triton.runtime.driver._active is not before[0]
    assert (
        triton.runtime.driver._active,
        backends["nvidia"],
        autotuner.Autotuner.prune_configs,
        autotuner.Autotuner.run,
        torch and torch.empty,
    ) == before


def test_wrong_requests_are_one_line():
    with pytest.raises(LaunchError, match="target: expected sm_80, sm_89 or sm_90, found 'sm_70'"):
        activate("sm_70")
    with pytest.raises(LaunchError, match="wrap: expected an array of NumPy, found list"):
        wrap([1, 2])
    x = wrap(np.zeros(16, np.float32))
    for grid in (1.5, -1, 1 << 40):
        with activate("sm_80"), pytest.raises(LaunchError, match=f"launch of copy: grid: expected a whole number .* found {grid}"):
            kernels.copy[(grid,)](x, x, 16, BLOCK=16)


@pytest.mark.parametrize("target", ["sm_80", "sm_89"])
def test_tensor_cores_multiply(target, rng):
    a, b = (rng.normal(size=(32, 32)).astype(np.float16) for _ in range(2))
    c = np.zeros((32, 32), np.float16)
    with activate(target):
        kernels.matmul[(1,)](wrap(a), wrap(b), wrap(c), SIZE=32)

    truth = a.astype(np.float64) @ b.astype(np.float64)
    assert agrees(c, truth, (a.astype(np.float32) @ b.astype(np.float32)).astype(np.float16))


def test_no_warning_but_those_about_tuning(runs):
    x = np.zeros(16, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernels.copy[(1,)](wrap(x), wrap(x.copy()), 16, BLOCK=16)


def test_stores_of_equal_values_are_no_race(rng):
    x, out = rng.normal(size=(4, 128)).astype(np.float32), np.zeros(4, np.float32)
    with activate("sm_80", races=True) as runs:
        kernels.maximum[(4,)](wrap(x), wrap(out), BLOCK=128)
    np.testing.assert_array_equal(out, x.max(-1))
    assert runs.last.races == [] and runs.last.equal_stores


def test_stores_that_differ_by_rounding_are_told_with_how_far(rng):
    x, out = rng.normal(size=64).astype(np.float32), np.zeros(1, np.float32)
    with activate("sm_80", races=True) as runs:
        kernels.total[(1,)](wrap(x), wrap(out), BLOCK=64, num_warps=4)
    assert 0 < runs.last.rounded_stores[0].apart < 1e-6
    assert all(race.apart == 0 for race in runs.last.equal_stores)


@pytest.mark.parametrize("warps", [1, 2])
def test_in_place_reads_and_stores_of_different_lanes_need_a_barrier(rng, warps):
    with activate("sm_80", races="note") as runs:
        for apart in (False, True):
            kernels.strike_out[(1,)](wrap(rng.random(32, np.float32)), BLOCK=32, APART=apart, num_warps=warps)
            assert bool(runs.last.races) is not apart
            assert apart or warps > 1 or "both threads are of one warp" in repr(runs.last.races)


def test_what_is_active_is_one_stack_of_one_thread():
    from threading import Thread

    first = activate("sm_80")
    second = activate("sm_89")
    try:
        with pytest.raises(LaunchError, match="must be deactivated first"):
            first.deactivate()
        refused = []

        def other():
            with pytest.raises(LaunchError, match="another thread") as caught:
                activate("sm_80")
            refused.append(caught)

        thread = Thread(target=other)
        thread.start()
        thread.join()
        assert refused
    finally:
        second.deactivate()
        first.deactivate()
    first.deactivate()  # once more does nothing


def test_a_kernel_that_outlives_its_driver_is_no_other_drivers_to_unload():
    x = np.zeros(10, np.float32)
    with activate("sm_80"):
        kernel = kernels.copy[(1,)](wrap(x), wrap(x), 10, BLOCK=32)
    kernel.__del__()  # looks for a driver of NVIDIA's, and there is none, unless it sees whose kernel this is
    assert kernel.module is not None
