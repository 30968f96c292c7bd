//! A mixture of experts from its input to its output, all operators in a row: near the truth, and the same to the bit for
//! a token alone, in a batch, and in a batch in reverse order.

use std::sync::Arc;

use dsv2_optimized::operators::combine::combine;
use dsv2_optimized::operators::dispatch::sort_by_expert;
use dsv2_optimized::operators::experts::{down, gate_up};
use dsv2_optimized::operators::router::{RoutingRule, route, router_logits};
use dsv2_optimized::{Device, Element, Result, Tensor, Variant};
use dsv2_reference::arithmetic::matmul::matmul_t;
use dsv2_reference::config::TopkMethod;
use dsv2_reference::model::router;
use dsv2_reference::{Activation, Real};
use ndarray::{Array2, Array3, ArrayView2, Axis, s};

use crate::harness::{Case, KINDS, Output, output, random, round, upload};

const EXPERTS: usize = 12;
const GROUPS: (usize, usize) = (4, 2);
const K: usize = 3;
const FACTOR: f32 = 2.5;

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (element, variant) in KINDS {
        for (tokens, hidden, inner) in [(4, 24, 16), (33, 40, 24), (5, 37, 11)] {
            let mixture = Mixture { tokens, hidden, inner, element, variant };
            cases.push(Case {
                name: format!("mixture/{variant}/{element}/tokens={tokens},hidden={hidden},inner={inner}"),
                module: "mixture",
                watched: tokens == 4,
                run: Box::new(move |device| mixture.check(device)),
            });
        }
    }
    cases
}

#[derive(Clone, Copy)]
struct Mixture {
    tokens: usize,
    hidden: usize,
    inner: usize,
    element: Element,
    variant: Variant,
}

impl Mixture {
    fn x(&self) -> Array2<f32> {
        random("x", [self.tokens, self.hidden], 1.0)
    }

    fn centroids(&self) -> Array2<f32> {
        random("centroids", [EXPERTS, self.hidden], 0.3)
    }

    /// Of all experts: gate and up, and down.
    fn weights(&self) -> [Array3<f32>; 2] {
        [("gate_up", [EXPERTS, 2 * self.inner, self.hidden]), ("down", [EXPERTS, self.hidden, self.inner])]
            .map(|(name, shape)| random(name, shape, 0.2))
    }

    /// What the device makes of it, with the input in the place of the shared experts.
    fn run(&self, device: &Arc<dyn Device>, x: ArrayView2<f32>) -> Result<Tensor> {
        let (variant, tokens) = (self.variant, x.nrows());
        let real = |element, shape: &[usize]| output(device, element, shape);
        let table = |length: usize| output(device, Element::I32, &[length]);
        let [of_gate_up, of_down] = self.weights();
        let x = upload(device, self.element, &x.to_owned())?;
        let centroids = upload(device, Element::F32, &self.centroids())?;
        let (of_gate_up, of_down) =
            (upload(device, self.element, &of_gate_up)?, upload(device, self.element, &of_down)?);

        let logits = real(Element::F32, &[tokens, EXPERTS])?;
        router_logits(variant, &x, &centroids, &logits)?;
        let indices = output(device, Element::I32, &[tokens, K])?;
        let weights = real(Element::F32, &[tokens, K])?;
        let rule = RoutingRule::group_limited(EXPERTS, GROUPS.0, GROUPS.1, K)?.scaled_by(FACTOR);
        route(variant, &logits, &rule, &indices, &weights)?;
        let (offsets, order, places) = (table(EXPERTS + 1)?, table(tokens * K)?, table(tokens * K)?);
        sort_by_expert(variant, &indices, EXPERTS, &offsets, &order, &places)?;
        let h = real(self.element, &[tokens * K, self.inner])?;
        gate_up(variant, Activation::Silu, &x, &of_gate_up, &offsets, &order, K, &h, None)?;
        let y = real(self.element, &[tokens * K, self.hidden])?;
        down(variant, &h, &of_down, &offsets, &y, None)?;
        let out = real(self.element, &[tokens, self.hidden])?;
        combine(variant, &y, &places, &weights, Some(&x), &out)?;
        Ok(out)
    }

    /// The same in `T`, with what is stored rounded by `rounded`.
    fn expected<T: Real>(&self, rounded: impl Fn(T) -> T) -> Array2<f64> {
        let wide = |x: f32| T::from_f64(x.into());
        let x = self.x().mapv(wide);
        let [of_gate_up, of_down] = self.weights().map(|weights| weights.mapv(wide));
        let method = TopkMethod::GroupLimitedGreedy { n_group: GROUPS.0, topk_group: GROUPS.1 };
        let rule = router::RoutingRule::new(EXPERTS, method, K).expect("a rule").scaled_by(wide(FACTOR));
        let routing = rule.route(matmul_t(x.view(), self.centroids().mapv(wide).view())).expect("a routing");
        let mut sum = Array2::zeros(x.dim());
        for (expert, tokens) in routing.tokens_of_experts().into_iter().enumerate() {
            for (token, weight) in tokens {
                let x = x.slice(s![token..=token, ..]);
                let both = matmul_t(x, of_gate_up.index_axis(Axis(0), expert)).mapv(&rounded);
                let gated = |i| rounded(rounded(Activation::Silu.apply(both[[0, i]])) * both[[0, self.inner + i]]);
                let h = Array2::from_shape_fn((1, self.inner), |(_, i)| gated(i));
                let y = matmul_t(h.view(), of_down.index_axis(Axis(0), expert)).mapv(&rounded);
                sum.row_mut(token).scaled_add(weight, &y.row(0));
            }
        }
        (sum.mapv(&rounded) + x).mapv(|out| rounded(out).to_f64())
    }

    fn check(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let x = self.x();
        let batch = self.run(device, x.view())?;
        let plain = self.expected(|x: f32| round(x.into(), self.element) as f32);
        let mut outputs = vec![Output::near("out", &batch, self.expected(|x: f64| x), plain)?];
        let values = batch.to_f32()?;
        let rows = || values.chunks(self.hidden);
        let expected = rows().rev().flatten().map(|x| f64::from(*x));
        let reversed = self.run(device, x.slice(s![..;-1, ..]))?;
        outputs.push(Output::exactly("in reverse order", &reversed, expected)?);
        for (token, row) in rows().enumerate().take(4) {
            let alone = self.run(device, x.slice(s![token..=token, ..]))?;
            outputs.push(Output::exactly("alone", &alone, row.iter().map(|x| f64::from(*x)))?);
        }
        Ok(outputs)
    }
}
