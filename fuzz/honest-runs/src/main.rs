//! Honest runs of random models: the judge may not fail one of them.
//!
//! Nearly all sizes are from 1 to 5, where the noise of a stage is the noise of a few numbers. Every model is a function of
//! its seed: `--seed N --models 1` makes one of them again.

mod model;
mod run;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clap::Parser;
use dsv2::Result;
use dsv2::inputs::AttentionMask;
use dsv2::judge::Disposition;
use dsv2_reference::model::cache::CacheFormat;
use fastrand::Rng;
use run::Way;

/// Honest runs of random models, which the judge may not fail.
#[derive(Parser)]
struct Arguments {
    /// The seed of the first model; those after it have the seeds after it
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many models; as many as there is time for, if --seconds says so
    #[arg(long, default_value_t = 1000)]
    models: u64,
    /// No model is begun after so many seconds
    #[arg(long)]
    seconds: Option<u64>,
    /// Plant a known bug in each model, too, and count those that are found
    #[arg(long)]
    mutants: bool,
}

/// What came of one model.
struct Outcome {
    case: String,
    way: Way,
    /// Of each dump, what was wrong with it.
    dumps: Vec<(&'static str, Option<String>)>,
    /// How many of them are inconclusive.
    inconclusive: usize,
    /// The bug that was planted, and whether it was found.
    mutant: Option<(&'static str, bool)>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let end = arguments.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let models = if end.is_some() { u64::MAX } else { arguments.models };
    let next = AtomicU64::new(0);
    let seen: Mutex<BTreeMap<u64, Result<Outcome>>> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Relaxed);
                    if place >= models || end.is_some_and(|end| Instant::now() >= end) {
                        break;
                    }
                    let seed = arguments.seed.wrapping_add(place);
                    let outcome = judged(seed, arguments.mutants);
                    seen.lock().expect("nobody panics").insert(place, outcome);
                }
            });
        }
    });
    let seen = seen.into_inner().expect("nobody panics");
    report(arguments.seed, &seen)
}

fn judged(seed: u64, mutants: bool) -> Result<Outcome> {
    let mut rng = Rng::with_seed(seed);
    let mut case = model::case(&mut rng)?;
    let way = Way::any(&case, &mut rng);
    let whole = way.run(&case)?;
    let (mut dumps, mut inconclusive) = (Vec::new(), 0);
    for (dump, candidate) in run::dumps(&whole, &mut rng) {
        let (judged, verdict) = run::judge(case, candidate, &way)?;
        case = judged;
        let undecided = verdict.stages.iter().any(|stage| stage.disposition == Disposition::Inconclusive);
        inconclusive += usize::from(undecided && verdict.first_failure().is_none());
        let failed = verdict.first_failure().map(|stage| -> Result<String> {
            let flips = run::flips(&case, &whole)?;
            Ok(format!("{}, {flips} layers with near ties that fell the other way", run::describe(stage)))
        });
        dumps.push((dump, failed.transpose()?));
    }
    let mut mutant = None;
    if mutants && let Some((id, candidate)) = run::wrong(&case, way.precision, &mut rng)? {
        let honest_cache = Way { cache: CacheFormat::Plain, ..way };
        let (judged, verdict) = run::judge(case, candidate, &honest_cache)?;
        case = judged;
        mutant = Some((id, !verdict.passes()));
    }
    let (batch, length) = (case.inputs.batch(), case.inputs.length());
    let described = format!(
        "B {batch}, S {length}, {}, logits_to_keep {:?}, chunks {:?}, {:?}, {}, use_cache {}: {}",
        match &case.inputs.attention_mask {
            None => "no mask".to_owned(),
            Some(AttentionMask::Padding(attend)) =>
                format!("{} tokens masked", attend.iter().filter(|real| !**real).count()),
            Some(AttentionMask::Additive(_)) => "a 4-D mask".to_owned(),
        },
        case.inputs.logits_to_keep,
        case.chunks,
        case.head,
        case.dialect.name(),
        case.use_cache,
        serde_json::to_string(&case.config).unwrap_or_default(),
    );
    Ok(Outcome { case: described, way, dumps, inconclusive, mutant })
}

fn report(first: u64, seen: &BTreeMap<u64, Result<Outcome>>) -> ExitCode {
    let (mut dumps, mut wrong, mut inconclusive, mut planted, mut found) = (0, 0, 0, 0, 0);
    for (place, outcome) in seen {
        let seed = first.wrapping_add(*place);
        match outcome {
            Err(error) => {
                wrong += 1;
                println!("seed {seed}: refused: {error}");
            }
            Ok(outcome) => {
                inconclusive += outcome.inconclusive;
                if let Some((id, seen)) = outcome.mutant {
                    planted += 1;
                    found += usize::from(seen);
                    if !seen {
                        println!("seed {seed}: {id} is not found, {:?}\n  {}", outcome.way, outcome.case);
                    }
                }
                for (dump, failed) in &outcome.dumps {
                    dumps += 1;
                    let Some(failed) = failed else { continue };
                    wrong += 1;
                    println!("seed {seed}: false alarm: {dump}, {:?}: {failed}\n  {}", outcome.way, outcome.case);
                }
            }
        }
    }
    println!("{} models, {dumps} dumps: {wrong} false alarms, {inconclusive} inconclusive", seen.len());
    if planted > 0 {
        println!("found {found} of {planted} known bugs");
    }
    if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_that_once_gave_a_false_alarm_do_not() {
        for seed in [
            // a token that goes to the second nearest other choice, or near ties that undo each other
            104_852, 4935, // a width of 1, in which every sum of a row may cancel
            100_048, 101_639,
        ] {
            let outcome = judged(seed, false).expect("a case");
            let failed: Vec<_> =
                outcome.dumps.iter().filter_map(|(dump, failed)| Some((dump, failed.as_ref()?))).collect();
            assert!(failed.is_empty(), "seed {seed}: {failed:?}");
        }
    }
}
