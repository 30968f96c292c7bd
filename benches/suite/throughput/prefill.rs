//! Prompts on the CPU reference, and pieces of prompts in both forms of attention.

use criterion::Throughput;
use dsv2_bench_report::Series;
use dsv2_reference::{AttentionForm, LatentCache};

use super::decode::Decoded;
use super::subject::{History, PIECE, Subject, tokens};
use super::{Grid, Measured, cell, digits, name_of, percent, plot, table};
use crate::bench::{Bench, Profile, Seconds};

/// Tokens that are cached before a piece.
pub const CACHED: usize = 2048;

/// What would take criterion's ten samples too long is timed three times: more operations than so many.
const LONG: f64 = 3e10;

/// Seconds of a model's prompts and pieces.
pub struct Prefilled {
    /// By length.
    prompts: Vec<(usize, Option<Seconds>)>,
    /// By new tokens: expanded, absorbed.
    pieces: Vec<(usize, [Option<Seconds>; 2])>,
}

const FORMS: [AttentionForm; 2] = [AttentionForm::Expanded, AttentionForm::Absorbed];

/// Group and name of a prompt.
pub fn prompt_id(model: &str, length: usize) -> (String, String) {
    (format!("throughput/prefill/{model}/expanded"), format!("tokens={length}"))
}

/// Group and name of a piece.
pub fn piece_id(model: &str, form: AttentionForm, new: usize) -> (String, String) {
    (format!("throughput/piece/{model}/{}/context={CACHED}", name_of(form)), format!("tokens={new}"))
}

/// Times prompts from the first token on, then pieces behind a cached context.
pub fn measure(bench: &mut Bench, subject: &Subject, grid: &Grid, decoded: &Decoded) -> Prefilled {
    let prompts = grid.prompts.iter().map(|&length| (length, prompt(bench, subject, length))).collect();
    let mut history = History::new(subject, 1);
    // One new token is a step of decoding.
    let one = FORMS.map(|form| decoded.seconds(form, CACHED, 1));
    let mut pieces = vec![(1, one)];
    for &new in grid.pieces {
        pieces.push((new, FORMS.map(|form| piece(bench, subject, &mut history, form, new))));
    }
    pieces.retain(|(_, forms)| forms.iter().any(Option::is_some));
    if pieces.len() == 1 && pieces[0].0 == 1 {
        pieces.clear();
    }
    Prefilled { prompts, pieces }
}

fn prompt(bench: &mut Bench, subject: &Subject, length: usize) -> Option<Seconds> {
    let mut text = 0;
    let mut routine = || {
        text += 1;
        subject.prefill(text, &mut LatentCache::new(&subject.config, 1), length)
    };
    let (group, name) = prompt_id(subject.name, length);
    if subject.work.prefill_flops(length as f64) > LONG {
        return bench.time_few(&group, &name, rounds(bench), routine);
    }
    let work = Some(Throughput::Elements(length as u64));
    bench.time_after_setup(&group, &name, work, |iterations| (0..iterations).map(|_| routine()).sum())
}

fn piece(
    bench: &mut Bench,
    subject: &Subject,
    history: &mut History,
    form: AttentionForm,
    new: usize,
) -> Option<Seconds> {
    let mut text = 0;
    let mut routine = || {
        text += 1;
        subject.forward(tokens(&subject.config, text, 1, new), history.at(CACHED), form)
    };
    let (group, name) = piece_id(subject.name, form, new);
    let flops = subject.work.prefill_flops(new as f64) + CACHED as f64 * subject.work.key_flops(form);
    if flops > LONG {
        return bench.time_few(&group, &name, rounds(bench), routine);
    }
    let work = Some(Throughput::Elements(new as u64));
    bench.time_after_setup(&group, &name, work, |iterations| (0..iterations).map(|_| routine()).sum())
}

