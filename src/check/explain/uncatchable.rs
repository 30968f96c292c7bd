//! Which mutants a dump could not be caught with, because it lacks the stages where they would show.

use std::collections::HashSet;

use dsv2_reference::DeepseekV2Config;
use dsv2_reference::stage::{Stage, flow};
use indexmap::IndexSet;

use crate::mutants::{Class, catalogue};

/// The structural mutants that change no stage of which `held` holds; an equivalent one shows only where it is planted.
/// `names` are all stages of the model.
pub fn uncatchable(
    names: &IndexSet<String>,
    config: &DeepseekV2Config,
    held: impl Fn(&str) -> bool,
) -> Vec<&'static str> {
    let exists = |name: &str| names.contains(name);
    // Backwards, a stage tells of itself if it is held, and of its inputs.
    let mut telling: HashSet<String> = HashSet::new();
    for name in names.iter().rev() {
        if held(name) || telling.contains(name) {
            telling.insert(name.clone());
            telling.extend(flow::inputs(name, config, exists));
        }
    }
    let shows = |class: Class, name: &str| match class {
        Class::Equivalent => held(name),
        _ => telling.contains(name),
    };
    let uncaught = catalogue().filter(|mutant| mutant.class != Class::Precision).filter(|mutant| {
        let planted = |name: &&String| {
            let kind = Stage::parse(name).map(|stage| stage.kind);
            kind.is_some_and(|kind| mutant.variant.acts().any(|(kinds, _)| kinds.contains(&kind)))
        };
        let mut at = names.iter().filter(planted).peekable();
        at.peek().is_some() && !at.any(|name| shows(mutant.class, name))
    });
    uncaught.map(|mutant| mutant.id).collect()
}

#[cfg(test)]
mod tests {
    use dsv2_reference::tap::NoTap;

    use super::*;
    use crate::backend::{Backend, Reference, Settings};
    use crate::golden::GoldenCases;

    #[test]
    fn logits_tell_of_all_but_equivalent_mutants_and_a_router_of_little() {
        let case = GoldenCases::embedded().load("v2").unwrap().case;
        let trace = Reference.run(&case, &Settings::default(), &mut NoTap).unwrap();
        let names: IndexSet<String> = trace.iter().map(|(name, _)| name.to_owned()).collect();
        let by = |held: &str| uncatchable(&names, &case.config, |name| name == held);
        let class = |id: &&'static str| catalogue().find(|mutant| mutant.id == *id).map(|mutant| mutant.class);
        assert!(by("lm_head").iter().all(|id| class(id) == Some(Class::Equivalent)));
        assert!(!by("lm_head").is_empty());
        let early = by("model.layers.0.self_attn.attn_scores");
        assert!(early.contains(&"group_top2") && !early.contains(&"scale_no_mscale"), "{early:?}");
        assert_eq!(uncatchable(&names, &case.config, |_| true), [""; 0]);
    }
}
