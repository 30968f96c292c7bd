//! The experts: one token and more than a tile, experts without tokens, all tokens to one expert, dropped tokens, odd
//! widths; and that a row is the same to the bit whatever other rows its expert has.

use std::sync::Arc;

use dsv2_optimized::operators::experts::{down, gate_up};
use dsv2_optimized::{Device, Element, Result, Tensor, Variant};
use dsv2_reference::Activation;
use dsv2_reference::Real;
use dsv2_reference::arithmetic::matmul::matmul_t;
use ndarray::{Array2, Array3, Axis, s};

use crate::dispatch::{How, indices, sorted};
use crate::harness::{Case, KINDS, Output, output, random, round, upload};
use crate::router::refused;

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    // (tokens, experts, k, how, D, I)
    for (tokens, experts, k, how, hidden, inner) in [
        (3, 4, 2, How::Mixed, 16, 24),
        (5, 3, 2, How::WithDropped, 7, 9),
        (1, 9, 3, How::Mixed, 40, 72),
        (0, 3, 2, How::Mixed, 8, 8),
        (70, 3, 1, How::OneExpert, 24, 16),
        (140, 2, 1, How::Mixed, 72, 8),
        (2, 4, 3, How::Mixed, 64, 1408),
        (2, 6, 6, How::Mixed, 2048, 72),
        (1, 2, 2, How::Mixed, 5120, 33),
        (4, 160, 6, How::Mixed, 200, 130),
    ] {
        for (element, variant) in KINDS {
            let input = Input {
                tokens,
                experts,
                k,
                how,
                hidden,
                inner,
                element,
                variant,
                act: Activation::Silu,
                reversed: false,
            };
            let shape = format!("tokens={tokens},experts={experts},k={k},{how:?},hidden={hidden},inner={inner}");
            let case = |operator: &str, run| Case {
                name: format!("{operator}/{variant}/{element}/{shape}"),
                module: "experts",
                watched: tokens * hidden * inner <= 4000,
                run,
            };
            cases.push(case("gate_up", Box::new(move |device| input.gate_up(device))));
            cases.push(case("down", Box::new(move |device| input.down(device))));
        }
    }
    for (element, variant) in KINDS {
        let (how, act) = (How::Mixed, Activation::GeluTanh);
        let input =
            Input { tokens: 4, experts: 3, k: 2, how, hidden: 16, inner: 12, element, variant, act, reversed: false };
        cases.push(Case {
            name: format!("gate_up/{variant}/{element}/gelu_tanh"),
            module: "experts",
            watched: true,
            run: Box::new(move |device| input.gate_up(device)),
        });
    }
    for (element, variant) in KINDS {
        let how = How::OneExpert;
        let input = Input {
            tokens: 75,
            experts: 2,
            k: 1,
            how,
            hidden: 136,
            inner: 12,
            element,
            variant,
            act: Activation::Silu,
            reversed: false,
        };
        cases.push(Case {
            name: format!("gate_up and down/{variant}/{element}/any batch"),
            module: "experts",
            watched: false,
            run: Box::new(move |device| input.any_batch(device)),
        });
    }
    for (element, variant) in KINDS {
        // (tokens, experts, k, D, I, I' of the shared expert)
        for (tokens, experts, k, hidden, inner, of_shared) in
            [(3, 4, 2, 16, 24, 40), (70, 3, 1, 24, 16, 200), (0, 3, 2, 8, 8, 16), (2, 9, 3, 40, 300, 9)]
        {
            let (how, act) = (How::WithDropped, Activation::Silu);
            let input = Input { tokens, experts, k, how, hidden, inner, element, variant, act, reversed: false };
            cases.push(Case {
                name: format!("gate_up and down/{variant}/{element}/shared,tokens={tokens},{inner} and {of_shared}"),
                module: "experts",
                watched: tokens * hidden * (inner + of_shared) <= 6000,
                run: Box::new(move |device| input.with_shared(device, of_shared)),
            });
        }
    }
    cases.push(Case {
        name: "gate_up and down/misfits".into(),
        module: "experts",
        watched: false,
        run: Box::new(misfits),
    });
    cases
}

