//! What `generate` and `chat` share: which model, on what, and how it chooses.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use dsv2::backend::{self, Precision};
use dsv2::generate::decoder::{Decoder, OnDevice, OnHost};
use dsv2::generate::need::{self, Sequences};
use dsv2::generate::{Chosen, Listener, ModelFolder, Rules};
use dsv2::memory::{Need, Size};
use dsv2::{Error, Result};
use dsv2_foreign::Text;
use dsv2_optimized::model::Settings;
use dsv2_optimized::{Element, Variant};
use dsv2_reference::Dialect;
use dsv2_reference::stage::Stage;
use serde_json::{Map, Value, json};

use super::progress::Progress;
use super::stdout::say;
use super::{BackendName, dialect, plan, precision, say_notes};

/// Which model, and what runs it.
#[derive(Args)]
pub struct ModelArgs {
    /// A Hugging Face folder as it is downloaded: config.json, weights, tokenizer.json [default: a small model in the program]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// What runs it
    #[arg(long, value_enum, default_value = "reference")]
    backend: BackendName,
    /// What to compute in: f64, f32, f16 or bf16 on the reference; f32 or bf16 on the kernels [default: f32; on a GPU bf16]
    #[arg(long, value_name = "DTYPE", value_parser = precision)]
    dtype: Option<Precision>,
    /// Whose DeepSeek-V2: hf, hf-pre-5.15 or deepseek
    #[arg(long, default_value = "hf", value_parser = dialect)]
    dialect: Dialect,
    /// Refuse if more memory than this is needed, such as 8GB or 512MiB [default: what is free]
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<Size>,
}

impl ModelArgs {
    /// The model, of which no weight has been read yet.
    pub fn open(&self) -> Result<ModelFolder> {
        ModelFolder::open_or_embedded(self.model.as_deref(), self.dialect)
    }

    /// What runs it, ready for such sequences.
    pub fn decoder(&self, folder: &ModelFolder, sequences: Sequences) -> Result<Box<dyn Decoder>> {
        let decoder = self.load(folder, sequences)?;
        say_notes(folder.notes.iter().cloned());
        Ok(decoder)
    }

    /// Refuses sequences that have grown, if what they need beside what they had planned before is not there.
    pub fn grow(&self, folder: &ModelFolder, before: Sequences, sequences: Sequences) -> Result<()> {
        let (Some(before), Some(need)) = (self.need(folder, before)?, self.need(folder, sequences)?) else {
            return Ok(());
        };
        let beside = |size: Size| Size(size.0.saturating_sub(before.size.0));
        plan(Need { size: beside(need.size), ..need }, self.memory_limit.map(beside))
    }

    fn precision(&self) -> Precision {
        self.dtype.unwrap_or(match self.backend {
            BackendName::Cuda => Precision::Bf16,
            BackendName::Reference | BackendName::Emulated => Precision::F32,
        })
    }

    /// What the kernels compute in.
    fn settings(&self) -> Result<Settings> {
        let element = match self.precision() {
            Precision::F32 => Element::F32,
            Precision::Bf16 => Element::Bf16,
            other @ (Precision::F64 | Precision::Tf32 | Precision::F16 | Precision::Fp8) => {
                return Err(Error::request("--dtype", "f32 or bf16 on the kernels", other));
            }
        };
        Ok(Settings::new(element, Variant::Tuned))
    }

    /// What is needed of this machine's memory; nothing, where that of a GPU is.
    fn need(&self, folder: &ModelFolder, sequences: Sequences) -> Result<Option<Need>> {
        match self.backend {
            BackendName::Reference => Ok(Some(need::on_host(folder, self.precision(), sequences))),
            BackendName::Emulated => need::on_emulator(folder, self.settings()?, sequences).map(Some),
            BackendName::Cuda => Ok(None),
        }
    }

    fn load(&self, folder: &ModelFolder, sequences: Sequences) -> Result<Box<dyn Decoder>> {
        if let Some(need) = self.need(folder, sequences)? {
            plan(need, self.memory_limit)?;
        }
        let precision = self.precision();
        let on = match self.backend {
            BackendName::Reference => {
                return match precision {
                    Precision::F64 => Ok(Box::new(OnHost::<f64>::load(folder, precision)?)),
                    Precision::F32 | Precision::F16 | Precision::Bf16 => {
                        Ok(Box::new(OnHost::<f32>::load(folder, precision)?))
                    }
                    Precision::Tf32 | Precision::Fp8 => {
                        Err(Error::request("--dtype", "f64, f32, f16 or bf16 on the reference", precision))
                    }
                };
            }
            BackendName::Emulated => backend::OnDevice::Emulator { races: false },
            BackendName::Cuda => backend::OnDevice::Cuda,
        };
        let settings = self.settings()?;
        let mut progress = Progress::of_something_slow();
        let whole = need::weights(folder, settings)?;
        let mut tell = |bytes: usize| progress.reached(bytes >> 20, whole >> 20, "MiB of weights");
        Ok(Box::new(OnDevice::load(folder, &on.device()?, settings, &mut tell)?))
    }
}

/// How many tokens an answer has at most, where neither the folder nor the command line says.
pub const MOST: usize = 256;

