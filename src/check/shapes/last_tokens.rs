//! Logits of the last tokens alone: engines compute no others, and nobody tells the judge. The shape does.

use dsv2_reference::stage::table::LM_HEAD;
use ndarray::{Array2, Axis};

use crate::case::Case;
use crate::check::dump::{Dump, Recognised};
use crate::check::request::Request;
use crate::inputs::varlen::Packed;
use crate::inputs::{AttentionMask, Inputs, LogitsToKeep};
use crate::trace::Trace;
use crate::values::Values;

/// The question about `case`. Where the dump has logits of the last tokens alone, these are all that it computes.
pub fn recognise(request: &Request, case: Case, dump: &mut Dump) -> Request {
    let found = LastTokens::of_trace(&case, &dump.trace);
    let found = found.and_then(|found| Some((in_shape(dump.trace.get(LM_HEAD)?, found.shape)?, found)));
    let Some((logits, LastTokens { inputs, says, .. })) = found else { return request.about(case) };
    let expected = request.expected.as_ref().map(|expected| {
        let all = expected.get(LM_HEAD).and_then(|values| last_of_all(values, &case, &inputs));
        all.into_iter().fold(expected.clone(), |expected, logits| expected.with(LM_HEAD, logits))
    });
    dump.trace = std::mem::take(&mut dump.trace).with(LM_HEAD, logits);
    dump.recognised.push(Recognised { stage: LM_HEAD.to_owned(), layout: says });
    Request { expected, ..request.about(Case { inputs, ..case }) }
}

/// The case in which the logits that `dump` has are all that the model computes.
pub fn case_of(case: &Case, dump: &Trace) -> Case {
    let inputs = LastTokens::of_trace(case, dump).map(|found| found.inputs);
    Case { inputs: inputs.unwrap_or_else(|| case.inputs.clone()), ..case.clone() }
}

/// Logits of fewer tokens than there are.
pub struct LastTokens {
    /// Which they are.
    pub inputs: Inputs,
    /// B, kept and V.
    pub shape: [usize; 3],
    /// What a report says.
    pub says: String,
}

impl LastTokens {
    fn of_trace(case: &Case, dump: &Trace) -> Option<Self> {
        let logits = dump.get(LM_HEAD).filter(|logits| logits.real().is_some())?;
        Self::of(case, logits.shape(), dump.get("loss").is_some())
    }

    /// Of a dump with numbers of this shape, `[B,kept,V]` or the same flattened, and a loss or not.
    pub fn of(case: &Case, logits: &[usize], with_loss: bool) -> Option<Self> {
        let inputs = &case.inputs;
        let batch = inputs.packed.as_ref().map_or(inputs.batch(), Packed::sequences);
        let rows = rows(logits, case).filter(|rows| (1..inputs.batch() * inputs.looked_at()).contains(rows))?;
        let kept = rows.checked_div(batch).filter(|kept| kept * batch == rows)?;
        let by_sequence = match *logits {
            [first, second, _] => (first, second) == (batch, kept) || batch == 1 || kept == 1,
            ref shape => shape.len() <= 2,
        };
        // a loss is one of the logits that are kept, and its labels are as many
        let free = inputs.logits_to_keep.is_none() && (inputs.labels.is_none() || !with_loss);
        let keep = last(inputs, kept, case.chunks.len() == 1).filter(|_| by_sequence && free)?;
        let tokens = if kept == 1 { "token".to_owned() } else { format!("{kept} tokens") };
        Some(LastTokens {
            says: format!("the last {tokens} of each sequence alone, [B, {kept}, V]"),
            inputs: Inputs { logits_to_keep: Some(keep), labels: None, ..inputs.clone() },
            shape: [batch, kept, case.config.vocab_size],
        })
    }
}

/// How many rows of logits there are.
fn rows(logits: &[usize], case: &Case) -> Option<usize> {
    let rows = logits.iter().rev().skip(1).try_fold(1_usize, |rows, &n| rows.checked_mul(n));
    rows.filter(|_| logits.last() == Some(&case.config.vocab_size))
}

fn in_shape(logits: &Values, shape: [usize; 3]) -> Option<Values> {
    let Values::Real(dtype, a) = logits else { return None };
    Some(Values::Real(*dtype, a.to_shape(shape).ok()?.into_owned().into_dyn()))
}

/// The last `kept` tokens. Where some are padding, the last one is the last real one of each sequence; the last two could be
/// either.
fn last(inputs: &Inputs, kept: usize, whole: bool) -> Option<LogitsToKeep> {
    if let Some(packed) = &inputs.packed {
        return (kept == 1).then(|| LogitsToKeep::Positions(packed.ends()));
    }
    let behind = inputs.length() - kept;
    let Some(AttentionMask::Padding(attend)) = &inputs.attention_mask else {
        return Some(LogitsToKeep::Last(kept as i64));
    };
    if attend.slice_axis(Axis(1), ndarray::Slice::from(behind..)).iter().all(|real| *real) {
        return Some(LogitsToKeep::Last(kept as i64));
    }
    let last_real = |row: ndarray::ArrayView1<'_, bool>| row.iter().rposition(|real| *real).unwrap_or(behind) as i64;
    let positions = attend.outer_iter().map(last_real).collect();
    (kept == 1 && whole)
        .then(|| LogitsToKeep::PerSample(Array2::from_shape_vec((attend.nrows(), 1), positions).expect("one of each")))
}

/// Of the logits of all tokens, those that the inputs keep.
fn last_of_all(logits: &Values, case: &Case, inputs: &Inputs) -> Option<Values> {
    let (batch, length) = (inputs.batch(), inputs.looked_at());
    let Values::Real(dtype, _) = logits else { return None };
    let all = in_shape(logits, [batch, length, case.config.vocab_size])
        .filter(|_| rows(logits.shape(), case) == Some(batch * length))?;
    let all = all.real()?;
    let kept = match inputs.logits_to_keep.as_ref()? {
        LogitsToKeep::Last(kept) => all.slice_axis(Axis(1), ndarray::Slice::from(length - *kept as usize..)).to_owned(),
        LogitsToKeep::PerSample(positions) => {
            let rows = positions
                .iter()
                .enumerate()
                .map(|(b, &s)| all.index_axis(Axis(0), b).index_axis_move(Axis(0), s as usize));
            let rows: Vec<_> = rows.collect();
            ndarray::stack(Axis(0), &rows).ok()?.insert_axis(Axis(1))
        }
        LogitsToKeep::Positions(positions) => {
            all.select(Axis(1), &positions.iter().map(|&s| s as usize).collect::<Vec<_>>())
        }
        LogitsToKeep::Mask(_) => return None,
    };
    Some(Values::Real(*dtype, kept))
}

#[cfg(test)]
mod tests;
