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
use dsv2_reference::file::{self, unfinished::Unfinished};
use dsv2_reference::model::causal_lm::LogitsToKeep;
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::checkpoint::Checkpoint;
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{DeepseekV2Config, Dialect};
pub use folder::{Folder, GoldenCases};
use glob::Pattern;
use indexmap::IndexMap;

use crate::budget::{self, Budgets, FACTORS};
use crate::case::Case;
use crate::error::{Error, Result};
use crate::inputs::Inputs;
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::trace::Trace;

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

impl GoldenCase {
    /// Loads the case that lies in `folder`.
    ///
    /// # Errors
    /// If a file is missing, damaged, or contradicts another one.
    pub fn load(folder: Folder) -> Result<Self> {
        let file = CaseFile::parse(&folder.path("case.json"), &folder.case_json()?, folder.name())?;
        let tensors = |name: &str| folder.tensors(name);
        let mut inputs = Inputs::from_tensors(&folder.path("inputs.safetensors"), tensors("inputs.safetensors")?)?;
        if let Some(k) = file.options.logits_to_keep {
            inputs.logits_to_keep = Some(LogitsToKeep::Last(k));
        }
        let expected: Trace = tensors("expected.safetensors")?.into_iter().collect();
        check_stages(&folder, &file, &expected)?;

        let mut unpacked = None;
        let mut config = file.config.clone();
        let weights: Arc<dyn WeightSource + Send + Sync> = match &file.weights {
            Weights::Generated { seed, rules } => Arc::new(GeneratedWeights { seed: *seed, rules: rules.clone() }),
            Weights::Checkpoint { path } => {
                let (checkpoint, holder) = folder.on_disk(path)?;
                unpacked = holder;
                config = read_json(&checkpoint.join("config.json"))?;
                Arc::new(Checkpoint::open(&checkpoint)?)
            }
        };
        let case = Case {
            config: DeepseekV2Config::from_value(config)?,
            head: file.architecture.parse::<Head>()?,
            dialect: dialect(&file.dialect)?,
            weights,
            use_cache: file.options.use_cache,
            chunks: file.options.chunks.clone().unwrap_or_else(|| vec![inputs.length()]),
            part: None,
            inputs,
        };
        Ok(GoldenCase { file, case: case.checked()?, expected, folder, _unpacked: unpacked })
    }

    /// The name of the case.
    pub fn name(&self) -> &str {
        &self.file.name
    }

    /// How far off each stage may be, computed in `precision`: both the expected tensors and a plain implementation of that
    /// precision err. Empty for a type in which Transformers was not run.
    pub fn budgets(&self, precision: Precision) -> Budgets {
        let noise = |(name, info): (&String, &StageInfo)| {
            let baseline = info.baseline.as_ref()?;
            let candidate = match precision {
                Precision::F64 => Metrics::default(),
                Precision::F32 => baseline.f32,
                Precision::Bf16 => baseline.bf16,
                Precision::Tf32 | Precision::F16 => return None,
            };
            Some((name.clone(), baseline.f32.zip(&candidate, |truth, candidate| truth + candidate)))
        };
        let noise = budget::carried(self.file.stages.iter().filter_map(noise).collect());
        Budgets::new(&noise, &self.expected, &ComparedRows::of(&self.case.inputs), FACTORS)
    }
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

fn read_json(path: &std::path::Path) -> Result<serde_json::Value> {
    let bytes = file::read(path, file::CONFIG)?;
    serde_json::from_slice(&bytes).map_err(|error| Error::file(path, "a JSON object", error))
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
