//! Rebuilds when a golden case changes: they are part of the program.

fn main() {
    println!("cargo:rerun-if-changed=golden/cases");
}
