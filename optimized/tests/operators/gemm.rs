//! Matrix products: real sums and odd ones, both layouts of the right side, rows that are apart, batches of heads; and that
//! a row has the same bits alone, in a batch, in another order, and however it was copied.

use std::sync::Arc;

use dsv2_optimized::operators::gemm::{batched, linear, linear_shared};
use dsv2_optimized::operators::scratch::Scratch;
use dsv2_optimized::{Device, Element, Error, Result, Tensor, Variant};
use ndarray::{Array1, Array2, Array3, Axis, concatenate, s, stack};

use crate::harness::{Case, Output, cut_off, output, random, round, upload};

/// Type of the factors, type of the result.
pub const TYPES: [(Element, Element); 3] =
    [(Element::F32, Element::F32), (Element::Bf16, Element::Bf16), (Element::Bf16, Element::F32)];

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (element, made) in TYPES {
        for variant in Variant::ALL {
            let kernel = Kernel { element, made, variant };
            let case = |operator: &str, size: usize, shape: String, run| {
                let name = format!("{operator}/{variant}/{element}-to-{made}/{shape}");
                (size, Case { name, module: "gemm", watched: size <= 300_000, run })
            };
            // (M, N, K, columns before the slice of a wider matrix that x is, bias)
            for (m, n, k, skipped, bias) in [
                (1, 1, 1, 0, false),
                (1, 7, 8, 0, true),
                (3, 7, 17, 3, true),
                (5, 4, 0, 0, true),
                (0, 4, 8, 0, false),
                (3, 33, 36, 4, true),
                (5, 68, 456, 8, true),
                (2, 130, 192, 0, false),
                (17, 64, 128, 64, false),
                (2, 5, 451, 0, false),
                (34, 9, 301, 2, true),
                (33, 65, 264, 0, true),
                (65, 7, 1, 0, false),
                (129, 130, 100, 12, true),
                (3, 40, 1536, 0, false),
                (34, 24, 2048, 0, false),
                (2, 40, 5120, 8, true),
                (35, 12, 5120, 0, false),
                (1, 5, 5121, 0, false),
            ] {
                let shape = format!("M={m},N={n},K={k},skipped={skipped}{}", if bias { ",bias" } else { "" });
                let input = Linear { kernel, m, n, k, skipped, bias, by_columns: false };
                cases.push(case("linear", m * n * k, shape, Box::new(move |device| input.run(device))));
            }
            // (G, M, N, K): the absorbed query of V2 (c 512, n 128) in few columns, and odd heads
            for (g, m, n, k) in
                [(3, 2, 12, 6), (2, 3, 7, 1), (3, 1, 64, 128), (3, 35, 40, 40), (2, 130, 72, 128), (3, 5, 512, 128)]
            {
                let shape = format!("G={g},M={m},N={n},K={k}");
                let heads = Heads { kernel, g, m, n, k };
                let size = g * m * n * k;
                cases.push(case("absorb", size, shape.clone(), Box::new(move |device| heads.absorb(device))));
                cases.push(case("unabsorb", size, shape, Box::new(move |device| heads.unabsorb(device))));
            }
            if variant == Variant::Tuned {
                // (M, N, K, bias): of both tiles, and a last stretch that is short
                for (m, n, k, bias) in [(1, 6, 1100, true), (17, 9, 1030, false), (35, 70, 1540, true)] {
                    let input = Linear { kernel, m, n, k, skipped: 0, bias, by_columns: false };
                    let run = Box::new(move |device: &Arc<dyn Device>| input.shared(device));
                    cases.push(case("linear_shared", m * n * k, format!("M={m},N={n},K={k}"), run));
                }
            }
            if variant == Variant::Tuned && made == Element::Bf16 {
                // Of the tile for several rows, which so many columns get: some by sharing only.
                let (m, n, k) = (17, 8131, 330);
                let input = Linear { kernel, m, n, k, skipped: 8, bias: true, by_columns: false };
                let (_, alone) =
                    case("linear", m * n * k, format!("M={m},N={n},K={k}"), Box::new(move |device| input.run(device)));
                cases.push((m * n * k, Case { watched: true, ..alone }));
                let (m, n, k) = (29, 2754, 1030);
                let input = Linear { kernel, m, n, k, skipped: 0, bias: true, by_columns: false };
                let run = Box::new(move |device: &Arc<dyn Device>| input.shared(device));
                cases.push(case("linear_shared", m * n * k, format!("M={m},N={n},K={k}"), run));
                let rows = Rows { kernel, n: 8131, k: 72 };
                let run = Box::new(move |device: &Arc<dyn Device>| rows.run(device));
                cases.push(case("rows", usize::MAX, format!("N={},K={}", rows.n, rows.k), run));
            }
            for (n, k) in [(24, 136), (9, 333)] {
                let rows = Rows { kernel, n, k };
                let run = Box::new(move |device: &Arc<dyn Device>| rows.run(device));
                cases.push(case("rows", usize::MAX, format!("N={n},K={k}"), run));
            }
        }
    }
    // Small ones first, of all types and kernels: a wrong kernel is caught soon.
    cases.sort_by_key(|(size, _)| *size);
    cases.into_iter().map(|(_, case)| case).collect()
}

