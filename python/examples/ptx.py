"""A kernel in PTX with a missing barrier: its race, and what it costs.

python examples/ptx.py
"""

import numpy as np

from dsv2 import emulator

# Every thread writes one place of shared memory and reads its neighbour's.
NEIGHBOURS = """
.version 8.4
.target sm_80
.address_size 64
.visible .entry neighbours(.param .u64 out)
{
    .reg .b32 %r<6>;
    .reg .b64 %rd<4>;
    .shared .align 4 .b8 tile[256];
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, tile;
    shl.b32 %r3, %r1, 2;
    add.u32 %r4, %r2, %r3;
    st.shared.u32 [%r4], %r1;
    // BARRIER
    xor.b32 %r5, %r4, 4;
    ld.shared.u32 %r3, [%r5];
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    st.global.u32 [%rd3], %r3;
    ret;
}
"""

out = np.zeros(64, np.uint32)
for text in (NEIGHBOURS, NEIGHBOURS.replace("// BARRIER", "bar.sync 0;")):
    kernel = emulator.load(text)["neighbours"]
    run = kernel.launch(emulator.out(out), grid=1, block=64, races=True, profile=True)
    print(*(run.races or ["no race"]), sep="\n")
print(run.profile.total)
assert (out == np.arange(64) ^ 1).all()
