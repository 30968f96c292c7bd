//! What the library promises to host code. Each test loads a copy of it: a driver of its own.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::hint::black_box;
use std::mem::ManuallyDrop;
use std::ptr::{from_mut, null, null_mut};

use libloading::Library;
use tempfile::TempDir;

/// A kernel that adds 1 to as many words as it has threads.
const PTX: &CStr = c"
.version 8.0
.target sm_80
.address_size 64
.visible .entry increment(.param .u64 place)
{
    .reg .u32 %r<3>;
    .reg .u64 %rd<4>;
    ld.param.u64 %rd1, [place];
    cvta.to.global.u64 %rd2, %rd1;
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd3, %r1, 4;
    add.u64 %rd2, %rd2, %rd3;
    ld.global.u32 %r2, [%rd2];
    add.u32 %r2, %r2, 1;
    st.global.u32 [%rd2], %r2;
    ret;
}
";

const OK: c_int = 0;
const ILLEGAL_ADDRESS: c_int = 700;
const CAPTURE_UNSUPPORTED: c_int = 900;
const CAPTURE_INVALIDATED: c_int = 901;

/// A driver, and a stream of it that does not wait for the default stream.
struct Driver {
    stream: usize,
    /// Never closed: threads end after a test, and leave through the library.
    library: ManuallyDrop<Library>,
    _folder: TempDir,
}

/// Calls a function of the driver by its name.
macro_rules! call {
    ($driver:expr, $name:ident($($value:expr => $type:ty),*)) => {{
        // SAFETY: the types are those of cuda.h; that the arguments are right is each test's care.
        unsafe {
            let function: libloading::Symbol<unsafe extern "C" fn($($type),*) -> c_int> =
                $driver.library.get(concat!(stringify!($name), "\0").as_bytes()).expect("the library has it");
            function($($value),*)
        }
    }};
}

impl Driver {
    fn new() -> Self {
        let built = std::env::current_exe().unwrap().with_file_name("libptx_emulator_libcuda.so");
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("libcuda.so.1");
        std::fs::copy(built, &copy).unwrap();
        // SAFETY: what it does when it is loaded is nothing.
        let library = unsafe { Library::new(copy) }.unwrap();
        let mut driver = Driver { stream: 0, library: ManuallyDrop::new(library), _folder: folder };
        let mut context = 0_usize;
        assert_eq!(call!(driver, cuInit(0 => c_uint)), OK);
        assert_eq!(call!(driver, cuDevicePrimaryCtxRetain(&mut context => *mut usize, 0 => c_int)), OK);
        assert_eq!(call!(driver, cuCtxSetCurrent(context => usize)), OK);
        let mut stream = 0_usize;
        assert_eq!(call!(driver, cuStreamCreate(&mut stream => *mut usize, 1 => c_uint)), OK);
        driver.stream = stream;
        driver
    }

    fn allocate(&self, bytes: usize) -> u64 {
        let mut place = 0;
        assert_eq!(call!(self, cuMemAlloc_v2(&mut place => *mut u64, bytes => usize)), OK);
        place
    }

    fn upload(&self, to: u64, from: &[u32]) -> c_int {
        let bytes = size_of_val(from);
        call!(self, cuMemcpyHtoDAsync_v2(to => u64, from.as_ptr() => *const u32, bytes => usize, self.stream => usize))
    }

    fn download(&self, to: &mut [u32], from: u64) -> c_int {
        let bytes = size_of_val(to);
        call!(self, cuMemcpyDtoHAsync_v2(to.as_mut_ptr() => *mut u32, from => u64, bytes => usize, self.stream => usize))
    }

    fn wait(&self) -> c_int {
        call!(self, cuStreamSynchronize(self.stream => usize))
    }

    fn increment(&self) -> usize {
        let (mut module, mut function) = (0_usize, 0_usize);
        assert_eq!(call!(self, cuModuleLoadData(&mut module => *mut usize, PTX.as_ptr() => *const c_char)), OK);
        let name = c"increment".as_ptr();
        let found =
            call!(self, cuModuleGetFunction(&mut function => *mut usize, module => usize, name => *const c_char));
        assert_eq!(found, OK);
        function
    }

    fn launch(&self, function: usize, [x, threads]: [u32; 2], shared: u32, mut place: u64) -> c_int {
        let mut arguments = [from_mut(&mut place)];
        call!(self, cuLaunchKernel(
            function => usize, x => c_uint, 1 => c_uint, 1 => c_uint, threads => c_uint, 1 => c_uint, 1 => c_uint,
            shared => c_uint, self.stream => usize, arguments.as_mut_ptr() => *mut *mut u64, null_mut() => *mut c_void
        ))
    }

    /// What it says about an error.
    fn explain(&self, status: c_int) -> String {
        let mut text = null();
        assert_eq!(call!(self, cuGetErrorString(status => c_int, &mut text => *mut *const c_char)), OK);
        // SAFETY: the driver's texts end in a NUL and stay.
        unsafe { CStr::from_ptr(text) }.to_str().unwrap().to_owned()
    }
}

