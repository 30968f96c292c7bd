//! What a kernel is tried on: workloads of ours, or of a file.

use dsv2::kernels::GivenWorkloads;
use dsv2::{Error, Result};
use dsv2_operators::contract::flashinfer;
use dsv2_operators::{ElementType, Operator, Tensors, Workload};

use super::Which;

/// Workloads of one operator.
pub struct Trials {
    pub operator: &'static Operator,
    source: Source,
}

enum Source {
    Ours(Vec<&'static Workload>),
    /// Those of a file that are meant, with their names and those of their files.
    Given(GivenWorkloads, Vec<(usize, String, String)>),
}

impl Trials {
    /// Those that are meant.
    pub fn of(operator: &str, which: &Which) -> Result<Self> {
        let operator = Operator::named(operator)?;
        let source = match (&which.workloads, &which.workload) {
            (None, None) => Source::Ours(operator.contract.workloads.iter().collect()),
            (None, Some(name)) => Source::Ours(vec![operator.workload(name)?]),
            (Some(path), only) => {
                let given = GivenWorkloads::read(operator, path, which.definition.as_deref())?;
                let all = given.names().enumerate().map(|(at, (name, stem))| (at, name, stem));
                let meant: Vec<_> = all.filter(|(_, name, _)| only.as_ref().is_none_or(|only| only == name)).collect();
                if let (Some(only), true) = (only, meant.is_empty()) {
                    return Err(Error::request("--workload", format!("a uuid of {}", path.display()), only));
                }
                Source::Given(given, meant)
            }
        };
        let trials = Trials { operator, source };
        let mut stems: Vec<String> = (0..trials.len()).map(|at| trials.stem(at)).collect();
        stems.sort();
        let alike = stems.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| &pair[0]);
        match stems.iter().find(|stem| stem.is_empty()).or(alike) {
            Some(stem) => {
                let expected = "uuids that give files names, each another";
                Err(Error::request("--workloads", expected, format!("\"{stem}\"")))
            }
            None => Ok(trials),
        }
    }

    pub fn len(&self) -> usize {
        match &self.source {
            Source::Ours(workloads) => workloads.len(),
            Source::Given(_, meant) => meant.len(),
        }
    }

    /// One of ours.
    pub fn workload(&self, at: usize) -> Option<&'static Workload> {
        if let Source::Ours(workloads) = &self.source { Some(workloads[at]) } else { None }
    }

    pub fn name(&self, at: usize) -> String {
        match &self.source {
            Source::Ours(workloads) => workloads[at].name.clone(),
            Source::Given(_, meant) => meant[at].1.clone(),
        }
    }

    /// What its files are called.
    pub fn stem(&self, at: usize) -> String {
        match &self.source {
            Source::Ours(workloads) => flashinfer::file_stem(workloads[at]),
            Source::Given(_, meant) => meant[at].2.clone(),
        }
    }

    /// The type of activations.
    pub fn dtype(&self, at: usize) -> ElementType {
        match &self.source {
            Source::Ours(workloads) => workloads[at].dtype,
            Source::Given(given, _) => given.dtype,
        }
    }

    pub fn inputs(&self, at: usize) -> Result<Tensors> {
        match &self.source {
            Source::Ours(workloads) => Ok(self.operator.inputs(workloads[at])?),
            Source::Given(given, meant) => given.inputs(meant[at].0),
        }
    }
}
