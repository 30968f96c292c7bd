//! What is refused before anything runs: broken text, unsupported instructions, impossible launches.

use crate::common::{Bench, module};
use ptx_emulator::{Error, Grid, Module};

#[test]
fn launches_that_the_kernel_does_not_allow() {
    let kernel = |limits: &str, body: &str| {
        format!(".version 8.4\n.target sm_80\n.visible .entry k() {limits} {{ {body} ret; }}")
    };
    let cases = [
        (kernel(".maxntid 64, 1, 1", ""), ".maxntid allows"),
        (kernel(".reqntid 32", ""), ".reqntid wants"),
        (kernel("", ".shared .b8 x[200000];"), "200000 bytes of shared memory"),
        (kernel("", ".shared .b8 x[99999999999999]; .shared .b8 y[9999999999999999];"), "shared memory"),
        (kernel("", ".shared .b8 x[110000];").replace("sm_80", "sm_89"), "a block of sm_89 may have 101376"),
        (kernel("", ".shared .b8 x[233000];").replace("sm_80", "sm_90a"), "a block of sm_90a may have 232448"),
        (kernel("", ".local .b8 x[99999999999];"), "bytes of local memory"),
        (kernel("", ".reg .b32 %r<60000>; .reg .b64 %rd<60000>;"), "120000 registers"),
    ];
    for (text, part) in cases {
        let mut bench = Bench::new(&text);
        let error = bench.try_run("k", Grid::linear(1, 128), &[]).unwrap_err();
        assert!(matches!(error, Error::Launch { .. }) && error.to_string().contains(part), "{error}");
    }
}

#[test]
fn unsupported_instructions_are_named_with_their_line() {
    let cases = [
        ("frobnicate.u32 %r1, %r2;", "frobnicate is not supported"),
        ("add.frob.s32 %r1, %r2, %r1;", ".frob is not supported"),
        ("add.s32 %r1, %r2, %rd1;", "a register of 64 bits where the type has 32"),
        ("add.s32 %r1, %r2;", "2 operands where 3 are expected"),
        ("add.s32 %r1, %r2, %r9;", "%r9 is not declared"),
        ("bra NOWHERE;", "there is no label NOWHERE"),
        ("wgmma.fence.sync.aligned;", "wgmma is not supported"),
        ("mbarrier.expect_tx.shared.b64 [%r1], 1;", "mbarrier.expect_tx is not supported"),
        ("ld.global.u32.frob %r1, [%rd1];", ".frob is not supported"),
        ("ld.shared.u32 %r1, [p0];", "p0 lives in param memory"),
        ("bar.sync 16;", "0 to 15"),
        ("call.uni foo;", "only calls of functions whose body is in the module"),
        ("shfl.bfly.b32 %r1, %r2, 1, 31;", ".sync"),
        ("fma.f32 %f1, %f1, %f1, %f1;", "a rounding modifier is missing"),
        ("cvt.s32.f32 %r1, %f1;", "a rounding modifier is missing"),
        ("setp.lt.b32 %q, %r1, %r2;", "bits can be compared"),
        ("mov.u32 %r1, %envreg3;", "%envreg3 is not declared"),
    ];
    for (instruction, reason) in cases {
        let body = format!(".reg .b32 %r<4>; .reg .b64 %rd<4>; .reg .f32 %f<4>; .reg .pred %q;\n{instruction}\nret;");
        let module = Module::parse(&module(1, &body)).unwrap();
        let error = module.check().unwrap_err();
        let Error::Unsupported { kernel, line, .. } = &error else { panic!("{error}") };
        assert_eq!((kernel.as_str(), *line), ("kernel", 7), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn calls_that_cannot_be_lowered_in_place() {
    let function = "{ .reg .b32 %r<3>; ld.param.b32 %r1, [a]; CALL st.param.b32 [out], %r1; ret; }";
    let text = |inner: &str, call: &str| {
        format!(
            ".version 8.4\n.func (.param .b32 out) f(.param .b32 a)\n{}\n.visible .entry k()\n{{ .reg .b32 %r<3>;
            .param .b32 x; .param .b32 y; st.param.b32 [x], 1; {call} ld.param.b32 %r1, [y]; ret; }}",
            function.replace("CALL", inner)
        )
    };
    let check = |text: &str| Module::parse(text).unwrap().check();
    check(&text("", "call.uni (y), f, (x);")).unwrap();
    let recursive = text("call.uni (out), f, (a);", "call.uni (y), f, (x);");
    let cases = [
        (recursive, "recursion is not supported"),
        (text("", "call.uni f, (x);"), "0 values where f has 1"),
        (text("", "call.uni (y), f, (%r1);"), "is not a .param variable"),
        (text("", "call.uni (y), g, (x);"), "whose body is in the module"),
    ];
    for (text, reason) in cases {
        let error = check(&text).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn text_that_is_no_module() {
    let cases = [
        ("", 1, ".version"),
        (".version 8.4\n.target sm_80\n.frob 3", 3, ".frob is not supported"),
        (".version 8.4\n.visible .entry f()\n{\nadd.s32 %r1, %r2", 4, "';'"),
        (".version 8.4\n.visible .entry f()\n{\nret;\n", 5, "never ends"),
        (".version 8.4\n/* open", 2, "comment"),
        (".version 8.4\n.global .b8 x[4] = {1, 2, 3, 4, 5};", 2, "more initial values"),
        (".version 8.4\n.global .align 3 .b8 x;", 2, "alignment"),
        (".version 8.4\n\u{fc}", 2, "character"),
        (".version 8.4\n.address_size 32", 2, "64"),
        (".version 8.4\n.global .b64 x[99999999999][99999999999];", 2, "too large"),
    ];
    for (text, line, part) in cases {
        let error = Module::parse(text).unwrap_err();
        let Error::Syntax { line: at, .. } = &error else { panic!("{error}") };
        assert_eq!(*at, line, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}
