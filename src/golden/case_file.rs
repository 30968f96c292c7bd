//! case.json.

use std::path::Path;

use dsv2_metrics::Metrics;
use dsv2_reference::weights::checkpoint::is_plain_name;
use dsv2_reference::weights::generator::Rule;
use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};

/// The schema that this program reads.
const SCHEMA: &str = "dsv2-case/1";

/// The content of a case.json.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseFile {
    /// `dsv2-case/1`.
    pub schema: String,
    /// The name, which is the folder's too.
    pub name: String,
    /// What it is, and which bugs it can see.
    pub description: String,
    /// What it covers.
    pub features: Vec<String>,
    /// Whose DeepSeek-V2 it is of.
    pub dialect: String,
    /// Hugging Face's class.
    pub architecture: String,
    /// The content of config.json.
    pub config: Value,
    /// Where its weights come from.
    pub weights: Weights,
    /// How it is run.
    #[serde(default)]
    pub options: Options,
    /// What inputs.safetensors holds.
    pub inputs: IndexMap<String, TensorInfo>,
    /// What expected.safetensors holds.
    pub stages: IndexMap<String, StageInfo>,
    /// How clear its choices of experts are.
    pub routing: Option<Routing>,
    /// How it was made.
    pub provenance: Value,
}

/// Where weights come from.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Weights {
    /// From the generator.
    Generated {
        /// Its seed.
        seed: u64,
        /// The distribution of each tensor.
        rules: Vec<Rule>,
    },
    /// From a Hugging Face folder inside the case's.
    Checkpoint {
        /// Its name.
        path: String,
    },
}

/// How a case is run.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Whether there is a KV cache. Without one, positions that do not rise by one mark packed sequences.
    pub use_cache: bool,
    /// The lengths of the chunks in which the sequence is fed.
    pub chunks: Option<Vec<usize>>,
    /// Which logits are computed, where it is a number.
    pub logits_to_keep: Option<i64>,
    /// The classifier's loss; config has it too.
    pub problem_type: Option<String>,
    /// The classifier's labels; config has it too.
    pub num_labels: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Options { use_cache: true, chunks: None, logits_to_keep: None, problem_type: None, num_labels: None }
    }
}

/// A tensor that a file holds.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorInfo {
    /// Its type, as safetensors calls it.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// A stage that a case expects.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageInfo {
    /// Its type, as safetensors calls it.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How far off plain implementations are; indices have none.
    pub baseline: Option<Baseline>,
}

/// The errors of Transformers' own runs, against its run in double precision with the same choice of experts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// Of its fp32 run, whose tensors are the expected ones.
    pub f32: Metrics,
    /// Of its bf16 run.
    pub bf16: Metrics,
}

/// How clear the choices of experts are.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Routing {
    /// The smallest gap, in logits, between an expert chosen and one not chosen.
    pub min_margin: f64,
}

impl CaseFile {
    /// Reads a case.json that lies in a folder called `folder`; `path` is for messages.
    ///
    /// # Errors
    /// If it is none, or of another schema or name.
    pub fn parse(path: &Path, bytes: &[u8], folder: &str) -> Result<Self> {
        let value: Value = serde_json::from_slice(bytes).map_err(|e| Error::file(path, "a JSON object", e))?;
        match value.get("schema").and_then(Value::as_str) {
            Some(SCHEMA) => {}
            other => return Err(Error::file(path, format!("schema {SCHEMA}"), other.unwrap_or("none"))),
        }
        let file: CaseFile =
            serde_json::from_value(value).map_err(|e| Error::file(path, "the content of a case", e))?;
        if file.name != folder {
            return Err(Error::file(path, format!("the name `{folder}`, as the folder has it"), file.name));
        }
        // As a checkpoint's index: a case must not make us read, or copy, files elsewhere.
        if let Weights::Checkpoint { path: named } = &file.weights
            && !is_plain_name(named)
        {
            let found = format!("`{}`", named.escape_debug());
            return Err(Error::file(path, "the name of a folder beside it as `weights.path`", found));
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"{"schema": "dsv2-case/1", "name": "x", "description": "", "features": [], "dialect": "hf",
        "architecture": "DeepseekV2ForCausalLM", "config": {}, "weights": {"kind": "checkpoint", "path": "checkpoint"},
        "inputs": {}, "stages": {}, "provenance": {}}"#;

    fn refused(text: &str) -> String {
        CaseFile::parse(Path::new("case.json"), text.as_bytes(), "x").unwrap_err().to_string()
    }

    #[test]
    fn a_case_file_is_read_or_refused() {
        let file = CaseFile::parse(Path::new("case.json"), SMALL.as_bytes(), "x").unwrap();
        assert!(file.options.use_cache && file.routing.is_none());
        insta::assert_snapshot!(
            [
                refused("{"),
                refused("{}"),
                refused(&SMALL.replace("case/1", "case/2")),
                refused(&SMALL.replace(r#""name": "x""#, r#""name": "y""#)),
                refused(&SMALL.replace(r#""features": []"#, r#""feature": []"#)),
                refused(&SMALL.replace("\"checkpoint\", \"path\"", "\"generated\", \"path\"")),
            ]
            .join("\n")
        );
    }

    #[test]
    fn weights_lie_in_the_folder_of_the_case() {
        for elsewhere in ["../secret", "/etc", "..", ".", "", "checkpoint/..", "a/b"] {
            let line = refused(&SMALL.replace("\"path\": \"checkpoint\"", &format!("\"path\": \"{elsewhere}\"")));
            assert!(line.ends_with(&format!("as `weights.path`, found `{elsewhere}`")), "{line}");
        }
    }
}
