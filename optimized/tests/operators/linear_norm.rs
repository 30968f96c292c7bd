//! A linear layer and the norm behind it in one launch: to the bit what the operators make one after the other, with few rows
//! and many, with sums that blocks share and without, with and without an addition to the stream.

use std::sync::Arc;

use dsv2_optimized::operators::gemm::linear;
use dsv2_optimized::operators::rms_norm::{add_rms_norm, linear_add_rms_norm, linear_rms_norm, rms_norm};
use dsv2_optimized::operators::scratch::Scratch;
use dsv2_optimized::{Device, Element, Error, Result, Tensor, Variant};

use crate::harness::{Case, Output, output, random, upload};
use crate::router::refused;

/// Large, so that a missing epsilon shows.
const EPS: f32 = 1e-2;

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for element in [Element::F32, Element::Bf16] {
        // (M, N, K, columns that are normalised where nothing is added, bias)
        for (m, n, k, width, bias) in [
            (1, 1, 1, 1, false),
            (3, 70, 9, 64, true),
            (2, 37, 12, 30, false),
            (4, 136, 1100, 72, true),
            (5, 40, 1100, 24, false),
            (0, 40, 8, 24, false),
            (35, 24, 8, 16, true),
            (1, 9001, 8, 8999, false),
            (2, 2048, 40, 1536, false),
        ] {
            let input = Input { element, m, n, k, width, bias };
            let shape = format!("M={m},N={n},K={k}{}", if bias { ",bias" } else { "" });
            let case = |operator: &str, shape: &str, run| Case {
                name: format!("{operator}/tuned/{element}/{shape}"),
                module: "linear_norm",
                watched: m * n * k <= 6000,
                run,
            };
            cases.push(case("linear_add_rms_norm", &shape, Box::new(move |device| input.added(device))));
            let of_width = format!("{shape},width={width}");
            cases.push(case("linear_rms_norm", &of_width, Box::new(move |device| input.normed(device))));
        }
    }
    let misfits = Box::new(misfits);
    cases.push(Case { name: "linear_rms_norm/misfits".into(), module: "linear_norm", watched: false, run: misfits });
    cases
}

#[derive(Clone, Copy)]
struct Input {
    element: Element,
    m: usize,
    n: usize,
    k: usize,
    width: usize,
    bias: bool,
}

struct Operands {
    x: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
    gain: Tensor,
}

impl Input {
    fn operands(&self, device: &Arc<dyn Device>, width: usize) -> Result<Operands> {
        let &Input { element, m, n, k, bias, .. } = self;
        let bias = bias.then(|| upload(device, element, &random("bias", [n], 1.0))).transpose()?;
        Ok(Operands {
            x: upload(device, element, &random("x", [m, k], 1.0))?,
            weight: upload(device, element, &random("weight", [n, k], 0.3))?,
            bias,
            gain: upload(device, element, &(random("gain", [width], 0.3) + 1.0))?,
        })
    }

    /// Runs it where there is room to share sums and where there is none, twice in a row, and after a launch that failed: `run`
    /// makes two outputs with a weight.
    fn everywhere(
        &self,
        device: &Arc<dyn Device>,
        weight: &Tensor,
        expected: &[Tensor; 2],
        run: &dyn Fn(&Scratch, &Tensor) -> Result<[Tensor; 2]>,
    ) -> Result<Vec<Output>> {
        let mut outputs = vec![];
        let mut compare = |names: [&'static str; 2], [out, y]: [Tensor; 2]| -> Result<()> {
            outputs.push(Output::same(names[0], &out, &expected[0])?);
            outputs.push(Output::same(names[1], &y, &expected[1])?);
            Ok(())
        };
        let (scratch, small) = (Scratch::new(device, 1 << 20)?, Scratch::new(device, 0)?);
        compare(["shared", "shared, normed"], run(&scratch, weight)?)?;
        compare(["again", "again, normed"], run(&scratch, weight)?)?;
        compare(["with no room", "with no room, normed"], run(&small, weight)?)?;
        // At the end, since a GPU does not have it: a launch that fails between others, when some tiles have been stored.
        if device.name() == "emulator" && self.m > 0 {
            let half = Tensor::empty(device, self.element, &[self.n, self.k])?;
            half.narrow(0, 0..self.n / 2)?.write_f32(&vec![1.0; self.n / 2 * self.k])?;
            if run(&scratch, &half).is_ok() {
                return Err(Error::operand("linear_norm", "weight", "a refusal of what was never written", "none"));
            }
            compare(["after one that failed", "after one that failed, normed"], run(&scratch, weight)?)?;
        }
        Ok(outputs)
    }

