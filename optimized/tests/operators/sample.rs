//! Sampling: every token of a nucleus is drawn by its own part of the uniform numbers and no token outside; ties at the
//! edge; a whole vocabulary; and both kernels draw the same.

use std::sync::Arc;

use dsv2_optimized::operators::sample::sample;
use dsv2_optimized::{Device, Element, Emulated, Library, Result, Tensor, Variant};
use libtest_mimic::{Failed, Trial};
use ndarray::Array2;

use crate::harness::{Case, Output, output, random, upload};

/// How far from the ends of its part a token is drawn, relative to the part: well beyond fp32's errors.
const INSIDE: f64 = 1e-2;
/// Tokens with a smaller part of the nucleus are not asked for.
const SMALL: f64 = 1e-4;

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for element in [Element::F32, Element::Bf16] {
        for variant in Variant::ALL {
            let case = |shape: &str, watched, run| Case {
                name: format!("sample/{variant}/{element}/{shape}"),
                module: "sample",
                watched,
                run,
            };
            cases.push(case("limits", false, Box::new(move |device| limits(device, variant, element))));
            for (vocab, temperature, top_p) in
                [(1, 1.0, 0.5), (5, 1.0, 0.6), (37, 0.7, 1.0), (40, 1.5, 0.9), (600, 0.3, 0.8), (102_400, 0.25, 0.9)]
            {
                // One thread for a whole vocabulary shows nothing new, and takes long.
                if variant == Variant::Naive && vocab > 10_000 {
                    continue;
                }
                let shape = format!("vocab={vocab},temperature={temperature},top_p={top_p}");
                let input = Input { vocab, temperature, top_p, element, variant };
                cases.push(case(&shape, matches!(vocab, 5 | 600), Box::new(move |device| input.every_part(device))));
            }
        }
        cases.push(Case {
            name: format!("sample/both/{element}/vocab=700"),
            module: "sample",
            watched: false,
            run: Box::new(move |device| both_kernels(device, element)),
        });
    }
    cases
}

/// What is counted, not compared.
pub fn trials() -> Vec<Trial> {
    vec![Trial::test("counts/sample/a_row_is_read_at_most_four_times", row_is_read_at_most_four_times)]
}

/// Also if it does not fit into shared memory, and the whole nucleus is searched.
fn row_is_read_at_most_four_times() -> std::result::Result<(), Failed> {
    const VOCAB: usize = 102_400;
    // (type, top_p, bytes that are read for each byte of the row: how much fits decides)
    for (element, top_p, most) in
        [(Element::F32, 0.95, 3.4), (Element::Bf16, 0.95, 2.8), (Element::F32, 1.0, 1.9), (Element::Bf16, 1.0, 1.7)]
    {
        let emulated = Emulated::profiling(Library::embedded());
        let device: Arc<dyn Device> = emulated.clone();
        let logits = upload(&device, element, &random("logits", [1, VOCAB], 2.0))?;
        drawn(&device, Variant::Tuned, &logits, [0.8, top_p], &[0.5])?;
        let profiles = emulated.profiles();
        let lines = profiles.iter().flat_map(|(_, profile)| &profile.lines);
        let times = lines.map(|line| line.counts.global.read).sum::<u64>() as f64 / (VOCAB * element.bytes()) as f64;
        if !(1.0..=most).contains(&times) {
            return Err(format!("{element}, top_p {top_p}: read {times:.3} times, expected at most {most}").into());
        }
    }
    Ok(())
}

fn drawn(
    device: &Arc<dyn Device>,
    variant: Variant,
    logits: &Tensor,
    [temperature, top_p]: [f32; 2],
    uniforms: &[f32],
) -> Result<Tensor> {
    let tokens = output(device, Element::I32, &[uniforms.len()])?;
    let uniforms = Tensor::from_f32(device, Element::F32, &[uniforms.len()], uniforms)?;
    sample(variant, logits, temperature, top_p, &uniforms, &tokens)?;
    Ok(tokens)
}

#[derive(Clone, Copy)]
struct Input {
    vocab: usize,
    temperature: f32,
    top_p: f32,
    element: Element,
    variant: Variant,
}

impl Input {
    /// In f64: each token of the nucleus that is no small part of it, with the ends of its part.
    fn parts(&self, logits: &[f32]) -> Vec<(usize, f64, f64)> {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: f32| (f64::from(logit - largest) / f64::from(self.temperature)).exp();
        let weights: Vec<f64> = logits.iter().map(|logit| weight(*logit)).collect();
        let whole: f64 = weights.iter().sum();
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        let (mut sum, mut kept) = (0.0, vec![false; logits.len()]);
        for token in order {
            if sum < f64::from(self.top_p) * whole {
                (sum, kept[token]) = (sum + weights[token], true);
            }
        }
        let mut passed = 0.0;
        let mut parts = vec![];
        for token in (0..logits.len()).filter(|token| kept[*token]) {
            parts.push((token, passed / sum, (passed + weights[token]) / sum));
            passed += weights[token];
        }
        parts.retain(|(_, from, to)| to - from > SMALL);
        parts
    }

