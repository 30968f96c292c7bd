//! The loss: vocabularies small and whole, ignored and impossible labels, logits that are infinite, and the mean.

use std::sync::Arc;

use dsv2_optimized::operators::loss::{cross_entropy, mean_loss};
use dsv2_optimized::{Device, Element, Result, Tensor, Variant};
use dsv2_reference::Real;
use dsv2_reference::model::loss::{CausalLmLabels, causal_lm_loss};
use ndarray::{Array1, Array2, Axis, s};

use crate::harness::{Case, Output, output, random, upload};

const IGNORED: i32 = -100;

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for variant in Variant::ALL {
        for element in [Element::F32, Element::Bf16] {
            let case = |shape: &str, watched, run| Case {
                name: format!("cross_entropy/{variant}/{element}/{shape}"),
                module: "loss",
                watched,
                run,
            };
            cases.push(case("limits", true, Box::new(move |device| limits(device, variant, element))));
            // (rows, vocabulary, columns of the matrix that the logits are a slice of)
            for (rows, vocab, columns) in
                [(1, 1, 1), (3, 37, 41), (34, 40, 48), (3, 1000, 1000), (2, 9000, 9001), (2, 102_400, 102_400)]
            {
                // One thread for a whole vocabulary shows nothing new, and takes long.
                if variant == Variant::Naive && vocab > 10_000 {
                    continue;
                }
                let shape = format!("rows={rows},vocab={vocab},columns={columns}");
                let input = Input { rows, vocab, columns, element, variant };
                cases.push(case(&shape, rows * vocab <= 1400, Box::new(move |device| input.compared(device))));
                if vocab <= 1000 {
                    let name = format!("{shape},alone");
                    cases.push(case(&name, false, Box::new(move |device| input.alone(device))));
                    let name = format!("{shape},mean");
                    cases.push(case(&name, false, Box::new(move |device| input.mean(device))));
                }
            }
        }
        for rows in [0, 1, 37, 1000, 5000] {
            cases.push(Case {
                name: format!("mean_loss/{variant}/f32/rows={rows}"),
                module: "loss",
                watched: rows <= 1000,
                run: Box::new(move |device| mean_of(device, variant, rows)),
            });
        }
    }
    cases
}

/// The loss of one row, by the reference in a type.
fn reference<T: Real>(logits: &[f32], label: i32) -> f64 {
    let row: Vec<T> = logits.iter().map(|z| T::from_f64(f64::from(*z))).collect();
    let row = Array1::from(row).insert_axis(Axis(0)).insert_axis(Axis(0));
    let labels = CausalLmLabels {
        shifted: true,
        num_items_in_batch: Some(1.0),
        ..CausalLmLabels::new(Array2::from_elem((1, 1), i64::from(label)))
    };
    causal_lm_loss(row.view(), &labels).expect("a label of the vocabulary").to_f64()
}

/// The loss of each row: [N,1].
fn references<T: Real>(logits: &Array2<f32>, labels: &[i32]) -> Array2<f64> {
    let losses = logits.rows().into_iter().zip(labels).map(|(row, label)| reference::<T>(&row.to_vec(), *label));
    Array1::from_iter(losses).insert_axis(Axis(1))
}

#[derive(Clone, Copy)]
struct Input {
    rows: usize,
    vocab: usize,
    columns: usize,
    element: Element,
    variant: Variant,
}

impl Input {
    fn whole(&self) -> Array2<f32> {
        random("logits", [self.rows, self.columns], 3.0)
    }

    fn logits(&self) -> Array2<f32> {
        self.whole().slice(s![.., self.columns - self.vocab..]).to_owned()
    }

    /// The last token, an ignored row, and others.
    fn labels(&self) -> Vec<i32> {
        let label = |n| match n {
            0 => self.vocab as i32 - 1,
            1 => IGNORED,
            _ => (n * 7919 % self.vocab) as i32,
        };
        (0..self.rows).map(label).collect()
    }

    fn losses(&self, device: &Arc<dyn Device>) -> Result<Tensor> {
        let first = self.columns - self.vocab;
        let logits = upload(device, self.element, &self.whole())?.narrow(1, first..self.columns)?;
        let labels = Tensor::from_i32(device, &[self.rows], &self.labels())?;
        let losses = output(device, Element::F32, &[self.rows])?;
        cross_entropy(self.variant, &logits, &labels, IGNORED, &losses)?;
        Ok(losses)
    }

    fn compared(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let (truth, plain) =
            (references::<f64>(&self.logits(), &self.labels()), references::<f32>(&self.logits(), &self.labels()));
        Ok(vec![Output::near("losses", &self.losses(device)?, truth, plain)?])
    }

