"""Arguments that are wrong are one line of class dsv2.Error: what, where, expected, found."""

import numpy as np
import pytest
from conftest import need

import dsv2
from dsv2 import cuda, emulator, operators
from dsv2.emulator import Device

PTX = """.version 8.0
.target sm_80
.address_size 64
.visible .entry nothing(.param .u64 x) { ret; }
"""
NUMBER = PTX.replace("nothing(.param .u64 x)", "number(.param .f32 x)")


def launch(**changed):
    options = {"grid": 1, "block": 32, **changed}
    return emulator.load(PTX)["nothing"].launch(np.zeros(32, np.float32), **options)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"grid": 1.7}, "grid: expected a whole number of 32 bits, 0 or more, found 1.7"),
        ({"grid": float("inf")}, "grid: .* found inf"),
        ({"grid": True}, "grid: .* found True"),
        ({"grid": "1"}, "grid: .* found '1'"),
        ({"grid": None}, "grid: .* found None"),
        ({"grid": (1, 2, 3, 4)}, "grid: expected one to three numbers"),
        ({"block": 1.5}, "block: .* found 1.5"),
        ({"shared": 1.5}, "shared: .* found 1.5"),
        ({"limit": -1}, "limit: expected a whole number of 64 bits, 1 or more, found -1"),
        ({"limit": None}, "limit: .* found None"),
        ({"threads": "a"}, "threads: .* found 'a'"),
        ({"names": ["a", "b"]}, "names: expected 1, one for each argument, found 2"),
        ({"names": [5]}, "names: expected a list of names"),
        ({"unwritten": None}, "unwritten: expected stop, follow or ignore, found None"),
        ({"device": "cpu"}, "device: expected a Device of dsv2.emulator, found 'cpu'"),
        ({"races": "yes"}, "races: expected True or False, found 'yes'"),
        ({"profile": 1}, "profile: expected True or False"),
        ({"cooperative": None}, "cooperative: expected True or False"),
    ],
)
def test_a_launch(changed, said):
    with pytest.raises(dsv2.Error, match=said) as caught:
        launch(**changed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: emulator.load(None), "source: expected a file of PTX, or its text, found NoneType"),
        (lambda: emulator.load(b"ab"), "source: .* found bytes"),
        (lambda: emulator.load(PTX)[5], "expected its name, found 5"),
        (lambda: Device(True), "memory: .* found True"),
        (lambda: Device().allocate(1.5), "shape: .* found 1.5"),
        (lambda: Device().allocate(4, "nonsense"), "dtype: expected a type of NumPy, found 'nonsense'"),
        (lambda: Device().allocate(4, object), "dtype: expected a type of numbers"),
        (lambda: Device().upload([[1], [1, 2]]), "expected an array of numbers, found list"),
        (lambda: cuda.ptx("k();", arch=None), "arch: expected such as sm_80, found None"),
        (lambda: cuda.ptx("k();", arch=["sm_80"]), "arch: expected such as sm_80"),
        (lambda: cuda.ptx(None), r"source: expected CUDA C\+\+, .* found NoneType"),
        (lambda: cuda.ptx("k();", include=5), "include: expected a list of folders, found 5"),
        (lambda: cuda.ptx("k();", options=[5]), "options: expected a list of words"),
        (lambda: cuda.ptx("k();\0"), "source: expected text, found a zero"),
        (lambda: cuda.ptx("k();", options=["-D\ud800"]), "options: expected text, .* a half of a surrogate pair"),
        (lambda: cuda.ptx("k();", include=["a\0b"]), "include: expected text"),
        (lambda: emulator.load("\ud800\n"), "source: expected text, found a half of a surrogate pair"),
        (lambda: emulator.load(PTX)["nothing"].launch(np.array(["a"]), grid=1, block=1), "an array of <U1: expected numbers"),
        (lambda: emulator.load(NUMBER)["number"].launch(10**400, grid=1, block=1), "argument 0 .*which does not fit it"),
        (lambda: dsv2.operator(["rmsnorm"]), r"operator \['rmsnorm'\]: expected one of"),
        (lambda: dsv2.operator("rmsnorm", repeats="2"), "repeats: expected a number of calls, 1 or more, found '2'"),
        (lambda: dsv2.operator("rmsnorm", repeats=0), "repeats: .* found 0"),
        (lambda: dsv2.operator("rmsnorm", workloads="odd sizes"), "workloads of rmsnorm: expected a list of names, found 'odd sizes'"),
        (lambda: dsv2.operator("rmsnorm", workloads=[]), "workloads of rmsnorm: expected at least one, found none"),
        (lambda: dsv2.operator("rmsnorm", outputs="output"), "outputs of rmsnorm: expected a list of names"),
        (lambda: dsv2.operator("rmsnorm", device="tpu"), "device: expected 'numpy'.*, found 'tpu'"),
        (lambda: dsv2.operator("rmsnorm")(None), "expected a callable, found NoneType"),
        (lambda: operators.inputs("rmsnorm", None), "workload None of rmsnorm"),
        (lambda: operators.check("rmsnorm", "odd sizes", [1]), "expected a dict of arrays by name, found list"),
        (lambda: operators.try_kernel("rmsnorm", "odd sizes", lambda **_: 1, 5), "expected a dict by name"),
    ],
)
def test_a_request(call, said):
    with pytest.raises(dsv2.Error, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


@need("triton")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": ["sm_80"]}, r"target: expected sm_80, sm_89 or sm_90, found \['sm_80'\]"),
        ({"races": "yes"}, r'races \(or "note"\): expected True or False'),
        ({"profile": "yes"}, "profile: expected True or False"),
        ({"threads": -1}, "threads: .* found -1"),
        ({"limit": 1.5}, "limit: .* found 1.5"),
        ({"autotune": 5}, "autotune: expected a number, values or a function for each kernel's name, found 5"),
        ({"autotune": {"kernel": "x"}}, "autotune: .* found {'kernel': 'x'}"),
    ],
)
def test_a_driver(options, said):
    from dsv2.triton import activate

    with pytest.raises(dsv2.Error, match=said):
        activate(**options)


@need("triton")
@pytest.mark.parametrize("array", [np.array([object()]), np.array(["a"]), np.zeros(3, "M8[s]")])
def test_what_holds_no_numbers_cannot_be_wrapped(array):
    from dsv2.triton import wrap

    with pytest.raises(dsv2.Error, match="wrap: expected numbers, found an array of"):
        wrap(array)