#[derive(Clone, Copy)]
struct Input {
    tokens: usize,
    experts: usize,
    k: usize,
    how: How,
    hidden: usize,
    inner: usize,
    element: Element,
    variant: Variant,
    act: Activation,
    /// Whether the rows of x, or h, come the other way round.
    reversed: bool,
}

/// The tables of dispatch.cu, on a device.
struct Sorted {
    offsets: Tensor,
    order: Tensor,
}

impl Input {
    fn tables(&self) -> [Vec<i32>; 3] {
        sorted(&indices(self.how, self.tokens, self.experts, self.k), self.experts)
    }

    fn upload_tables(&self, device: &Arc<dyn Device>) -> Result<Sorted> {
        let [offsets, order, _] = self.tables();
        Ok(Sorted {
            offsets: Tensor::from_i32(device, &[offsets.len()], &offsets)?,
            order: Tensor::from_i32(device, &[order.len()], &order)?,
        })
    }

    /// \[tokens, hidden + 8\], of which the first columns are x.
    fn whole(&self) -> Array2<f32> {
        self.turned(random("x", [self.tokens, self.hidden + 8], 1.0))
    }

    /// \[pairs, inner\]
    fn h(&self) -> Array2<f32> {
        self.turned(random("h", [self.tokens * self.k, self.inner], 1.0))
    }

    fn turned(&self, rows: Array2<f32>) -> Array2<f32> {
        if self.reversed { rows.slice(s![..;-1, ..]).to_owned() } else { rows }
    }

    /// Large enough that silu is not a straight line.
    fn gate_up_weights(&self) -> Array3<f32> {
        experts("gate_up", [self.experts, 2 * self.inner, self.hidden])
    }

    fn down_weights(&self) -> Array3<f32> {
        experts("down", [self.experts, self.hidden, self.inner])
    }

    /// The expert and the pair of each place that has an expert.
    fn places(&self) -> Vec<(usize, usize)> {
        let [offsets, order, _] = self.tables();
        let experts = offsets.windows(2).enumerate().flat_map(|(e, range)| (range[0]..range[1]).map(move |_| e));
        experts.zip(order.into_iter().map(|pair| pair as usize)).collect()
    }

    fn run_gate_up(&self, device: &Arc<dyn Device>) -> Result<Tensor> {
        self.run_gate_up_into(device, self.tokens * self.k)
    }

    /// With room for so many rows.
    fn run_gate_up_into(&self, device: &Arc<dyn Device>, rows: usize) -> Result<Tensor> {
        let x = upload(device, self.element, &self.whole())?.narrow(1, 0..self.hidden)?;
        let weights = upload(device, self.element, &self.gate_up_weights())?;
        let Sorted { offsets, order } = self.upload_tables(device)?;
        let out = output(device, self.element, &[rows, self.inner])?;
        gate_up(self.variant, self.act, &x, &weights, &offsets, &order, self.k, &out, None)?;
        out.narrow(0, 0..self.places().len())
    }

    fn gate_up(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let found = self.run_gate_up(device)?;
        let (x, weights, inner) = (self.whole(), self.gate_up_weights(), self.inner);
        let x = x.slice(s![.., ..self.hidden]);
        let truth = self.rows(inner, |expert, pair| {
            let x = x.slice(s![pair / self.k..=pair / self.k, ..]).mapv(f64::from);
            let both = matmul_t(x.view(), weights.index_axis(Axis(0), expert).mapv(f64::from).view());
            (0..inner).map(|i| self.act.apply(both[[0, i]]) * both[[0, inner + i]]).collect()
        });
        // Transformers rounds gate, up, silu and the product.
        let rounded = |x: f32| round(x.into(), self.element) as f32;
        let plain = self.rows(inner, |expert, pair| {
            let x = x.slice(s![pair / self.k..=pair / self.k, ..]);
            let both = matmul_t(x, weights.index_axis(Axis(0), expert)).mapv(rounded);
            let silu = |i| rounded(self.act.apply(both[[0, i]]));
            (0..inner).map(|i| rounded(silu(i) * both[[0, inner + i]]).to_f64()).collect()
        });
        let exactly = self.run_gate_up_into(device, self.places().len())?;
        Ok(vec![
            Output::near("out", &found, truth, plain)?,
            Output::same("with room for the rows of experts alone", &exactly, &found)?,
        ])
    }

