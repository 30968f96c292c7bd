//! The judge, judged: bugs are planted in the reference, and have to be found where they are; what is right must pass.

use dsv2::backend::{Backend, Precision, Reference, Settings};
use dsv2::golden::GoldenCases;
use dsv2::mutants::benign::benign;
use dsv2::mutants::explain::{Question, explain};
use dsv2::mutants::tap::Planted;
use dsv2::mutants::weights::Wide;
use dsv2::mutants::{Class, Mutant, catalogue};
use dsv2::score::dumps::{ALL, DumpKind, KINDS};
use dsv2::score::report::{self, short};
use dsv2::score::{DumpScore, MutantScore, Score, Subjects, Survivor, Trials, run};
use dsv2_reference::Dialect;

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// Cases that differ in what matters to many mutants; each mutant is tried on two of them.
const CASES: [&str; 13] = [
    "trained-tiny-grouped",
    "v2-lite",
    "chunked-prefill",
    "small-variance",
    "tight-groups",
    "many-groups",
    "v2",
    "left-padding",
    "decode-left-padding",
    "gapped-positions",
    "far-positions",
    "trained-tiny-greedy",
    "v2-5",
];

/// Cases for mutants that none of those can show: other activations, rope types, masks, heads.
const SPECIAL_CASES: [&str; 19] = [
    "mscale-differs",
    "mscale-lone",
    "pre515-yarn",
    "yarn-attention-factor",
    "yarn-betas",
    "rope-linear",
    "rope-dynamic",
    "epsilon-inner-norms",
    "bias-lite",
    "gelu-tanh",
    "relu",
    "packed",
    "mask-4d-bias",
    "mask-4d-zeros",
    "labels",
    "labels-right-padding",
    "classify-multi-label",
    "classify-no-pad",
    "odd-dims",
];

fn score(cases: &[&str], most: usize, dumps: Vec<&'static DumpKind>, subjects: Subjects) -> Score {
    let golden = GoldenCases::embedded();
    let cases = cases.iter().map(|&case| case.to_owned()).collect();
    let plan = Trials {
        golden: &golden,
        cases,
        precisions: PRECISIONS.to_vec(),
        dumps,
        hints: false,
        subjects,
        most,
        at_a_time: usize::MAX,
    };
    let findings = run(&plan, |_, _| {}).unwrap();
    Score::new(&plan, &findings)
}

/// Cases on which a judge that takes an expert's near tie for noise lets wrong dumps pass, and flags right ones.
const NEAR_TIES: [&str; 4] = ["v2", "many-groups", "left-padding", "tight-groups"];

/// Kill, stage named and order of magnitude of the ratio, for each type.
fn line(score: &MutantScore) -> String {
    let in_precision = score.in_precision.iter().map(|of| {
        let found = match (of.killed, of.best) {
            (0, _) => "-".to_owned(),
            (_, best) if best.is_infinite() => "10^∞".to_owned(),
            (_, best) => format!("10^{}", best.log10().floor()),
        };
        let named = if of.right_stage == of.killed { "" } else { " (misnamed)" };
        format!("{}: {found}{named}", of.precision)
    });
    let Mutant { id, class, .. } = score.mutant;
    let class = format!("{class:?}").to_lowercase();
    let in_precision: Vec<_> = in_precision.collect();
    format!("{id:<30} {class:<10} {:<35} {}", short(score.mutant.stage()), in_precision.join("  "))
}

#[test]
fn planted_bugs_are_found_where_they_are_and_right_implementations_pass() {
    let common = score(&CASES, 2, vec![&ALL], Subjects { mutants: catalogue().collect(), benign: benign().collect() });
    let tried: Vec<&str> = common.mutants.iter().map(|score| score.mutant.id).collect();
    let rest = catalogue().filter(|mutant| !tried.contains(&mutant.id)).collect();
    let special = score(&SPECIAL_CASES, 1, vec![&ALL], Subjects { mutants: rest, benign: Vec::new() });

    for score in [&common, &special] {
        assert!(score.totals().good(), "{}\n{}", report::faults(score).join("\n"), report::totals(score));
    }
    let tried: Vec<&MutantScore> = common.mutants.iter().chain(&special.mutants).collect();
    let untried: Vec<&str> =
        catalogue().map(|mutant| mutant.id).filter(|id| !tried.iter().any(|score| score.mutant.id == *id)).collect();
    let mut lines: Vec<String> = tried.into_iter().map(line).collect();
    lines.push(format!("not tried: {}", untried.join(", ")));
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn nothing_wrong_that_shows_passes_in_dumps_that_programs_give_and_nothing_right_fails() {
    let dumps = KINDS.into_iter().filter(|kind| !kind.is(&ALL)).collect();
    let score = score(
        &NEAR_TIES,
        NEAR_TIES.len(),
        dumps,
        Subjects { mutants: catalogue().collect(), benign: benign().collect() },
    );
    let mut lines = vec![report::dumps_table(&score, false)];
    for of in &score.dumps {
        let named = |survivors: &[Survivor]| {
            let named = survivors.iter().map(|of| format!("{} on {}", of.mutant, of.case));
            named.collect::<Vec<_>>().join(", ")
        };
        let of_kind = format!("{} in {}", of.dump.name, of.precision);
        lines.push(format!("{of_kind}, inconclusive: {}", named(&of.inconclusive)));
        lines.push(format!("{of_kind}, invisible: {}", named(&of.invisible)));
    }
    insta::assert_snapshot!(lines.join("\n"));
    assert!(score.dumps.iter().all(DumpScore::good), "{}", report::faults(&score).join("\n"));
}

#[test]
fn a_dump_that_ignores_norm_topk_prob_is_explained_in_the_dialect_that_honours_it() {
    let mut case = GoldenCases::embedded().load("trained-tiny-greedy").unwrap().case;
    (case.dialect, case.config.norm_topk_prob) = (Dialect::Deepseek, true);
    let mutant = catalogue().find(|mutant| mutant.id == "norm_topk_ignored").unwrap();
    let weights = Wide::new(&case);
    let logits = |name: &str| name == "lm_head";
    let settings = Settings { precision: Precision::F32, stages: Some(&logits), ..Settings::default() };
    let mut tap = Planted::new(&mutant.variant, &weights, Precision::F32).unwrap();
    let dump = Reference.run(&case, &settings, &mut tap).unwrap();
    let found = explain(&Question::new(&case, &dump, Precision::F32), |_, _, _| {}).unwrap();
    let found: Vec<&str> = found.iter().flat_map(|found| &found.changes).map(|change| change.mutant).collect();
    assert_eq!(found, ["norm_topk_ignored"]);
}

#[test]
fn every_mutant_has_a_name_of_its_own() {
    let mut ids: Vec<&str> = catalogue().map(|mutant| mutant.id).chain(benign().map(|benign| benign.id)).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all);
    assert!(catalogue().filter(|mutant| mutant.class == Class::Structural).count() >= 70);
}
