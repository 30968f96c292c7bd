//! The router: shapes of V2, V2-Lite and odd ones; ties, underflow, logits that are no numbers; and that a token's
//! result is the same to the bit in any batch.

use std::sync::Arc;

use dsv2_optimized::operators::dispatch::{route_and_sort, sort_by_expert};
use dsv2_optimized::operators::router::{RoutingRule, reweigh, route, router_logits};
use dsv2_optimized::{Device, Element, Error, Result, Tensor, Variant};
use dsv2_reference::Real;
use dsv2_reference::arithmetic::matmul::matmul_t;
use dsv2_reference::config::TopkMethod;
use dsv2_reference::model::router;
use ndarray::{Array2, s};

use crate::harness::{Case, Output, output, random, upload};

pub fn cases() -> Vec<Case> {
    let case = |name: String, watched, run| Case { name, module: "router", watched, run };
    let mut cases = vec![];
    for variant in Variant::ALL {
        cases.extend(Route::all(variant).into_iter().map(Route::case));
    }
    let kinds = [(Element::F32, Element::F32), (Element::Bf16, Element::Bf16), (Element::Bf16, Element::F32)]
        .map(|types| Variant::ALL.map(|variant| (types, variant)))
        .concat();
    // (tokens, width, columns of the matrix that the tokens are a slice of, experts)
    for (tokens, width, columns, experts) in [
        (3, 40, 48, 5),
        (5, 37, 37, 6),
        (0, 8, 8, 4),
        (9, 257, 300, 33),
        (257, 24, 24, 3),
        (2, 2048, 2048, 64),
        (1, 5120, 5120, 160),
    ] {
        for ((x, weight), variant) in kinds.iter().copied() {
            let input = Logits { tokens, width, columns, experts, x, weight, variant };
            let name = format!("router_logits/{variant}/{x}_{weight}/tokens={tokens},width={width},experts={experts}");
            cases.push(case(name, tokens * width <= 200, Box::new(move |device| input.logits(device))));
        }
    }
    for ((x, weight), variant) in kinds {
        let input = Logits { tokens: 11, width: 72, columns: 72, experts: 7, x, weight, variant };
        let name = format!("router_logits/{variant}/{x}_{weight}/any batch");
        cases.push(case(name, false, Box::new(move |device| input.any_batch(device))));
    }
    cases.push(case("router/misfits".into(), false, Box::new(misfits)));
    cases.push(case("route/impossible rules".into(), false, Box::new(|_| impossible_rules())));
    cases
}

#[derive(Clone, Copy)]
struct Logits {
    tokens: usize,
    width: usize,
    columns: usize,
    experts: usize,
    x: Element,
    weight: Element,
    variant: Variant,
}

impl Logits {
    fn whole(&self) -> Array2<f32> {
        random("x", [self.tokens, self.columns], 1.0)
    }

    fn run(&self, device: &Arc<dyn Device>, whole: &Array2<f32>) -> Result<Tensor> {
        let x = upload(device, self.x, whole)?.narrow(1, self.columns - self.width..self.columns)?;
        let weight = upload(device, self.weight, &random("weight", [self.experts, self.width], 0.05))?;
        let logits = output(device, Element::F32, &[whole.nrows(), self.experts])?;
        router_logits(self.variant, &x, &weight, &logits)?;
        Ok(logits)
    }

    fn logits(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let whole = self.whole();
        let x = whole.slice(s![.., self.columns - self.width..]);
        let weight = random("weight", [self.experts, self.width], 0.05);
        let truth = matmul_t(x.mapv(f64::from).view(), weight.mapv(f64::from).view());
        let plain = matmul_t(x, weight.view()).mapv(f64::from);
        Ok(vec![Output::near("logits", &self.run(device, &whole)?, truth, plain)?])
    }