#[derive(Clone, Copy)]
pub struct Kernel {
    pub element: Element,
    pub made: Element,
    pub variant: Variant,
}

impl Kernel {
    /// `plain` is a sum in fp32.
    fn near(&self, got: &Tensor, truth: Array3<f64>, plain: Array3<f32>) -> Result<Output> {
        let mut plain = plain.mapv(f64::from);
        if (self.element, self.made) == (Element::Bf16, Element::F32) {
            // A tensor core cuts its sums off to fp32 where other arithmetic rounds them, and here nothing hides it.
            plain += &truth.mapv(|x| cut_off(x) - x);
        }
        Output::near("out", got, truth, plain.mapv(|x| round(x, self.made)))
    }
}

#[derive(Clone, Copy)]
pub struct Linear {
    pub kernel: Kernel,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub skipped: usize,
    pub bias: bool,
    /// Whether the weight is stored column after column.
    pub by_columns: bool,
}

/// Computes `out` from x, the weight and perhaps a bias.
type Multiply<'a> = &'a dyn Fn(&Tensor, &Tensor, Option<&Tensor>, &Tensor) -> Result<()>;

impl Linear {
    fn run(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let variant = self.kernel.variant;
        self.judge(device, &|x, weight, bias, out| linear(variant, x, weight, bias, out))
    }

    /// Several blocks for each tile: the same bits, twice in a row in the same room, and where there is room for less.
    fn shared(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let &Linear { kernel: Kernel { element, made, variant }, m, n, k, bias, .. } = self;
        let x = upload(device, element, &random("x", [m, k], 1.0))?;
        let weight = upload(device, element, &random("weight", [n, k], 0.05))?;
        let bias = bias.then(|| upload(device, element, &random("bias", [n], 1.0))).transpose()?;
        let room = || output(device, made, &[m, n]);
        let alone = room()?;
        linear(variant, &x, &weight, bias.as_ref(), &alone)?;
        let mut outputs = vec![];
        for (name, numbers) in [("shared", 1 << 20), ("with no room", 4)] {
            let scratch = Scratch::new(device, numbers)?;
            for _ in 0..2 {
                let got = room()?;
                linear_shared(&scratch, &x, &weight, bias.as_ref(), &got)?;
                outputs.push(Output::same(name, &got, &alone)?);
            }
        }
        // At the end, since a GPU does not have it: a launch that fails between others, with an operand of which the second
        // half was never written.
        if device.name() == "emulator" {
            let (scratch, half) = (Scratch::new(device, 1 << 20)?, Tensor::empty(device, element, &[m, k])?);
            let other = upload(device, element, &random("other", [m, k], 1.0))?;
            for column in 0..m {
                let place = half.narrow(0, column..column + 1)?.narrow(1, 0..k / 2)?;
                place.write_f32(&vec![1.0; k / 2])?;
            }
            let (got, expected) = (room()?, room()?);
            linear_shared(&scratch, &x, &weight, bias.as_ref(), &got)?;
            if linear_shared(&scratch, &half, &weight, bias.as_ref(), &got).is_ok() {
                return Err(Error::operand("linear_shared", "x", "a refusal of what was never written", "none"));
            }
            linear_shared(&scratch, &other, &weight, bias.as_ref(), &got)?;
            linear(variant, &other, &weight, bias.as_ref(), &expected)?;
            outputs.push(Output::same("after one that failed", &got, &expected)?);
        }
        Ok(outputs)
    }

