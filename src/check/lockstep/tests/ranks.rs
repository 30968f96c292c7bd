//! The files of the ranks of a parallel run.

use std::collections::BTreeMap;

use ndarray::{ArrayD, Axis};

use super::*;
use crate::check::shards::plans::{How, PLANS};

/// What two ranks of vLLM or Megatron hold of a trace, by a rule.
fn two_ranks(trace: &Trace, rule: &Rule, batch: usize) -> [Trace; 2] {
    let halves = |a: &ArrayD<f64>, axis: usize| {
        let (first, second) = a.view().split_at(Axis(axis), a.len_of(Axis(axis)) / 2);
        [first.to_owned(), second.to_owned()]
    };
    let flat_by_sequence = |a: &ArrayD<f64>| a.ndim() == 2 && batch > 1;
    let mut ranks = [Vec::new(), Vec::new()];
    for (name, values) in trace.iter() {
        let parts = match (rule.how(name), values) {
            (How::Columns, Values::Real(dtype, a)) => halves(a, a.ndim() - 1).map(|a| Values::Real(*dtype, a)),
            (How::Heads, Values::Real(dtype, a)) => halves(a, 1).map(|a| Values::Real(*dtype, a)),
            (How::Sequence, Values::Real(dtype, a)) if !flat_by_sequence(a) => {
                halves(a, if a.ndim() == 3 { 1 } else { 0 }).map(|a| Values::Real(*dtype, a))
            }
            (How::Sum, Values::Real(dtype, a)) => {
                let first =
                    ArrayD::from_shape_fn(a.raw_dim(), |at| if a[&at].to_bits() >> 30 & 1 == 0 { 0.0 } else { a[&at] });
                [first.clone(), a - &first].map(|a| Values::Real(*dtype, a))
            }
            (_, values) => [values.clone(), values.clone()],
        };
        ranks.iter_mut().zip(parts).for_each(|(rank, part)| rank.push((name.to_owned(), part)));
    }
    ranks.map(|rank| rank.into_iter().collect())
}

/// What both ways say of the files of ranks: stage by stage, and read whole.
fn both_of_ranks(request: &mut Request, ranks: &[Trace], rule: &Rule) -> Result<(Option<String>, String), [String; 2]> {
    let folder = folder();
    let paths: Vec<PathBuf> = (0..ranks.len()).map(|rank| folder.path().join(format!("{rank}.safetensors"))).collect();
    ranks.iter().zip(&paths).for_each(|(rank, path)| rank.write(path).unwrap());
    let candidates = Candidates::open(&paths, Some(rule), &request.case);
    let files: Vec<_> = paths.iter().map(|path| (path.display().to_string(), Trace::read(path).unwrap())).collect();
    let joined = shards::join(&files, rule, &request.case);
    match (candidates, joined) {
        (Ok(candidates), Ok(joined)) => {
            let stepwise = candidates.check(request, false, &mut |_, _, _| ()).unwrap().map(said);
            request.case.partial_sums = joined.sums;
            let whole = shards::judge_ranks(joined, |dump, _| {
                request.candidate = dump;
                check_without_hint(request).map(Some)
            });
            Ok((stepwise, whole.unwrap().map(said).expect("each rank was judged")))
        }
        (candidates, joined) => {
            let refused = |error: Option<crate::Error>| error.map_or_else(String::new, |error| error.to_string());
            Err([refused(candidates.err()), refused(joined.err())])
        }
    }
}

#[test]
fn the_ranks_of_every_plan_are_judged_to_the_bit_as_if_they_were_read_whole() {
    let mut judged = BTreeMap::<&str, usize>::new();
    let even = |request: &Request| request.case.config.num_attention_heads.is_multiple_of(2);
    let requests =
        cases().into_iter().filter(even).step_by(4).chain(cases().into_iter().find(|request| !even(request)));
    for (number, mut request) in requests.enumerate() {
        let dump = dumped(&request, [Precision::F32, Precision::Bf16][number / 4 % 2]);
        for plan in PLANS {
            let rule: Rule = plan.name.parse().unwrap();
            let right = two_ranks(&dump, &rule, request.case.inputs.batch());
            let changed = |rank: usize, leaf: &str, factor: f64| {
                let mut ranks = right.clone();
                ranks[rank] = renamed(&right[rank], |name, values| match values {
                    Values::Real(dtype, a) if name.ends_with(leaf) => {
                        (name.to_owned(), Values::Real(*dtype, a.mapv(|x| f64::from((x * factor) as f32))))
                    }
                    values => (name.to_owned(), values.clone()),
                });
                ranks
            };
            let (ranks, what) = match number % 4 {
                0 => (changed(1, "layers.1", 1.01), "a copy is wrong"),
                1 => (changed(1, "layers.1", 1.0 + 1e-7), "a copy is another"),
                2 => (changed(1, "experts", 0.0), "a part is lost"),
                _ => (right, "right"),
            };
            let (stepwise, whole, what) = match both_of_ranks(&mut request, &ranks, &rule) {
                Ok((Some(stepwise), whole)) => (stepwise, whole, what),
                Ok((None, _)) => continue,
                Err([stepwise, whole]) => (stepwise, whole, "refused"),
            };
            assert!(stepwise == whole, "{} {what}:\n{stepwise}\nread whole:\n{whole}", plan.name);
            *judged.entry(what).or_default() += 1;
        }
    }
    assert!(judged.len() == 5, "{judged:?}");
}
