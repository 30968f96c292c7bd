//! A library for LD_PRELOAD: the n-th call of a kind fails. Built by the test beside it, with nothing but `rustc`.
//!
//! | variable | |
//! |---|---|
//! | `FAULT_BELOW` | only files below this folder |
//! | `FAULT_CALL` | `open`, `read`, `map`, `write`, `rename`, `sync`, `mkdir` or `alloc` (of at least `FAULT_SIZE` bytes) |
//! | `FAULT_NTH` | which of them, from 1 on |
//! | `FAULT_ERROR` | the number of the error; 0: half of what was asked for is done |
//! | `FAULT_MARK` | a file that is made when it happens |
//!
//! Nothing here may allocate.

#![allow(missing_docs, unused_unsafe)]

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::SeqCst};

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn getenv(name: *const c_char) -> *mut c_char;
    fn __errno_location() -> *mut c_int;
    fn __libc_malloc(size: usize) -> *mut c_void;
    fn __libc_calloc(count: usize, size: usize) -> *mut c_void;
    fn __libc_realloc(old: *mut c_void, size: usize) -> *mut c_void;
    fn __libc_memalign(align: usize, size: usize) -> *mut c_void;
}

static BELOW: AtomicPtr<c_char> = AtomicPtr::new(std::ptr::null_mut());
static CALL: AtomicPtr<c_char> = AtomicPtr::new(std::ptr::null_mut());
static MARK: AtomicPtr<c_char> = AtomicPtr::new(std::ptr::null_mut());
static NTH: AtomicUsize = AtomicUsize::new(0);
static ERROR: AtomicUsize = AtomicUsize::new(0);
static SIZE: AtomicUsize = AtomicUsize::new(usize::MAX);
static COUNT: AtomicUsize = AtomicUsize::new(0);
static WATCHED: [AtomicBool; 4096] = [const { AtomicBool::new(false) }; 4096];

#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

extern "C" fn begin() {
    // SAFETY: the names end with a NUL, and nothing changes the environment.
    unsafe {
        BELOW.store(getenv(c"FAULT_BELOW".as_ptr()), SeqCst);
        CALL.store(getenv(c"FAULT_CALL".as_ptr()), SeqCst);
        MARK.store(getenv(c"FAULT_MARK".as_ptr()), SeqCst);
        ERROR.store(number(getenv(c"FAULT_ERROR".as_ptr())), SeqCst);
        SIZE.store(number(getenv(c"FAULT_SIZE".as_ptr())), SeqCst);
        NTH.store(number(getenv(c"FAULT_NTH".as_ptr())), SeqCst);
    }
}

/// The decimal number of a text; 0 if there is none.
unsafe fn number(text: *const c_char) -> usize {
    if text.is_null() {
        return 0;
    }
    // SAFETY: it is the value of a variable of the environment.
    let digits = unsafe { CStr::from_ptr(text) }.to_bytes();
    digits.iter().fold(0, |number, digit| 10 * number + usize::from(digit - b'0'))
}

/// Whether this call is the one; then the mark is made.
fn hit(call: &CStr) -> bool {
    let wanted = CALL.load(SeqCst);
    // SAFETY: it is the value of a variable of the environment.
    if wanted.is_null() || unsafe { CStr::from_ptr(wanted) } != call {
        return false;
    }
    if COUNT.fetch_add(1, SeqCst) + 1 != NTH.load(SeqCst) {
        return false;
    }
    let mark = MARK.load(SeqCst);
    // SAFETY: the real call, with a path that ends with a NUL: O_CREAT | O_WRONLY.
    unsafe { real_open()(mark, 0o101, 0o600) };
    true
}

/// The answer of a call that failed.
fn failed() -> isize {
    // SAFETY: each thread has its own.
    unsafe { *__errno_location() = ERROR.load(SeqCst) as c_int };
    -1
}

/// How much of `size` a call is to do: all of it, half of it, or nothing but fail.
fn share(call: &CStr, size: usize) -> Option<usize> {
    match hit(call) {
        false => Some(size),
        true if ERROR.load(SeqCst) == 0 => Some(size.div_ceil(2)),
        true => None,
    }
}

fn below(path: *const c_char) -> bool {
    let folder = BELOW.load(SeqCst);
    if path.is_null() || folder.is_null() {
        return false;
    }
    // SAFETY: both end with a NUL.
    unsafe { CStr::from_ptr(path).to_bytes().starts_with(CStr::from_ptr(folder).to_bytes()) }
}

fn watched(fd: c_int) -> bool {
    usize::try_from(fd).ok().and_then(|fd| WATCHED.get(fd)).is_some_and(|watched| watched.load(SeqCst))
}

fn watch(fd: c_int, watched: bool) -> c_int {
    if let Some(place) = usize::try_from(fd).ok().and_then(|fd| WATCHED.get(fd)) {
        place.store(watched, SeqCst);
    }
    fd
}

/// The function that this library stands in front of.
macro_rules! real {
    ($name:literal, $type:ty) => {{
        // SAFETY: -1 is RTLD_NEXT; the type is that of the function in the C library.
        unsafe { std::mem::transmute::<*mut c_void, $type>(dlsym(usize::MAX as *mut c_void, $name.as_ptr())) }
    }};
}

type Open = unsafe extern "C" fn(*const c_char, c_int, c_uint) -> c_int;

fn real_open() -> Open {
    real!(c"open", Open)
}

