//! Decode steps of whole models, predicted: which launches a step has, the model says; what each does, the emulator counts.

use dsv2_bench_report::{Better, Measurement};
use dsv2_predict::step::{Line, Size, floor};
use dsv2_predict::{Card, Step, Terms};
use dsv2_reference::DeepseekV2Config;

use super::predictions::{micro, percent};
use crate::bench::{Bench, Profile};

const CONTEXT: usize = 4096;

/// A model, and what must be said of it.
struct Subject {
    name: &'static str,
    preset: &'static str,
    /// If not all.
    experts: Option<usize>,
    batch: usize,
}

const ALL: [Subject; 5] = [of_lite(1), of_lite(8), of_lite(32), of_lite(128), V2];

const fn of_lite(batch: usize) -> Subject {
    Subject { name: "V2-Lite", preset: "v2-lite", experts: None, batch }
}

/// All experts would take 10 GB of memory; one token meets six of them, however many there are.
const V2: Subject = Subject { name: "V2", preset: "v2", experts: Some(40), batch: 1 };

impl Subject {
    fn id(&self) -> String {
        format!("kernels/decode/{}/batch={}/context={CONTEXT}", self.preset, self.batch)
    }

    fn predict(&self) -> Result<Step, Box<dyn std::error::Error>> {
        let mut config = DeepseekV2Config::preset(self.preset)?;
        config.n_routed_experts = self.experts.or(config.n_routed_experts);
        Ok(Step::new(&config, Size { batch: self.batch, context: CONTEXT })?)
    }
}

/// Predicts steps: `--quick` one of them.
pub fn run(bench: &mut Bench) {
    let count = if bench.profile() == Profile::Quick { 1 } else { ALL.len() };
    let mut rows = vec![];
    for subject in &ALL[..count] {
        if !bench.wants(&subject.id()) {
            continue;
        }
        match subject.predict() {
            Ok(step) => {
                keep(bench, &subject.id(), &step);
                rows.push(row(subject, &step));
                let title = format!(
                    "{}, {} at a context of {CONTEXT}: the launches of a decode step, predicted, in microseconds of an H200",
                    subject.name,
                    if subject.batch == 1 { "one sequence".into() } else { format!("{} sequences", subject.batch) }
                );
                bench.table(&title, LINES, step.lines.iter().map(line).collect(), &[OF_LINES]);
            }
            Err(error) => bench.not_run(&subject.id(), error),
        }
    }
    if !rows.is_empty() {
        bench.table("Decode steps, predicted; no card has been asked", STEPS, rows, &OF_STEPS);
        constants(bench);
    }
}

/// For comparing runs: a step may not become slower by what is counted, nor its share of the floor less.
fn keep(bench: &mut Bench, id: &str, step: &Step) {
    let less = |name: String, unit, value| Measurement::exact(format!("{id}/{name}"), unit, Better::Less, value);
    bench.keep(less("launches".into(), "", step.launches() as f64));
    for card in Card::ALL {
        let name = card.name.to_lowercase();
        bench.keep(less(format!("step-predicted-{name}"), "s", step.time(&card)));
        bench.keep(less(format!("layer-predicted-{name}"), "s", step.layer_time(&card)));
        let share = step.floor(&card) / step.time(&card);
        bench.keep(Measurement::exact(format!("{id}/floor-share-{name}"), "", Better::More, share));
    }
}

fn row(subject: &Subject, step: &Step) -> Vec<String> {
    let [h100, h200] = Card::ALL;
    let milli = |seconds: f64| format!("{:.2}", seconds * 1e3);
    let in_layer: usize = step.lines.iter().map(|line| line.in_layer).sum();
    vec![
        format!("{} B={}", subject.name, subject.batch),
        step.launches().to_string(),
        in_layer.to_string(),
        micro(step.layer_floor(&h200)),
        micro(step.layer_time(&h100)),
        micro(step.layer_time(&h200)),
        percent(step.layer_floor(&h200) / step.layer_time(&h200)),
        milli(step.floor(&h200)),
        milli(step.time(&h100)),
        milli(step.time(&h200)),
        percent(step.floor(&h200) / step.time(&h200)),
    ]
}

fn line(line: &Line) -> Vec<String> {
    let [h100, h200] = Card::ALL;
    let terms = Terms::new(&line.work, &h200);
    let mut row = vec![line.work.kernel.clone()];
    row.extend([line.work.blocks.len(), line.times, line.in_layer].map(|number| number.to_string()));
    row.extend(terms.named().map(|(_, seconds)| micro(seconds)));
    let floor = floor(&line.work, &h200);
    row.push(terms.limit().0.into());
    row.extend([Terms::new(&line.work, &h100).time(), terms.time(), floor].map(micro));
    row.push(percent(floor / terms.time()));
    row
}

/// The cards' constants, in the results too: what a card measures can be put in their place.
fn constants(bench: &mut Bench) {
    let [h100, h200] = Card::ALL.map(|card| card.constants());
    let row = |((name, unit, of_h100), (.., of_h200)): (dsv2_predict::Constant, dsv2_predict::Constant)| {
        vec![name.to_string(), unit.to_string(), format!("{of_h100:e}"), format!("{of_h200:e}")]
    };
    bench.table(
        "What predictions take to be true of the cards",
        "constant | unit | H100 | H200",
        h100.into_iter().zip(h200).map(row).collect(),
        &["memory and products were measured on such cards by others; the rest are estimates, which the first run on a card is to \
           correct. benches/predict/src/card.rs says what each means and where it is from."],
    );
    for card in Card::ALL {
        for (name, unit, value) in card.constants() {
            let id = format!("kernels/cards/{}/{name}", card.name.to_lowercase());
            bench.keep(Measurement::exact(id, unit, Better::Neither, value));
        }
    }
}

const STEPS: &str = "step | launches | of a layer | layer: floor, us | H100, us | H200, us | of the floor | \
                     step: floor, ms | H100, ms | H200, ms | of the floor";

const OF_STEPS: [&str; 2] = [
    "Greedy, bf16, random weights. The launches are those of the step that the model captures in its full size; each is counted \
     once by the emulator, in a model of one layer in full width. The layer is one with experts. Floor: the bytes that no launch \
     of the step has written (weights, cache, tables), at the memory's bandwidth of an H200.",
    "A prediction is the largest term of each launch and 1.25 us to get to the next: what overlaps badly takes longer, so \
     read it as what the counts allow at best. V2 has 40 of its 160 experts here, of which a token meets six \
     all the same: only its router is smaller for it.",
];

const LINES: &str = "kernel | blocks | in the step | in a layer | memory | l2 | issue | shared | tensor | chain | limit | \
                     H100 | H200 | floor | of the floor";

const OF_LINES: &str = "A line is a launch; how often the step has it, and how often the last layer. Terms as above.";
