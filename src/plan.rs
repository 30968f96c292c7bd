//! `dsv2 plan`: what of a model lies on each of several devices, and what then fits.
//!
//! | line | bytes on a device |
//! |---|---|
//! | weights | every tensor that a rank loads, as [`RankPlan::weights`] says |
//! | cache | pages for all tokens of the sequences that are at home on it, in all layers |
//! | passes | what lives at the same time in a chunk of prompts, and in a step: the larger of the two counts |
//!
//! A rank's tokens may all go to one rank's experts: that is planned for. All ranks have as much, whatever their number. What a
//! driver, kernels, a library of collectives and the rounding of their pieces take is no part of this: it is what is kept free.

mod device;
mod text;
mod weights;

use dsv2_optimized::model::parallel::{Homes, Layout};
use dsv2_optimized::model::plan::RankPlan;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::model::cache::CacheFormat;
use dsv2_reference::{DeepseekV2Config, Dialect};
use serde::Serialize;

use crate::error::{Error, Result};
use device::OnDevice;
pub use weights::{Part, WeightFormat};

/// Devices of a plan, at most.
const MOST_DEVICES: usize = 1024;

/// Sequences and tokens of a pass, at most.
const MOST_AT_ONCE: usize = 1 << 20;

/// Bytes of a device, at most: sums of a few of them can be counted.
const MOST_MEMORY: u64 = 1_000_000_000_000_000;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Whose model.
    pub dialect: Dialect,
    /// How many devices.
    pub devices: usize,
    /// P and Q, or all splits that the devices can have.
    pub ranks: Option<[usize; 2]>,
    /// Who has which sequences.
    pub homes: Homes,
    /// Bytes of a device.
    pub memory: u64,
    /// Those of them that are kept free.
    pub reserve: u64,
    /// How weights are kept.
    pub weights: WeightFormat,
    /// How a token is cached.
    pub cache: CacheFormat,
    /// Tokens of a sequence; if nobody says, 32768, or as many as the model can see.
    pub context: Option<usize>,
    /// Sequences, on all devices together.
    pub batch: usize,
    /// New tokens of a pass over prompts, of all sequences of a device.
    pub chunk: usize,
    /// How such a pass computes attention. Steps are absorbed.
    pub form: AttentionForm,
}

/// The plan of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DevicePlan {
    /// The preset, or the folder.
    pub model: String,
    /// How many devices.
    pub devices: usize,
    /// Bytes of each.
    pub memory: u64,
    /// Those of them that are kept free.
    pub reserve: u64,
    /// How weights are kept.
    pub weight_format: WeightFormat,
    /// How a token is cached.
    pub cache_format: String,
    /// Whether each rank of a group of experts has sequences of its own.
    pub own_sequences: bool,
    /// `max_position_embeddings`.
    pub max_context: usize,
    /// Tokens of a sequence.
    pub context: usize,
    /// Sequences, on all devices together.
    pub batch: usize,
    /// New tokens of a pass over prompts, on a device.
    pub chunk: usize,
    /// Every way in which the model can be split.
    pub splits: Vec<Split>,
    /// The ways in which it cannot.
    pub impossible: Vec<Impossible>,
}

/// What a device takes of a model that is split in one way, in bytes; and what fits.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Split {
    /// P: parts of heads and of columns.
    pub tensor: usize,
    /// Q: blocks of routed experts.
    pub experts: usize,
    /// The weights, by the part of the model.
    pub parts: Vec<Weights>,
    /// All weights.
    pub weights: u64,
    /// A token, in the cache of each device that has it.
    pub cache_per_token: u64,
    /// Sequences that are at home on this device, of all that were asked for.
    pub sequences: usize,
    /// Their cache, at the context that was asked for.
    pub cache: u64,
    /// A pass over prompts, at the end of the context.
    pub prompts: Pass,
    /// A step.
    pub step: Pass,
    /// All together: the weights, the cache, the larger pass.
    pub total: u64,
    /// What is left of the memory but for the reserve; what lacks is negative.
    pub left: i64,
    /// The longest context of as many sequences, no longer than the model can see.
    pub longest_context: usize,
    /// How many sequences of the context fit, on all devices together.
    pub most_sequences: usize,
    /// How many tokens these are.
    pub most_tokens: usize,
}

/// The weights of one part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Weights {
    /// The part.
    pub part: Part,
    /// Its bytes.
    pub bytes: u64,
}

/// A pass, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pass {
    /// The most at one time.
    pub total: u64,
    /// What other ranks send or get: there while a layer's experts work.
    pub sent: u64,
    /// The last hidden states and the logits: there behind the layers.
    pub logits: u64,
}

/// A split that is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Impossible {
    /// P.
    pub tensor: usize,
    /// Q.
    pub experts: usize,
    /// Why not.
    pub reason: String,
}

