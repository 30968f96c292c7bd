//! What generation takes of memory, known before anything is computed.

use dsv2_optimized::Element;
use dsv2_optimized::model::Settings;
use dsv2_optimized::model::generate::GenerateOptions;
use dsv2_optimized::model::plan::{CacheSize, MemoryPlan};
use dsv2_reference::AttentionForm;
use dsv2_reference::config::Head;
use dsv2_reference::model::Tokens;
use dsv2_reference::model::causal_lm::LogitsToKeep;
use ndarray::Array2;

use super::ModelFolder;
use super::decoder::PAGE;
use crate::case::Case;
use crate::error::Result;
use crate::inputs::Inputs;
use crate::memory::{self, Need, Size};
use crate::planned;
use crate::precision::Precision;

/// The sequences of a run.
#[derive(Clone, Copy, Debug)]
pub struct Sequences {
    /// How many.
    pub batch: usize,
    /// Tokens that are in the cache already.
    pub cached: usize,
    /// Tokens of the longest prompt, without those.
    pub prompt: usize,
    /// Tokens that may be added to it.
    pub new: usize,
    /// Whether their lengths differ.
    pub padded: bool,
}

const LESS: &str = "shorter prompts, fewer of them at a time or fewer new tokens take less";

/// On the reference: a layer's stages for the whole prompt, the cache, and W^UK and W^UV of all layers, which are widened once for
/// the steps after the prompt. All other weights are mapped files, of which the system drops what it has no room for.
pub fn on_host(folder: &ModelFolder, precision: Precision, sequences: Sequences) -> Need {
    let Sequences { batch, cached, prompt, new, .. } = sequences;
    let whole = cached.saturating_add(prompt).saturating_add(new);
    let cache = cache(folder, whole).saturating_mul(batch as u64);
    // a score, and a weight, of each cached token for each token of the prompt
    let scores = product(&[2, batch, folder.config.num_attention_heads, prompt, cached]);
    let absorbed = if new > 1 { absorbed(folder) } else { 0 };
    let at_a_time = at_a_time(folder, precision, batch, prompt);
    let numbers = [at_a_time, scores, cache, absorbed].into_iter().fold(0, u64::saturating_add);
    Need { size: bytes(numbers, precision), less: LESS }
}

/// Of a [`Pool`](super::pool::Pool), whoever is in it: a step of `batch` sequences, and W^UK and W^UV of all layers.
pub fn of_pool(folder: &ModelFolder, precision: Precision, batch: usize) -> Size {
    bytes(at_a_time(folder, precision, batch, 1).saturating_add(absorbed(folder)), precision)
}

/// What a sequence of a pool takes.
#[derive(Clone, Copy, Debug)]
pub struct InPool {
    /// As long as it is there.
    pub kept: Size,
    /// While its prompt is read, which happens for one sequence at a time.
    pub reading: Size,
}

/// Of a sequence of a pool: its cache; and, for the last chunk of its prompt, a layer's stages, keys and values of all tokens,
/// scores, and logits.
pub fn in_pool(folder: &ModelFolder, precision: Precision, prompt: usize, new: usize, chunk: usize) -> InPool {
    let config = &folder.config;
    let head = config.qk_nope_head_dim + config.v_head_dim + config.qk_head_dim() + 3 * chunk;
    let of_all = product(&[prompt, config.num_attention_heads, head]);
    let reading = at_a_time(folder, precision, 1, chunk).saturating_add(of_all);
    let reading = reading.saturating_add(product(&[2, chunk, config.vocab_size]));
    InPool { kept: bytes(cache(folder, prompt.saturating_add(new)), precision), reading: bytes(reading, precision) }
}

fn bytes(numbers: u64, precision: Precision) -> Size {
    Size(numbers.saturating_mul(if precision == Precision::F64 { 8 } else { 4 }))
}

fn product(factors: &[usize]) -> u64 {
    factors.iter().fold(1, |product: u64, n| product.saturating_mul(*n as u64))
}

/// The numbers of a layer's stages for the whole of some prompts of one length.
fn at_a_time(folder: &ModelFolder, precision: Precision, batch: usize, prompt: usize) -> u64 {
    let mut inputs = Inputs::new(Tokens::InputIds(Array2::zeros((batch, prompt))));
    inputs.logits_to_keep = Some(LogitsToKeep::Last(1));
    let case = Case::of_language_model(folder.config.clone(), folder.dialect, folder.weights.clone(), inputs);
    memory::at_a_time(&planned::stages(&case, AttentionForm::Expanded, precision))
}

/// The numbers of a sequence's cache. It doubles its room when it is full.
fn cache(folder: &ModelFolder, tokens: usize) -> u64 {
    product(&[2, tokens, folder.config.kv_cache_elements_per_token()])
}

/// The numbers of W^UK and W^UV of all layers.
fn absorbed(folder: &ModelFolder) -> u64 {
    let config = &folder.config;
    let head = config.qk_nope_head_dim + config.v_head_dim;
    product(&[config.num_attention_heads, head, config.kv_lora_rank, config.num_hidden_layers])
}

/// On the emulator, whose device memory is the host's: weights, cache and the largest pass.
///
/// # Errors
/// If the config is impossible.
pub fn on_emulator(folder: &ModelFolder, settings: Settings, sequences: Sequences) -> Result<Need> {
    let Sequences { batch, cached, prompt, new, padded } = sequences;
    let prompt = cached.saturating_add(prompt);
    let options = GenerateOptions { page_size: PAGE, ..GenerateOptions::new(new) };
    let plan = options.plan(&folder.config, folder.dialect, settings, batch, prompt, padded)?;
    let logits = batch.saturating_mul(folder.config.vocab_size).saturating_mul(Element::F32.bytes());
    Ok(Need { size: Size(plan.total().saturating_add(logits) as u64), less: LESS })
}

/// The bytes of the weights on a device.
///
/// # Errors
/// If the config is impossible.
pub fn weights(folder: &ModelFolder, settings: Settings) -> Result<usize> {
    let cache = CacheSize { batch: 0, tokens: 0, page_size: PAGE };
    Ok(MemoryPlan::new(&folder.config, folder.dialect, Head::CausalLm, settings, cache, &[])?.weights)
}