#[test]
fn work_is_done_when_it_is_waited_for_and_not_before() {
    let driver = Driver::new();
    let (place, function) = (driver.allocate(8), driver.increment());
    let mut data = [1, 2];
    assert_eq!(driver.upload(place, &data), OK);
    // Whoever changes what is still to be copied has changed it.
    black_box(&mut data)[0] = 10;
    assert_eq!(driver.launch(function, [1, 2], 0, place), OK);
    let mut read = [0; 2];
    assert_eq!(driver.download(&mut read, place), OK);
    assert_eq!(read, [0, 0], "too early");
    assert_eq!(driver.wait(), OK);
    assert_eq!(read, [11, 3]);
}

#[test]
fn the_default_stream_does_not_wait_for_a_stream_that_is_non_blocking() {
    let driver = Driver::new();
    let place = driver.allocate(4);
    let mut read = 0_u32;
    let copy = |read: &mut u32| call!(driver, cuMemcpyDtoH_v2(from_mut(read) => *mut u32, place => u64, 4 => usize));
    assert_eq!(driver.upload(place, &[5]), OK);
    assert_eq!(driver.wait(), OK);
    let later = [6];
    assert_eq!(driver.upload(place, &later), OK);
    assert_eq!((copy(&mut read), read), (OK, 5), "what is in the other stream is not done");
    assert_eq!(driver.wait(), OK);
    assert_eq!((copy(&mut read), read), (OK, 6));
}

#[test]
fn an_event_waits_for_what_was_asked_for_before_it() {
    let driver = Driver::new();
    let (place, function) = (driver.allocate(4), driver.increment());
    let (mut start, mut end, mut other) = (0_usize, 0_usize, 0_usize);
    for event in [&mut start, &mut end] {
        assert_eq!(call!(driver, cuEventCreate(event => *mut usize, 0 => c_uint)), OK);
    }
    let record = |event: usize| call!(driver, cuEventRecord(event => usize, driver.stream => usize));
    let mut time = 0.0_f32;
    let mut elapsed = || call!(driver, cuEventElapsedTime(&mut time => *mut f32, start => usize, end => usize));
    let data = [7];
    assert_eq!((driver.upload(place, &data), record(start)), (OK, OK));
    assert_eq!((driver.launch(function, [1, 1], 0, place), record(end)), (OK, OK));
    assert_eq!(elapsed(), 600, "not ready");
    // Another stream waits for the first one; then for it.
    assert_eq!(call!(driver, cuStreamCreate(&mut other => *mut usize, 1 => c_uint)), OK);
    assert_eq!(call!(driver, cuStreamWaitEvent(other => usize, end => usize, 0 => c_uint)), OK);
    let mut read = 0_u32;
    let copied = call!(driver, cuMemcpyDtoHAsync_v2(
        from_mut(&mut read) => *mut u32, place => u64, 4 => usize, other => usize
    ));
    assert_eq!((copied, read), (OK, 0));
    assert_eq!((call!(driver, cuStreamSynchronize(other => usize)), read), (OK, 8));
    assert_eq!(elapsed(), OK);
    assert!(time > 0.0);
}

#[test]
fn memory_given_back_too_early_is_found_and_the_error_sticks() {
    let driver = Driver::new();
    let (place, function) = (driver.allocate(4), driver.increment());
    assert_eq!(driver.launch(function, [1, 1], 0, place), OK);
    assert_eq!(call!(driver, cuMemFree_v2(place => u64)), OK);
    assert_eq!(driver.wait(), ILLEGAL_ADDRESS);
    let said = driver.explain(ILLEGAL_ADDRESS);
    assert!(said.starts_with("an illegal memory access was encountered: increment (PTX line"), "{said}");
    assert!(said.contains("no global memory is there") && said.lines().count() == 1, "{said}");
    let mut again = 0_u64;
    assert_eq!(call!(driver, cuMemAlloc_v2(&mut again => *mut u64, 4 => usize)), ILLEGAL_ADDRESS);
}

#[test]
fn pinned_memory_given_back_too_early_is_found() {
    let driver = Driver::new();
    let (place, mut pinned) = (driver.allocate(4), 0_usize);
    assert_eq!(call!(driver, cuMemHostAlloc(&mut pinned => *mut usize, 64 => usize, 0 => c_uint)), OK);
    let stream = driver.stream;
    let asked = call!(driver, cuMemcpyHtoDAsync_v2(place => u64, pinned + 8 => usize, 4 => usize, stream => usize));
    assert_eq!((asked, call!(driver, cuMemFreeHost(pinned => usize))), (OK, OK));
    assert_eq!(driver.wait(), ILLEGAL_ADDRESS);
    assert!(driver.explain(ILLEGAL_ADDRESS).ends_with("pinned memory was given back before a copy was done"));
}

#[test]
fn memory_that_nobody_has_is_refused() {
    let (driver, mut place) = (Driver::new(), 0_u64);
    for bytes in [1 << 50, usize::MAX] {
        assert_eq!(call!(driver, cuMemAlloc_v2(&mut place => *mut u64, bytes => usize)), 2);
        assert_eq!(call!(driver, cuMemHostAlloc(&mut place => *mut u64, bytes => usize, 0 => c_uint)), 2);
    }
}

