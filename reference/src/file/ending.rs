//! How a program ends before it is done: with a signal, or because a file that it reads is taken away. What it was writing is
//! removed then. For programs; a library leaves signals to the program that it is part of.

use std::io;

/// From now on INT, TERM and HUP remove what is unfinished and end the program with 128 + the signal's number, unless the
/// program was started with the signal ignored (`nohup`). A mapped file that becomes shorter ends it with `refused`, which is
/// given one line. A file that becomes longer than the limit (`ulimit -f`) is an error and no signal.
///
/// # Errors
/// If there are no threads to be had; the program then ends as if this had not been called.
#[cfg(unix)]
pub fn watch(refused: impl Fn(&str) + Send + 'static) -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    // SAFETY: to ignore a signal is always allowed.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    super::map::watch(move |line| {
        super::unfinished::remove_all();
        refused(line);
        std::process::exit(2);
    })?;
    let heard = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !is_ignored(*signal));
    let mut signals = Signals::new(heard)?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if let Some(signal) = signals.forever().next() {
            super::unfinished::remove_all();
            std::process::exit(128 + signal);
        }
    })?;
    Ok(())
}

/// The same where there are no such signals: nothing.
///
/// # Errors
/// Never.
#[cfg(not(unix))]
pub fn watch(_: impl Fn(&str) + Send + 'static) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    // SAFETY: with no new action, the present one is written to a valid place.
    unsafe {
        let mut present: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut present) == 0 && present.sa_sigaction == libc::SIG_IGN
    }
}
