//! What the host sees beside results: parameters, what was written, what was printed; and its hand on a launch.

use std::sync::atomic::Ordering;

use ptx_emulator::{Arg, Cause, Emulator, Error, Grid, Module, Options, Parameter};

const HEAD: &str = ".version 8.4\n.target sm_80\n.address_size 64\n";

/// Prints the block, the thread, a number and a text; then asserts that the thread is not 40.
const TALK: &str = "
.extern .func (.param .b32 func_retval0) vprintf (.param .b64 vprintf_param_0, .param .b64 vprintf_param_1);
.extern .func __assertfail (.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e) .noreturn;
.global .align 1 .b8 form[20] = {37, 100, 32, 37, 45, 52, 108, 108, 117, 32, 37, 46, 49, 102, 32, 37, 115, 37, 37, 0};
.global .align 1 .b8 word[3] = {104, 105, 0};
.visible .entry talk(.param .align 4 .b8 unused[12], .param .f32 number)
{
    .local .align 8 .b8 list[32];
    .reg .pred %p<2>;
    .reg .b32 %r<5>;
    .reg .f32 %f<2>;
    .reg .f64 %fd<2>;
    .reg .b64 %rd<8>;
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    ld.param.f32 %f1, [number];
    cvt.f64.f32 %fd1, %f1;
    cvt.u64.u32 %rd1, %r1;
    mov.u64 %rd2, word;
    cvta.global.u64 %rd3, %rd2;
    st.local.u32 [list], %r2;
    st.local.u64 [list+8], %rd1;
    st.local.f64 [list+16], %fd1;
    st.local.u64 [list+24], %rd3;
    mov.u64 %rd4, list;
    cvta.local.u64 %rd5, %rd4;
    mov.u64 %rd6, form;
    cvta.global.u64 %rd7, %rd6;
    {
        .param .b64 param0;
        .param .b64 param1;
        .param .b32 retval0;
        st.param.b64 [param0], %rd7;
        st.param.b64 [param1], %rd5;
        call.uni (retval0), vprintf, (param0, param1);
        ld.param.b32 %r3, [retval0];
    }
    setp.ne.u32 %p1, %r1, 40;
    @%p1 bra $right;
    {
        .param .b64 param0;
        .param .b64 param1;
        .param .b32 param2;
        .param .b64 param3;
        .param .b64 param4;
        st.param.b64 [param0], %rd3;
        st.param.b64 [param1], %rd3;
        st.param.b32 [param2], 7;
        st.param.b64 [param3], %rd3;
        st.param.b64 [param4], 1;
        call.uni __assertfail, (param0, param1, param2, param3, param4);
    }
$right:
    ret;
}";

fn module(text: &str) -> Module {
    Module::parse(&format!("{HEAD}{text}")).unwrap()
}

fn talk(grid: Grid) -> (Emulator, Result<(), Error>) {
    let mut gpu = Emulator::new();
    let args = [Arg::bytes(&[0; 12]), Arg::from(2.25f32)];
    let done = gpu.launch(&module(TALK), "talk", grid, &args, Options::default());
    (gpu, done.map(|_| ()))
}

#[test]
fn what_a_launch_printed_is_kept_also_of_one_that_failed() {
    let (mut gpu, done) = talk(Grid::linear(2, 2));
    done.unwrap();
    assert_eq!(gpu.printed(), "0 0    2.2 hi%0 1    2.2 hi%1 0    2.2 hi%1 1    2.2 hi%");
    assert_eq!(gpu.printed(), "", "once");
    let (mut gpu, done) = talk(Grid::linear(1, 64));
    let error = done.unwrap_err();
    let Error::Fault(fault) = error else { panic!("{error}") };
    assert!(matches!(fault.cause, Cause::Assertion { line: 7, .. }));
    assert_eq!(gpu.printed().matches("hi%").count(), 64);
}

#[test]
fn other_functions_without_a_body_are_refused_by_name() {
    let text = TALK.replace("vprintf", "malloc");
    let error = module(&text).check().unwrap_err().to_string();
    assert!(
        error.contains("malloc") && error.contains("only calls of functions whose body is in the module"),
        "{error}"
    );
}

#[test]
fn parameters_are_named_with_their_types() {
    let module = module(TALK);
    let parameter = |name: &str, element, bytes, align| Parameter { name: name.to_string(), element, bytes, align };
    let expected = [parameter("unused", "b8", 12, 4), parameter("number", "f32", 4, 4)];
    assert_eq!(module.parameters("talk").unwrap(), expected);
    assert_eq!(module.required_threads("talk").unwrap(), None);
    assert!(matches!(module.parameters("nobody"), Err(Error::NoKernel { .. })));
}

#[test]
fn what_was_written_is_given_back_and_the_rest_left_alone() {
    let mut gpu = Emulator::new();
    let there = gpu.allocate(10).unwrap();
    gpu.write(there.offset(3), &[1, 2, 3, 4, 5]).unwrap();
    let mut bytes = [9; 9];
    assert_eq!(gpu.read_written(there, &mut bytes).unwrap(), 5);
    assert_eq!(bytes, [9, 9, 9, 1, 2, 3, 4, 5, 9]);
    assert!(gpu.read_written(there.offset(2), &mut bytes).is_err(), "one byte too many");
}

#[test]
fn a_launch_without_end_can_be_ended_and_the_device_goes_on() {
    let forever = module(".visible .entry forever()\n{\n$again:\n bra $again;\n}");
    let mut gpu = Emulator::new();
    let switch = gpu.interrupter();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            switch.store(true, Ordering::Relaxed);
        });
        let options = Options { limit: u64::MAX, ..Options::default() };
        let error = gpu.launch(&forever, "forever", Grid::linear(4, 64), &[], options).unwrap_err();
        assert_eq!(error, Error::Interrupted { kernel: "forever".to_string() });
    });
    // So can one whose blocks are done at once, but are many.
    let nothing = module(".visible .entry nothing()\n{\n ret;\n}");
    let error = gpu.launch(&nothing, "nothing", Grid::linear(u32::MAX >> 1, 1), &[], Options::default()).unwrap_err();
    assert_eq!(error, Error::Interrupted { kernel: "nothing".to_string() });
    gpu.interrupter().store(false, Ordering::Relaxed);
    let options = Options { limit: 1000, ..Options::default() };
    let error = gpu.launch(&forever, "forever", Grid::linear(1, 32), &[], options).unwrap_err();
    assert!(matches!(error, Error::Fault(_)), "{error}");
}
