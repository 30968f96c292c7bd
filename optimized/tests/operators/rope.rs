//! RoPE of queries: the published heads and odd ones, slices of wider heads, in place, other orders of the axes.

use std::sync::Arc;

use dsv2_optimized::operators::rope::rope;
use dsv2_optimized::{Device, Element, Result, Tensor, Variant};
use dsv2_reference::Real;
use dsv2_reference::model::rope::RotaryTables;
use ndarray::{Array3, Axis, s};

use crate::harness::{Case, KINDS, Output, output, random, round, upload};
use crate::rotary::tables;

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (element, variant) in KINDS {
        // (tokens, heads, width, columns of a head before those that turn)
        for (tokens, heads, width, before) in [
            (1, 1, 2, 0),
            (3, 3, 4, 6),
            (5, 2, 10, 3),
            (3, 1, 64, 512),
            (2, 16, 64, 128),
            (1, 128, 64, 128),
            (2, 33, 72, 8),
            (257, 34, 8, 8),
        ] {
            let shape = format!("tokens={tokens},heads={heads},width={width},before={before}");
            let case = |what: &str, run| Case {
                name: format!("rope/{variant}/{element}/{shape}{what}"),
                module: "rope",
                watched: tokens * heads * width <= 2048,
                run,
            };
            let input = Input { tokens, heads, width, before, element, variant };
            cases.push(case("", Box::new(move |device| input.elsewhere(device))));
            cases.push(case(",in place", Box::new(move |device| input.in_place(device))));
            if tokens <= 5 {
                cases.push(case(",heads first", Box::new(move |device| input.heads_first(device))));
                cases.push(case(",alone", Box::new(move |device| input.alone(device))));
            }
        }
    }
    cases
}

/// Positions that begin somewhere in a long context.
pub fn positions(tokens: usize) -> Vec<i32> {
    (0..tokens as i32).map(|n| 1000 * n + 7).collect()
}

/// Turns `x` [N,H,r] in a type by fp32 tables.
pub fn turned<T: Real>(x: &Array3<f32>, positions: &[i32]) -> Array3<T> {
    let fp32 = tables::<f32>(positions, x.dim().2);
    let widen = |x: f32| T::from_f64(f64::from(x));
    let tables = RotaryTables { cos: fp32.cos.mapv(widen), sin: fp32.sin.mapv(widen) };
    let mut x = x.mapv(widen).permuted_axes([1, 0, 2]).insert_axis(Axis(0)).as_standard_layout().into_owned();
    tables.rotate(&mut x);
    x.index_axis_move(Axis(0), 0).permuted_axes([1, 0, 2]).as_standard_layout().into_owned()
}

/// The tables [N,r/2] on a device.
pub fn upload_tables(device: &Arc<dyn Device>, positions: &[i32], width: usize) -> Result<[Tensor; 2]> {
    let tables = tables::<f32>(positions, width);
    let upload = |table: ndarray::Array3<f32>| upload(device, Element::F32, &table.index_axis_move(Axis(0), 0));
    Ok([upload(tables.cos)?, upload(tables.sin)?])
}

#[derive(Clone, Copy)]
struct Input {
    tokens: usize,
    heads: usize,
    width: usize,
    before: usize,
    element: Element,
    variant: Variant,
}

impl Input {
    /// Whole heads: [N,H,before+r].
    fn whole(&self) -> Array3<f32> {
        let shape = [self.tokens, self.heads, self.before + self.width];
        random("x", shape, 1.0)
    }

    fn x(&self) -> Array3<f32> {
        self.whole().slice(s![.., .., self.before..]).to_owned()
    }

    fn shape(&self) -> [usize; 3] {
        [self.tokens, self.heads, self.width]
    }

    fn rope(&self, device: &Arc<dyn Device>, x: &Tensor, out: &Tensor) -> Result<()> {
        let [cos, sin] = upload_tables(device, &positions(self.tokens), self.width)?;
        rope(self.variant, x, &cos, &sin, out)
    }

    fn near(&self, out: &Tensor) -> Result<Output> {
        let positions = positions(self.tokens);
        let plain = turned::<f32>(&self.x(), &positions).mapv(|x| round(x.into(), self.element));
        Output::near("out", out, turned::<f64>(&self.x(), &positions), plain)
    }

    fn slice(&self, whole: &Tensor) -> Result<Tensor> {
        whole.narrow(2, self.before..self.before + self.width)
    }

    fn elsewhere(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let x = self.slice(&upload(device, self.element, &self.whole())?)?;
        let out = output(device, self.element, &self.shape())?;
        self.rope(device, &x, &out)?;
        Ok(vec![self.near(&out)?])
    }

    /// The columns before stay as they are.
    fn in_place(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let whole = upload(device, self.element, &self.whole())?;
        let x = self.slice(&whole)?;
        self.rope(device, &x, &x)?;
        let before = self.whole().slice(s![.., .., ..self.before]).mapv(f64::from);
        Ok(vec![Output::exactly("before", &whole.narrow(2, 0..self.before)?, before)?, self.near(&x)?])
    }

    /// From [H,N,r] to [H,N,r].
    fn heads_first(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let stored = self.x().permuted_axes([1, 0, 2]).as_standard_layout().into_owned();
        let x = upload(device, self.element, &stored)?.permute(&[1, 0, 2])?;
        let out = output(device, self.element, &[self.heads, self.tokens, self.width])?.permute(&[1, 0, 2])?;
        self.rope(device, &x, &out)?;
        Ok(vec![self.near(&out)?])
    }

    /// A token is the same to the bit in a batch and alone, in another place of the memory.
    fn alone(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let x = self.slice(&upload(device, self.element, &self.whole())?)?;
        let [cos, sin] = upload_tables(device, &positions(self.tokens), self.width)?;
        let (batch, single) =
            (output(device, self.element, &self.shape())?, output(device, self.element, &self.shape())?);
        rope(self.variant, &x, &cos, &sin, &batch)?;
        for n in (0..self.tokens).rev() {
            let one = |of: &Tensor| of.narrow(0, n..n + 1);
            let x = upload(device, self.element, &self.x().slice(s![n..n + 1, .., ..]).to_owned())?;
            rope(self.variant, &x, &one(&cos)?, &one(&sin)?, &one(&single)?)?;
        }
        let batch = batch.to_f32()?;
        Ok(vec![Output::exactly("tokens alone", &single, batch)?])
    }
}
