//! A mixture of experts from the router to the sum over a token's experts.

use std::rc::Rc;

use dsv2_optimized::operators::combine::combine;
use dsv2_optimized::operators::dispatch::sort_by_expert;
use dsv2_optimized::operators::experts::{down, gate_up};
use dsv2_optimized::operators::router::{RoutingRule, route, router_logits};
use dsv2_optimized::{Element, Result, Tensor};
use dsv2_reference::Activation;

use super::case::{Case, Data, Kind, Model, Random, Scale};

/// k, of both models.
const TOP_K: usize = 6;

/// All of them, in the order of a forward pass.
pub fn cases(scale: Scale) -> Vec<Case> {
    let [lite, v2] = Model::all();
    let both = [lite, v2];
    let mut cases = scale.rows(&both, of_router_logits);
    // Of these two there is one type.
    let one_type = |case: fn(Kind, Model, usize) -> Case, element| {
        let mut cases = scale.rows(&both, |kind, model, tokens| case((kind.0, element), model, tokens));
        cases.dedup_by_key(|case| case.id());
        cases
    };
    cases.extend(one_type(of_route, Element::F32));
    cases.extend(one_type(of_sort, Element::I32));
    // On an emulator a part of the experts, and of each expert's columns or depth.
    let of_counts = vec![(true, lite, 64, 2), (false, lite, 64, 64), (false, lite, 8, 256), (false, v2, 20, 2)];
    let of_gpu = both.into_iter().flat_map(|model| {
        [1, 8, 64, 512, 4096].map(|tokens| (tokens == 1 && model.is_lite(), model, model.num_experts(), tokens))
    });
    for (small, model, experts, tokens) in scale.pick(of_counts, of_gpu.collect()) {
        let routed = Rc::new(Routed::new(experts, tokens));
        let inner = scale.pick(64, model.moe_intermediate_size);
        for kind in scale.kinds(small) {
            cases.push(of_gate_up(kind, model, inner, routed.clone()));
            cases.push(of_down(kind, model, inner, routed.clone()));
        }
    }
    cases.extend(scale.rows(&both, of_combine));
    cases
}

/// Tokens with different random experts each, sorted by expert.
struct Routed {
    tokens: usize,
    experts: usize,
    offsets: Vec<usize>,
    order: Vec<usize>,
}

impl Routed {
    fn new(experts: usize, tokens: usize) -> Self {
        let random = Random::new(20);
        let choice: Vec<usize> = (0..tokens).flat_map(|_| random.shuffled(experts).into_iter().take(TOP_K)).collect();
        let mut order: Vec<usize> = (0..choice.len()).collect();
        order.sort_by_key(|pair| choice[*pair]);
        let offset = |expert| choice.iter().filter(|chosen| **chosen < expert).count();
        Routed { tokens, experts, offsets: (0..=experts).map(offset).collect(), order }
    }

    fn pairs(&self) -> usize {
        self.order.len()
    }

    /// Experts that have a token.
    fn distinct(&self) -> usize {
        self.offsets.windows(2).filter(|range| range[0] < range[1]).count()
    }

    fn offsets(&self, data: &Data) -> Result<Tensor> {
        data.integers(&[self.offsets.len()], self.offsets.iter().copied())
    }

    /// A matrix for each expert; only those of experts that have a token are read.
    fn weights(&self, data: &Data, [rows, columns]: [usize; 2]) -> Result<Tensor> {
        let (deviation, read) = ((columns as f32).powf(-0.5), self.distinct() * rows * columns);
        data.partly_read(&[self.experts, rows, columns], deviation, read)
    }

    fn case(
        &self,
        operator: &'static str,
        kind: Kind,
        model: Model,
        inner: usize,
        flops_of_pair: usize,
        prepare: impl Fn(&Data) -> Result<super::case::Launch> + 'static,
    ) -> Case {
        let sizes = [("N", self.tokens), ("experts", self.distinct()), ("D", model.hidden_size), ("I", inner)];
        Case::new(operator, kind, model, &sizes, flops_of_pair * self.pairs(), prepare).of_matrices()
    }
}

/// Reads x and the centroids of all experts, writes a logit for each token and expert in fp32.
fn of_router_logits(kind: Kind, model: Model, tokens: usize) -> Case {
    let (experts, width) = (model.num_experts(), model.hidden_size);
    let sizes = [("N", tokens), ("E", experts), ("D", width)];
    Case::new("router_logits", kind, model, &sizes, 2 * tokens * experts * width, move |data| {
        let x = data.numbers(&[tokens, width], 1.0)?;
        let centroids = data.numbers(&[experts, width], (width as f32).powf(-0.5))?;
        let (variant, logits) = (data.variant, data.room_of(Element::F32, &[tokens, experts])?);
        Ok(Box::new(move || router_logits(variant, &x, &centroids, &logits)))
    })
}

