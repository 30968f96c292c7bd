//! Thread-instructions per second on one core: `cargo run --release -p ptx-emulator --example speed`.

use std::time::Instant;

use ptx_emulator::{Arg, Emulator, Grid, Module, Options};

/// A loop of ordinary arithmetic; the body is unrolled as a compiler would.
fn kernel(name: &str, body: &str) -> String {
    format!(
        ".version 8.4\n.target sm_80\n.address_size 64\n.visible .entry {name}(.param .u64 out, .param .u32 n)\n{{\n\
         .reg .pred %p<4>; .reg .f32 %f<8>; .reg .b32 %r<16>; .reg .b64 %rd<8>;\n.shared .align 4 .b8 tile[1024];\n\
         ld.param.u64 %rd1, [out]; ld.param.u32 %r1, [n];\n\
         mov.u32 %r2, %tid.x; mov.u32 %r3, 0; mov.u32 %r4, 12345; cvt.rn.f32.u32 %f1, %r2; mov.f32 %f2, 0f3F000000;\n\
         mov.f32 %f3, 0f3F800000; shl.b32 %r9, %r2, 2; mov.u32 %r8, tile; add.s32 %r8, %r8, %r9;\n\
         st.shared.f32 [%r8], %f1;\nLOOP:\n{}\nadd.s32 %r3, %r3, 1; setp.lt.u32 %p1, %r3, %r1; @%p1 bra LOOP;\n\
         cvta.to.global.u64 %rd2, %rd1; mul.wide.u32 %rd3, %r2, 4; add.s64 %rd4, %rd2, %rd3;\n\
         cvt.rn.f32.u32 %f4, %r4; add.f32 %f4, %f4, %f1; st.global.f32 [%rd4], %f4;\nret;\n}}\n",
        body.repeat(8)
    )
}

fn main() {
    let integer = "mad.lo.s32 %r4, %r4, %r2, %r3; xor.b32 %r5, %r4, %r3; shr.u32 %r6, %r5, 3; add.s32 %r4, %r6, %r5;\n";
    let float = "fma.rn.f32 %f1, %f1, %f2, %f3; mul.f32 %f5, %f1, %f2; add.f32 %f6, %f5, %f3; sub.f32 %f1, %f6, %f5;\n";
    let mixed = "mul.wide.u32 %rd5, %r4, 4; cvt.u32.u64 %r7, %rd5; setp.gt.u32 %p2, %r7, %r3;\n\
                 selp.b32 %r4, %r7, %r2, %p2; max.f32 %f1, %f1, %f2;\n";
    let shared = "ld.shared.f32 %f5, [%r8]; fma.rn.f32 %f1, %f5, %f2, %f3; st.shared.f32 [%r8], %f1;\n";
    for (name, body) in [("integer", integer), ("float", float), ("mixed", mixed), ("shared", shared)] {
        let module = Module::parse(&kernel(name, body)).expect("the kernel parses");
        for (mode, checked) in [("unchecked", false), ("checked", true)] {
            let mut gpu = Emulator::new();
            let out = gpu.allocate(1024).expect("there is room");
            let options = Options { checked, threads: 1, ..Options::default() };
            let args = [Arg::from(out), Arg::from(2000u32)];
            let start = Instant::now();
            let report = gpu.launch(&module, name, Grid::linear(8, 256), &args, options).expect("the kernel runs");
            let seconds = start.elapsed().as_secs_f64();
            let rate = report.thread_instructions as f64 / seconds / 1e6;
            println!("{name:8} {mode:10} {rate:7.0} million thread-instructions per second");
        }
    }
}