    /// What `multiply` makes of it.
    pub fn judge(&self, device: &Arc<dyn Device>, multiply: Multiply) -> Result<Vec<Output>> {
        let &Linear { kernel: Kernel { element, made, .. }, m, n, k, skipped, .. } = self;
        let whole = random("x", [m, skipped + k], 1.0);
        let weight = random("weight", [n, k], 0.05);
        let bias = random("bias", [n], 1.0);
        let on_device = upload(device, element, &bias)?;
        let x = upload(device, element, &whole)?.narrow(1, skipped..skipped + k)?;
        // Into a slice, too: what is beside it stays as it was.
        let wide = upload(device, made, &Array2::<f32>::ones((m, n + skipped)))?;
        let out = wide.narrow(1, 0..n)?;
        let stored = if self.by_columns { weight.t().as_standard_layout().to_owned() } else { weight.clone() };
        let stored = upload(device, element, &stored)?;
        let stored = if self.by_columns { stored.permute(&[1, 0])? } else { stored };
        multiply(&x, &stored, self.bias.then_some(&on_device), &out)?;

        let bias = if self.bias { bias } else { Array1::zeros(n) };
        let x = whole.slice(s![.., skipped..]);
        let truth = x.mapv(f64::from).dot(&weight.t().mapv(f64::from)) + bias.mapv(f64::from);
        let plain = x.dot(&weight.t()) + bias;
        let beside = wide.narrow(1, n..n + skipped)?;
        Ok(vec![
            Output::exactly("beside", &beside, vec![1.0; m * skipped])?,
            self.kernel.near(&out, truth.insert_axis(Axis(0)), plain.insert_axis(Axis(0)))?,
        ])
    }
}

/// Products for G heads, as attention has them.
#[derive(Clone, Copy)]
struct Heads {
    kernel: Kernel,
    g: usize,
    m: usize,
    n: usize,
    k: usize,
}

impl Heads {
    /// q [M,G,K] times W_UK [G,K,N]: the right side is a permuted slice of a weight whose heads have V's rows as well.
    fn absorb(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let weight = random("weight", [self.g, self.k + 3, self.n], 0.05);
        let b = upload(device, self.kernel.element, &weight)?.narrow(1, 0..self.k)?.permute(&[0, 2, 1])?;
        self.run(device, &b, |g| weight.slice(s![g, ..self.k, ..]).to_owned())
    }

    /// o [M,G,K] times W_UV [G,N,K]: the other rows of such a weight.
    fn unabsorb(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let weight = random("weight", [self.g, 2 + self.n, self.k], 0.05);
        let b = upload(device, self.kernel.element, &weight)?.narrow(1, 2..2 + self.n)?;
        self.run(device, &b, |g| weight.slice(s![g, 2.., ..]).t().to_owned())
    }

