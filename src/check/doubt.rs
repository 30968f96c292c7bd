//! Doubt: a stage that is judged from far back, and is off by about as much as it may be.
//!
//! The factors of the budgets are [1.5 times](MARGIN) what a right implementation was ever seen to have. Where a stage is
//! judged from its very inputs that margin is never needed, and never missed. From far back the noise of many stages comes
//! together, of which a plain run is one draw; and a bug in one of them may be no larger than that noise. So there, an error
//! within the margin, on either side of the budget, proves nothing: it is left open, and stages between would tell.

use dsv2_metrics::MARGIN;
use dsv2_reference::DeepseekV2Config;
use dsv2_reference::stage::table::{LAYER, NORM};
use dsv2_reference::stage::{Stage, flow};
use indexmap::IndexSet;

use super::conclusion::Inconclusive;
use crate::judge::{Disposition, StageVerdict, Verdict};

/// So many stages between a stage and what it is judged from are far.
pub const FAR_BACK: usize = 3;

/// Leaves open what is in doubt, unless a stage surely fails. Why, if something is left open.
pub fn leave_open(
    verdict: &mut Verdict,
    held: impl Fn(&str) -> bool,
    names: &IndexSet<String>,
    config: &DeepseekV2Config,
) -> Option<Inconclusive> {
    let lacking = |stage: &str| flow::sources(stage, config, |name| names.contains(name), &held).not_held;
    let in_doubt = |stage: &StageVerdict| {
        let near_its_budget = match (stage.disposition, stage.ratio()) {
            (Disposition::Pass, Some(ratio)) => ratio > 1.0 / MARGIN,
            (Disposition::OverBudget, Some(ratio)) => ratio <= MARGIN,
            _ => false,
        };
        near_its_budget && lacking(&stage.stage).len() >= FAR_BACK
    };
    if verdict.stages.iter().any(|stage| stage.disposition.fails() && !in_doubt(stage)) {
        return None;
    }
    let open: Vec<&mut StageVerdict> = verdict.stages.iter_mut().filter(|stage| in_doubt(stage)).collect();
    let first = open.first().map(|stage| stage.stage.clone())?;
    let between = lacking(&first);
    let of_stream = |name: &&String| Stage::parse(name).is_some_and(|stage| [LAYER, NORM].contains(&stage.kind));
    let stream: Vec<String> = between.iter().filter(of_stream).cloned().collect();
    let add = if stream.is_empty() { between.into_iter().collect() } else { stream };
    for stage in open {
        stage.disposition = Disposition::Inconclusive;
    }
    Some(Inconclusive {
        reason: format!(
            "{first} is off by about its budget, and is judged from far back: it may be the noise of the stages between, or a \
             small bug in one of them"
        ),
        add,
    })
}