fn rounds(bench: &Bench) -> usize {
    if bench.profile() == Profile::Quick { 2 } else { 3 }
}

/// Tables and plots of all models.
pub fn report(bench: &mut Bench, measured: &[Measured]) {
    report_prompts(bench, measured);
    report_pieces(bench, measured);
}

fn report_prompts(bench: &mut Bench, measured: &[Measured]) {
    let ceilings = bench.ceilings();
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    for Measured { subject, prefilled, .. } in measured {
        let done = prefilled.prompts.iter().filter_map(|&(length, seconds)| Some((length as f64, seconds?.median)));
        for (length, seconds) in done.clone() {
            let floor = ceilings.floor(0.0, subject.work.prefill_flops(length));
            let rate = digits(length / seconds);
            rows.push(vec![subject.name.into(), length.to_string(), digits(seconds), rate, percent(floor / seconds)]);
        }
        let points = done.map(|(length, seconds)| (length, length / seconds)).collect();
        lines.push(Series { name: subject.name.into(), points });
    }
    let columns = ["model", "prompt tokens", "seconds", "tokens/s", "of the floor"];
    let notes = [format!(
        "One sequence, fp32 arithmetic on bf16 weights, in pieces of {PIECE} tokens, expanded form, logits of the last token. Of \
         the floor: the operations that the model needs at least, at the rate of multiplying and adding in registers that \
         was measured in this run, against the time."
    )];
    table(bench, "Prompts on the CPU", &columns, rows, &notes);
    let (x, y) = (("prompt tokens", true), ("tokens/s", true));
    plot(bench, "Prompts on the CPU: tokens per second", "throughput-prefill", x, y, lines);
}

fn report_pieces(bench: &mut Bench, measured: &[Measured]) {
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    for Measured { subject, prefilled, .. } in measured {
        for &(new, forms) in &prefilled.pieces {
            let [expanded, absorbed] = forms.map(|seconds| cell(seconds, |seconds| digits(1e3 * seconds)));
            let ratio = match forms {
                [Some(expanded), Some(absorbed)] => digits(expanded.median / absorbed.median),
                _ => "-".into(),
            };
            rows.push(vec![subject.name.into(), new.to_string(), expanded, absorbed, ratio]);
        }
        let counted = subject.work.break_even;
        notes.extend(crossing(&prefilled.pieces).map(|found| {
            format!("{}: the two cross {found}; by operations alone they do at {counted:.0} new tokens.", subject.name)
        }));
    }
    let columns = ["model", "new tokens", "expanded, ms", "absorbed, ms", "expanded / absorbed"];
    let first = format!(
        "New tokens behind {CACHED} cached ones, in one piece. The expanded form makes keys and values of all cached tokens \
         anew, the absorbed form attends on the latents."
    );
    notes.insert(0, first);
    table(bench, "Expanded or absorbed: pieces of a prompt on the CPU", &columns, rows, &notes);
}

/// Where the expanded form becomes the faster one, on straight lines between logarithms.
fn crossing(pieces: &[(usize, [Option<Seconds>; 2])]) -> Option<String> {
    let ratios: Vec<(f64, f64)> = pieces
        .iter()
        .filter_map(|&(new, [expanded, absorbed])| {
            Some(((new as f64).ln(), (expanded?.median / absorbed?.median).ln()))
        })
        .collect();
    let crossed = ratios.windows(2).find(|pair| pair[0].1 > 0.0 && pair[1].1 <= 0.0);
    match (crossed, ratios.first()?, ratios.last()?) {
        (Some(&[(x0, y0), (x1, y1)]), ..) => {
            Some(format!("at about {:.0} new tokens", (x0 + (x1 - x0) * y0 / (y0 - y1)).exp()))
        }
        (_, first, _) if first.1 <= 0.0 => Some(format!("below {:.0}", first.0.exp())),
        (_, _, last) => Some(format!("above {:.0}", last.0.exp())),
    }
}
