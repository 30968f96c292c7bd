use super::*;
use crate::golden::GoldenCases;
use crate::mutants::tap::Planted;
use crate::mutants::weights::Wide;
use crate::values::Values;

fn mutant(id: &str) -> &'static Mutant {
    catalogue().find(|mutant| mutant.id == id).unwrap()
}

fn dump(case: &Case, mutants: &[&str], precision: Precision, held: &dyn Fn(&str) -> bool) -> Trace {
    let weights = Wide::new(case);
    let settings = Settings { precision, stages: Some(held), ..Settings::default() };
    let variants = mutants.iter().map(|id| &mutant(id).variant).collect();
    Reference.run(case, &settings, &mut Planted::all(variants, &weights, precision).unwrap()).unwrap()
}

fn found(case: &Case, dump: &Trace, precision: Precision) -> Vec<Vec<&'static str>> {
    let found = explain(&Question::new(case, dump, precision), |_, _, _| {}).unwrap();
    found.iter().map(|found| found.changes.iter().map(|change| change.mutant).collect()).collect()
}

#[test]
fn logits_alone_tell_which_rule_is_wrong() {
    let case = GoldenCases::embedded().load("trained-tiny-grouped").unwrap().case;
    // renorm is softmax_after_topk
    for (id, alike) in [("scale_no_mscale", 1), ("group_top2", 1), ("renorm", 2)] {
        let logits = dump(&case, &[id], Precision::F32, &|name| name == "lm_head");
        let found = found(&case, &logits, Precision::F32);
        assert!(found.contains(&vec![id]) && found.len() == alike, "{id}: {found:?}");
    }
}

#[test]
fn a_dump_of_all_stages_is_explained_stage_by_stage() {
    let case = GoldenCases::embedded().load("v2").unwrap().case;
    let all = dump(&case, &["kv_an_over_all"], Precision::Bf16, &|_| true);
    let found = explain(&Question::new(&case, &all, Precision::Bf16), |_, _, _| {}).unwrap();
    assert_eq!(found[0].changes[0].mutant, "kv_an_over_all");
    assert_eq!(found[0].stage, "model.layers.0.self_attn.kv_a_layernorm");
}

#[test]
fn two_changes_at_once_are_found_where_no_single_one_fits() {
    let case = GoldenCases::embedded().load("v2").unwrap().case;
    for held in ["", "lm_head"] {
        let dump = dump(&case, &["scale_no_mscale", "no_gamma"], Precision::F32, &|name| name.ends_with(held));
        assert_eq!(found(&case, &dump, Precision::F32), [["scale_no_mscale", "no_gamma"]], "{held}");
    }
}

#[test]
fn nothing_is_explained_where_nothing_is_wrong_or_nothing_fits() {
    let case = GoldenCases::embedded().load("v2").unwrap().case;
    let right = dump(&case, &[], Precision::F32, &|name| name == "lm_head");
    assert!(found(&case, &right, Precision::F32).is_empty());
    let noise = right.iter().map(|(name, values)| match values {
        Values::Real(dtype, a) => (name.to_owned(), Values::Real(*dtype, a.mapv(|x| (1e3 * x).sin()))),
        other => (name.to_owned(), other.clone()),
    });
    let (mut runs, mut all) = (0, 0);
    let noise = noise.collect();
    let found = explain(&Question::new(&case, &noise, Precision::F32), |done, of, _| (runs, all) = (done, of)).unwrap();
    assert!(found.is_empty() && runs == all && all <= catalogue().count() + PAIRS, "{runs} of {all}");
}