/// Reads the logits, writes k experts and weights for each token; a softmax is four operations for each expert.
fn of_route(kind: Kind, model: Model, tokens: usize) -> Case {
    let experts = model.num_experts();
    let (groups, kept) = (model.n_group.unwrap_or(1), model.topk_group.unwrap_or(1));
    Case::new("route", kind, model, &[("N", tokens), ("E", experts)], 4 * tokens * experts, move |data| {
        let logits = data.numbers(&[tokens, experts], 1.0)?;
        let rule = RoutingRule::group_limited(experts, groups, kept, TOP_K)?;
        let indices = data.room_of(Element::I32, &[tokens, TOP_K])?;
        let (variant, weights) = (data.variant, data.room(&[tokens, TOP_K])?);
        Ok(Box::new(move || route(variant, &logits, &rule, &indices, &weights)))
    })
}

/// Reads the experts of each token, writes the offset of each expert and two places for each pair.
fn of_sort(kind: Kind, model: Model, tokens: usize) -> Case {
    let (experts, pairs) = (model.num_experts(), tokens * TOP_K);
    Case::new("sort_by_expert", kind, model, &[("N", tokens), ("E", experts)], 0, move |data| {
        let choice: Vec<usize> =
            (0..tokens).flat_map(|_| data.random.shuffled(experts).into_iter().take(TOP_K)).collect();
        let indices = data.integers(&[tokens, TOP_K], choice)?;
        let (offsets, order, places) = (data.room(&[experts + 1])?, data.room(&[pairs])?, data.room(&[pairs])?);
        let variant = data.variant;
        Ok(Box::new(move || sort_by_expert(variant, &indices, experts, &offsets, &order, &places)))
    })
}

/// Reads gate and up of the experts that have a token, x, and the tables; writes a row for each pair of token and
/// expert.
fn of_gate_up(kind: Kind, model: Model, inner: usize, routed: Rc<Routed>) -> Case {
    let width = model.hidden_size;
    routed.clone().case("gate_up", kind, model, inner, (4 * width + 5) * inner, move |data| {
        let x = data.numbers(&[routed.tokens, width], 1.0)?;
        let weights = routed.weights(data, [2 * inner, width])?;
        let offsets = routed.offsets(data)?;
        let order = data.integers(&[routed.pairs()], routed.order.iter().copied())?;
        let (variant, out) = (data.variant, data.room(&[routed.pairs(), inner])?);
        Ok(Box::new(move || gate_up(variant, Activation::Silu, &x, &weights, &offsets, &order, TOP_K, &out, None)))
    })
}

/// Reads the last matrix of the experts that have a token, and a row for each pair; writes a row for each pair.
fn of_down(kind: Kind, model: Model, inner: usize, routed: Rc<Routed>) -> Case {
    let width = model.hidden_size;
    routed.clone().case("down", kind, model, inner, 2 * inner * width, move |data| {
        let h = data.numbers(&[routed.pairs(), inner], 1.0)?;
        let (weights, offsets) = (routed.weights(data, [width, inner])?, routed.offsets(data)?);
        let (variant, out) = (data.variant, data.room(&[routed.pairs(), width])?);
        Ok(Box::new(move || down(variant, &h, &weights, &offsets, &out, None)))
    })
}

/// Reads a row, a place and a weight for each pair, and the shared experts' row of each token; writes that token's row.
fn of_combine(kind: Kind, model: Model, tokens: usize) -> Case {
    let (pairs, width) = (tokens * TOP_K, model.hidden_size);
    let flops = (2 * TOP_K + 1) * tokens * width;
    Case::new("combine", kind, model, &[("N", tokens), ("D", width)], flops, move |data| {
        let rows = data.numbers(&[pairs, width], 1.0)?;
        let places = data.integers(&[pairs], data.random.shuffled(pairs))?;
        let weights = data.numbers_of(Element::F32, &[tokens, TOP_K], 0.3)?;
        let shared = data.numbers(&[tokens, width], 1.0)?;
        let (variant, out) = (data.variant, data.room(&[tokens, width])?);
        Ok(Box::new(move || combine(variant, &rows, &places, &weights, Some(&shared), &out)))
    })
}
