//! The golden cases: what Hugging Face Transformers computed, and how far off it is known to be.
//!
//! A case is a folder: `case.json`, `inputs.safetensors`, `expected.safetensors`, and `checkpoint/` if its weights are
//! not generated. The cases of this repository are part of the program; `--golden DIR` takes those of a folder instead.

mod case_file;
mod folder;

pub use case_file::{CaseFile, StageInfo, Weights};
use std::sync::Arc;

use dsv2_metrics::Metrics;
use dsv2_reference::config::Head;
use dsv2_reference::file::unfinished::Unfinished;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::model::causal_lm::LogitsToKeep;
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{DeepseekV2Config, Dialect};
pub use folder::{Folder, GoldenCases};
use glob::Pattern;
use indexmap::IndexMap;

use crate::budget::{self, Budgets, FACTORS};
use crate::case::{self, Case};
use crate::error::{Error, Result};
use crate::inputs::Inputs;
use crate::planned;
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::taps::PartialSums;
use crate::trace::Trace;
use crate::values::Values;

/// A golden case, ready to run and to be judged by.
pub struct GoldenCase {
    /// The content of case.json.
    pub file: CaseFile,
    /// What to run.
    pub case: Case,
    /// What Transformers computed in fp32.
    pub expected: Trace,
    /// Where it lies.
    pub folder: Folder,
    /// Holds the checkpoint, if it was packed into the program.
    _unpacked: Option<Unfinished>,
}

/// A golden case as far as its small files tell: what is to be run, before anything large is read.
pub struct Outline {
    /// The content of case.json.
    pub file: CaseFile,
    /// What to run, without the weights of a checkpoint.
    pub case: Case,
}

impl Outline {
    /// Of the case that lies in `folder`.
    ///
    /// # Errors
    /// If a file is missing, damaged, or contradicts another one.
    pub fn read(folder: &Folder) -> Result<Self> {
        let file = CaseFile::parse(&folder.path("case.json"), &folder.case_json()?, folder.name())?;
        let tensors = folder.tensors("inputs.safetensors")?;
        let mut inputs = Inputs::from_tensors(&folder.path("inputs.safetensors"), tensors)?;
        if let Some(k) = file.options.logits_to_keep {
            inputs.logits_to_keep = Some(LogitsToKeep::Last(k));
        }
        let (head, dialect) = (file.architecture.parse::<Head>()?, dialect(&file.dialect)?);
        let config = match &file.weights {
            Weights::Generated { .. } => file.config.clone(),
            Weights::Checkpoint { path } => folder.config_of(path)?,
        };
        let config = DeepseekV2Config::from_value(config)?;
        let weights = match &file.weights {
            Weights::Generated { seed, rules } => {
                let numbers = config.parameter_count();
                if numbers > MOST_GENERATED {
                    let expected = format!("a model of at most {MOST_GENERATED} generated weights");
                    return Err(Error::file(folder.path("case.json"), expected, numbers));
                }
                GeneratedWeights { seed: *seed, rules: rules.clone() }
            }
            // asked for a tensor, it says that it has no rule for it
            Weights::Checkpoint { .. } => GeneratedWeights { seed: 0, rules: Vec::new() },
        };
        let case = Case {
            config,
            head,
            dialect,
            weights: Arc::new(weights),
            use_cache: file.options.use_cache,
            chunks: file.options.chunks.clone().unwrap_or_else(|| vec![inputs.length()]),
            part: None,
            partial_sums: PartialSums::default(),
            inputs,
        };
        Ok(Outline { file, case: case.checked()? })
    }
}

impl GoldenCase {
    /// Loads the case that lies in `folder`.
    ///
    /// # Errors
    /// If a file is missing, damaged, or contradicts another one.
    pub fn load(folder: Folder) -> Result<Self> {
        let Outline { file, mut case } = Outline::read(&folder)?;
        let expected: Trace = folder.tensors("expected.safetensors")?.into_iter().collect();
        check_stages(&folder, &file, &expected)?;
        check_shapes(&folder, &case, &expected)?;
        let mut unpacked = None;
        if let Weights::Checkpoint { path } = &file.weights {
            let (checkpoint, holder) = folder.on_disk(path)?;
            unpacked = holder;
            case.weights = case::read_weights(&checkpoint, &mut case.config, case.head, case.dialect, |_| true)?;
            case = case.checked()?;
        }
        Ok(GoldenCase { file, case, expected, folder, _unpacked: unpacked })
    }

