//! Which mutants compute a stage that is wrong, and what it costs to find out.

use dsv2_reference::DeepseekV2Config;
use dsv2_reference::stage::{Stage, flow};
use indexmap::IndexSet;

use super::{Trials, applicable, best};
use crate::case::Case;
use crate::mutants::Mutant;

/// What came of asking for names.
pub enum Named {
    /// These mutants compute all that the dump holds, the best first; no other can tell them apart.
    All(Vec<&'static Mutant>),
    /// These compute the stage, but not all that the dump holds.
    Stage(Vec<&'static Mutant>),
    /// None does.
    Nobody,
    /// It would take too long: so many runs of the model.
    TooMany(usize),
}

/// How many multiplications are done for names, in all runs of the model together. It takes 1 to 4 seconds on one core.
pub const MOST_WORK: f64 = 4e9;

/// The mutants between the stages that `stage` is judged from and itself whose values are those of the dump. `names` are
/// all stages of the model.
pub fn named(trials: &Trials<'_>, stage: &str, names: &IndexSet<String>) -> Named {
    let case = trials.case();
    let suspects = suspects(case, stage, names, |name| trials.held(name));
    if are_too_many(&suspects, case) {
        return Named::TooMany(suspects.len());
    }
    let reference = trials.distances(&[]);
    let wrong: Vec<&str> = reference.wrong().collect();
    let (mut all, mut of_stage) = (Vec::new(), Vec::new());
    for mutant in suspects {
        let distances = trials.distances(&[mutant]);
        let own = distances.get(stage);
        if !own.explains(reference.get(stage)) {
            continue;
        }
        if distances.fit() {
            all.push((own.error, mutant));
        } else if distances.wrong().all(|name| wrong.contains(&name)) {
            of_stage.push((own.error, mutant));
        }
    }
    let best = |found| best(found, |(error, _)| *error).into_iter().map(|(_, mutant)| mutant).collect();
    match (all.is_empty(), of_stage.is_empty()) {
        (false, _) => Named::All(best(all)),
        (true, false) => Named::Stage(best(of_stage)),
        (true, true) => Named::Nobody,
    }
}

/// The mutants that may compute `stage` of a dump that holds so much. `names` are all stages of the model.
pub fn suspects(
    case: &Case,
    stage: &str,
    names: &IndexSet<String>,
    held: impl Fn(&str) -> bool,
) -> Vec<&'static Mutant> {
    let between = between(stage, names, &case.config, held);
    applicable(case).filter(|mutant| acts_at(mutant, &between)).collect()
}

/// Whether there is time to try one, at least.
pub fn may_be_tried(case: &Case) -> bool {
    work(case) <= MOST_WORK
}

/// Whether it takes too long to try them.
pub fn are_too_many(suspects: &[&Mutant], case: &Case) -> bool {
    suspects.len() as f64 * work(case) > MOST_WORK
}

/// The kinds of stage from those that `stage` is judged from, which are not among them, up to itself.
fn between(
    stage: &str,
    names: &IndexSet<String>,
    config: &DeepseekV2Config,
    held: impl Fn(&str) -> bool,
) -> Vec<&'static str> {
    let sources = flow::sources(stage, config, |name| names.contains(name), held);
    let all = sources.not_held.iter().map(String::as_str).chain([stage]);
    all.filter_map(|name| Some(Stage::parse(name)?.kind)).collect()
}

fn acts_at(mutant: &Mutant, kinds: &[&str]) -> bool {
    mutant.variant.acts().any(|(at, _)| at.iter().any(|kind| kinds.contains(kind)))
}

/// About how many multiplications one run of a case takes.
pub fn work(case: &Case) -> f64 {
    let c = &case.config;
    let tokens = (case.inputs.batch() * case.inputs.length()) as f64;
    let active = match (c.experts_per_token(), c.num_experts()) {
        (Ok(k), experts) if experts > 0 => k as f64 / experts as f64,
        _ => 1.0,
    };
    let of_weight = |(name, shape): (String, Vec<usize>)| {
        let routed = name.contains(".experts.") && !name.contains("shared");
        shape.iter().product::<usize>() as f64 * if routed { active } else { 1.0 }
    };
    let weights: f64 = c.weight_shapes(case.head, case.dialect).into_iter().map(of_weight).sum();
    let heads = (c.num_attention_heads * (c.qk_head_dim() + c.v_head_dim) * c.num_hidden_layers) as f64;
    tokens * (weights + case.inputs.length() as f64 * heads)
}