    /// Twice, one by one, and in reverse order.
    fn any_batch(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let whole = self.whole();
        let first = self.run(device, &whole)?;
        let values = first.to_f32()?;
        let row = |token: usize| values[token * self.experts..][..self.experts].iter().map(|x| f64::from(*x));
        let again = self.run(device, &whole)?;
        let reversed = self.run(device, &whole.slice(s![..;-1, ..]).to_owned())?;
        let mut outputs = vec![
            Output::exactly("again", &again, (0..self.tokens).flat_map(row))?,
            Output::exactly("in reverse order", &reversed, (0..self.tokens).rev().flat_map(row))?,
        ];
        for token in 0..self.tokens {
            let alone = self.run(device, &whole.slice(s![token..=token, ..]).to_owned())?;
            outputs.push(Output::exactly("alone", &alone, row(token))?);
        }
        Ok(outputs)
    }
}

/// What the logits are like.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Multiples of 1/1024: two are equal, or apart by ten times what numerics.md asks for a decision to be certain.
    Usual,
    /// A few different numbers.
    Tied,
    /// One number.
    Equal,
    /// Two experts so far above all others that the others' scores underflow in fp32.
    Underflow,
    /// NaN and infinities of either sign, each alone and together.
    NotFinite,
}

#[derive(Clone, Copy)]
struct Route {
    tokens: usize,
    experts: usize,
    /// `n_group` and `topk_group`
    groups: (usize, usize),
    k: usize,
    factor: f32,
    normalised: bool,
    kind: Kind,
    variant: Variant,
}

impl Route {
    fn all(variant: Variant) -> Vec<Self> {
        let usual = Route {
            tokens: 3,
            experts: 6,
            groups: (1, 1),
            k: 2,
            factor: 1.0,
            normalised: false,
            kind: Kind::Usual,
            variant,
        };
        let v2 = Route { experts: 160, groups: (8, 3), k: 6, factor: 16.0, ..usual };
        let v2_lite = Route { experts: 64, k: 6, ..usual };
        let mut all = vec![
            usual,
            Route { tokens: 0, ..usual },
            Route { tokens: 1, experts: 1, k: 1, ..usual },
            Route { tokens: 1, k: 1, normalised: true, factor: 3.0, ..usual },
            Route { tokens: 257, experts: 5, k: 5, normalised: true, factor: 3.0, ..usual },
            Route { experts: 33, k: 4, factor: 2.5, ..usual },
            // Groups of one expert, as many as experts or one group less, and k as large as it can be.
            Route { tokens: 5, experts: 12, groups: (12, 4), k: 4, ..usual },
            Route { tokens: 5, experts: 12, groups: (4, 3), k: 9, ..usual },
            Route { tokens: 5, experts: 12, groups: (4, 4), k: 3, ..usual },
            Route { tokens: 9, ..v2_lite },
            Route { tokens: 9, ..v2 },
            Route { tokens: 2, normalised: true, ..v2 },
            // More tokens than a block has warps.
            Route { tokens: 70, experts: 12, groups: (4, 2), k: 3, ..usual },
            // More than a lane keeps in registers; more selected than a warp has lanes.
            Route { tokens: 2, experts: 300, groups: (4, 2), k: 7, ..usual },
            Route { tokens: 1, experts: 1024, groups: (8, 2), k: 40, normalised: true, ..usual },
        ];
        for kind in [Kind::Tied, Kind::Equal, Kind::Underflow, Kind::NotFinite] {
            all.push(Route { tokens: 7, kind, ..v2_lite });
            all.push(Route { tokens: 7, kind, ..v2 });
            all.push(Route { tokens: 7, experts: 6, groups: (3, 2), k: 4, normalised: true, kind, ..usual });
        }
        all
    }

    fn case(self) -> Case {
        let Route { tokens, experts, groups: (n_group, topk_group), k, normalised, kind, variant, .. } = self;
        let normalised = if normalised { ",normalised" } else { "" };
        Case {
            name: format!(
                "route/{variant}/{tokens}x{experts},groups={topk_group}of{n_group},k={k}{normalised},{kind:?}"
            ),
            module: "route",
            watched: tokens * experts <= 64 || tokens == 70,
            run: Box::new(move |device| self.run(device)),
        }
    }

