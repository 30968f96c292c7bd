//! The tests of peers/, which are in Python. Where there is no Python 3.11 on Linux, they are shown as not run.

use std::path::Path;
use std::process::Command;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let trial = if has_python() {
        Trial::test("what_needs_no_peer", what_needs_no_peer)
    } else {
        let name = "what_needs_no_peer (not run: no Python 3.11 on Linux)";
        Trial::test(name, || Ok(())).with_ignored_flag(true)
    };
    libtest_mimic::run(&arguments, vec![trial]).exit();
}

fn has_python() -> bool {
    let asked = "import sys; sys.exit(sys.version_info < (3, 11))";
    cfg!(target_os = "linux")
        && Command::new("python3").args(["-c", asked]).status().is_ok_and(|status| status.success())
}

fn what_needs_no_peer() -> Result<(), Failed> {
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
    let mut python = Command::new("python3");
    python.args(["-B", "-m", "unittest", "discover"]).arg(peers).env("DSV2", env!("CARGO_BIN_EXE_dsv2"));
    let output = python.output()?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned().into()) }
}
