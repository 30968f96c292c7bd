//! A folder with every kind of file that the program reads, all of them good.

use std::fs;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use tempfile::TempDir;

use crate::damage::damage;

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

const WAIVERS: &str = r#"[[waiver]]
implementation = "reference"
case = "one-token*"
reason = "it is known"
link = "https://example.org/7"
expires = 2099-01-31
"#;

const GENERATION: &str =
    r#"{"eos_token_id": [1, 2], "pad_token_id": 0, "do_sample": true, "temperature": 0.3, "top_p": 0.95}"#;

const RESULTS: &str = r#"{"format": 1, "runs": [{"command": "cargo bench", "commit": "abc", "date": "2026-01-01T00:00:00Z", "profile": "quick",
"machine": {"cpu": "a cpu", "threads": 2, "memory_gb": 8.0, "gpu": null}, "seconds": 60.0, "versions": {"rustc": "1"}, "noise": 0.01,
"measurements": [{"id": "cache/a", "unit": "B", "better": "less", "value": 2.0, "low": 2.0, "high": 2.0, "samples": 1, "exact": true},
{"id": "ceilings/b", "unit": "s", "better": "less", "value": 0.2, "low": 0.1, "high": 0.3, "samples": 9, "exact": false}],
"tables": [{"section": "cache", "title": "a table", "columns": ["a", "b"], "rows": [["1", "2"]], "notes": ["a note"]}],
"plots": [{"section": "cache", "title": "a plot", "file": "plot", "x": {"label": "x", "log": false}, "y": {"label": "y", "log": true},
"series": [{"name": "one", "points": [[1.0, 2.0], [3.0, 40.0]]}]}], "not_run": [{"what": "this", "why": "that"}]}]}"#;

const TRANSCRIPTS: &str = r#"{"request": {"prompt": "The router", "temperature": 0, "max_tokens": 5}, "response": {"choices": [{"text": " gives each expert a score", "token_ids": [626, 411, 723, 260, 517], "finish_reason": "length"}], "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}}}
{"request": {"messages": [{"role": "user", "content": "What is MLA?"}], "temperature": 0, "max_tokens": 5}, "response": {"choices": [{"message": {"role": "assistant", "content": " MLA is Multi"}, "token_ids": [935, 34, 279, 574, 597], "finish_reason": "length"}]}}
"#;

const PROMPTS: &str =
    r#"{"messages": [{"role": "system", "content": "be short"}, {"role": "user", "content": "What is MLA?"}]}"#;

/// A file to damage, and the commands that read it. `ROOM` stands for the folder.
pub struct Target {
    /// Below the folder.
    pub file: &'static str,
    /// Each one command line.
    pub commands: &'static [&'static str],
}

const TRACE: &str = "trace --model ROOM/model --inputs ROOM/inputs.safetensors --output ROOM/out/trace.safetensors";
const CHECK: &str = "check --model ROOM/model --inputs ROOM/inputs.safetensors --candidate ROOM/dump.safetensors";
const CHECK_JSON: &str = "check --model ROOM/model --inputs ROOM/inputs.safetensors --candidate ROOM/dump.safetensors --json --report ROOM/out/report";
const EXPLAIN: &str = "check --model ROOM/model --inputs ROOM/inputs.safetensors --candidate ROOM/dump.safetensors --expected ROOM/dump.safetensors";
const NPZ: &str =
    "check --model ROOM/model --inputs ROOM/inputs.npz --candidate ROOM/dump.npz --report ROOM/out/report";
const PT: &str = "check --model ROOM/model --inputs ROOM/inputs.pt --candidate ROOM/dump.pt --json";
const NPY: &str = "check --model ROOM/model --inputs ROOM/inputs.safetensors --candidate ROOM/lm_head.npy";
const SHARDED: &str = "trace --model ROOM/sharded --inputs ROOM/inputs.safetensors --output ROOM/out/trace.safetensors";
const KV_CACHE: &str = "kv-cache --model ROOM/model";
const PLAN: &str = "plan --model ROOM/model --devices 2";
const PLAN_JSON: &str =
    "plan --model ROOM/model --ranks 1x2 --homes own --weights fp8 --cache six-bit --attention absorbed --json";
const VERIFY: &str = "verify --backend reference --dtype f32 --golden ROOM/golden --report ROOM/out/report";
const WAIVED: &str =
    "verify --backend reference --dtype f32 --golden ROOM/golden --waivers ROOM/waivers.toml --report ROOM/out/report";
const MATERIALIZE: &str = "materialize one-token ROOM/out/case --golden ROOM/golden";
const MUTANTS: &str = "mutants --mutant norm_* --dtype f32 --golden ROOM/golden";
const REPORT: &str = "bench-report ROOM/results.json ROOM/out/bench";
const COMPARE: &str = "bench-compare ROOM/results.json ROOM/old.json";

const CHECK_TEXT: &str = "check-text --model ROOM/text --dtype f32 ROOM/answers.jsonl";
const GENERATE: &str = "generate --model ROOM/text --prompts ROOM/prompts.jsonl --greedy --max-new-tokens 2 --json";

