//! What the ranks hold of one tensor, and how that makes the whole: types and shapes tell, before any of it is decoded.

use dsv2_reference::stage::convention::name::GATE_UP_PROJ;
use dsv2_reference::stage::table::*;
use dsv2_reference::stage::{Layout, Stage};
use dsv2_reference::{DeepseekV2Config, Dtype};

use super::plans::{How, kind};
use crate::case::Case;
use crate::error::{Error, Result};
use crate::values::{Values, described};

/// What a rank holds.
#[derive(Clone, Debug)]
pub struct Part {
    /// The type of its numbers; nothing, if they are whole.
    pub dtype: Option<Dtype>,
    /// Whether they are numbers at all.
    pub are_numbers: bool,
    /// The lengths of its axes.
    pub shape: Vec<usize>,
}

impl Part {
    /// Of a tensor that was decoded.
    pub fn of(values: &Values) -> Self {
        let are_numbers = !matches!(values, Values::Bool(_));
        Part { dtype: values.dtype(), are_numbers, shape: values.shape().to_vec() }
    }

    fn describe(&self) -> String {
        match self.are_numbers {
            true => described(self.dtype, &self.shape),
            false => format!("BOOL {:?}", self.shape),
        }
    }
}

/// How the parts make the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// One after another along an axis, of which so much is the model's.
    Along {
        /// The axis.
        axis: usize,
        /// How long it is in the model.
        whole: usize,
    },
    /// `[gate | up]` of all ranks out of that of each.
    GateAndUp,
    /// Added, unless each rank has the sum already: their numbers tell.
    Added,
}

/// One tensor, as far as each rank holds it.
pub struct Parts<'a> {
    /// What it is called.
    pub name: &'a str,
    /// What the files of the ranks are called.
    pub files: &'a [String],
    /// What they hold.
    pub held: Vec<Option<Part>>,
    /// What the model and its inputs are.
    pub case: &'a Case,
}

