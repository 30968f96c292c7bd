//! What calls answer: the driver's numbers, names and explanations.

use std::ffi::CStr;

/// An answer of the driver, by its number in `cuda.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) i32);

/// An answer with its number, its name and what it means.
macro_rules! statuses {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        impl Status {
            $(#[allow(dead_code, reason = "some are only asked for by name")]
            pub(crate) const $name: Status = Status($number);)*

            const ALL: &[(Status, &CStr, &CStr)] = &[$((
                Status($number),
                match CStr::from_bytes_with_nul(concat!("CUDA_", stringify!($name), "\0").as_bytes()) {
                    Ok(text) => text,
                    Err(_) => panic!("a literal"),
                },
                match CStr::from_bytes_with_nul(concat!($text, "\0").as_bytes()) {
                    Ok(text) => text,
                    Err(_) => panic!("a literal"),
                },
            )),*];
        }
    };
}

statuses! {
    SUCCESS = 0, "no error";
    ERROR_INVALID_VALUE = 1, "invalid argument";
    ERROR_OUT_OF_MEMORY = 2, "out of memory";
    ERROR_NOT_INITIALIZED = 3, "initialization error";
    ERROR_STUB_LIBRARY = 34, "CUDA driver is a stub library";
    ERROR_NO_DEVICE = 100, "no CUDA-capable device is detected";
    ERROR_INVALID_DEVICE = 101, "invalid device ordinal";
    ERROR_INVALID_IMAGE = 200, "device kernel image is invalid";
    ERROR_INVALID_CONTEXT = 201, "invalid device context";
    ERROR_NO_BINARY_FOR_GPU = 209, "no kernel image is available for execution on the device";
    ERROR_ECC_UNCORRECTABLE = 214, "uncorrectable ECC error encountered";
    ERROR_INVALID_PTX = 218, "a PTX JIT compilation failed";
    ERROR_UNSUPPORTED_PTX_VERSION = 222, "the provided PTX was compiled with an unsupported toolchain.";
    ERROR_OPERATING_SYSTEM = 304, "OS call failed or operation not supported on this OS";
    ERROR_INVALID_HANDLE = 400, "invalid resource handle";
    ERROR_ILLEGAL_STATE = 401, "the operation cannot be performed in the present state";
    ERROR_NOT_FOUND = 500, "named symbol not found";
    ERROR_NOT_READY = 600, "device not ready";
    ERROR_ILLEGAL_ADDRESS = 700, "an illegal memory access was encountered";
    ERROR_LAUNCH_OUT_OF_RESOURCES = 701, "too many resources requested for launch";
    ERROR_LAUNCH_TIMEOUT = 702, "the launch timed out and was terminated";
    ERROR_CONTEXT_IS_DESTROYED = 709, "context is destroyed";
    ERROR_ASSERT = 710, "device-side assert triggered";
    ERROR_MISALIGNED_ADDRESS = 716, "misaligned address";
    ERROR_LAUNCH_FAILED = 719, "unspecified launch failure";
    ERROR_SYSTEM_DRIVER_MISMATCH = 803, "system has unsupported display driver / cuda driver combination";
    ERROR_STREAM_CAPTURE_UNSUPPORTED = 900, "operation not permitted when stream is capturing";
    ERROR_STREAM_CAPTURE_INVALIDATED = 901, "operation failed due to a previous error during capture";
    ERROR_STREAM_CAPTURE_WRONG_THREAD = 908, "attempt to terminate a thread-local capture sequence from another thread";
    ERROR_UNKNOWN = 999, "unknown error";
}

impl Status {
    /// One that is known, by its number or its name.
    pub(crate) fn find(text: &str) -> Option<Status> {
        let matches = |(status, name, _): &&(Status, &CStr, &CStr)| {
            text.parse() == Ok(status.0) || name.to_bytes() == text.as_bytes()
        };
        Status::ALL.iter().find(matches).map(|(status, ..)| *status)
    }

    /// Its name and its explanation.
    pub(crate) fn texts(self) -> Option<(&'static CStr, &'static CStr)> {
        Status::ALL.iter().find(|(status, ..)| *status == self).map(|(_, name, text)| (*name, *text))
    }

    /// Whether a context in which it happened once answers nothing else any more.
    pub(crate) fn is_sticky(self) -> bool {
        self == Status::ERROR_ECC_UNCORRECTABLE || (700..800).contains(&self.0) && self.0 != 701
    }
}