    /// A shared expert is to the bit what it would be as the only expert of all tokens, and changes nothing of the others.
    fn with_shared(&self, device: &Arc<dyn Device>, inner: usize) -> Result<Vec<Output>> {
        let &Input { tokens, k, hidden, element, variant, act, .. } = self;
        let table = |numbers: &[i32]| Tensor::from_i32(device, &[numbers.len()], numbers);
        let x = upload(device, element, &self.whole())?.narrow(1, 0..hidden)?;
        let h = upload(device, element, &self.h())?;
        let [of_gate_up, of_down] =
            [self.gate_up_weights(), self.down_weights()].map(|it| upload(device, element, &it));
        let (of_gate_up, of_down) = (of_gate_up?, of_down?);
        let Sorted { offsets, order } = self.upload_tables(device)?;
        let room = |rows: usize, columns: usize| output(device, element, &[rows, columns]);

        // As the only one.
        let shared_gate_up = upload(device, element, &experts("shared gate_up", [1, 2 * inner, hidden]))?;
        let shared_down = upload(device, element, &experts("shared down", [1, hidden, inner]))?;
        let (all, identity) = (table(&[0, tokens as i32])?, table(&(0..tokens as i32).collect::<Vec<_>>())?);
        let (h_alone, y_alone) = (room(tokens, inner)?, room(tokens, hidden)?);
        gate_up(variant, act, &x, &shared_gate_up, &all, &identity, 1, &h_alone, None)?;
        down(variant, &h_alone, &shared_down, &all, &y_alone, None)?;

        // Beside the others.
        let weights = shared_gate_up.reshape(&[2 * inner, hidden])?;
        let (out, h_shared, y_shared) = (room(tokens * k, self.inner)?, room(tokens, inner)?, room(tokens, hidden)?);
        gate_up(variant, act, &x, &of_gate_up, &offsets, &order, k, &out, Some([&weights, &h_shared]))?;
        let (y, weights) = (room(tokens * k, hidden)?, shared_down.reshape(&[hidden, inner])?);
        down(variant, &h, &of_down, &offsets, &y, Some([&h_shared, &weights, &y_shared]))?;
        let with_expert = self.places().len();
        Ok(vec![
            Output::same("h of the shared expert", &h_shared, &h_alone)?,
            Output::same("y of the shared expert", &y_shared, &y_alone)?,
            Output::same("h", &out.narrow(0, 0..with_expert)?, &self.run_gate_up(device)?)?,
            Output::same("y", &y.narrow(0, 0..with_expert)?, &self.run_down(device)?)?,
        ])
    }

    fn run_down(&self, device: &Arc<dyn Device>) -> Result<Tensor> {
        let h = upload(device, self.element, &self.h())?;
        let weights = upload(device, self.element, &self.down_weights())?;
        let out = output(device, self.element, &[self.tokens * self.k, self.hidden])?;
        down(self.variant, &h, &weights, &self.upload_tables(device)?.offsets, &out, None)?;
        out.narrow(0, 0..self.places().len())
    }

