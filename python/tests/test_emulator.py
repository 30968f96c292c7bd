"""Launches with NumPy: what fits runs, what does not is one clear line."""

import _thread
import ctypes
import threading
import time

import numpy as np
import pytest

from dsv2 import emulator
from dsv2.emulator import KernelFault, LaunchError, PtxError, Struct, out, strided

SAXPY = """
.version 8.4
.target sm_80
.address_size 64
.visible .entry saxpy(.param .u64 x, .param .u64 y, .param .f32 a, .param .u32 n)
{
    .reg .pred %p<2>;
    .reg .b32 %r<6>;
    .reg .f32 %f<5>;
    .reg .b64 %rd<6>;
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [y];
    ld.param.f32 %f1, [a];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra $done;
    mul.wide.u32 %rd3, %r5, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    ld.global.f32 %f2, [%rd4];
    ld.global.f32 %f3, [%rd5];
    fma.rn.f32 %f4, %f1, %f2, %f3;
    st.global.f32 [%rd5], %f4;
$done:
    ret;
}
"""

COUNT = """
.version 8.4
.target sm_80
.address_size 64
.visible .entry count(.param .u64 counter)
{
    .reg .b32 %r<3>;
    .reg .b64 %rd<2>;
    ld.param.u64 %rd1, [counter];
    ld.global.u32 %r1, [%rd1];
    add.u32 %r2, %r1, 1;
    st.global.u32 [%rd1], %r2;
    ret;
}
"""

FIELDS = """
.version 8.4
.target sm_80
.address_size 64
.visible .entry fields(.param .align 8 .b8 s[24])
{
    .reg .b16 %h<2>;
    .reg .b32 %r<4>;
    .reg .b64 %rd<2>;
    ld.param.u8 %h1, [s];
    ld.param.u64 %rd1, [s+8];
    ld.param.u32 %r1, [s+16];
    cvt.u32.u16 %r2, %h1;
    add.u32 %r3, %r1, %r2;
    st.global.u32 [%rd1], %r3;
    ret;
}
"""

FOREVER = """
.version 8.4
.target sm_80
.address_size 64
.visible .entry forever()
{
$again:
    bra $again;
}
"""


@pytest.fixture(scope="module")
def saxpy():
    return emulator.load(SAXPY)["saxpy"]


def test_a_kernel_writes_into_the_callers_array(saxpy, rng):
    x, y = rng.normal(size=1000).astype(np.float32), rng.normal(size=1000).astype(np.float32)
    before = y.copy()
    run = saxpy.launch(x, y, 2.0, 1000, grid=4, block=256)
    np.testing.assert_array_equal(y, (2 * x.astype(np.float64) + before).astype(np.float32))
    assert run.races is None and run.profile is None and run.warp_instructions > 0


def test_kernels_say_what_they_take(saxpy):
    assert repr(saxpy) == "saxpy(.u64 x, .u64 y, .f32 a, .u32 n)"
    assert [parameter.bytes for parameter in saxpy.parameters] == [8, 8, 4, 4]
    assert saxpy.module.target == "sm_80" and saxpy.module.version == (8, 4) and list(saxpy.module) == ["saxpy"]


def test_a_file_is_read_and_a_missing_one_is_named(tmp_path):
    file = tmp_path / "saxpy.ptx"
    file.write_text(SAXPY)
    assert "saxpy" in emulator.load(file)
    assert "saxpy" in emulator.load(str(file))
    with pytest.raises(PtxError, match="nowhere.ptx: expected a file of PTX"):
        emulator.load(tmp_path / "nowhere.ptx")


def test_views_of_one_array_are_one_allocation(saxpy, rng):
    both = rng.normal(size=(2, 64)).astype(np.float32)
    truth = (both[0].astype(np.float64) * 3 + both[1]).astype(np.float32)
    # 128 elements from the first row on: the second row is behind it, as on a device.
    saxpy.launch(both[0], both[1], 3.0, 64, grid=1, block=64)
    np.testing.assert_array_equal(both[1], truth)
    with pytest.raises(KernelFault, match=r"out of bounds: byte 512 of x, y, which has 512"):
        saxpy.launch(both[0], both[1], 3.0, 128, grid=1, block=128)


def test_out_of_bounds_says_which_thread_and_which_bytes(saxpy):
    x, y = np.ones(100, np.float32), np.ones(100, np.float32)
    with pytest.raises(KernelFault, match=r"block \(0, 0, 0\), thread \(100, 0, 0\): 4 bytes .* byte 400 of x, which has 400") as caught:
        saxpy.launch(x, y, 1.0, 101, grid=1, block=128)
    fault = caught.value
    assert (fault.kernel, fault.opcode, fault.block, fault.thread) == ("saxpy", "ld.global.f32", (0, 0, 0), (100, 0, 0))
    assert (y == 1).all(), "nothing is written back of a launch that failed"


