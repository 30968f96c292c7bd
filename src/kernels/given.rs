//! Workloads of FlashInfer-Bench, from its files.

use std::path::{Component, Path, PathBuf};

use dsv2_operators::contract::flashinfer::{self, Given};
use dsv2_operators::{ElementType, Operator, Tensor, Tensors};
use dsv2_reference::file::read_text;
use indexmap::IndexMap;

use crate::error::{Error, Result, one_line};
use crate::values::{self, Values};

/// How long a file of definitions or workloads is at most, in bytes.
const LONGEST: u64 = 1 << 24;

/// The workloads of a file, of one definition.
pub struct GivenWorkloads {
    operator: &'static Operator,
    path: PathBuf,
    /// What the definition fixes.
    consts: IndexMap<String, usize>,
    /// The type of activations.
    pub dtype: ElementType,
    given: Vec<(usize, Given)>,
}

impl GivenWorkloads {
    /// Reads the lines of `path`; their definition from `definition` or, without one, from where it lies in a trace set: beside
    /// the workloads, or in its folder of definitions.
    ///
    /// # Errors
    /// If a file cannot be read, the definition is not that of this operator, or a line is no workload of it.
    pub fn read(operator: &'static Operator, path: &Path, definition: Option<&Path>) -> Result<Self> {
        let text = read_text(path, LONGEST)?;
        let given = flashinfer::workloads(&text).map_err(|error| at(path, error))?;
        let Some((_, first)) = given.first() else { return Err(Error::file(path, "workloads, one a line", "none")) };
        let definition = definition.map_or_else(|| found(path, &first.definition), |path| Ok(path.to_owned()))?;
        let contracts = Operator::all().iter().map(|operator| &operator.contract);
        let recognised = flashinfer::recognise(&read_text(&definition, LONGEST)?, contracts)
            .map_err(|error| at(&definition, error))?;
        let (contract, consts, dtype) = recognised;
        if contract.name != operator.contract.name {
            return Err(Error::file(
                &definition,
                format!("a definition of {}", operator.contract.name),
                &contract.name,
            ));
        }
        if let Some((line, other)) = given.iter().find(|(_, given)| given.definition != first.definition) {
            let expected = format!("definition {} in line {line}, as in the first", one_line(&first.definition));
            return Err(Error::file(path, expected, one_line(&other.definition)));
        }
        Ok(GivenWorkloads { operator, path: path.to_owned(), consts, dtype, given })
    }

    /// Each workload's name, and that of its files.
    pub fn names(&self) -> impl Iterator<Item = (String, String)> {
        self.given.iter().map(|(_, given)| (given.uuid.clone(), given.file_stem()))
    }

    /// The inputs of one of them.
    ///
    /// # Errors
    /// If it names what cannot be read, or does not fit the contract.
    pub fn inputs(&self, at: usize) -> Result<Tensors> {
        let (line, given) = &self.given[at];
        let load = |path: &str, key: &str| self.tensor(path, key);
        given.inputs(&self.operator.contract, &self.consts, self.dtype, load).map_err(|error| match error {
            Error::Operator(error) => Error::file(&self.path, format!("inputs that fit in line {line}"), error),
            other => other,
        })
    }

    /// A tensor of a file that a workload names, from the root of its trace set: a folder above that of the workloads.
    fn tensor(&self, path: &str, key: &str) -> Result<Tensor> {
        let stays = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
        if !Path::new(path).components().all(stays) {
            return Err(Error::file(&self.path, "names of files in its folder or below one above", one_line(path)));
        }
        let above = self.path.ancestors().skip(1).take(4).map(|folder| folder.join(path));
        let Some(file) = above.into_iter().find(|file| file.is_file()) else {
            let expected = format!("{} beside it or from a folder above", one_line(path));
            return Err(Error::file(&self.path, expected, "no such file"));
        };
        let tensors = values::read(&file)?;
        let Some((_, values)) = tensors.into_iter().find(|(name, _)| name == key) else {
            return Err(Error::file(&file, format!("a tensor `{}`", one_line(key)), "none"));
        };
        Ok(match values {
            Values::Real(_, a) => {
                Tensor { element: ElementType::Float32, elements: dsv2_operators::tensor::Elements::Real(a) }
            }
            Values::Index(a) => Tensor::index(ElementType::Int64, a),
            Values::Bool(a) => Tensor::index(ElementType::Int64, a.mapv(i64::from)),
        })
    }
}

fn at(path: &Path, error: dsv2_operators::Error) -> Error {
    match error {
        dsv2_operators::Error::Format { what, expected, found } => {
            Error::file(path, format!("{expected} ({what})"), found)
        }
        other => Error::Operator(other),
    }
}

/// Where a definition lies.
fn found(workloads: &Path, definition: &str) -> Result<PathBuf> {
    let file = format!("{definition}.json");
    let beside = workloads.with_file_name(&file);
    // root/workloads/<kind>/x.jsonl and root/definitions/<kind>/x.json
    let kind = workloads.parent().and_then(Path::file_name);
    let root = workloads.ancestors().nth(3);
    let apart = root.zip(kind).map(|(root, kind)| root.join("definitions").join(kind).join(&file));
    let there = [Some(beside), apart].into_iter().flatten().find(|path| path.is_file());
    there.ok_or_else(|| {
        let expected = format!("the definition {} beside it or in ../../definitions, or --definition", one_line(&file));
        Error::file(workloads, expected, "none")
    })
}