macro_rules! open {
    ($name:ident) => {
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
            let below = below(path);
            if below && hit(c"open") {
                return failed() as c_int;
            }
            // SAFETY: as it came.
            watch(unsafe { real_open()(path, flags, mode) }, below)
        }
    };
}
open!(open);
open!(open64);

macro_rules! openat {
    ($name:ident) => {
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(folder: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
            let below = below(path);
            if below && hit(c"open") {
                return failed() as c_int;
            }
            let real = real!(c"openat", unsafe extern "C" fn(c_int, *const c_char, c_int, c_uint) -> c_int);
            // SAFETY: as it came.
            watch(unsafe { real(folder, path, flags, mode) }, below)
        }
    };
}
openat!(openat);
openat!(openat64);

#[unsafe(no_mangle)]
unsafe extern "C" fn close(fd: c_int) -> c_int {
    watch(fd, false);
    // SAFETY: as it came.
    unsafe { real!(c"close", unsafe extern "C" fn(c_int) -> c_int)(fd) }
}

macro_rules! transfer {
    ($name:ident, $real:literal, $call:literal, $pointer:ty $(, $offset:ident: $type:ty)?) => {
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(fd: c_int, bytes: $pointer, size: usize $(, $offset: $type)?) -> isize {
            let size = if watched(fd) { share($call, size) } else { Some(size) };
            let Some(size) = size else { return failed() };
            let real = real!($real, unsafe extern "C" fn(c_int, $pointer, usize $(, $type)?) -> isize);
            // SAFETY: as it came, or less.
            unsafe { real(fd, bytes, size $(, $offset)?) }
        }
    };
}
transfer!(read, c"read", c"read", *mut c_void);
transfer!(write, c"write", c"write", *const c_void);
transfer!(pread64, c"pread64", c"read", *mut c_void, offset: c_long);
transfer!(pwrite64, c"pwrite64", c"write", *const c_void, offset: c_long);

#[unsafe(no_mangle)]
unsafe extern "C" fn copy_file_range(
    from: c_int,
    at: *mut i64,
    to: c_int,
    to_at: *mut i64,
    size: usize,
    flags: c_uint,
) -> isize {
    let size = if watched(to) { share(c"write", size) } else { Some(size) };
    let Some(size) = size else { return failed() };
    type Copy = unsafe extern "C" fn(c_int, *mut i64, c_int, *mut i64, usize, c_uint) -> isize;
    // SAFETY: as it came, or less.
    unsafe { real!(c"copy_file_range", Copy)(from, at, to, to_at, size, flags) }
}

macro_rules! map {
    ($name:ident) => {
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(
            at: *mut c_void,
            size: usize,
            protection: c_int,
            flags: c_int,
            fd: c_int,
            offset: c_long,
        ) -> *mut c_void {
            if fd >= 0 && watched(fd) && hit(c"map") {
                return failed() as *mut c_void;
            }
            type Map = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, c_int, c_long) -> *mut c_void;
            // SAFETY: as it came.
            unsafe { real!(c"mmap", Map)(at, size, protection, flags, fd, offset) }
        }
    };
}
map!(mmap);
map!(mmap64);

macro_rules! sync {
    ($name:ident, $real:literal) => {
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(fd: c_int) -> c_int {
            if watched(fd) && hit(c"sync") {
                return failed() as c_int;
            }
            // SAFETY: as it came.
            unsafe { real!($real, unsafe extern "C" fn(c_int) -> c_int)(fd) }
        }
    };
}
sync!(fsync, c"fsync");
sync!(fdatasync, c"fdatasync");

#[unsafe(no_mangle)]
unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    if below(to) && hit(c"rename") {
        return failed() as c_int;
    }
    // SAFETY: as it came.
    unsafe { real!(c"rename", unsafe extern "C" fn(*const c_char, *const c_char) -> c_int)(from, to) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn renameat(a: c_int, from: *const c_char, b: c_int, to: *const c_char) -> c_int {
    if below(to) && hit(c"rename") {
        return failed() as c_int;
    }
    type Rename = unsafe extern "C" fn(c_int, *const c_char, c_int, *const c_char) -> c_int;
    // SAFETY: as it came.
    unsafe { real!(c"renameat", Rename)(a, from, b, to) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mkdir(path: *const c_char, mode: c_uint) -> c_int {
    if below(path) && hit(c"mkdir") {
        return failed() as c_int;
    }
    // SAFETY: as it came.
    unsafe { real!(c"mkdir", unsafe extern "C" fn(*const c_char, c_uint) -> c_int)(path, mode) }
}

/// Whether an allocation is to fail.
fn refused(size: usize) -> bool {
    NTH.load(SeqCst) > 0 && size >= SIZE.load(SeqCst) && hit(c"alloc")
}

#[unsafe(no_mangle)]
unsafe extern "C" fn malloc(size: usize) -> *mut c_void {
    // SAFETY: as it came.
    if refused(size) { std::ptr::null_mut() } else { unsafe { __libc_malloc(size) } }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    // SAFETY: as it came.
    if refused(count.saturating_mul(size)) { std::ptr::null_mut() } else { unsafe { __libc_calloc(count, size) } }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn realloc(old: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: as it came.
    if refused(size) { std::ptr::null_mut() } else { unsafe { __libc_realloc(old, size) } }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn posix_memalign(out: *mut *mut c_void, align: usize, size: usize) -> c_int {
    if refused(size) {
        return 12; // ENOMEM
    }
    // SAFETY: as it came.
    let pointer = unsafe { __libc_memalign(align, size) };
    if pointer.is_null() {
        return 12;
    }
    // SAFETY: the caller gives a place for it.
    unsafe { *out = pointer };
    0
}