impl DevicePlan {
    /// For one configuration.
    ///
    /// # Errors
    /// If something is asked for that no device has or no model can do, the config is impossible, or none of the splits is
    /// possible.
    pub fn new(name: &str, config: &DeepseekV2Config, request: &Request) -> Result<Self> {
        config.validate(request.dialect)?;
        let context = request.context.unwrap_or(config.max_position_embeddings.min(1 << 15));
        check(config, request, context)?;
        let (mut splits, mut impossible) = (Vec::new(), Vec::new());
        for [tensor, experts] in request.splits() {
            let layout = Layout { tensor, experts, homes: request.homes };
            match layout.check(config, request.dialect, request.devices) {
                Ok(()) => splits.push(Split::new(config, request, layout, context)?),
                Err(reason) => impossible.push(Impossible { tensor, experts, reason: reason.to_string() }),
            }
        }
        if splits.is_empty() {
            let option = if request.ranks.is_some() { "--ranks" } else { "--devices" };
            let reasons: Vec<String> = impossible.iter().map(Impossible::to_string).collect();
            return Err(Error::request(option, "a split that the model can have", reasons.join("; ")));
        }
        Ok(DevicePlan {
            model: name.to_owned(),
            devices: request.devices,
            memory: request.memory,
            reserve: request.reserve,
            weight_format: request.weights,
            cache_format: match request.cache {
                CacheFormat::Plain => request.weights.computed_in().to_string(),
                CacheFormat::Packed(format) => format.to_string(),
            },
            own_sequences: request.homes == Homes::Own,
            max_context: config.max_position_embeddings,
            context,
            batch: request.batch,
            chunk: request.chunk,
            splits,
            impossible,
        })
    }
}

impl Request {
    /// The splits that are looked at, those by experts first.
    fn splits(&self) -> Vec<[usize; 2]> {
        let of_all = (1..=self.devices).filter(|tensor| self.devices.is_multiple_of(*tensor));
        self.ranks.map_or_else(|| of_all.map(|tensor| [tensor, self.devices / tensor]).collect(), |ranks| vec![ranks])
    }
}

/// What is asked for is possible, whatever the split.
fn check(config: &DeepseekV2Config, request: &Request, context: usize) -> Result<()> {
    let refused = |option: &str, expected: String, found: String| Err(Error::request(option, expected, found));
    let sizes = [
        ("--devices", request.devices, MOST_DEVICES),
        ("--batch", request.batch, MOST_AT_ONCE),
        ("--chunk", request.chunk, MOST_AT_ONCE),
    ];
    if let Some((option, found, most)) = sizes.into_iter().find(|(_, size, most)| !(1..=*most).contains(size)) {
        return refused(option, format!("1 to {most}"), found.to_string());
    }
    if !(1..=MOST_MEMORY).contains(&request.memory) {
        return refused("--device-memory", format!("1 to {MOST_MEMORY} bytes"), request.memory.to_string());
    }
    if request.reserve >= request.memory {
        return refused(
            "--reserve",
            format!("less than a device has, {} bytes", request.memory),
            request.reserve.to_string(),
        );
    }
    let longest = config.max_position_embeddings;
    if !(1..=longest).contains(&context) {
        return refused("--context", format!("1 to {longest} tokens (max_position_embeddings)"), context.to_string());
    }
    Ok(())
}

impl Split {
    fn new(config: &DeepseekV2Config, request: &Request, layout: Layout, context: usize) -> Result<Self> {
        let settings = request.weights.settings();
        let rank = match layout.ranks() {
            1 => RankPlan::alone(config, request.dialect, settings)?,
            _ => RankPlan::new(config, request.dialect, layout, 0, settings)?,
        };
        let parts = weights::by_part(&rank.weights(), request.weights);
        let weights = parts.iter().fold(0, |sum: u64, part| sum.saturating_add(part.bytes));
        let device = OnDevice { config, rank, request, weights };
        let groups = if layout.homes == Homes::Own { layout.experts } else { 1 };
        let sequences = request.batch.div_ceil(groups);
        let (prompts, step) = (device.prompts(sequences, context), device.step(sequences, context)?);
        let cache = device.cache(sequences, context);
        let total = device.total(sequences, context)?;
        if total > i64::MAX as u64 {
            return Err(Error::request("model", "fewer than 2^63 bytes on a device", "more"));
        }
        let most_sequences = device.most_sequences(context)? * groups;
        Ok(Split {
            tensor: layout.tensor,
            experts: layout.experts,
            parts,
            weights,
            cache_per_token: device.cache_per_token(),
            sequences,
            cache,
            prompts,
            step,
            total,
            left: (request.memory - request.reserve) as i64 - total as i64,
            longest_context: device.longest_context(sequences)?,
            most_sequences,
            most_tokens: most_sequences * context,
        })
    }
}

#[cfg(test)]
mod tests;
