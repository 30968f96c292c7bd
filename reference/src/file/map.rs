//! Files of tensors, mapped into memory: a checkpoint of any size opens at once and takes no memory of its own.
//!
//! **Trap.** A page beyond the end of a file that has become shorter, or that its disk cannot deliver, is no error of a call:
//! the system kills the program with SIGBUS. [`watch`] makes a line of it.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Refused, open};
use crate::weights::safetensors_file::SharedBytes;
use crate::{Error, Result};

/// Where files lie in memory.
static MAPS: Mutex<Vec<(Range<usize>, PathBuf)>> = Mutex::new(Vec::new());

/// The bytes of the file `path`, mapped into memory: a page is read when it is first touched. `what` says in a message what
/// kind of file was expected.
///
/// # Errors
/// If there is no such file, it is none, or it cannot be read.
pub fn map(path: &Path, what: &str) -> Result<SharedBytes> {
    let cannot = |source| Error::Io { path: path.to_owned(), action: "read", source };
    let file = open(path).map_err(|refused| match refused {
        Refused::Other(found) => Error::file(path, "a file", found),
        Refused::Io(error) if error.kind() == io::ErrorKind::NotFound => Error::file(path, what, "no such file"),
        Refused::Io(error) => cannot(error),
    })?;
    // SAFETY: nobody may change the file while it is mapped. A program cannot enforce that, but this crate keeps to it: it
    // never writes into a file that exists, it puts a new one in its place by renaming. If somebody else makes it shorter,
    // the system sends SIGBUS, and `watch` ends the program.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(cannot)?;
    let start = map.as_ptr() as usize;
    maps().push((start..start + map.len(), path.to_owned()));
    Ok(Arc::new(Mapped(map)))
}

fn maps() -> std::sync::MutexGuard<'static, Vec<(Range<usize>, PathBuf)>> {
    MAPS.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Mapped(memmap2::Mmap);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let start = self.0.as_ptr() as usize;
        let mut maps = maps();
        if let Some(index) = maps.iter().position(|(range, _)| range.start == start && range.len() == self.0.len()) {
            maps.swap_remove(index);
        }
    }
}

/// Calls `end` with one line if a mapped file turns out to be shorter than when it was opened. The thread that needed the
/// missing page never goes on. For programs; a library leaves signals to the program that it is part of.
///
/// # Errors
/// If there can be no thread to wait for it. Then SIGBUS kills the program.
#[cfg(unix)]
pub(super) fn watch(end: impl Fn(&str) + Send + 'static) -> io::Result<()> {
    use std::io::Read;
    use std::os::fd::IntoRawFd;
    use std::sync::atomic::{AtomicI32, Ordering};

    static PIPE: AtomicI32 = AtomicI32::new(-1);

    /// Tells the thread at the other end of the pipe which address has no page.
    extern "C" fn tell(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the system hands over a valid `info`; `write` and `pause` may be called in a handler of signals.
        unsafe {
            let address = (*info).si_addr() as usize;
            libc::write(PIPE.load(Ordering::Relaxed), (&raw const address).cast(), size_of::<usize>());
            loop {
                libc::pause();
            }
        }
    }

    let (mut receiver, sender) = io::pipe()?;
    std::thread::Builder::new().name("mapped files".into()).spawn(move || {
        let mut address = [0; size_of::<usize>()];
        if receiver.read_exact(&mut address).is_err() {
            return;
        }
        let address = usize::from_ne_bytes(address);
        if let Some((_, path)) = maps().iter().find(|(range, _)| range.contains(&address)) {
            let found = "one that has become shorter, or whose disk fails";
            end(&Error::file(path, "a file that stays as it is while it is read", found).to_string());
        }
        // Not ours: as if nobody had listened.
        // SAFETY: the default action is a valid one, and raising a signal is always allowed.
        unsafe {
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
            libc::raise(libc::SIGBUS);
        }
    })?;
    PIPE.store(sender.into_raw_fd(), Ordering::Relaxed);
    // SAFETY: the handler does nothing but what a handler may do.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = tell as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
    Ok(())
}