    /// A row is the same to the bit in a batch and alone, in another place of the memory.
    fn alone(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let batch = self.losses(device)?.to_f32()?;
        let single = output(device, Element::F32, &[self.rows])?;
        for (n, label) in self.labels().iter().enumerate() {
            let label = Tensor::from_i32(device, &[1], &[*label])?;
            let row = upload(device, self.element, &self.logits().slice(s![n..n + 1, ..]).to_owned())?;
            cross_entropy(self.variant, &row, &label, IGNORED, &single.narrow(0, n..n + 1)?)?;
        }
        Ok(vec![Output::exactly("rows alone", &single, batch)?])
    }

    /// Both kernels together are the reference's loss.
    fn mean(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let labels = Tensor::from_i32(device, &[self.rows], &self.labels())?;
        let losses = self.losses(device)?;
        let mut outputs = vec![];
        for (name, num_items_in_batch) in [("mean", None), ("over 8", Some(8.0))] {
            let mean = output(device, Element::F32, &[1])?;
            mean_loss(self.variant, &losses, &labels, IGNORED, num_items_in_batch.map(|n: f64| n as f32), &mean)?;
            let labels = Array1::from_iter(self.labels().into_iter().map(i64::from)).insert_axis(Axis(0));
            let labels = CausalLmLabels { shifted: true, num_items_in_batch, ..CausalLmLabels::new(labels) };
            let logits = self.logits().insert_axis(Axis(0));
            let truth = causal_lm_loss(logits.mapv(f64::from).view(), &labels).expect("labels of the vocabulary");
            let plain = causal_lm_loss(logits.view(), &labels).expect("labels of the vocabulary");
            let plain = Array1::from_elem(1, f64::from(plain));
            outputs.push(Output::near(name, &mean, Array1::from_elem(1, truth), plain)?);
        }
        Ok(outputs)
    }
}

/// What a batch may hold besides: masked logits, tokens that there are not, rows that are ignored whatever is in them.
fn limits(device: &Arc<dyn Device>, variant: Variant, element: Element) -> Result<Vec<Output>> {
    const INF: f32 = f32::INFINITY;
    let rows: [([f32; 10], i32); 9] = [
        ([1.0, -INF, 2.0, -INF, -INF, -INF, -INF, -INF, -INF, 0.5], 2), // masked
        ([1.0, -INF, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5], 1),       // the label is masked: an infinite loss
        ([-INF; 10], 3),
        ([0.0, INF, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 0),
        ([f32::NAN; 10], IGNORED),
        ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, f32::NAN], 0),
        ([1.0; 10], 10),
        ([1.0; 10], -1),
        ([-3e38, 3e38, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 1),
    ];
    let stored: Vec<f32> = rows.iter().flat_map(|(row, _)| *row).collect();
    let labels: Vec<i32> = rows.iter().map(|(_, label)| *label).collect();
    let logits = Tensor::from_f32(device, element, &[rows.len(), 10], &stored)?;
    let labels = Tensor::from_i32(device, &[rows.len()], &labels)?;
    let losses = output(device, Element::F32, &[rows.len()])?;
    cross_entropy(variant, &logits, &labels, IGNORED, &losses)?;
    let first = 1.0_f64.exp() + 2.0_f64.exp() + 0.5_f64.exp();
    let nan = f64::NAN;
    let want = Array1::from(vec![first.ln() - 2.0, f64::INFINITY, nan, nan, 0.0, nan, nan, nan, 0.0]);
    Ok(vec![Output::near("losses", &losses, want.clone(), want)?])
}

/// The mean over labels of which every fifth is ignored; over a number that is given; and over labels that are all
/// ignored.
fn mean_of(device: &Arc<dyn Device>, variant: Variant, rows: usize) -> Result<Vec<Output>> {
    let losses = random("losses", [rows], 2.0).mapv(f32::abs);
    let labels: Vec<i32> = (0..rows as i32).map(|n| if n % 5 == 1 { IGNORED } else { n }).collect();
    let on_device = upload(device, Element::F32, &losses)?;
    let mean = |labels: &[i32], num_items_in_batch| -> Result<Tensor> {
        let mean = output(device, Element::F32, &[1])?;
        let labels = Tensor::from_i32(device, &[rows], labels)?;
        mean_loss(variant, &on_device, &labels, IGNORED, num_items_in_batch, &mean)?;
        Ok(mean)
    };
    // Rows that are ignored have the loss 0; here they have others, and the sum takes all alike.
    let counted = labels.iter().filter(|label| **label != IGNORED).count() as f64;
    let (sum, plain_sum) =
        (losses.mapv(f64::from).sum(), f64::from(losses.iter().fold(0.0f32, |sum, loss| sum + loss)));
    let over = |divisor: f64| [sum, plain_sum].map(|sum| Array1::from_elem(1, sum / divisor));
    let ([truth, plain], [truth_3, plain_3]) = (over(counted), over(3.0));
    Ok(vec![
        Output::near("mean", &mean(&labels, None)?, truth, plain)?,
        Output::near("over 3", &mean(&labels, Some(3.0))?, truth_3, plain_3)?,
        Output::near("none counts", &mean(&vec![IGNORED; rows], None)?, over(0.0)[0].clone(), over(0.0)[0].clone())?,
    ])
}
