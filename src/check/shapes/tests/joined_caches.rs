//! A decoding step whose cache is one tensor: what it should be is made of what was there before, in the order in which that lies.

use super::*;

/// The cached latents and rotary keys of each layer in one tensor, side by side.
fn joined(dump: &Trace, key_first: bool) -> Trace {
    let side_by_side = |(name, values): (&str, &Values)| {
        let Some(layer) = name.strip_prefix("past_key_values.") else { return Some((name.to_owned(), values.clone())) };
        let layer = layer.strip_suffix(".compressed_kv")?;
        let key = dump.get(&format!("past_key_values.{layer}.k_pe"))?.real()?;
        let parts = [values.real()?.view(), key.view()];
        let [first, second] = if key_first { [1, 0] } else { [0, 1] };
        let both = concatenate(Axis(2), &[parts[first].clone(), parts[second].clone()]).unwrap();
        Some((format!("past_key_values.{layer}"), Values::Real(values.dtype()?, both)))
    };
    dump.iter().filter_map(side_by_side).collect()
}

#[test]
fn a_step_is_judged_by_a_cache_in_one_tensor_whichever_comes_first_in_it() {
    for name in ["v2", "v2-lite", "left-padding"] {
        let whole = Case { use_cache: true, ..golden(name) };
        for precision in TYPES {
            let (case, all) = (decoding(&whole, 2), run(&whole, precision));
            let dumps = [all.clone(), step(&all, 2, false), step(&all, 2, true)];
            for (dump, key_first) in dumps.iter().flat_map(|dump| [(dump, false), (dump, true)]) {
                println!("{name} {precision}, key first: {key_first}");
                let checked = judged(&case, joined(dump, key_first), precision);
                assert!(checked.verdict.passes(), "{:?}", checked.verdict.first_failure());
                let cached: usize = checked.verdict.stages.iter().filter(|stage| is_cached(&stage.stage)).count();
                assert_eq!(cached, 2 * case.config.num_hidden_layers, "every latent and every key is compared");
                for wrong in ["past_key_values.1.compressed_kv", "past_key_values.1.k_pe"] {
                    fails_at(wrong, &case, joined(&scaled(dump, wrong, 1.05), key_first), precision);
                }
            }
        }
    }
}

/// In the rows that a step found in its cache, or in those that it added, what should be is what the dump has.
#[test]
fn what_is_said_of_a_cache_is_said_of_the_rows_that_were_judged() {
    let halves_swapped = |a: &mut ArrayD<f64>| {
        let half = a.shape()[2] / 2;
        let [first, second] = [Slice::from(..half), Slice::from(half..)];
        *a = concatenate(Axis(2), &[second, first].map(|half| a.slice_axis(Axis(2), half))).unwrap();
    };
    let too_large_before =
        |a: &mut ArrayD<f64>| a.slice_axis_mut(Axis(1), Slice::from(..-1)).mapv_inplace(|x| x * 1.05);
    type Change = fn(&mut ArrayD<f64>);
    let cases: [(Change, &str); 2] = [
        (halves_swapped, "of the new tokens: each row holds the right numbers in another order"),
        (too_large_before, "of what was cached before the step: every number is 1.05 times what it should be"),
    ];
    for (name, (wrong, says)) in
        ["v2", "v2-lite", "left-padding"].into_iter().flat_map(|name| cases.map(|case| (name, case)))
    {
        let whole = Case { use_cache: true, ..golden(name) };
        let (case, all) = (decoding(&whole, 1), run(&whole, Precision::F32));
        let dump = each(&step(&all, 1, false), |name, a| {
            let mut a = a.clone();
            if is_cached(name) && name.ends_with(".k_pe") {
                wrong(&mut a);
            }
            Some(a)
        });
        for key_first in [false, true] {
            let said = judged(&case, joined(&dump, key_first), Precision::F32).hint.unwrap_or_default().says;
            // wrong keys that come first do not show that they do
            assert!(key_first || said.iter().any(|said| said == says), "{name}: {said:?}");
            assert!(!said.iter().any(|said| said.contains("only the last token")), "{name}: {said:?}");
        }
    }
}

fn is_cached(stage: &str) -> bool {
    stage.starts_with("past_key_values")
}
