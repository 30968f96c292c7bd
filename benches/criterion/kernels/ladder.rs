//! What the tuned kernels gained over the naive ones, by count.

use dsv2_optimized::{Element, Variant};

use super::case::Case;
use super::counts::Count;
use super::predictions::{Prediction, micro};
use super::shape;
use crate::bench::Bench;

/// Naive kernels in bf16 (or the only type that an operator has), and then the tuned ones of the same shapes.
#[derive(Default)]
pub struct Ladder {
    naive: Vec<(String, Count, Prediction)>,
    rows: Vec<Vec<String>>,
}

impl Ladder {
    /// The naive kernel of a shape comes before the tuned one.
    pub fn add(&mut self, case: &Case, count: Count, prediction: Prediction) {
        let id = format!("{} {} {}", case.operator, case.element, shape(case));
        if case.variant == Variant::Naive {
            return self.naive.push((id, count, prediction));
        }
        let Some((_, before, predicted)) = self.naive.iter().find(|(naive, ..)| *naive == id) else { return };
        if case.element == Element::F32 && self.naive.iter().any(|(other, ..)| other == &id.replace("f32", "bf16")) {
            return;
        }
        let pair = |old: String, new: String| format!("{old} → {new}");
        let counts = |of: fn(&Count) -> u64| pair(of(before).to_string(), of(&count).to_string());
        let seconds = |of: fn(&Prediction) -> f64| pair(micro(of(predicted)), micro(of(&prediction)));
        self.rows.push(vec![
            case.operator.into(),
            shape(case),
            counts(|count| count.launches),
            counts(|count| count.instructions),
            counts(|count| count.read),
            counts(|count| count.written),
            seconds(Prediction::chain),
            seconds(Prediction::on_h200),
        ]);
    }

    /// The table.
    pub fn table(self, bench: &mut Bench) {
        let columns = "operator | shape | launches | instructions | bytes read | bytes written | chain, us | \
                       predicted on H200, us";
        let note = "Naive → tuned, in bf16 where there is such a kernel. Bytes are what multiprocessors ask for. At these shapes, \
                    which an emulator can count, few blocks are at work, and 1.25 us of each launch are the way to it.";
        bench.table("Naive and tuned kernels: what the tuned ones gained, by count", columns, self.rows, &[note]);
    }
}