    /// `right` gives a head's [K,N].
    fn run(&self, device: &Arc<dyn Device>, b: &Tensor, right: impl Fn(usize) -> Array2<f32>) -> Result<Vec<Output>> {
        let &Heads { kernel: Kernel { element, made, variant }, g, m, n, k } = self;
        let left = random("left", [m, g, k], 1.0);
        let a = upload(device, element, &left)?.permute(&[1, 0, 2])?;
        // Heads are apart by more than their results: the rotary part of a query follows.
        let wide = output(device, made, &[m, g, n + 4])?;
        let out = wide.narrow(2, 0..n)?.permute(&[1, 0, 2])?;
        batched(variant, &a, b, &out)?;
        let heads = |product: &dyn Fn(usize) -> Array2<f64>| -> Vec<Array2<f64>> { (0..g).map(product).collect() };
        let truth = heads(&|g| left.slice(s![.., g, ..]).mapv(f64::from).dot(&right(g).mapv(f64::from)));
        let plain = heads(&|g| left.slice(s![.., g, ..]).dot(&right(g)).mapv(f64::from));
        let whole = |of: &[Array2<f64>]| {
            let views: Vec<_> = of.iter().map(|head| head.view()).collect();
            stack(Axis(0), &views).expect("heads of one shape")
        };
        Ok(vec![self.kernel.near(&out, whole(&truth), whole(&plain).mapv(|x| x as f32))?])
    }
}

/// The same rows in different company.
#[derive(Clone, Copy)]
struct Rows {
    kernel: Kernel,
    n: usize,
    k: usize,
}

impl Rows {
    /// Two large tiles, the second with few rows.
    const COUNT: usize = 131;

    fn run(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let x = random("x", [Self::COUNT, self.k], 1.0);
        let weight = random("weight", [self.n, self.k], 0.05);
        let all = self.product(device, &x, &weight, 0)?;
        let expected = all.to_f32()?;
        let expected = |rows: &[usize]| -> Vec<f64> {
            rows.iter().flat_map(|row| expected[row * self.n..][..self.n].iter().copied().map(f64::from)).collect()
        };
        let mut outputs = vec![];
        let mut compare = |name, rows: &[usize], skipped| -> Result<()> {
            let got = self.product(device, &x.select(Axis(0), rows), &weight, skipped)?;
            outputs.push(Output::exactly(name, &got, expected(rows))?);
            Ok(())
        };
        let every: Vec<usize> = (0..Self::COUNT).collect();
        compare("again", &every, 0)?;
        compare("backwards", &every.iter().rev().copied().collect::<Vec<_>>(), 0)?;
        // Slices of wider matrices: aligned, and not.
        compare("apart by 16 bytes", &every, 8)?;
        compare("not aligned", &every, 1)?;
        for row in [0, 17, 64, 130] {
            compare("alone", &[row], 0)?;
            compare("alone, not aligned", &[row], 3)?;
        }
        compare("three of them", &[130, 1, 70], 0)?;
        compare("thirty of them", &every[80..110], 0)?;
        compare("thirty, not aligned", &every[101..131], 5)?;
        compare("forty of them", &every[80..120], 0)?;
        // The weight stored the other way round: other copies, the same sums.
        let by_columns = upload(device, self.kernel.element, &weight.t().as_standard_layout().to_owned())?;
        let x = upload(device, self.kernel.element, &x)?;
        let got = output(device, self.kernel.made, &[Self::COUNT, self.n])?;
        linear(self.kernel.variant, &x, &by_columns.permute(&[1, 0])?, None, &got)?;
        outputs.push(Output::exactly("by columns", &got, expected(&every))?);
        Ok(outputs)
    }

    /// `x weightᵀ`, with `skipped` columns before the rows of both.
    fn product(
        &self,
        device: &Arc<dyn Device>,
        x: &Array2<f32>,
        weight: &Array2<f32>,
        skipped: usize,
    ) -> Result<Tensor> {
        let slice = |of: &Array2<f32>| {
            let before = Array2::from_elem((of.nrows(), skipped), f32::NAN);
            let whole = concatenate(Axis(1), &[before.view(), of.view()]).expect("as many rows");
            upload(device, self.kernel.element, &whole)?.narrow(1, skipped..skipped + self.k)
        };
        let out = output(device, self.kernel.made, &[x.nrows(), self.n])?;
        linear(self.kernel.variant, &slice(x)?, &slice(weight)?, None, &out)?;
        Ok(out)
    }
}
