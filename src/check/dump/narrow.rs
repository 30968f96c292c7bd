//! In which type a dump was computed: as its tensors are stored, or as their numbers tell. NumPy has no bf16, so that many
//! bf16 runs are saved as F32; then every number of nearly every tensor is one that bf16 has.

use dsv2_reference::Dtype;
use dsv2_reference::round::RoundingTap;
use dsv2_reference::stage::Stage;
use dsv2_reference::stage::table::EMBED_TOKENS;
use half::{bf16, f16};

use crate::error::Result;
use crate::precision::Precision;
use crate::trace::Trace;
use crate::values::Values;

/// The type that most of a trace is stored in.
pub fn precision_of(trace: &Trace) -> Precision {
    by_most(trace.iter().filter_map(|(_, values)| match values {
        Values::Real(dtype, _) => Some(*dtype),
        _ => None,
    }))
}

/// The trace with each tensor in the type that its numbers have, and what is to be said, if most of it was saved in a
/// wider type than it was computed in.
pub fn as_computed(trace: &Trace) -> Option<(Trace, Precision, String)> {
    let telling: Vec<Told> = trace
        .iter()
        .filter_map(|(name, values)| match values {
            Values::Real(stored, a) => told(name, *stored, || Ok(narrow(a.iter().copied()))).ok().flatten(),
            _ => None,
        })
        .collect();
    let Computed { precision, dtype, says } = computed(&telling, precision_of(trace))?;
    let retyped = trace.iter().map(|(name, values)| (name.to_owned(), retyped(values.clone(), dtype)));
    Some((retyped.collect(), precision, says))
}

/// In which type a dump was computed that was saved in a wider one.
pub struct Computed {
    /// The type of the computation.
    pub precision: Precision,
    /// The type of most of its numbers.
    pub dtype: Dtype,
    /// What is to be said.
    pub says: String,
}

/// The same of all tensors that tell something, of a dump that is `stored` in another type; nothing, if it is stored as it
/// was computed.
pub fn computed(telling: &[Told], stored: Precision) -> Option<Computed> {
    let precision = by_most(telling.iter().map(|told| told.dtype));
    let dtype = precision.narrow().filter(|_| stored != precision)?;
    let found = telling.iter().filter(|told| told.by_numbers && told.dtype == dtype).count();
    let says = format!(
        "judged as {precision}: every number of {found} of {} tensors that are stored wider is one of {precision} \
         (--dtype f32 judges it as it is stored)",
        telling.len()
    );
    Some(Computed { precision, dtype, says })
}

/// A tensor in the narrow type, if its numbers are of it: also one that is fp32 by definition, since whoever rounded it to bf16
/// stored it so.
fn retyped(values: Values, dtype: Dtype) -> Values {
    match values {
        Values::Real(stored, a) if is_wide(stored) && narrow(a.iter().copied()) == Some(dtype) => {
            Values::Real(dtype, a)
        }
        other => other,
    }
}

/// In which type a stage was computed.
pub struct Told {
    /// The type.
    pub dtype: Dtype,
    /// Whether its numbers say so, and not only the type in which it is stored.
    by_numbers: bool,
}

/// What a stage tells of the type it was computed in, that is `stored` in one and holds numbers `of` another, if they are asked;
/// nothing, if it comes from the checkpoint or is fp32 in any run.
///
/// # Errors
/// If they cannot be read.
pub fn told(name: &str, stored: Dtype, of: impl FnOnce() -> Result<Option<Dtype>>) -> Result<Option<Told>> {
    if !RoundingTap::rounds(name) || Stage::parse(name).is_none_or(|stage| stage.kind == EMBED_TOKENS) {
        return Ok(None);
    }
    let by_numbers = if is_wide(stored) { of()? } else { None };
    Ok(Some(Told { dtype: by_numbers.unwrap_or(stored), by_numbers: by_numbers.is_some() }))
}

/// Whether numbers of a narrow type may have been stored in this one.
pub fn is_wide(stored: Dtype) -> bool {
    matches!(stored, Dtype::F32 | Dtype::F64)
}

/// The narrow type, if most are of one.
pub fn by_most(types: impl Iterator<Item = Dtype>) -> Precision {
    let (mut bf16, mut f16, mut wide) = (0, 0, 0);
    for dtype in types {
        match dtype {
            Dtype::Bf16 => bf16 += 1,
            Dtype::F16 => f16 += 1,
            Dtype::F32 | Dtype::F64 => wide += 1,
        }
    }
    match () {
        () if bf16 + f16 <= wide => Precision::F32,
        () if f16 > bf16 => Precision::F16,
        () => Precision::Bf16,
    }
}

/// What part of the numbers of a narrow type must use its last bit to show that they were rounded to it: half of them do.
/// Zeros, powers of two and small whole numbers are numbers of any type, and tell nothing.
const USE_LAST_BIT: f64 = 0.25;
/// So many numbers must use it.
const LEAST: usize = 4;

