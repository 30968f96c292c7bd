//! That the committed PTX is what its sources compile to.

use std::process::Command;

/// The interpreter whose environment has nvcc is `python3`, or the one that `DSV2_NVCC_PYTHON` names.
#[test]
#[ignore = "needs nvcc from PyPI: see emulator/tests/outside/nvcc.py"]
fn ptx_is_what_the_sources_compile_to() {
    let python = std::env::var_os("DSV2_NVCC_PYTHON").unwrap_or_else(|| "python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/outside/nvcc.py");
    let output = Command::new(&python).args(["-B", script, "--check"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
