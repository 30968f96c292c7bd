//! Logits of a vocabulary that was padded to a round number, as engines do for their kernels.

use dsv2_reference::stage::table::LM_HEAD;
use ndarray::Axis;

use crate::case::Case;
use crate::check::dump::{Dump, Recognised};
use crate::values::Values;

/// What a vocabulary is padded to a multiple of.
const MULTIPLES: [usize; 8] = [8, 16, 32, 64, 128, 256, 512, 1024];

/// Leaves out the logits of tokens that do not exist.
pub fn without_padding(case: &Case, dump: &mut Dump) {
    let vocab = case.config.vocab_size;
    let Some(Values::Real(dtype, logits)) = dump.trace.get(LM_HEAD) else { return };
    if !logits.shape().last().is_some_and(|&width| is_padded(width, vocab)) {
        return;
    }
    let (own, beyond) = logits.view().split_at(Axis(logits.ndim() - 1), vocab);
    let says = Beyond::default().and(beyond.iter().copied()).says(vocab, beyond.len_of(Axis(logits.ndim() - 1)));
    let own = Values::Real(*dtype, own.to_owned());
    dump.trace = std::mem::take(&mut dump.trace).with(LM_HEAD, own);
    dump.recognised.push(says);
}

/// Whether this is a vocabulary of `vocab` tokens, padded.
pub fn is_padded(width: usize, vocab: usize) -> bool {
    width > vocab && MULTIPLES.into_iter().any(|multiple| vocab.next_multiple_of(multiple) == width)
}

/// What stands in the place of logits of tokens that do not exist.
#[derive(Clone, Copy, Debug)]
pub struct Beyond {
    low: f64,
    high: f64,
    zeros: bool,
    finite: bool,
    nan: bool,
}

impl Default for Beyond {
    fn default() -> Self {
        Beyond { low: f64::INFINITY, high: f64::NEG_INFINITY, zeros: true, finite: true, nan: false }
    }
}

impl Beyond {
    /// These as well.
    #[must_use]
    pub fn and(self, numbers: impl Iterator<Item = f64>) -> Self {
        numbers.fold(self, |all, x| Beyond {
            low: all.low.min(x),
            high: all.high.max(x),
            zeros: all.zeros && x == 0.0,
            finite: all.finite && x.is_finite(),
            nan: all.nan || x.is_nan(),
        })
    }

    /// What a report says of it, in `extra` columns.
    pub fn says(self, vocab: usize, extra: usize) -> Recognised {
        let columns = if extra == 1 { "column" } else { "columns" };
        let lowest = f64::from(f32::MIN) / 2.0;
        let hold = match self {
            Beyond { zeros: true, .. } => "they hold zeros".to_owned(),
            Beyond { high, nan: false, .. } if high <= lowest => {
                "they hold minus infinity or the lowest number".to_owned()
            }
            Beyond { finite: false, .. } => "they hold numbers that are not finite".to_owned(),
            Beyond { low, high, .. } => {
                format!("they hold numbers from {low:.3} to {high:.3}, which a sampler must not take")
            }
        };
        let layout = format!("{extra} {columns} beyond the vocabulary of {vocab} are not looked at: {hold}");
        Recognised { stage: LM_HEAD.to_owned(), layout }
    }
}