/// The narrow type that all numbers have, if there is one.
fn narrow(numbers: impl Iterator<Item = f64>) -> Option<Dtype> {
    let mut seen = Seen::default();
    seen.add(numbers);
    seen.dtype()
}

/// Numbers of which it is asked which narrow type has all of them, as they come.
#[derive(Default)]
pub struct Seen {
    /// How many there are that are finite, and not 0.
    all: usize,
    /// Of bf16, and of f16: whether a number is none of it, and how many use its last bit.
    types: [(bool, usize); 2],
}

impl Seen {
    /// Some more of them.
    pub fn add(&mut self, numbers: impl Iterator<Item = f64>) {
        let Seen { all, types: [of_bf16, of_f16] } = self;
        for x in numbers.filter(|x| x.is_finite() && *x != 0.0) {
            *all += 1;
            for ((others, last), is, bits) in [
                (&mut *of_bf16, f64::from(bf16::from_f64(x)) == x, 7),
                (&mut *of_f16, f64::from(f16::from_f64(x)) == x, 10),
            ] {
                *others |= !is;
                *last += usize::from(uses_bit(x, bits));
            }
        }
    }

    /// The type, if there is one.
    pub fn dtype(&self) -> Option<Dtype> {
        let tells =
            |&(others, last): &(bool, usize)| !others && last >= LEAST && last as f64 >= USE_LAST_BIT * self.all as f64;
        // any number of bf16 may be one of f16, too, but not the other way round
        let [of_bf16, of_f16] = &self.types;
        match () {
            () if tells(of_bf16) => Some(Dtype::Bf16),
            () if tells(of_f16) => Some(Dtype::F16),
            () => None,
        }
    }
}

/// Whether the last of `bits` bits of the fraction is set, as it is in a number that no shorter fraction has.
fn uses_bit(x: f64, bits: i32) -> bool {
    let fraction = x.to_bits() & ((1 << 52) - 1);
    fraction.trailing_zeros() as i32 == 52 - bits
}

#[cfg(test)]
mod tests {
    use dsv2_reference::Tensor;
    use dsv2_reference::weights::generator::splitmix64;
    use ndarray::ArrayD;

    use super::*;

    fn numbers(dtype: Dtype, seed: u64) -> ArrayD<f64> {
        let uniform = |i: u64| (splitmix64(100 * seed + i) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0;
        Tensor::from_values(dtype, &[4, 8], (0..32).map(uniform)).to_array()
    }

    fn trace(types: &[(&str, Dtype)]) -> Trace {
        let stored = |(i, (name, dtype)): (usize, &(&str, Dtype))| {
            ((*name).to_owned(), Values::Real(Dtype::F32, numbers(*dtype, i as u64)))
        };
        types.iter().enumerate().map(stored).collect()
    }

    fn judged_as(types: &[(&str, Dtype)]) -> Option<Precision> {
        as_computed(&trace(types)).map(|(_, precision, _)| precision)
    }

    #[test]
    fn a_narrow_run_saved_as_f32_is_recognised_by_its_numbers() {
        use Dtype::{Bf16, F16, F32};
        let run = |dtype| [("model.norm", dtype), ("lm_head", dtype), ("model.layers.0", dtype)];
        assert_eq!(judged_as(&run(Bf16)), Some(Precision::Bf16));
        assert_eq!(judged_as(&run(F16)), Some(Precision::F16));
        assert_eq!(judged_as(&run(F32)), None);
        // most decide
        assert_eq!(
            judged_as(&[("model.norm", Bf16), ("lm_head", Bf16), ("model.layers.0", F32)]),
            Some(Precision::Bf16)
        );
        assert_eq!(judged_as(&[("model.norm", Bf16), ("lm_head", F32), ("model.layers.0", F32)]), None);
        // neither what is a checkpoint's nor what is fp32 in any run
        let rotary = "model.rotary_emb.cos";
        assert_eq!(judged_as(&[("model.embed_tokens", Bf16), ("lm_head", F32)]), None);
        assert_eq!(
            judged_as(&[(rotary, F32), ("model.rotary_emb.sin", F32), ("lm_head", Bf16)]),
            Some(Precision::Bf16)
        );
    }

    #[test]
    fn small_whole_numbers_zeros_and_powers_of_two_tell_nothing() {
        for f in [|i: u64| (i % 17) as f64, |_| 0.0, |i: u64| 0.5f64.powi((i % 9) as i32), |i: u64| i as f64 / 8.0] {
            let a = ArrayD::from_shape_fn(vec![4, 8], |at| f((8 * at[0] + at[1]) as u64));
            let trace = [("lm_head".to_owned(), Values::Real(Dtype::F32, a))].into_iter().collect();
            assert!(as_computed(&trace).is_none());
        }
    }

    #[test]
    fn what_is_stored_in_a_narrow_type_needs_no_word() {
        let a = numbers(Dtype::Bf16, 1);
        let trace = [("lm_head".to_owned(), Values::Real(Dtype::Bf16, a))].into_iter().collect();
        assert!(as_computed(&trace).is_none());
        assert_eq!(precision_of(&trace), Precision::Bf16);
    }
}