    /// The name of the case.
    pub fn name(&self) -> &str {
        &self.file.name
    }

    /// How far off each stage may be, computed in `precision`: both the expected tensors and a plain implementation of that
    /// precision err. Empty for a type in which Transformers was not run.
    pub fn budgets(&self, precision: Precision) -> Budgets {
        self.budgets_beside(&IndexMap::new(), precision)
    }

    /// The same where something beside it errs as well, independently of it.
    pub fn budgets_beside(&self, others: &IndexMap<String, Metrics>, precision: Precision) -> Budgets {
        let noise = |(name, info): (&String, &StageInfo)| {
            let baseline = info.baseline.as_ref()?;
            let candidate = match precision {
                Precision::F64 => Metrics::default(),
                Precision::F32 => baseline.f32,
                Precision::Bf16 => baseline.bf16,
                Precision::Tf32 | Precision::F16 | Precision::Fp8 => return None,
            };
            let beside = others.get(name).copied().unwrap_or_default();
            let candidate = candidate.zip(&beside, f64::hypot);
            Some((name.clone(), baseline.f32.zip(&candidate, |truth, candidate| truth + candidate)))
        };
        let noise = budget::carried(self.file.stages.iter().filter_map(noise).collect());
        Budgets::new(&noise, &self.expected, &ComparedRows::of(&self.case.inputs), FACTORS)
    }
}

/// So many weights are generated at most: a golden case is small, and its weights are kept.
const MOST_GENERATED: u64 = 1 << 24;

/// Expected stages are stages of the model that the config describes, and of their shapes: else a size in case.json is wrong,
/// which is better known before a model of that size is made.
fn check_shapes(folder: &Folder, case: &Case, expected: &Trace) -> Result<()> {
    let planned = planned::stages(case, AttentionForm::Expanded, Precision::F32);
    let differs =
        |(name, values): &(&str, &Values)| !planned.get(*name).is_some_and(|own| fits(values.shape(), &own.shape));
    match expected.iter().find(differs) {
        None => Ok(()),
        Some((name, values)) => {
            let own = planned.get(name).map_or("none".to_owned(), |own| format!("of shape {:?}", own.shape));
            let found = format!("{:?} in expected.safetensors", values.shape());
            Err(Error::file(
                folder.path("case.json"),
                format!("a config of a model whose `{name}` is as expected"),
                format!("{own}, and {found}"),
            ))
        }
    }
}

/// Whether two shapes differ by axes of length 1 only.
fn fits(a: &[usize], b: &[usize]) -> bool {
    a.iter().filter(|&&n| n != 1).eq(b.iter().filter(|&&n| n != 1))
}

/// The stages that case.json lists are those of expected.safetensors.
fn check_stages(folder: &Folder, file: &CaseFile, expected: &Trace) -> Result<()> {
    let path = folder.path("expected.safetensors");
    let listed: IndexMap<&str, String> =
        file.stages.iter().map(|(name, info)| (name.as_str(), format!("{} {:?}", info.dtype, info.shape))).collect();
    for (name, description) in &listed {
        let found = expected.get(name).map(|values| values.describe());
        if found.as_ref() != Some(description) {
            let found = found.unwrap_or_else(|| "none".into());
            return Err(Error::file(path, format!("`{name}`, {description}, as case.json says"), found));
        }
    }
    match expected.iter().find(|(name, _)| !listed.contains_key(name)) {
        Some((name, _)) => Err(Error::file(path, "stages that case.json lists", format!("`{name}`"))),
        None => Ok(()),
    }
}

/// A dialect by its name: `hf`, `hf-pre-5.15` or `deepseek`.
///
/// # Errors
/// If there is none of that name.
pub fn dialect(name: &str) -> Result<Dialect> {
    name.parse().map_err(|_| Error::request("dialect", "hf, hf-pre-5.15 or deepseek", format!("{name:?}")))
}

/// A pattern for names of cases or stages: `*`, `?` and `[..]`, as in a shell.
///
/// # Errors
/// If it is none; `option` is what the message calls it.
pub fn pattern(option: &str, text: &str) -> Result<Pattern> {
    Pattern::new(text)
        .map_err(|error| Error::request(option, "a pattern of *, ? and [..]", format!("{text:?} ({error})")))
}
