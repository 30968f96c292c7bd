//! How long kernels are predicted to take on cards that nobody has here: `dsv2-predict`, from what was counted.

use dsv2_bench_report::{Better, Measurement};
use dsv2_predict::{Card, Launch, Terms};

use super::case::{Case, Prepared};
use super::shape;
use crate::bench::Bench;

/// What is predicted of a case.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// On each card, in the order of [`Card::ALL`], launch by launch.
    terms: [Vec<Terms>; 2],
    /// The least time on each card, in seconds.
    floors: [f64; 2],
}

/// The place of the H200 in [`Card::ALL`].
const H200: usize = 1;

impl Prediction {
    /// From the launches of a case, and the bytes and operations that it needs.
    pub fn new(case: &Case, needed: &Prepared, launches: &[Launch]) -> Self {
        let floor = |card: Card| {
            let arithmetic = if case.matrix { case.flops as f64 / card.products } else { 0.0 };
            ((needed.read + needed.written) as f64 / card.memory).max(arithmetic)
        };
        let terms = |card: Card| launches.iter().map(|launch| Terms::new(&launch.work, &card)).collect();
        Prediction { terms: Card::ALL.map(terms), floors: Card::ALL.map(floor) }
    }

    /// Seconds on a card, by its place.
    fn time(&self, card: usize) -> f64 {
        self.terms[card].iter().map(Terms::time).sum()
    }

    /// Seconds on an H200.
    pub fn on_h200(&self) -> f64 {
        self.time(H200)
    }

    /// Seconds on an H200 that the launches cannot take less than because of what they do one after the other.
    pub fn chain(&self) -> f64 {
        self.terms[H200].iter().map(|terms| terms.chain).sum()
    }

    /// For comparing runs: a kernel may not become slower by what is counted.
    pub fn keep(&self, bench: &mut Bench, id: &str) {
        for (place, card) in Card::ALL.iter().enumerate() {
            let id = format!("{id}/predicted-{}", card.name.to_lowercase());
            bench.keep(Measurement::exact(id, "s", Better::Less, self.time(place)));
        }
    }

    /// A row of the table.
    pub fn row(&self, case: &Case) -> Vec<String> {
        let longest = self.terms[H200].iter().reduce(|most, one| if one.time() > most.time() { one } else { most });
        let mut row = vec![case.operator.into(), format!("{} {}", case.variant, case.element), shape(case)];
        let named = self.terms[H200].iter().map(Terms::named);
        let sums = named.reduce(|a, b| std::array::from_fn(|term| (a[term].0, a[term].1 + b[term].1)));
        row.extend(sums.into_iter().flatten().map(|(_, seconds)| micro(seconds)));
        row.push(longest.map_or("", |terms| terms.limit().0).into());
        row.extend([micro(self.time(0)), micro(self.time(H200)), micro(self.floors[H200])]);
        row.push(percent(self.floors[H200] / self.time(H200)));
        row
    }
}

/// Seconds as microseconds.
pub fn micro(seconds: f64) -> String {
    format!("{:.2}", seconds * 1e6)
}

/// A share.
pub fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// The table of a family of operators.
pub fn table(bench: &mut Bench, family: &str, rows: Vec<Vec<String>>) {
    let title = format!("{family}: what the counts predict, in microseconds; no card has been asked");
    let columns = "operator | kernel | shape | memory | l2 | issue | shared | tensor | chain | limit | H100 | H200 | floor | \
                   of the floor";
    let notes = [
        "Terms, floor and its share are those of an H200. A time is 1.25 us to get from one kernel to the next, and the largest \
         term; of several launches, the sum. With shapes as small as these, that is most of it: the decode steps below have \
         the shapes of the models.",
        "memory: different bytes. l2: bytes asked for. issue, shared, tensor: instructions, passes through shared memory and mma \
         of the busiest multiprocessor. chain: trips to memory and barriers of a block one after the other, or the \
         instructions of its longest warp. benches/predict has the formulas and the constants.",
    ];
    bench.table(&title, columns, rows, &notes);
}