#[test]
fn unwritten_bytes_and_bounds_are_checked_in_kernels_and_in_copies() {
    for (threads, written, expected) in [(1, 0, "read but not initialised"), (3, 2, "out of bounds")] {
        let driver = Driver::new();
        let (place, function) = (driver.allocate(8), driver.increment());
        let data = [1, 2];
        assert_eq!(driver.upload(place, &data[..written]), OK);
        assert_eq!(driver.launch(function, [1, threads], 0, place), OK);
        assert_eq!(driver.wait(), ILLEGAL_ADDRESS);
        let said = driver.explain(ILLEGAL_ADDRESS);
        assert!(said.contains(expected), "{said}");
    }
    let driver = Driver::new();
    let (place, mut read) = (driver.allocate(4), [0]);
    assert_eq!((driver.download(&mut read, place), driver.wait()), (OK, ILLEGAL_ADDRESS));
    let driver = Driver::new();
    let place = driver.allocate(4);
    assert_eq!((driver.upload(place, &[1, 2]), driver.wait()), (OK, ILLEGAL_ADDRESS));
}

#[test]
fn a_launch_that_no_gpu_takes_is_refused_at_once() {
    let driver = Driver::new();
    let (place, function) = (driver.allocate(8), driver.increment());
    for (grid, shared) in [([1, 1025], 0), ([0, 1], 0), ([1, 0], 0), ([1, 1], (48 << 10) + 1)] {
        assert_eq!(driver.launch(function, grid, shared, place), 1, "{grid:?}, {shared}");
    }
    let ask = |bytes: c_int| call!(driver, cuFuncSetAttribute(function => usize, 8 => c_int, bytes => c_int));
    assert_eq!((ask((227 << 10) + 1), ask(100 << 10)), (1, OK));
    assert_eq!(driver.upload(place, &[1, 2]), OK);
    assert_eq!(driver.launch(function, [1, 1], 100 << 10, place), OK);
    assert_eq!(driver.wait(), OK);
}

#[test]
fn a_captured_stream_is_a_graph_that_can_be_launched_again_and_again() {
    let driver = Driver::new();
    let (place, function, stream) = (driver.allocate(4), driver.increment(), driver.stream);
    let data = [40];
    assert_eq!((driver.upload(place, &data), driver.wait()), (OK, OK));
    let begin = |mode: c_uint| call!(driver, cuStreamBeginCapture_v2(stream => usize, mode => c_uint));
    let end = |graph: &mut usize| call!(driver, cuStreamEndCapture(stream => usize, from_mut(graph) => *mut usize));
    assert_eq!(call!(driver, cuStreamBeginCapture_v2(0 => usize, 2 => c_uint)), CAPTURE_UNSUPPORTED);
    let (mut graph, mut executable) = (0, 0_usize);
    assert_eq!((begin(2), begin(2)), (OK, 401));
    assert_eq!(driver.launch(function, [1, 1], 0, place), OK);
    // Relaxed: memory may be taken meanwhile.
    driver.allocate(4);
    assert_eq!(end(&mut graph), OK);
    assert_eq!(call!(driver, cuGraphInstantiateWithFlags(&mut executable => *mut usize, graph => usize, 0 => u64)), OK);
    assert_eq!(call!(driver, cuGraphDestroy(graph => usize)), OK);
    for _ in 0..2 {
        assert_eq!(call!(driver, cuGraphLaunch(executable => usize, stream => usize)), OK);
    }
    let mut read = [0];
    assert_eq!((driver.download(&mut read, place), driver.wait(), read), (OK, OK, [42]));
    assert_eq!(call!(driver, cuGraphExecDestroy(executable => usize)), OK);
    // Waiting spoils a capture in every mode, taking memory in a strict one.
    assert_eq!((begin(2), driver.wait(), end(&mut graph)), (OK, CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED));
    let mut taken = 0_u64;
    assert_eq!(begin(1), OK);
    assert_eq!(call!(driver, cuMemAlloc_v2(&mut taken => *mut u64, 4 => usize)), CAPTURE_UNSUPPORTED);
    assert_eq!(end(&mut graph), CAPTURE_INVALIDATED);
}

#[test]
fn ptx_that_is_refused_leaves_a_line_in_the_log() {
    let driver = Driver::new();
    for (text, status, expected) in [
        (c".version 9.9\n.target sm_80\n.address_size 64\n", 222, "Unsupported .version 9.9; current version is '8.4'"),
        (c"this is no PTX", 218, "line 1"),
    ] {
        let (mut log, mut module) = ([0_u8; 200], 0_usize);
        let options = [5_u32, 6];
        let values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), log.len() as *mut c_void];
        let loaded = call!(driver, cuModuleLoadDataEx(
            &mut module => *mut usize, text.as_ptr() => *const c_char, 2 => c_uint,
            options.as_ptr() => *const u32, values.as_ptr() => *const *mut c_void
        ));
        let said = CStr::from_bytes_until_nul(&log).unwrap().to_str().unwrap();
        assert_eq!(loaded, status, "{said}");
        assert!(said.contains(expected), "{said}");
    }
}