    fn logits(&self) -> Array2<f32> {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let mut logits = random("logits", [self.tokens, self.experts], 2.0);
        match self.kind {
            Kind::Usual => logits.mapv_inplace(|x| (x * 1024.0).round() / 1024.0),
            Kind::Tied => logits.mapv_inplace(|x| (x / 2.0).round()),
            Kind::Equal => logits.fill(0.7),
            Kind::Underflow => {
                for (token, mut row) in logits.rows_mut().into_iter().enumerate() {
                    row[(token * 7 + 3) % self.experts] += 200.0;
                    row[(token * 5 + 4) % self.experts] = 201.0;
                }
            }
            Kind::NotFinite => {
                for (token, bad) in [&[nan][..], &[inf], &[-inf], &[-inf, nan], &[inf, -inf, nan]].iter().enumerate() {
                    bad.iter().enumerate().for_each(|(i, bad)| logits[[token, i + 1]] = *bad);
                }
                logits.row_mut(5).fill(-inf);
                logits.row_mut(6).fill(nan);
            }
        }
        logits
    }

    fn rule<T: Real>(&self) -> router::RoutingRule<T> {
        let (n_group, topk_group) = self.groups;
        let method = TopkMethod::GroupLimitedGreedy { n_group, topk_group };
        let rule = router::RoutingRule::new(self.experts, method, self.k).expect("a possible rule");
        let rule = rule.scaled_by(T::from_f64(self.factor.into()));
        if self.normalised { rule.normalised() } else { rule }
    }

    fn run(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let (n_group, topk_group) = self.groups;
        let rule = RoutingRule::group_limited(self.experts, n_group, topk_group, self.k)?.scaled_by(self.factor);
        let rule = if self.normalised { rule.normalised() } else { rule };
        let logits = self.logits();
        let uploaded = upload(device, Element::F32, &logits)?;
        let indices = output(device, Element::I32, &[self.tokens, self.k])?;
        let weights = output(device, Element::F32, &[self.tokens, self.k])?;
        route(self.variant, &uploaded, &rule, &indices, &weights)?;

        let plain = self.rule::<f32>().route(logits.clone()).expect("a routing");
        let exact = self.rule::<f64>().route(logits.mapv(f64::from)).expect("a routing");
        // Which scores underflow, and are equal then, is a matter of the type.
        let expected = if matches!(self.kind, Kind::Underflow) { &plain.topk_indices } else { &exact.topk_indices };
        let mut outputs = vec![
            Output::exactly("indices", &indices, expected.iter().map(|e| *e as f64))?,
            Output::near("weights", &weights, exact.topk_weights.clone(), plain.topk_weights.mapv(f64::from))?,
        ];
        if self.variant == Variant::Tuned {
            // Routed and sorted at once: what the operators make one after the other.
            let table = |length: usize| output(device, Element::I32, &[length]);
            let pairs = self.tokens * self.k;
            let apart = [table(self.experts + 1)?, table(pairs)?, table(pairs)?];
            let at_once = [table(self.experts + 1)?, table(pairs)?, table(pairs)?];
            let (same_indices, same_weights) =
                (output(device, Element::I32, indices.shape())?, output(device, Element::F32, weights.shape())?);
            sort_by_expert(self.variant, &indices, self.experts, &apart[0], &apart[1], &apart[2])?;
            let [offsets, order, places] = &at_once;
            route_and_sort(&uploaded, &rule, &same_indices, &same_weights, offsets, order, places)?;
            let exactly = |name, got: &Tensor, want: &Tensor| Output::exactly(name, got, want.to_i32()?);
            outputs.push(exactly("indices at once", &same_indices, &indices)?);
            outputs.push(Output::same("weights at once", &same_weights, &weights)?);
            for (name, (got, want)) in ["offsets", "order", "places"].into_iter().zip(at_once.iter().zip(&apart)) {
                outputs.push(exactly(name, got, want)?);
            }
        }
        let again = output(device, Element::F32, &[self.tokens, self.k])?;
        reweigh(&uploaded, &rule, &indices, &again)?;
        outputs.push(Output::near("reweighed", &again, exact.topk_weights, plain.topk_weights.mapv(f64::from))?);
        let values = weights.to_f32()?;
        for token in 0..self.tokens.min(5) {
            let indices = output(device, Element::I32, &[1, self.k])?;
            let weights = output(device, Element::F32, &[1, self.k])?;
            route(self.variant, &uploaded.narrow(0, token..token + 1)?, &rule, &indices, &weights)?;
            let of_token = token * self.k..(token + 1) * self.k;
            outputs.push(Output::exactly("weights alone", &weights, values[of_token].iter().map(|w| f64::from(*w)))?);
        }
        Ok(outputs)
    }
}