    fn down(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let found = self.run_down(device)?;
        let (h, weights) = (self.h(), self.down_weights());
        let place = std::cell::Cell::new(0);
        let row = || {
            place.set(place.get() + 1);
            h.slice(s![place.get() - 1..place.get(), ..])
        };
        let truth = self.rows(self.hidden, |expert, _| {
            let weights = weights.index_axis(Axis(0), expert).mapv(f64::from);
            matmul_t(row().mapv(f64::from).view(), weights.view()).into_iter().collect()
        });
        place.set(0);
        let plain = self.rows(self.hidden, |expert, _| {
            let y = matmul_t(row(), weights.index_axis(Axis(0), expert));
            y.into_iter().map(|y| round(y.into(), self.element)).collect()
        });
        Ok(vec![Output::near("out", &found, truth, plain)?])
    }

    /// A row for each place, from its expert and its pair.
    fn rows(&self, width: usize, row: impl Fn(usize, usize) -> Vec<f64>) -> Array2<f64> {
        let places = self.places();
        let values: Vec<f64> = places.iter().flat_map(|(expert, pair)| row(*expert, *pair)).collect();
        Array2::from_shape_vec((places.len(), width), values).expect("rows of one width")
    }

    /// The last expert's rows all together, twice; fewer of them; and each of them in another place of a tile.
    fn any_batch(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let mut outputs = vec![];
        for (run, width) in [(Input::run_gate_up as Runner, self.inner), (Input::run_down, self.hidden)] {
            let all = run(self, device)?.to_f32()?;
            outputs.push(Output::exactly("again", &run(self, device)?, all.iter().map(|x| f64::from(*x)))?);
            let turned = run(&Input { reversed: true, ..*self }, device)?;
            let expected = all.rchunks(width).flatten().map(|x| f64::from(*x));
            outputs.push(Output::exactly("in reverse order", &turned, expected)?);
            for tokens in [1, 33, 64, 66] {
                let fewer = run(&Input { tokens, ..*self }, device)?;
                let expected = all[..tokens * width].iter().map(|x| f64::from(*x));
                outputs.push(Output::exactly("with fewer tokens", &fewer, expected)?);
            }
        }
        Ok(outputs)
    }
}

type Runner = fn(&Input, &Arc<dyn Device>) -> Result<Tensor>;

/// Weights that keep the size of what they are applied to.
fn experts(name: &str, shape: [usize; 3]) -> Array3<f32> {
    let std = (shape[2] as f64).powf(-0.5);
    random(name, shape, std)
}

/// Operands that do not fit.
fn misfits(device: &Arc<dyn Device>) -> Result<Vec<Output>> {
    let real = |shape: &[usize]| Tensor::empty(device, Element::F32, shape);
    let table = |length: usize| Tensor::empty(device, Element::I32, &[length]);
    let (x, weights, h, y) = (real(&[2, 8])?, real(&[4, 10, 8])?, real(&[6, 5])?, real(&[6, 8])?);
    let (offsets, order, down_weights) = (table(5)?, table(6)?, real(&[4, 8, 5])?);
    for variant in Variant::ALL {
        let run = |weights: &Tensor, offsets: &Tensor, order: &Tensor, out: &Tensor| {
            gate_up(variant, Activation::Silu, &x, weights, offsets, order, 3, out, None)
        };
        refused(run(&real(&[4, 9, 8])?, &offsets, &order, &h), "gate_up: weights: expected as many gate as up rows")?;
        refused(run(&real(&[4, 10, 7])?, &offsets, &order, &h), "gate_up: weights: expected the shape [4, 10, 8]")?;
        refused(run(&weights, &order, &order, &h), "gate_up: offsets: expected the shape [5], found [6]")?;
        refused(run(&weights, &offsets, &offsets, &h), "gate_up: order: expected the shape [6], found [5]")?;
        refused(run(&weights, &offsets, &order, &y), "gate_up: out: expected the shape [6, 5], found [6, 8]")?;
        refused(down(variant, &h, &weights, &offsets, &y, None), "down: weights: expected the shape [4, 10, 5]")?;
        refused(
            down(variant, &h, &down_weights, &offsets, &h, None),
            "down: out: expected the shape [6, 8], found [6, 5]",
        )?;
    }
    Ok(vec![])
}
