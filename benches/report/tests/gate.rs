//! When is a newer run worse than an older one?

use dsv2_bench_report::compare::{Change, Verdict, compare};
use dsv2_bench_report::{Better, Machine, Measurement, Results, Run};

/// 1 s or 1/s, known to 1 %.
fn timed(id: &str, better: Better, value: f64) -> Measurement {
    Measurement::sampled(id, "s", better, [0.99 * value, value, 1.01 * value], 10)
}

/// A run with 5 % of noise.
fn run(measurements: Vec<Measurement>) -> Run {
    Run { command: "cargo bench".into(), profile: "full".into(), noise: 0.05, measurements, ..Run::default() }
}

fn results(measurements: Vec<Measurement>) -> Results {
    Results::new(vec![run(measurements)])
}

fn verdict(old: Measurement, new: Measurement) -> Verdict {
    let changes = compare(&results(vec![old]), &results(vec![new]));
    assert_eq!(changes.len(), 1);
    changes[0].verdict
}

fn time(seconds: f64) -> Measurement {
    timed("decode", Better::Less, seconds)
}

fn rate(rate: f64) -> Measurement {
    timed("decode", Better::More, rate)
}

#[test]
fn a_time_is_worse_beyond_the_noise_of_the_runs_and_better_as_far_on_the_other_side() {
    assert_eq!(verdict(time(1.0), time(1.06)), Verdict::Worse);
    assert_eq!(verdict(time(1.0), time(1.04)), Verdict::Same);
    assert_eq!(verdict(time(1.0), time(1.0)), Verdict::Same);
    assert_eq!(verdict(time(1.0), time(0.96)), Verdict::Same);
    assert_eq!(verdict(time(1.0), time(0.94)), Verdict::Better);
}

#[test]
fn of_a_rate_more_is_better() {
    assert_eq!(verdict(rate(1.0), rate(0.94)), Verdict::Worse);
    assert_eq!(verdict(rate(1.0), rate(0.96)), Verdict::Same);
    assert_eq!(verdict(rate(1.0), rate(1.06)), Verdict::Better);
}

#[test]
fn the_noisier_run_decides() {
    let noisy = Results::new(vec![Run { noise: 0.5, ..run(vec![time(1.4)]) }]);
    assert_eq!(compare(&results(vec![time(1.0)]), &noisy)[0].verdict, Verdict::Same);
    assert_eq!(compare(&noisy, &results(vec![time(2.0)]))[0].verdict, Verdict::Same);
    assert_eq!(compare(&noisy, &results(vec![time(2.2)]))[0].verdict, Verdict::Worse);
}

#[test]
fn intervals_that_overlap_are_no_difference() {
    let uncertain = Measurement { low: 0.9, ..time(1.2) };
    assert_eq!(verdict(time(1.0), uncertain), Verdict::Same);
}

#[test]
fn a_slower_machine_is_no_slower_program() {
    let with_control =
        |seconds, bandwidth| results(vec![time(seconds), timed("ceilings/read", Better::More, bandwidth)]);
    let old = with_control(1.0, 20e9);
    let verdict = |new: &Results| compare(&old, new)[0].verdict;
    assert_eq!(verdict(&with_control(1.25, 16e9)), Verdict::Same);
    assert_eq!(verdict(&with_control(1.35, 16e9)), Verdict::Worse);
    // A faster machine is no excuse.
    assert_eq!(verdict(&with_control(1.1, 30e9)), Verdict::Worse);
    // The control itself is not judged.
    assert_eq!(compare(&old, &with_control(1.0, 10e9))[1].verdict, Verdict::NotJudged);
}

#[test]
fn one_byte_more_is_worse_even_on_another_machine_and_a_time_is_not_judged_there() {
    let bytes = |bytes| Measurement::exact("cache", "B", Better::Less, bytes);
    let elsewhere = |measurements| {
        Results::new(vec![Run { machine: Machine { threads: 64, ..Machine::default() }, ..run(measurements) }])
    };
    let changes = compare(&results(vec![bytes(100.0), time(1.0)]), &elsewhere(vec![bytes(101.0), time(9.0)]));
    assert_eq!([changes[0].verdict, changes[1].verdict], [Verdict::Worse, Verdict::NotJudged]);
    assert_eq!(verdict(bytes(100.0), bytes(99.0)), Verdict::Better);
}

#[test]
fn what_is_neither_better_nor_worse_is_not_judged() {
    let experts = |count| Measurement::exact("experts", "", Better::Neither, count);
    assert_eq!(verdict(experts(50.0), experts(60.0)), Verdict::NotJudged);
}

#[test]
fn what_is_gone_is_a_regression_if_the_same_program_ran_again() {
    let old = Results::new(vec![
        run(vec![time(1.0), timed("prefill", Better::Less, 1.0)]),
        Run { command: "python run.py".into(), ..run(vec![timed("peers", Better::Less, 1.0)]) },
    ]);
    let changes = compare(&old, &results(vec![time(1.0), timed("headline", Better::Less, 1.0)]));
    let found: Vec<_> = changes.iter().map(|change| (&*change.id, change.verdict, change.is_regression())).collect();
    let expected =
        [("decode", Verdict::Same, false), ("prefill", Verdict::Gone, true), ("headline", Verdict::New, false)];
    assert_eq!(found, expected);
}

#[test]
fn a_change_says_by_how_much() {
    let changes = compare(&results(vec![time(2.0)]), &results(vec![time(3.0)]));
    let [Change { allowed, .. }] = &changes[..] else { panic!("{changes:?}") };
    assert_eq!((changes[0].ratio(), *allowed), (Some(1.5), 1.05));
}