    fn normed(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let &Input { element, m, n, width, .. } = self;
        let Operands { x, weight, bias, gain } = self.operands(device, width)?;
        let [out, y] = [output(device, element, &[m, n])?, output(device, element, &[m, width])?];
        linear(Variant::Tuned, &x, &weight, bias.as_ref(), &out)?;
        rms_norm(Variant::Tuned, &out.narrow(1, 0..width)?, &gain, EPS, &y)?;
        self.everywhere(device, &weight, &[out, y], &|scratch, weight| {
            let [out, y] = [output(device, element, &[m, n])?, output(device, element, &[m, width])?];
            linear_rms_norm(scratch, &x, weight, bias.as_ref(), &out, &gain, EPS, &y)?;
            Ok([out, y])
        })
    }

    fn added(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let &Input { element, m, n, .. } = self;
        let Operands { x, weight, bias, gain } = self.operands(device, n)?;
        let residual = random("residual", [m, n], 1.0);
        let room = || output(device, element, &[m, n]);
        let (stream, out, y) = (upload(device, element, &residual)?, room()?, room()?);
        linear(Variant::Tuned, &x, &weight, bias.as_ref(), &out)?;
        add_rms_norm(Variant::Tuned, &out, &stream, &gain, EPS, &stream, &y)?;
        self.everywhere(device, &weight, &[stream, y], &|scratch, weight| {
            // In place, as a model does it.
            let (stream, y) = (upload(device, element, &residual)?, room()?);
            linear_add_rms_norm(scratch, &x, weight, bias.as_ref(), &stream, &gain, EPS, &stream, &y)?;
            Ok([stream, y])
        })
    }
}

/// Operands that do not fit.
fn misfits(device: &Arc<dyn Device>) -> Result<Vec<Output>> {
    let real = |shape: &[usize]| Tensor::empty(device, Element::F32, shape);
    let scratch = Scratch::new(device, 0)?;
    let (x, weight, out, gain) = (real(&[2, 8])?, real(&[6, 8])?, real(&[2, 6])?, real(&[6])?);
    let normed = |gain: &Tensor, y: &Tensor| linear_rms_norm(&scratch, &x, &weight, None, &out, gain, EPS, y);
    refused(normed(&real(&[7])?, &out), "expected")?;
    refused(normed(&real(&[5])?, &out), "linear_rms_norm: y: expected the shape [2, 5], found [2, 6]")?;
    let added = |residual: &Tensor, gain: &Tensor, y: &Tensor| {
        linear_add_rms_norm(&scratch, &x, &weight, None, residual, gain, EPS, &out, y)
    };
    refused(
        added(&real(&[2, 5])?, &gain, &real(&[2, 6])?),
        "linear_add_rms_norm: residual: expected the shape [2, 6]",
    )?;
    refused(
        added(&out, &real(&[5])?, &real(&[2, 6])?),
        "linear_add_rms_norm: weight: expected the shape [6], found [5]",
    )?;
    let wide = Tensor::empty(device, Element::Bf16, &[2, 8])?;
    let of_bf16 = Tensor::empty(device, Element::Bf16, &[6, 8])?;
    let mixed = linear_rms_norm(&scratch, &wide, &of_bf16, None, &out, &gain, EPS, &out);
    refused(mixed, "linear_rms_norm: out: expected bf16, found f32")?;
    Ok(vec![])
}
