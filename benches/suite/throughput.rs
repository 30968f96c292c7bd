//! Tokens per second: prompts and decoding, against the length of the context and the number of sequences, on the CPU
//! reference (expanded and absorbed) and on a GPU.
//!
//! Every sequence has its own random text: sequences that share a text share their experts, and a batch of them looks
//! faster than any real one. Where a step is timed again and again at the same context, its tokens change, so that other
//! experts are read from memory each time.

mod decode;
mod device;
mod growth;
mod prefill;
mod subject;
mod work;

use dsv2_bench_report::{Axis, Plot, Series, Table};
use dsv2_reference::AttentionForm;

use crate::bench::{Bench, Profile, Seconds};
use decode::Decoded;
use prefill::Prefilled;
use subject::Subject;

/// What is measured of each model.
struct Grid {
    /// Lengths of prompts.
    prompts: &'static [usize],
    /// New tokens after [`prefill::CACHED`] ones, besides one.
    pieces: &'static [usize],
    /// Cached tokens of one sequence that is decoded, besides [`decode::SHORT`].
    contexts: &'static [usize],
    /// Sequences that are decoded together.
    batches: &'static [usize],
}

const QUICK: Grid = Grid { prompts: &[128, 512], pieces: &[16, 256], contexts: &[512, 2048], batches: &[1, 4, 16] };
const FULL: Grid = Grid {
    prompts: &[128, 512, 2048, 4096],
    pieces: &[4, 16, 64, 256],
    contexts: &[512, 1024, 2048, 4096],
    batches: &[1, 2, 4, 8, 16, 32],
};
/// For a model whose steps are cheap enough to see how the cost goes on.
const FULL_LONG: Grid = Grid { contexts: &[512, 1024, 2048, 4096, 16384], ..FULL };

/// Everything of a model.
struct Measured<'a> {
    subject: &'a Subject,
    prefilled: Prefilled,
    decoded: Decoded,
}

/// Measures the models on the CPU and, if there is one, on the GPU.
pub fn run(bench: &mut Bench) {
    let mid = Subject::mid();
    let mut subjects = vec![(&mid, if bench.profile() == Profile::Quick { QUICK } else { FULL_LONG })];
    let lite = if bench.profile() == Profile::Full { v2_lite_4(bench) } else { None };
    subjects.extend(lite.as_ref().map(|lite| (lite, FULL)));
    let measured: Vec<Measured> = subjects
        .into_iter()
        .map(|(subject, grid)| {
            // Decoding first: the prompts' pieces are compared with its steps.
            let decoded = decode::measure(bench, subject, &grid);
            let prefilled = prefill::measure(bench, subject, &grid, &decoded);
            Measured { subject, prefilled, decoded }
        })
        .collect();
    prefill::report(bench, &measured);
    decode::report(bench, &measured);
    growth::report(bench, &measured);
    device::run(bench);
}

/// The large model, if the command line wants anything of it: making it takes time and 4.5 GB of disk.
fn v2_lite_4(bench: &mut Bench) -> Option<Subject> {
    let name = "v2-lite-4";
    let prompts = FULL.prompts.iter().map(|length| prefill::prompt_id(name, *length));
    let forms = [AttentionForm::Expanded, AttentionForm::Absorbed];
    let pieces = FULL.pieces.iter().flat_map(|new| forms.map(|form| prefill::piece_id(name, form, *new)));
    let contexts = FULL.contexts.iter().flat_map(|context| forms.map(|form| decode::id(name, form, *context, 1)));
    let batches = FULL.batches.iter().map(|batch| decode::id(name, forms[1], decode::SHORT, *batch));
    let expanded = std::iter::once(decode::id(name, forms[0], decode::SHORT, 1));
    let mut ids = prompts.chain(pieces).chain(contexts).chain(batches).chain(expanded);
    if !ids.any(|(group, name)| bench.wants(&format!("{group}/{name}"))) {
        return None;
    }
    match Subject::v2_lite_4() {
        Ok(subject) => Some(subject),
        Err(error) => {
            bench.not_run("throughput of v2-lite-4 on the CPU", error);
            None
        }
    }
}

fn name_of(form: AttentionForm) -> &'static str {
    match form {
        AttentionForm::Expanded => "expanded",
        AttentionForm::Absorbed => "absorbed",
    }
}

/// A number with three digits that say something.
fn digits(value: f64) -> String {
    let after_point = if value.abs() >= 100.0 { 0 } else { usize::from(value.abs() < 10.0) + 1 };
    format!("{value:.after_point$}")
}

/// What can be said of something measured, or a dash.
fn cell(seconds: Option<Seconds>, text: impl Fn(f64) -> String) -> String {
    seconds.map_or("-".into(), |seconds| text(seconds.median))
}

fn percent(part: f64) -> String {
    format!("{:.0} %", 100.0 * part)
}

/// A table, unless it is empty.
fn table(bench: &mut Bench, title: &str, columns: &[&str], rows: Vec<Vec<String>>, notes: &[String]) {
    if !rows.is_empty() {
        let columns = columns.iter().map(|column| column.to_string()).collect();
        bench.table(Table { section: "throughput".into(), title: title.into(), columns, rows, notes: notes.into() });
    }
}

/// A plot of lines that have points.
fn plot(bench: &mut Bench, title: &str, file: &str, x: (&str, bool), y: (&str, bool), series: Vec<Series>) {
    let axis = |(label, log): (&str, bool)| Axis { label: label.into(), log };
    let series = series.into_iter().filter(|series| !series.points.is_empty()).collect();
    let (section, title, file) = ("throughput".into(), title.into(), file.into());
    bench.plot(Plot { section, title, file, x: axis(x), y: axis(y), series });
}