/// Every kind of file. Those that are cheap to read come up more often.
pub const TARGETS: [Target; 24] = [
    Target { file: "model/config.json", commands: &[TRACE, CHECK, KV_CACHE, KV_CACHE] },
    Target { file: "model/config.json", commands: &[KV_CACHE, PLAN, PLAN_JSON] },
    Target { file: "model/generation_config.json", commands: &[TRACE, CHECK] },
    Target { file: "model/model.safetensors", commands: &[TRACE, CHECK] },
    Target { file: "sharded/model.safetensors.index.json", commands: &[SHARDED] },
    Target { file: "sharded/config.json", commands: &[SHARDED] },
    Target { file: "inputs.safetensors", commands: &[TRACE, CHECK_JSON] },
    Target { file: "inputs.npz", commands: &[NPZ] },
    Target { file: "inputs.pt", commands: &[PT] },
    Target { file: "dump.safetensors", commands: &[CHECK, CHECK_JSON, EXPLAIN] },
    Target { file: "dump.npz", commands: &[NPZ] },
    Target { file: "dump.pt", commands: &[PT] },
    Target { file: "lm_head.npy", commands: &[NPY] },
    Target { file: "golden/one-token/case.json", commands: &[VERIFY, MATERIALIZE, MUTANTS] },
    Target { file: "golden/one-token/inputs.safetensors", commands: &[MATERIALIZE, VERIFY] },
    Target { file: "waivers.toml", commands: &[WAIVED] },
    Target { file: "results.json", commands: &[REPORT, COMPARE] },
    Target { file: "results.json", commands: &[COMPARE] },
    Target { file: "answers.jsonl", commands: &[CHECK_TEXT] },
    Target { file: "prompts.jsonl", commands: &[GENERATE] },
    Target { file: "text/tokenizer.json", commands: &[CHECK_TEXT, GENERATE] },
    Target { file: "text/tokenizer_config.json", commands: &[CHECK_TEXT, GENERATE] },
    Target { file: "text/chat_template.jinja", commands: &[CHECK_TEXT, GENERATE] },
    Target { file: "text/generation_config.json", commands: &[GENERATE] },
];

/// The folder.
pub struct Place {
    dir: TempDir,
}

impl Place {
    /// With every file good.
    pub fn new() -> std::io::Result<Self> {
        let place = Place { dir: tempfile::tempdir()? };
        let hostile = Path::new(REPOSITORY).join("golden/hostile/good");
        let files = Path::new(REPOSITORY).join("golden/files");
        let cases = Path::new(REPOSITORY).join("golden/cases");
        let copy = |from: PathBuf, to: &str| {
            let to = place.file(to);
            fs::create_dir_all(to.parent().expect("it is in the folder"))?;
            fs::copy(from, to).map(drop)
        };
        for name in ["config.json", "model.safetensors"] {
            copy(hostile.join(name), &format!("model/{name}"))?;
        }
        for name in ["inputs.safetensors", "dump.safetensors"] {
            copy(hostile.join(name), name)?;
        }
        for name in ["inputs.npz", "inputs.pt", "dump.npz", "dump.pt"] {
            copy(files.join(name), name)?;
        }
        copy(files.join("float32.npy"), "lm_head.npy")?;
        for name in ["case.json", "inputs.safetensors", "expected.safetensors"] {
            copy(cases.join("one-token").join(name), &format!("golden/one-token/{name}"))?;
        }
        for entry in fs::read_dir(cases.join("checkpoint-sharded/checkpoint"))? {
            let entry = entry?;
            copy(entry.path(), &format!("sharded/{}", entry.file_name().to_string_lossy()))?;
        }
        for entry in fs::read_dir(Path::new(REPOSITORY).join("text/model"))? {
            let entry = entry?;
            copy(entry.path(), &format!("text/{}", entry.file_name().to_string_lossy()))?;
        }
        fs::write(place.file("answers.jsonl"), TRANSCRIPTS)?;
        fs::write(place.file("prompts.jsonl"), PROMPTS)?;
        fs::write(place.file("waivers.toml"), WAIVERS)?;
        fs::write(place.file("model/generation_config.json"), GENERATION)?;
        fs::write(place.file("results.json"), RESULTS)?;
        fs::write(place.file("old.json"), RESULTS)?;
        Ok(place)
    }

    /// A file below it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command line's words.
    pub fn words(&self, command: &str) -> Vec<String> {
        let room = self.dir.path().display().to_string();
        command.split(' ').map(|word| word.replace("ROOM", &room)).collect()
    }

    /// An empty folder for what is written.
    pub fn clear(&self) -> std::io::Result<()> {
        let out = self.file("out");
        if out.exists() {
            fs::remove_dir_all(&out)?;
        }
        fs::create_dir(&out)
    }

    /// Damages a file; what it held before.
    pub fn damage(&self, target: &Target, rng: &mut Rng) -> std::io::Result<Vec<u8>> {
        let path = self.file(target.file);
        let good = fs::read(&path)?;
        let mut damaged = good.clone();
        damage(&mut damaged, target.file.ends_with(".safetensors"), rng);
        fs::write(path, damaged)?;
        Ok(good)
    }

    /// Makes it good again.
    pub fn mend(&self, target: &Target, good: &[u8]) -> std::io::Result<()> {
        fs::write(self.file(target.file), good)
    }
}