/// How tokens are chosen. What is not said is as the folder's generation_config.json has it.
#[derive(Args)]
pub struct RuleArgs {
    /// The most tokens that are added to a prompt [default: as generation_config.json says, else 256]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// The most tokens of prompt and answer together
    #[arg(long, value_name = "N", conflicts_with = "max_new_tokens")]
    max_length: Option<usize>,
    /// Take the likeliest token each time
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p", "seed"])]
    greedy: bool,
    /// Draw tokens, by logits divided by this; 0 is --greedy
    #[arg(long, value_name = "T", value_parser = number, allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Draw from this many of the likeliest tokens; 0 for all
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw from the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", value_parser = number, allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Draw from tokens that have at least this part of the likeliest one's probability
    #[arg(long, value_name = "P", value_parser = number, allow_negative_numbers = true)]
    min_p: Option<f64>,
    /// Divide the logits of tokens that came already by this (multiply with it, if they are negative)
    #[arg(long, value_name = "X", value_parser = number, allow_negative_numbers = true)]
    repetition_penalty: Option<f64>,
    /// What drawing begins with: the same seed draws the same text [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// A text that ends the answer, and is no part of it; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

/// A setting that is a number: JSON knows no other ones.
fn number(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or_else(|| "expected a finite number".into())
}

impl RuleArgs {
    /// The rules of a model's folder, and what is said here above them.
    pub fn rules(&self, folder: &ModelFolder) -> Result<Rules> {
        let drawn = [
            ("temperature", self.temperature.map(Value::from)),
            ("top_k", self.top_k.map(Value::from)),
            ("top_p", self.top_p.map(Value::from)),
            ("min_p", self.min_p.map(Value::from)),
        ];
        let greedy = self.greedy || self.temperature == Some(0.0);
        let draws = self.seed.is_some() || drawn.iter().any(|(_, value)| value.is_some());
        let mut arguments = Map::new();
        if greedy || draws {
            arguments.insert("do_sample".into(), json!(!greedy));
        }
        let given = [
            // one of them stands above both of the folder's
            ("max_new_tokens", self.max_new_tokens.map(Value::from).or(self.max_length.map(|_| Value::Null))),
            ("max_length", self.max_length.map(Value::from)),
            ("repetition_penalty", self.repetition_penalty.map(Value::from)),
            ("stop_strings", (!self.stop.is_empty()).then(|| json!(self.stop))),
        ];
        let of_drawing = drawn.into_iter().filter(|_| !greedy);
        let given = given.into_iter().chain(of_drawing).filter_map(|(name, value)| Some((name.to_owned(), value?)));
        arguments.extend(given);
        let mut config = folder.generation_config(&arguments)?;
        if config.max_new_tokens.is_none() && config.max_length.is_none() {
            config.max_new_tokens = Some(MOST);
        }
        Ok(Rules { config, seed: self.seed.unwrap_or(0), logprobs: false, first_sequence: 0 })
    }
}

/// What a model says, for people: characters that a terminal obeys are escaped.
pub fn spoken(text: &str) -> Text {
    Text::lines(text)
}

/// Watches a batch: tells of slow work, takes the time, and shows the text if somebody reads along.
pub struct Watch<'p> {
    shows: bool,
    layers: usize,
    /// Of all batches: each may be quick, and all of them slow.
    progress: &'p mut Progress,
    /// Which prompts these are, if they are not all of them.
    which: String,
    begun: Instant,
    /// When the prompts had been read.
    prompt: Option<Duration>,
    /// How many tokens each sequence has, and may have at most.
    made: Vec<usize>,
    most: usize,
    /// When each sequence ended.
    ended: Vec<Duration>,
}

impl<'p> Watch<'p> {
    pub fn new(
        folder: &ModelFolder,
        sequences: usize,
        most: usize,
        shows: bool,
        (which, progress): (String, &'p mut Progress),
    ) -> Self {
        Watch {
            shows,
            layers: folder.config.num_hidden_layers,
            progress,
            which,
            begun: Instant::now(),
            prompt: None,
            made: vec![0; sequences],
            most,
            ended: vec![Duration::ZERO; sequences],
        }
    }

    /// Takes what is said of progress off the screen.
    pub fn quiet(&mut self) {
        self.progress.hide();
    }

    /// How long it took to read the prompts.
    pub fn prompt_time(&self) -> Duration {
        self.prompt.unwrap_or_default()
    }

    /// How long it took until a sequence had ended.
    pub fn time(&self, sequence: usize) -> Duration {
        self.ended[sequence]
    }
}

impl Listener for Watch<'_> {
    fn stage(&mut self, name: &str) {
        if self.prompt.is_none()
            && let Some(layer) = Stage::parse(name).and_then(|stage| stage.layer)
        {
            let what = match &*self.which {
                "" => "layers, for the prompt".to_owned(),
                which => format!("layers, for {which}"),
            };
            self.progress.reached(layer + 1, self.layers, &what);
        }
    }

    fn token(&mut self, sequence: usize, _: Chosen, text: &str) -> Result<()> {
        self.prompt.get_or_insert_with(|| self.begun.elapsed());
        if self.shows {
            self.progress.hide();
            return say(&spoken(text));
        }
        self.made[sequence] += 1;
        let what = match &*self.which {
            "" => "tokens".to_owned(),
            which => format!("tokens for {which}"),
        };
        self.progress.reached(self.made[sequence], self.most, &what);
        Ok(())
    }

    fn end(&mut self, sequence: usize, text: &str) -> Result<()> {
        self.ended[sequence] = self.begun.elapsed();
        if self.shows { say(&spoken(text)) } else { Ok(()) }
    }
}