/// Rules that cannot be, each with the words that must be in its error.
fn impossible_rules() -> Result<Vec<Output>> {
    for (rule, words) in [
        (RoutingRule::greedy(0, 1), "experts: expected 1 to 1024, found 0"),
        (RoutingRule::greedy(1025, 1), "experts: expected 1 to 1024, found 1025"),
        (RoutingRule::greedy(6, 7), "num_experts_per_tok: expected at most 6, the experts of 1 groups, found 7"),
        (RoutingRule::group_limited(6, 4, 1, 1), "n_group: expected a divisor of the number of experts, 6, found 4"),
        (RoutingRule::group_limited(6, 0, 1, 1), "n_group: expected a divisor of the number of experts, 6, found 0"),
        (RoutingRule::group_limited(6, 3, 4, 1), "topk_group: expected 1 to 3, found 4"),
        (RoutingRule::group_limited(6, 3, 1, 3), "num_experts_per_tok: expected at most 2, the experts of 1 groups"),
    ] {
        refused(rule, words)?;
    }
    Ok(vec![])
}

/// Operands that do not fit.
fn misfits(device: &Arc<dyn Device>) -> Result<Vec<Output>> {
    let real = |shape: &[usize]| Tensor::empty(device, Element::F32, shape);
    let (x, weight, logits) = (real(&[2, 8])?, real(&[4, 8])?, real(&[2, 4])?);
    let narrow = Tensor::empty(device, Element::Bf16, &[4, 8])?;
    let indices = Tensor::empty(device, Element::I32, &[2, 3])?;
    let rule = RoutingRule::greedy(4, 3)?;
    for variant in Variant::ALL {
        let run = |x: &Tensor, weight: &Tensor, logits: &Tensor| router_logits(variant, x, weight, logits);
        refused(run(&x, &real(&[4, 7])?, &logits), "router_logits: weight: expected the shape [4, 8], found [4, 7]")?;
        refused(run(&x, &narrow, &logits), "router_logits: weight: expected f32, found bf16")?;
        refused(run(&indices, &weight, &logits), "router_logits: x: expected f32 or bf16, found i32")?;
        refused(run(&x, &weight, &real(&[2, 5])?), "router_logits: logits: expected the shape [2, 4], found [2, 5]")?;
        let run = |logits: &Tensor, indices: &Tensor, weights: &Tensor| route(variant, logits, &rule, indices, weights);
        refused(run(&real(&[2, 5])?, &indices, &real(&[2, 3])?), "route: logits: expected the shape [2, 4], found")?;
        refused(run(&logits, &indices, &real(&[2, 4])?), "route: weights: expected the shape [2, 3], found [2, 4]")?;
        refused(run(&logits, &real(&[2, 3])?, &real(&[2, 3])?), "route: indices: expected i32, found f32")?;
    }
    Ok(vec![])
}

/// An error if `result` is none that says `words`.
pub fn refused<T: std::fmt::Debug>(result: Result<T>, words: &'static str) -> Result<()> {
    let found = result.map_or_else(|error| error.to_string(), |given| format!("{given:?}"));
    if found.contains(words) { Ok(()) } else { Err(Error::operand("refusal", "error", words, found)) }
}
