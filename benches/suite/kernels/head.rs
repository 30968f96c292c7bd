//! What is done with logits: the loss, the likeliest token, a draw.

use dsv2_optimized::operators::argmax::argmax;
use dsv2_optimized::operators::loss::cross_entropy;
use dsv2_optimized::operators::sample::sample;
use dsv2_optimized::{Element, Result, Tensor};

use super::case::{Case, Data, Kind, LITE, Launch, Scale, VOCAB, Work};

/// All of them.
pub fn cases(scale: Scale) -> Vec<Case> {
    let mut cases = vec![];
    let vocab = scale.pick(VOCAB / 10, VOCAB);
    for (small, tokens) in scale.pick(vec![(true, 2)], vec![(true, 1), (false, 64)]) {
        for kind in scale.kinds(small) {
            let head = Head { kind, tokens, vocab };
            cases.extend([head.cross_entropy(), head.argmax(), head.sample()]);
        }
    }
    cases
}

#[derive(Clone, Copy)]
struct Head {
    kind: Kind,
    tokens: usize,
    vocab: usize,
}

impl Head {
    /// Reads the logits and so many `other` numbers for each token, writes one.
    fn case(
        self,
        operator: &'static str,
        [other, flops_per_logit]: [usize; 2],
        prepare: impl Fn(&Data) -> Result<Launch> + 'static,
    ) -> Case {
        let Head { kind, tokens, vocab } = self;
        let logits = tokens * vocab;
        let read = logits * kind.1.bytes() + 4 * other * tokens;
        let work = Work { read, written: 4 * tokens, flops: flops_per_logit * logits };
        Case::new(operator, kind, LITE, &[("N", tokens), ("V", vocab)], work, prepare)
    }

    fn logits(&self, data: &Data) -> Result<Tensor> {
        data.numbers(self.kind.1, &[self.tokens, self.vocab], 2.0)
    }

    /// The largest is taken off, then the exponential, then the sum.
    fn cross_entropy(self) -> Case {
        self.case("cross_entropy", [1, 3], move |data| {
            let (logits, labels) = (
                self.logits(data)?,
                data.integers(&[self.tokens], (0..self.tokens).map(|_| data.random.below(self.vocab)))?,
            );
            let losses = data.room(Element::F32, &[self.tokens])?;
            Ok(Box::new(move || cross_entropy(self.kind.0, &logits, &labels, -100, &losses)))
        })
    }

    /// Comparisons are no operations.
    fn argmax(self) -> Case {
        self.case("argmax", [0, 0], move |data| {
            let (logits, tokens) = (self.logits(data)?, data.room(Element::I32, &[self.tokens])?);
            Ok(Box::new(move || argmax(self.kind.0, &logits, &tokens)))
        })
    }

    /// A softmax; finding the nucleus is not counted.
    fn sample(self) -> Case {
        self.case("sample", [1, 4], move |data| {
            let (logits, tokens) = (self.logits(data)?, data.room(Element::I32, &[self.tokens])?);
            let uniforms = data.numbers(Element::F32, &[self.tokens], 0.2)?;
            Ok(Box::new(move || sample(self.kind.0, &logits, 0.8, 0.95, &uniforms, &tokens)))
        })
    }
}
