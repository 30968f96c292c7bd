//! RMSNorm: widths of the published models, odd ones, rows that are views, one row and many.

use std::sync::Arc;

use dsv2_optimized::operators::rms_norm::{add_rms_norm, rms_norm};
use dsv2_optimized::{Device, Element, Result, Variant};
use dsv2_reference::model::norm::RmsNorm;
use ndarray::{Array1, Array2, s};

use crate::harness::{Case, KINDS, Output, output, random, round, upload};

/// Large, so that a missing epsilon shows.
const EPS: f32 = 1e-2;

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (element, variant) in KINDS {
        // (rows, width, columns of the matrix that the rows are a slice of)
        for (rows, width, columns) in
            [(1, 1, 1), (3, 40, 48), (5, 37, 37), (2, 2048, 2048), (130, 64, 64), (1, 5120, 5120), (2, 9000, 9001)]
        {
            let shape = format!("rows={rows},width={width},columns={columns}");
            let case = |operator: &str, run| Case {
                name: format!("{operator}/{variant}/{element}/{shape}"),
                module: "rms_norm",
                watched: rows * width <= 2048,
                run,
            };
            let input = Input { rows, width, columns, element, variant };
            cases.push(case("rms_norm", Box::new(move |device| input.norm(device))));
            cases.push(case("add_rms_norm", Box::new(move |device| input.add_and_norm(device))));
            cases.push(case("rms_norm alone", Box::new(move |device| input.alone(device))));
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
    fn x(&self) -> Array2<f32> {
        let whole = random("x", [self.rows, self.columns], 0.3);
        whole.slice(s![.., self.columns - self.width..]).to_owned()
    }

    fn weight(&self) -> Array1<f32> {
        (random("weight", [self.width], 0.3) + 1.0).mapv(|x| round(x.into(), Element::Bf16) as f32)
    }

    fn norm(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let whole = upload(device, self.element, &random("x", [self.rows, self.columns], 0.3))?;
        let x = whole.narrow(1, self.columns - self.width..self.columns)?;
        let weight = upload(device, self.element, &self.weight())?;
        let y = output(device, self.element, &[self.rows, self.width])?;
        rms_norm(self.variant, &x, &weight, EPS, &y)?;
        Ok(vec![self.near("y", &y, &self.x().mapv(f64::from))?])
    }

    /// A row has the same bits alone in a tensor of its own, whatever its alignment was in company.
    fn alone(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        // Thirds: sums of squares of bf16 numbers are exact in fp32 in any order.
        let values = random("x", [self.rows, self.columns], 0.3) / 3.0;
        let whole = upload(device, self.element, &values)?;
        let weight = upload(device, self.element, &self.weight())?;
        let columns = self.columns - self.width..self.columns;
        let together = output(device, self.element, &[self.rows, self.width])?;
        rms_norm(self.variant, &whole.narrow(1, columns.clone())?, &weight, EPS, &together)?;
        let mut outputs = vec![];
        for row in 0..self.rows.min(5) {
            let x = upload(device, self.element, &values.slice(s![row..row + 1, columns.clone()]).to_owned())?;
            let alone = output(device, self.element, &[1, self.width])?;
            rms_norm(self.variant, &x, &weight, EPS, &alone)?;
            let same = together.narrow(0, row..row + 1)?.to_f32()?;
            outputs.push(Output::exactly("y", &alone, same.into_iter().map(f64::from))?);
        }
        Ok(outputs)
    }

    fn add_and_norm(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let residual = random("residual", [self.rows, self.width], 1.0);
        let whole = upload(device, self.element, &random("x", [self.rows, self.columns], 0.3))?;
        let x = whole.narrow(1, self.columns - self.width..self.columns)?;
        let weight = upload(device, self.element, &self.weight())?;
        let stream = upload(device, self.element, &residual)?;
        let y = output(device, self.element, &[self.rows, self.width])?;
        // In place, as a model does it.
        add_rms_norm(self.variant, &x, &stream, &weight, EPS, &stream, &y)?;
        // One addition, one rounding: there is no other result.
        let sum = (self.x() + residual).mapv(|x| round(x.into(), self.element));
        let near = self.near("y", &y, &sum)?;
        // What is normalised is what is stored: a budget would not see the difference.
        let again = output(device, self.element, &[self.rows, self.width])?;
        rms_norm(self.variant, &stream, &weight, EPS, &again)?;
        let same = Output::exactly("y of h", &y, again.to_f32()?)?;
        Ok(vec![Output::exactly("h", &stream, sum)?, near, same])
    }

    /// The norm of `x` in f64, and in fp32 with the roundings that Transformers makes.
    fn near(&self, name: &'static str, y: &dsv2_optimized::Tensor, x: &Array2<f64>) -> Result<Output> {
        let truth = RmsNorm::new(self.weight().mapv(f64::from), EPS.into()).forward(x.view());
        let one = Array1::ones(self.width);
        let normalised = RmsNorm::new(one, EPS.into()).forward(x.mapv(|x| x as f32).view());
        let plain = normalised.mapv(|x| round(x.into(), self.element)) * self.weight().mapv(f64::from);
        Output::near(name, y, truth, plain.mapv(|x| round(x, self.element)))
    }
}
