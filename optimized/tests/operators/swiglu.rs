//! The gate of the MLP and the residual addition: widths of the published models, odd ones, rows that are slices, results
//! in place, every activation, and gates so large that their exponentials overflow.

use std::str::FromStr;
use std::sync::Arc;

use dsv2_optimized::operators::swiglu::{add, gated};
use dsv2_optimized::{Device, Element, Result, Tensor, Variant};
use dsv2_reference::Activation;
use ndarray::{Array2, ArrayView2, Axis, concatenate, s};

use crate::harness::{Case, KINDS, Output, output, random, round, upload};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    // (rows, width, columns of the matrices that the rows are slices of)
    for (rows, width, columns) in [
        (1, 1, 1),
        (3, 40, 48),
        (5, 37, 37),
        (0, 8, 8),
        (2, 1408, 2816),
        (130, 20, 24),
        (1, 1536, 1536),
        (2, 2049, 2056),
    ] {
        for (element, variant) in KINDS {
            let input = Input { rows, width, columns, element, variant };
            let shape = format!("{variant}/{element}/rows={rows},width={width},columns={columns}");
            let case = |operator: &str, run| Case {
                name: format!("{operator}/{shape}"),
                module: "swiglu",
                watched: rows * width <= 5000,
                run,
            };
            cases.push(case("gated", Box::new(move |device| input.gate(device, Activation::Silu))));
            cases.push(case("add", Box::new(move |device| input.add(device))));
            if (rows, width) == (3, 40) {
                cases.push(case("gated of every activation", Box::new(move |device| input.gate_all(device))));
                cases.push(case("gated without bounds", Box::new(move |device| input.gate_extremes(device))));
            }
        }
    }
    cases
}

#[derive(Clone, Copy)]
struct Input {
    rows: usize,
    width: usize,
    columns: usize,
    element: Element,
    variant: Variant,
}

impl Input {
    fn matrix(&self, name: &str) -> Array2<f32> {
        random(name, [self.rows, self.columns], 2.0)
    }

    /// The last columns of one matrix and the first of another: they need not be aligned alike.
    fn slices(&self, device: &Arc<dyn Device>, a: &Array2<f32>, b: &Array2<f32>) -> Result<[Tensor; 2]> {
        let (a, b) = (upload(device, self.element, a)?, upload(device, self.element, b)?);
        Ok([a.narrow(1, self.columns - self.width..self.columns)?, b.narrow(1, 0..self.width)?])
    }

    /// The same of matrices on the host.
    fn views<'a>(&self, a: &'a Array2<f32>, b: &'a Array2<f32>) -> [ArrayView2<'a, f32>; 2] {
        [a.slice(s![.., self.columns - self.width..]), b.slice(s![.., ..self.width])]
    }

    fn gate(&self, device: &Arc<dyn Device>, activation: Activation) -> Result<Vec<Output>> {
        let (gate, up) = (self.matrix("gate"), self.matrix("up"));
        let [on_gate, on_up] = self.slices(device, &gate, &up)?;
        let out = output(device, self.element, &[self.rows, self.width])?;
        gated(self.variant, activation, &on_gate, &on_up, &out)?;
        let mut outputs = vec![self.near(activation, &out, &gate, &up)?];
        if self.width == self.columns {
            // In place, as the dense MLP has it: the same bits.
            let expected = out.to_f32()?;
            gated(self.variant, activation, &on_gate, &on_up, &on_gate)?;
            outputs.push(Output::exactly("in place", &on_gate, expected.into_iter().map(f64::from))?);
        }
        Ok(outputs)
    }

    fn gate_all(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let mut outputs = vec![];
        for name in Activation::names() {
            outputs.extend(self.gate(device, Activation::from_str(name).expect("its name"))?);
        }
        Ok(outputs)
    }

    /// A gate of a thousand is passed, one of minus a thousand is closed: nothing overflows on the way.
    fn gate_extremes(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let half = Array2::from_elem((self.rows, self.columns / 2), 1024.0);
        let gate = concatenate![Axis(1), half.view(), (-&half).view()];
        let up = Array2::from_elem((self.rows, self.columns), -3.0);
        let [on_gate, on_up] = self.slices(device, &gate, &up)?;
        let out = output(device, self.element, &[self.rows, self.width])?;
        gated(self.variant, Activation::Silu, &on_gate, &on_up, &out)?;
        let [gate, _] = self.views(&gate, &up);
        let expected = gate.mapv(|x| if x > 0.0 { -3072.0 } else { 0.0 });
        Ok(vec![Output::exactly("out", &out, expected)?])
    }

    fn near(&self, activation: Activation, out: &Tensor, gate: &Array2<f32>, up: &Array2<f32>) -> Result<Output> {
        let [gate, up] = self.views(gate, up);
        let truth = gate.mapv(|x| activation.apply(f64::from(x))) * up.mapv(f64::from);
        // Transformers rounds the activation's value, too.
        let plain = gate.mapv(|x| round(activation.apply(x).into(), self.element)) * up.mapv(f64::from);
        Output::near(activation.name(), out, truth, plain.mapv(|x| round(x, self.element)))
    }

    fn add(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let (a, b) = (self.matrix("a"), self.matrix("b"));
        let [on_a, on_b] = self.slices(device, &a, &b)?;
        let out = output(device, self.element, &[self.rows, self.width])?;
        add(self.variant, &on_a, &on_b, &out)?;
        // One addition, one rounding: there is no other result.
        let [a, b] = self.views(&a, &b);
        let sum = (&a + &b).mapv(|x| round(x.into(), self.element));
        Ok(vec![Output::exactly("out", &out, sum)?])
    }
}
