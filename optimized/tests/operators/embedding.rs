//! The embedding: copies of rows, and tokens that there are not.

use std::sync::Arc;

use dsv2_optimized::operators::embedding::embedding;
use dsv2_optimized::{Device, Element, Result, Tensor, Variant};

use crate::harness::{Case, KINDS, Output, output, random, upload};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (element, variant) in KINDS {
        // (tokens, vocabulary, width, columns of the matrix that the table is a slice of)
        for (tokens, vocab, width, columns) in
            [(1, 1, 1, 1), (3, 7, 40, 48), (6, 50, 37, 37), (4, 9, 24, 27), (5, 11, 2048, 2048), (3, 6, 5120, 5120)]
        {
            let input = Input { tokens, vocab, width, columns, element, variant };
            cases.push(Case {
                name: format!(
                    "embedding/{variant}/{element}/tokens={tokens},vocab={vocab},width={width},columns={columns}"
                ),
                module: "embedding",
                watched: tokens * width <= 512,
                run: Box::new(move |device| input.run(device)),
            });
        }
    }
    cases
}

#[derive(Clone, Copy)]
struct Input {
    tokens: usize,
    vocab: usize,
    width: usize,
    columns: usize,
    element: Element,
    variant: Variant,
}

impl Input {
    /// The last token first; then the token after it, which there is not, and -1, with tokens between.
    fn tokens(&self) -> Vec<i32> {
        let vocab = self.vocab as i32;
        let token = |n| match n {
            0 => vocab - 1,
            2 => vocab,
            4 => -1,
            _ => (5 * n + 1) % vocab,
        };
        (0..self.tokens as i32).map(token).collect()
    }

    fn run(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let whole = random("table", [self.vocab, self.columns], 1.0);
        let first = self.columns - self.width;
        let table = upload(device, self.element, &whole)?.narrow(1, first..self.columns)?;
        let tokens = Tensor::from_i32(device, &[self.tokens], &self.tokens())?;
        let out = output(device, self.element, &[self.tokens, self.width])?;
        embedding(self.variant, &tokens, &table, &out)?;

        let element = |token: i32, column: usize| {
            let row = usize::try_from(token).ok().filter(|row| *row < self.vocab);
            row.map_or(f64::NAN, |row| f64::from(whole[[row, first + column]]))
        };
        let want = self.tokens().into_iter().flat_map(|token| (0..self.width).map(move |column| (token, column)));
        Ok(vec![Output::exactly("out", &out, want.map(|(token, column)| element(token, column)))?])
    }
}
