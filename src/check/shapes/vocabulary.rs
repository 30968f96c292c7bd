//! Logits of a vocabulary that was padded to a round number, as engines do for their kernels.

use dsv2_reference::stage::table::LM_HEAD;
use ndarray::{ArrayD, Axis};

use crate::case::Case;
use crate::check::dump::{Dump, Recognised};
use crate::values::Values;

/// What a vocabulary is padded to a multiple of.
const MULTIPLES: [usize; 8] = [8, 16, 32, 64, 128, 256, 512, 1024];

/// Leaves out the logits of tokens that do not exist.
pub fn without_padding(case: &Case, dump: &mut Dump) {
    let vocab = case.config.vocab_size;
    let Some(Values::Real(dtype, logits)) = dump.trace.get(LM_HEAD) else { return };
    let Some(&width) = logits.shape().last() else { return };
    if width <= vocab || !MULTIPLES.into_iter().any(|multiple| vocab.next_multiple_of(multiple) == width) {
        return;
    }
    let (own, beyond) = logits.view().split_at(Axis(logits.ndim() - 1), vocab);
    let extra = width - vocab;
    let columns = if extra == 1 { "column" } else { "columns" };
    let layout =
        format!("{extra} {columns} beyond the vocabulary of {vocab} are not looked at: {}", holds(&beyond.to_owned()));
    let own = Values::Real(*dtype, own.to_owned());
    dump.trace = std::mem::take(&mut dump.trace).with(LM_HEAD, own);
    dump.recognised.push(Recognised { stage: LM_HEAD.to_owned(), layout });
}

/// What numbers are there, in words.
fn holds(beyond: &ArrayD<f64>) -> String {
    let all = |is: fn(f64) -> bool| beyond.iter().all(|x| is(*x));
    let lowest = f64::from(f32::MIN) / 2.0;
    match beyond.iter().copied().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x))) {
        _ if all(|x| x == 0.0) => "they hold zeros".to_owned(),
        (_, highest) if highest <= lowest && all(|x| !x.is_nan()) => {
            "they hold minus infinity or the lowest number".to_owned()
        }
        _ if !all(f64::is_finite) => "they hold numbers that are not finite".to_owned(),
        (low, high) => format!("they hold numbers from {low:.3} to {high:.3}, which a sampler must not take"),
    }
}