def test_what_nobody_wrote_is_not_read(saxpy):
    x, y = np.ones(64, np.float32), np.empty(64, np.float32)
    with pytest.raises(KernelFault, match="not initialised"):
        saxpy.launch(x, out(y), 1.0, 64, grid=1, block=64)
    saxpy.launch(x, out(y), 1.0, 64, grid=1, block=64, unwritten="ignore")
    run = saxpy.launch(x, out(y), 1.0, 64, grid=1, block=64, unwritten="follow")
    assert [use.kind for use in run.unwritten] == ["output"] and run.unwritten[0].read[0] == "ld.global.f32"
    assert run.left == {"y": 256} and "depends on bytes that nobody wrote" in repr(run)
    with pytest.raises(LaunchError, match="unwritten: expected stop, follow or ignore, found .maybe."):
        saxpy.launch(x, y, 1.0, 64, grid=1, block=64, unwritten="maybe")


def test_what_a_kernel_leaves_unwritten_is_counted():
    counter = np.array([7, 7], np.uint32)
    store = emulator.load(COUNT.replace("ld.global.u32 %r1, [%rd1];", "mov.u32 %r1, 41;"))
    run = store["count"].launch(out(counter), grid=1, block=1)
    assert run.left == {"counter": 4} and counter.tolist() == [42, 7]


def test_races_are_objects():
    counter = np.zeros(1, np.uint32)
    run = emulator.load(COUNT)["count"].launch(counter, grid=1, block=64, races=True)
    race = run.races[0]
    assert (race.kernel, race.space, race.bytes) == ("count", "global", 4)
    assert {race.first.kind, race.second.kind} == {"read", "write"} or race.first.kind == "write"
    assert repr(race).startswith("count: race on 4 bytes of global memory") and repr(race) in repr(run)


def test_a_profile_counts_and_prints_a_table(saxpy):
    x, y = np.ones(1024, np.float32), np.ones(1024, np.float32)
    profile = saxpy.launch(x, y, 1.0, 1024, grid=4, block=256, profile=True).profile
    assert profile.total.flops == 2 * 1024
    assert profile.total.global_.read == 2 * 4096 and profile.total.global_.written == 4096
    assert profile.total.sectors == profile.total.ideal_sectors == 3 * 128
    assert profile.launched == (4, 32, 1024)
    assert "The hottest lines" in repr(profile) and profile.lines[0].counts.warp_instructions == 32


def test_a_page_holds_races_and_profile(saxpy, tmp_path):
    counter = np.zeros(1, np.uint32)
    run = emulator.load(COUNT)["count"].launch(counter, grid=1, block=64, races=True, profile=True)
    page = run.html(tmp_path / "count.html")
    assert (tmp_path / "count.html").read_text() == page
    assert "race on 4 bytes" in page and "The hottest lines" in page


def test_structs_have_the_layout_of_c():
    kernel = emulator.load(FIELDS)["fields"]
    result = np.zeros(1, np.uint32)
    kernel.launch(Struct(flag=np.uint8(2), out=result, number=np.int32(40)), grid=1, block=1)
    assert result[0] == 42

    class Fields(ctypes.Structure):
        _fields_ = [("flag", ctypes.c_uint8), ("out", ctypes.c_uint64), ("number", ctypes.c_int32)]

    device = emulator.Device()
    there = device.allocate(1, np.uint32, "result")
    kernel.launch(Fields(1, there.address, 10), grid=1, block=1, device=device)
    assert there.read()[0] == 11
    with pytest.raises(LaunchError, match="a number with a width, such as np.int32"):
        kernel.launch(Struct(flag=2, out=result, number=np.int32(40)), grid=1, block=1)
    with pytest.raises(LaunchError, match=r"argument 0 \(s\): expected 24 bytes .* found 8"):
        kernel.launch(Struct(out=result), grid=1, block=1)


def test_memory_of_a_device_lives_on(saxpy):
    device = emulator.Device(memory=1 << 20)
    x = device.upload(np.ones(64, np.float32), "x")
    y = device.allocate(64, np.float32, "y")
    with pytest.raises(LaunchError, match="of y"):
        y.read()
    y.write(np.zeros(64, np.float32))
    for _ in range(3):
        saxpy.launch(x, y, 1.0, 64, grid=1, block=64, device=device)
    assert (y.read() == 3).all() and device.memory[0] == 512
    del x
    assert device.memory[0] == 256
    with pytest.raises(LaunchError, match="does not fit"):
        device.allocate(1 << 21)


