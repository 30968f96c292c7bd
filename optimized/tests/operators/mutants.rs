//! Wrong kernels: `kernels/mutants.toml` says what is changed in which source, `kernels/mutants.tar.xz` holds what that
//! compiles to. Each must be caught by a case of its module.

use std::sync::Arc;

use dsv2_optimized::{Device, Emulated, Error, Library};
use libtest_mimic::{Failed, Trial};
use serde::Deserialize;

use crate::archive;
use crate::harness::Case;

#[derive(Deserialize)]
struct Table {
    mutant: Vec<Mutant>,
}

/// What the tests need of a row; the rest is for the script that compiles it.
#[derive(Clone, Deserialize)]
pub struct Mutant {
    pub name: String,
    pub module: String,
    what: String,
}

/// All rows.
pub fn table() -> Vec<Mutant> {
    let table: Table = toml::from_str(include_str!("../../kernels/mutants.toml")).expect("mutants.toml");
    table.mutant
}

/// One trial for each mutant.
pub fn trials(cases: &[Arc<Case>]) -> Vec<Trial> {
    let mut texts = archive::all();
    let trial = |mutant: Mutant| {
        let ptx = texts.remove(&mutant.name);
        let cases: Vec<Arc<Case>> = cases.iter().filter(|case| case.module == mutant.module).cloned().collect();
        Trial::test(format!("mutants/{}", mutant.name), move || mutant.is_caught_by(ptx, &cases))
    };
    table().into_iter().map(trial).collect()
}

impl Mutant {
    fn is_caught_by(&self, ptx: Option<String>, cases: &[Arc<Case>]) -> Result<(), Failed> {
        let ptx = ptx.ok_or("no PTX: run optimized/nvrtc.py")?;
        let library = Library::embedded().with(&self.module, ptx);
        for case in cases {
            if self.fails(case, &(Emulated::new(library.clone()) as _))? {
                return Ok(());
            }
            if case.watched && self.fails(case, &(Emulated::watching_races(library.clone()) as _))? {
                return Ok(());
            }
        }
        Err(format!("survived {} cases: {}", cases.len(), self.what).into())
    }

    /// Whether the case sees that something is wrong. A mutant that cannot be launched shows nothing.
    fn fails(&self, case: &Case, device: &Arc<dyn Device>) -> Result<bool, Failed> {
        match (case.run)(device) {
            Ok(outputs) => Ok(crate::harness::complaints(&outputs).is_err()),
            Err(Error::Races { .. }) => Ok(true),
            Err(Error::Emulator(found)) if is_finding(&found) => Ok(true),
            Err(other) => Err(format!("{}: {other}", case.name).into()),
        }
    }
}

/// Whether the emulator found something while it ran the kernel.
fn is_finding(error: &ptx_emulator::Error) -> bool {
    use ptx_emulator::Error as E;
    matches!(error, E::Fault(_) | E::Stuck(_) | E::Memory(_))
}