impl Parts<'_> {
    /// How the parts make the whole, and what is said of it; nothing if each rank has the whole.
    ///
    /// # Errors
    /// If a rank lacks its part, or the parts do not make up the model's tensor.
    pub fn joined(&self, how: How) -> Result<Option<(Joined, &'static str)>> {
        let config = &self.case.config;
        match how {
            How::Replicated => Ok(None),
            How::Columns => {
                let Some(width) = kind(self.name).and_then(|kind| width(kind, config)) else { return Ok(None) };
                let last = |shape: &[usize]| shape.len().checked_sub(1);
                let Some(parts) = self.along(last, width, "columns")? else { return Ok(None) };
                match kind(self.name) {
                    Some(GATE_UP_PROJ) => {
                        self.gate_and_up(&parts)?;
                        Ok(Some((Joined::GateAndUp, "columns of all ranks, [gate | up] of each")))
                    }
                    _ => Ok(Some((self.concatenated(&parts, last, width)?, "columns of all ranks, side by side"))),
                }
            }
            How::Heads => {
                let heads = config.num_attention_heads;
                let ranks = self.files.len();
                let axis = |shape: &[usize]| {
                    let part = |&axis: &usize| matches!(shape.get(axis), Some(&n) if n == heads || n * ranks == heads);
                    if shape.len() == 4 { [1, 2].into_iter().find(part) } else { shape.len().checked_sub(2) }
                };
                let Some(parts) = self.along(axis, heads, "heads")? else { return Ok(None) };
                Ok(Some((self.concatenated(&parts, axis, heads)?, "heads of all ranks")))
            }
            How::Sequence => {
                let (batch, length) = (self.case.inputs.batch(), self.case.inputs.length());
                // [B, S, ..] or [S, B, ..]; [B·S, ..] of rank after rank
                let axis = |shape: &[usize]| match *shape {
                    [b, _, _] if b == batch => Some(1),
                    [_, b, _] if b == batch => Some(0),
                    [_, _] | [_] => Some(0),
                    _ => None,
                };
                let flat = self.held.iter().flatten().next().is_some_and(|part| part.shape.len() < 3);
                let tokens = if flat { batch * length } else { length };
                let Some(parts) = self.along(axis, tokens, "tokens")? else { return Ok(None) };
                Ok(Some((self.concatenated(&parts, axis, tokens)?, "tokens of all ranks, one after another")))
            }
            How::Sum => {
                let parts = self.all()?;
                if parts.iter().any(|part| part.dtype.is_none()) {
                    return Err(self.refused("numbers to be added", parts[0].describe()));
                }
                if let Some(rank) = parts.iter().position(|part| part.shape != parts[0].shape) {
                    let expected = format!("shape {:?}, as the first", parts[0].shape);
                    return Err(self.of_rank(rank, expected, parts[rank].describe()));
                }
                Ok(Some((Joined::Added, "partial sums of all ranks, added")))
            }
        }
    }

    /// What each rank holds, if they are parts along an axis; nothing if each that holds any holds all.
    fn along(&self, axis: impl Fn(&[usize]) -> Option<usize>, whole: usize, what: &str) -> Result<Option<Vec<&Part>>> {
        let length = |part: &Part| axis(&part.shape).map(|axis| part.shape[axis]);
        if self.held.iter().flatten().all(|part| length(part) == Some(whole)) {
            return Ok(None);
        }
        let parts = self.all()?;
        let lengths: Option<Vec<usize>> = parts.iter().map(|part| length(part)).collect();
        let total = lengths.as_ref().map(|lengths| lengths.iter().sum::<usize>());
        // the vocabulary may have been padded so that every rank has as much of it
        let padded = kind(self.name) == Some(LM_HEAD) && what == "columns";
        if total.is_some_and(|total| total == whole || padded && total > whole) {
            return Ok(Some(parts));
        }
        let found = match lengths {
            Some(lengths) => format!("{lengths:?}"),
            None => parts.iter().map(|part| part.describe()).collect::<Vec<_>>().join(", "),
        };
        Err(self.refused(format!("{whole} {what} on {} ranks together", parts.len()), found))
    }

    /// Makes sure that each rank has as many columns of gate as of up.
    fn gate_and_up(&self, parts: &[&Part]) -> Result<()> {
        let halved = |part: &&Part| part.dtype.is_some() && part.shape.last().is_some_and(|n| n.is_multiple_of(2));
        if !parts.iter().all(halved) {
            return Err(self.refused("columns of gate and up in equal number", parts[0].describe()));
        }
        self.fit_along(parts, parts[0].shape.len() - 1)
    }

    fn concatenated(&self, parts: &[&Part], axis: impl Fn(&[usize]) -> Option<usize>, whole: usize) -> Result<Joined> {
        let axis = axis(&parts[0].shape).ok_or_else(|| self.misfit(parts))?;
        if !parts[0].are_numbers {
            return Err(self.refused("numbers", parts[0].describe()));
        }
        self.fit_along(parts, axis)?;
        // what is over is the padding of the vocabulary
        Ok(Joined::Along { axis, whole })
    }

    /// Makes sure that the parts differ along an axis alone.
    fn fit_along(&self, parts: &[&Part], axis: usize) -> Result<()> {
        let others =
            |part: &Part| part.shape.iter().enumerate().filter(|(at, _)| *at != axis).map(|(_, n)| *n).collect();
        let first: Vec<usize> = others(parts[0]);
        let fits = |part: &&Part| {
            let alike = part.are_numbers && part.dtype.is_some() == parts[0].dtype.is_some();
            alike && part.shape.len() == parts[0].shape.len() && others(part) == first
        };
        if parts.iter().all(fits) { Ok(()) } else { Err(self.misfit(parts)) }
    }

    fn misfit(&self, parts: &[&Part]) -> Error {
        let shapes: Vec<_> = parts.iter().map(|part| part.describe()).collect();
        self.refused("parts that fit together", shapes.join(", "))
    }

    /// What each rank holds.
    fn all(&self) -> Result<Vec<&Part>> {
        let all: Option<Vec<_>> = self.held.iter().map(Option::as_ref).collect();
        all.ok_or_else(|| {
            let rank = self.held.iter().position(Option::is_none).unwrap_or(0);
            self.of_rank(rank, "a part of it from each rank".into(), "none".into())
        })
    }

    fn refused(&self, expected: impl Into<String>, found: impl ToString) -> Error {
        Error::request(format!("--shards: `{}`", self.name), expected, found)
    }

    fn of_rank(&self, rank: usize, expected: String, found: String) -> Error {
        self.refused(expected, format!("{found} of rank {rank} ({})", self.files[rank]))
    }
}

/// How many columns the model's tensor of this kind has; none if it has no columns.
fn width(kind: &str, c: &DeepseekV2Config) -> Option<usize> {
    let heads = c.num_attention_heads;
    let (n, r, v) = (c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim);
    Some(match kind {
        Q_PROJ | Q_B_PROJ => heads * (n + r),
        Q_A_PROJ | Q_A_LAYERNORM => c.q_lora_rank?,
        KV_A_PROJ => c.kv_lora_rank + r,
        KV_A_LAYERNORM | CACHED_KV => c.kv_lora_rank,
        KV_B_PROJ => heads * (n + v),
        ATTN_OUTPUT => heads * v,
        GATE_PROJ | UP_PROJ => c.intermediate_size,
        GATE_UP_PROJ => 2 * c.intermediate_size,
        ROUTER_LOGITS => c.num_experts(),
        LM_HEAD => c.vocab_size,
        kind => {
            let layout = Stage::parse(&dsv2_reference::stage::name(kind, 0))?.layout;
            matches!(layout, Layout::Tokens | Layout::Flat).then_some(c.hidden_size)?
        }
    })
}

/// Whether parts of a sum are each all of it: the first, and another whose squares and whose difference's are these. Parts of one
/// have next to nothing in common.
pub fn are_near(first: f64, other: f64, difference: f64) -> bool {
    difference < 0.25 * other.min(first)
}