    /// The beginning, the middle and the end of the part of each token; of a large vocabulary, of some.
    fn every_part(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let logits = random("logits", [self.vocab], 1.0).into_raw_vec_and_offset().0;
        let parts = self.parts(&logits);
        let asked = match self.vocab {
            0..=100 => 12,
            101..=10_000 => 3,
            _ => 1,
        };
        let wanted: Vec<(f64, f32)> = parts
            .iter()
            .step_by(parts.len().div_ceil(asked))
            .flat_map(|(token, from, to)| {
                let at = |share: f64| (*token as f64, (from + share * (to - from)) as f32);
                [at(INSIDE), at(0.5), at(1.0 - INSIDE)]
            })
            .collect();
        let uniforms: Vec<f32> = wanted.iter().map(|(_, uniform)| *uniform).collect();
        let rows = Array2::from_shape_fn((wanted.len(), self.vocab), |(_, token)| logits[token]);
        let rows = upload(device, self.element, &rows)?;
        let tokens = drawn(device, self.variant, &rows, [self.temperature, self.top_p], &uniforms)?;
        Ok(vec![Output::exactly("tokens", &tokens, wanted.iter().map(|(token, _)| *token))?])
    }
}

/// Ties at the edge of the nucleus go to the first tokens; masked tokens and NaN are never drawn.
fn limits(device: &Arc<dyn Device>, variant: Variant, element: Element) -> Result<Vec<Output>> {
    const INF: f32 = f32::INFINITY;
    const NAN: f32 = f32::NAN;
    let mut outputs = vec![];
    let mut row = |name, logits: &[f32], top_p: f32, uniforms: &[f32], want: &[i32]| -> Result<()> {
        let rows = Array2::from_shape_fn((uniforms.len(), logits.len()), |(_, token)| logits[token]);
        let tokens = drawn(device, variant, &upload(device, element, &rows)?, [1.0, top_p], uniforms)?;
        outputs.push(Output::exactly(name, &tokens, want.iter().map(|token| f64::from(*token)))?);
        Ok(())
    };
    let ends = [0.0, 0.99, 0.999_999_94, 1.0, -1.0];
    row("all equal, the first half", &[2.0; 6], 0.5, &[0.0, 0.32, 0.34, 0.66, 0.68, 1.0], &[0, 0, 1, 1, 2, 2])?;
    row("all equal, a little more", &[2.0; 6], 0.51, &[0.0, 0.24, 0.26, 0.74, 0.76, 1.0], &[0, 0, 1, 2, 3, 3])?;
    row("ties below the largest", &[0.0, 1.0, 0.0, 0.0, 0.0, 0.0], 0.45, &ends, &[0, 1, 1, 1, 0])?;
    row("only the largest", &[0.0, 1.0, 3.0, 3.0, 0.0, 0.0], 0.0, &ends, &[2; 5])?;
    row("masked", &[-INF, 1.0, -INF, -INF, 1.0, -INF], 1.0, &ends, &[1, 4, 4, 4, 1])?;
    row("NaN", &[NAN, 1.0, NAN, -1.0, NAN, NAN], 1.0, &ends, &[1, 3, 3, 3, 1])?;
    row("infinite", &[0.0, INF, 5.0, INF, 0.0, 0.0], 1.0, &ends, &[1, 3, 3, 3, 1])?;
    row("nothing", &[NAN; 6], 0.9, &ends, &[0; 5])?;
    row("all masked", &[-INF; 6], 1.0, &ends, &[0, 5, 5, 5, 0])?;
    // More than a warp's stretch of tokens: of 999 that are equal the first 473 are in the nucleus, and one that is larger.
    let mut many = vec![0.0; 1000];
    many[600] = 4.0;
    let uniforms = [0.0, 0.28, 0.5, 0.896, 0.897, 1.0];
    row("ties of many", &many, 0.5, &uniforms, &[0, 147, 263, 472, 600, 600])?;
    // A stretch that is more than a step of the block: of 300000 about the first 149973, and one after them. One thread for
    // so many shows nothing new, and takes long.
    if variant == Variant::Tuned {
        let mut most = vec![0.0; 300_001];
        most[150_500] = 4.0;
        row("ties of most", &most, 0.5, &[0.0, 1.0], &[0, 150_500])?;
    }
    Ok(outputs)
}

/// The same token for every uniform number, at any temperature and nucleus, alone and in a batch.
fn both_kernels(device: &Arc<dyn Device>, element: Element) -> Result<Vec<Output>> {
    let logits = random("logits", [12, 700], 2.0);
    let logits = upload(device, element, &logits)?;
    let uniforms: Vec<f32> = (0..12).map(|n| (n as f32 * 0.618_034).fract()).collect();
    let mut outputs = vec![];
    for parameters in [[0.6, 0.95], [2.0, 1.0], [5.0, 0.3]] {
        let tuned = drawn(device, Variant::Tuned, &logits, parameters, &uniforms)?;
        let naive = drawn(device, Variant::Naive, &logits, parameters, &uniforms)?.to_i32()?;
        outputs.push(Output::exactly("tokens", &tuned, naive.iter().map(|token| f64::from(*token)))?);
        let alone = drawn(device, Variant::Tuned, &logits.narrow(0, 11..12)?, parameters, &uniforms[11..])?;
        outputs.push(Output::exactly("a row alone", &alone, [f64::from(naive[11])])?);
    }
    Ok(outputs)
}