@pytest.mark.parametrize(
    ("args", "sizes", "line"),
    [
        ((1,), {}, r"launch of saxpy: expected 4 arguments \(saxpy\(.u64 x, .u64 y, .f32 a, .u32 n\)\), found 1"),
        (("x", "y", 1.0, 2.5), {}, r"argument 3 \(n\): expected an integer \(.u32 n\), found float 2.5"),
        (("x", "y", 1.0, 1 << 32), {}, r"argument 3 \(n\): 4294967296 does not fit 32 bits"),
        (("x", "y", 1.0, -(1 << 31) - 1), {}, r"does not fit 32 bits"),
        (
            ("x", "y", "x", 4),
            {},
            r"argument 2 \(a\): expected a value \(.f32 a\), found an array float32\[64\], which is passed as a pointer",
        ),
        (("x", None, None, 4), {}, r"argument 2 \(a\): expected a value \(.f32 a\), found None"),
        (("x", "gaps", 1.0, 4), {}, r"argument 1 \(y\): float32\[64\] has gaps"),
        (("x", object, 1.0, 4), {}, r"argument 1 \(y\): expected an array, a number or a struct"),
        (("x", "objects", 1.0, 4), {}, r"argument 1 \(y\): an array of object: expected numbers"),
        (("x", "y", 1.0, 4), {"grid": (1, 2, 3, 4)}, "grid: expected one to three numbers"),
        (("x", "y", 1.0, 4), {"grid": "many"}, "grid: expected a whole number of 32 bits, 0 or more, found 'many'"),
        (("x", "y", 1.0, 4), {"grid": 0}, r"a grid of \[0, 1, 1\] blocks"),
        (("x", "y", 1.0, 4), {"block": 2000}, "at most 1024 are possible"),
        (("x", "y", 1.0, 4), {"block": None}, r"block is missing, and the kernel does not say it \(.reqntid\)"),
        (("x", "y", 1.0, 4), {"shared": 1 << 20}, "bytes of shared memory; a block of sm_80 may have 166912"),
    ],
)
def test_what_does_not_fit_is_one_line(saxpy, args, sizes, line):
    values = {
        "x": np.ones(64, np.float32), "y": np.ones(64, np.float32), "gaps": np.ones(128, np.float32)[::2],
        "objects": np.array([None]),
    }  # fmt: skip
    args = [values.get(arg, arg) if isinstance(arg, str) else arg for arg in args]
    with pytest.raises(LaunchError, match=line) as caught:
        saxpy.launch(*args, **{"grid": 1, "block": 64, **sizes})
    assert "\n" not in str(caught.value)


def test_an_array_with_gaps_is_taken_if_the_kernel_knows(saxpy):
    x, y = np.ones(128, np.float32)[::2], np.ones(64, np.float32)
    saxpy.launch(strided(x), y, 1.0, 64, grid=1, block=64)
    assert (y == 2).all()


def test_a_read_only_array_may_be_read_and_not_written(saxpy):
    x, y = np.ones(64, np.float32), np.ones(64, np.float32)
    x.flags.writeable = False
    saxpy.launch(x, y, 1.0, 64, grid=1, block=64)
    with pytest.raises(LaunchError, match="x: a read-only array, and the kernel wrote to it"):
        saxpy.launch(y, x, 1.0, 64, grid=1, block=64, names=["y", "x", "a", "n"])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("this is\nno PTX", r"line 1: "),
        (SAXPY.replace("fma.rn.f32", "fmaa.rn.f32"), r"kernel saxpy, line 2\d: `fmaa.rn.f32 .*`: "),
        ("", "expected a file of PTX"),
        ("\0\n", "line 1"),
    ],
)
def test_ptx_that_is_none_is_one_line(text, line):
    with pytest.raises(PtxError, match=line) as caught:
        emulator.load(text)["saxpy"].launch(1, 2, 3, 4, grid=1, block=1)
    assert "\n" not in str(caught.value)


def test_an_unknown_kernel_is_named(saxpy):
    with pytest.raises(PtxError, match='no kernel "twice" in the module; it has: saxpy'):
        saxpy.module["twice"]


def test_a_kernel_without_end_is_ended():
    forever = emulator.load(FOREVER)["forever"]
    with pytest.raises(KernelFault, match="more than its limit"):
        forever.launch(grid=1, block=32, limit=100_000)


def test_ctrl_c_ends_a_launch():
    forever = emulator.load(FOREVER)["forever"]
    threading.Timer(0.3, _thread.interrupt_main).start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        forever.launch(grid=1, block=32, limit=1 << 62)
    assert time.monotonic() - begun < 10
    with pytest.raises(KernelFault):  # and the device is as good as before
        forever.launch(grid=1, block=32, limit=1000)


def test_launches_on_several_threads_do_not_mix(saxpy):
    results = []

    def work(number):
        x, y = np.full(4096, number, np.float32), np.zeros(4096, np.float32)
        saxpy.launch(x, y, 2.0, 4096, grid=16, block=256)
        results.append(bool((y == 2 * number).all()))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert results == [True] * 8
