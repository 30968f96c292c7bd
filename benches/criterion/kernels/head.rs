//! What is done with logits: the loss, the likeliest token, a draw.

use dsv2_optimized::operators::argmax::{argmax, meetings};
use dsv2_optimized::operators::loss::cross_entropy;
use dsv2_optimized::operators::sample::sample;
use dsv2_optimized::{Element, Result, Tensor};

use super::case::{Case, Data, Launch, Model, Scale};

/// All of them.
pub fn cases(scale: Scale) -> Vec<Case> {
    let [lite, _] = Model::all();
    let vocab = scale.pick(lite.vocab_size / 10, lite.vocab_size);
    // The operator, and operations for each logit: of the loss the largest is taken off, then the exponential, then the sum;
    // comparisons are none; of a draw a softmax, and finding the nucleus is not counted.
    type Operator = (&'static str, usize, fn(&Data, Tensor, [usize; 2]) -> Result<Launch>);
    let operators: [Operator; 3] = [("cross_entropy", 3, of_loss), ("argmax", 0, of_argmax), ("sample", 4, of_sample)];
    let mut cases = vec![];
    for (small, tokens) in scale.pick(vec![(true, 2)], vec![(true, 1), (false, 64)]) {
        for kind in scale.kinds(small) {
            cases.extend(operators.map(|(operator, flops, prepare)| {
                let sizes = [tokens, vocab];
                Case::new(operator, kind, lite, &[("N", tokens), ("V", vocab)], flops * tokens * vocab, move |data| {
                    prepare(data, data.numbers(&sizes, 2.0)?, sizes)
                })
            }));
        }
    }
    cases
}

fn of_loss(data: &Data, logits: Tensor, [tokens, vocab]: [usize; 2]) -> Result<Launch> {
    let labels = data.integers(&[tokens], (0..tokens).map(|_| data.random.below(vocab)))?;
    let (variant, losses) = (data.variant, data.room_of(Element::F32, &[tokens])?);
    Ok(Box::new(move || cross_entropy(variant, &logits, &labels, -100, &losses)))
}

fn of_argmax(data: &Data, logits: Tensor, [tokens, _]: [usize; 2]) -> Result<Launch> {
    let (variant, chosen) = (data.variant, data.room_of(Element::I32, &[tokens])?);
    let meetings = meetings(logits.device(), tokens)?;
    Ok(Box::new(move || argmax(variant, &logits, &meetings, &chosen)))
}

fn of_sample(data: &Data, logits: Tensor, [tokens, _]: [usize; 2]) -> Result<Launch> {
    let (variant, chosen) = (data.variant, data.room_of(Element::I32, &[tokens])?);
    let uniforms = data.numbers_of(Element::F32, &[tokens], 0.2)?;
    Ok(Box::new(move || sample(variant, &logits, 0.8, 0.95, &uniforms, &chosen)))
}
