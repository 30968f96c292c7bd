//! A mixture of experts from the router to the sum over a token's experts.

use std::rc::Rc;

use dsv2_optimized::operators::combine::combine;
use dsv2_optimized::operators::dispatch::sort_by_expert;
use dsv2_optimized::operators::experts::{down, gate_up};
use dsv2_optimized::operators::router::{RoutingRule, route, router_logits};
use dsv2_optimized::{Element, Result, Tensor};
use dsv2_reference::Activation;

use super::case::{Case, Data, Kind, LITE, Model, Random, Scale, TOP_K, V2, Work};

/// All of them, in the order of a forward pass.
pub fn cases(scale: Scale) -> Vec<Case> {
    let mut cases = vec![];
    for (small, tokens) in scale.pick(vec![(true, 16)], vec![(true, 16), (false, 4096)]) {
        for model in [LITE, V2] {
            let small = small && model.name == LITE.name;
            let kinds = scale.kinds(small);
            cases.extend(kinds.iter().map(|kind| of_router_logits(*kind, model, tokens)));
            // Of these two there is one type.
            let kinds = kinds.iter().filter(|kind| kind.1 == Element::Bf16);
            for (variant, _) in kinds.clone() {
                cases.push(of_route((*variant, Element::F32), model, tokens));
                cases.push(of_sort((*variant, Element::I32), model, tokens));
            }
        }
    }
    // On an emulator a part of V2's experts, and of each expert's columns or depth.
    let lite = Model { inner: scale.pick(64, LITE.inner), ..LITE };
    let v2 = Model { inner: scale.pick(64, V2.inner), experts: scale.pick(20, V2.experts), ..V2 };
    let tokens = scale.pick(
        vec![(true, lite, 2), (false, lite, 64), (false, Model { experts: 8, ..lite }, 256), (false, v2, 2)],
        [lite, v2]
            .into_iter()
            .flat_map(|model| {
                [1, 8, 64, 512, 4096].map(|tokens| (tokens == 1 && model.name == LITE.name, model, tokens))
            })
            .collect(),
    );
    for (small, model, tokens) in tokens {
        let routed = Rc::new(Routed::new(model.experts, tokens));
        for kind in scale.kinds(small) {
            cases.push(of_gate_up(kind, model, routed.clone()));
            cases.push(of_down(kind, model, routed.clone()));
        }
    }
    for (small, tokens) in scale.pick(vec![(true, 16)], vec![(true, 16), (false, 4096)]) {
        for model in [LITE, V2] {
            let kinds = scale.kinds(small && model.name == LITE.name).into_iter();
            cases.extend(kinds.map(|kind| of_combine(kind, model, tokens)));
        }
    }
    cases
}

/// Tokens with different random experts each, sorted by expert.
struct Routed {
    tokens: usize,
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
        Routed { tokens, offsets: (0..=experts).map(offset).collect(), order }
    }

    fn pairs(&self) -> usize {
        self.order.len()
    }

    /// Experts that have a token.
    fn distinct(&self) -> usize {
        self.offsets.windows(2).filter(|range| range[0] < range[1]).count()
    }

    fn shape(&self) -> [(&'static str, usize); 2] {
        [("N", self.tokens), ("experts", self.distinct())]
    }

    fn tables(&self, data: &Data) -> Result<(Tensor, Tensor)> {
        let table = |values: &[usize]| data.integers(&[values.len()], values.iter().copied());
        Ok((table(&self.offsets)?, table(&self.order)?))
    }
}

/// Reads x and the centroids of all experts, writes a logit for each token and expert in fp32.
fn of_router_logits(kind: Kind, model: Model, tokens: usize) -> Case {
    let ((variant, element), Model { hidden, experts, .. }) = (kind, model);
    let work = Work {
        read: (tokens + experts) * hidden * element.bytes(),
        written: tokens * experts * 4,
        flops: 2 * tokens * experts * hidden,
    };
    Case::new("router_logits", kind, model, &[("N", tokens), ("E", experts), ("D", hidden)], work, move |data| {
        let x = data.numbers(element, &[tokens, hidden], 1.0)?;
        let centroids = data.numbers(element, &[experts, hidden], (hidden as f32).powf(-0.5))?;
        let logits = data.room(Element::F32, &[tokens, experts])?;
        Ok(Box::new(move || router_logits(variant, &x, &centroids, &logits)))
    })
}

/// Reads the logits, writes k experts and weights for each token; a softmax is four operations for each expert.
fn of_route(kind: Kind, model: Model, tokens: usize) -> Case {
    let Model { experts, groups: (groups, kept), .. } = model;
    let logits = tokens * experts;
    let work = Work { read: 4 * logits, written: 8 * tokens * TOP_K, flops: 4 * logits };
    Case::new("route", kind, model, &[("N", tokens), ("E", experts)], work, move |data| {
        let logits = data.numbers(Element::F32, &[tokens, experts], 1.0)?;
        let rule = RoutingRule::group_limited(experts, groups, kept, TOP_K)?;
        let indices = data.room(Element::I32, &[tokens, TOP_K])?;
        let weights = data.room(Element::F32, &[tokens, TOP_K])?;
        Ok(Box::new(move || route(kind.0, &logits, &rule, &indices, &weights)))
    })
}

/// Reads the experts of each token, writes the offset of each expert and two places for each pair.
fn of_sort(kind: Kind, model: Model, tokens: usize) -> Case {
    let (experts, pairs) = (model.experts, tokens * TOP_K);
    let work = Work { read: 4 * pairs, written: 4 * (experts + 1) + 8 * pairs, flops: 0 };
    Case::new("sort_by_expert", kind, model, &[("N", tokens), ("E", experts)], work, move |data| {
        let choice =
            (0..tokens).flat_map(|_| data.random.shuffled(experts).into_iter().take(TOP_K)).collect::<Vec<_>>();
        let indices = data.integers(&[tokens, TOP_K], choice)?;
        let room = |length| data.room(Element::I32, &[length]);
        let (offsets, order, places) = (room(experts + 1)?, room(pairs)?, room(pairs)?);
        Ok(Box::new(move || sort_by_expert(kind.0, &indices, experts, &offsets, &order, &places)))
    })
}

/// Reads gate and up of the experts that have a token, x, and the tables; writes a row for each pair of token and
/// expert.
fn of_gate_up(kind: Kind, model: Model, routed: Rc<Routed>) -> Case {
    let ((variant, element), Model { hidden, experts, inner, .. }) = (kind, model);
    let (tokens, pairs, e) = (routed.tokens, routed.pairs(), element.bytes());
    let weights = routed.distinct() * 2 * inner * hidden;
    let work = Work {
        read: (weights + tokens * hidden) * e + 4 * (experts + 1 + pairs),
        written: pairs * inner * e,
        flops: (4 * hidden + 5) * pairs * inner,
    };
    let [tokens_of, distinct] = routed.shape();
    Case::new("gate_up", kind, model, &[tokens_of, distinct, ("D", hidden), ("I", inner)], work, move |data| {
        let x = data.numbers(element, &[tokens, hidden], 1.0)?;
        let weights = data.numbers(element, &[experts, 2 * inner, hidden], (hidden as f32).powf(-0.5))?;
        let (offsets, order) = routed.tables(data)?;
        let out = data.room(element, &[pairs, inner])?;
        Ok(Box::new(move || gate_up(variant, Activation::Silu, &x, &weights, &offsets, &order, TOP_K, &out)))
    })
    .of_matrices()
}

/// Reads the last matrix of the experts that have a token, and a row for each pair; writes a row for each pair.
fn of_down(kind: Kind, model: Model, routed: Rc<Routed>) -> Case {
    let ((variant, element), Model { hidden, experts, inner, .. }) = (kind, model);
    let (pairs, e) = (routed.pairs(), element.bytes());
    let work = Work {
        read: (routed.distinct() * hidden + pairs) * inner * e + 4 * (experts + 1),
        written: pairs * hidden * e,
        flops: 2 * pairs * inner * hidden,
    };
    let [tokens_of, distinct] = routed.shape();
    Case::new("down", kind, model, &[tokens_of, distinct, ("D", hidden), ("I", inner)], work, move |data| {
        let h = data.numbers(element, &[pairs, inner], 1.0)?;
        let weights = data.numbers(element, &[experts, hidden, inner], (inner as f32).powf(-0.5))?;
        let (offsets, _) = routed.tables(data)?;
        let out = data.room(element, &[pairs, hidden])?;
        Ok(Box::new(move || down(variant, &h, &weights, &offsets, &out)))
    })
    .of_matrices()
}

/// Reads a row, a place and a weight for each pair, and the shared experts' row of each token; writes that token's row.
fn of_combine(kind: Kind, model: Model, tokens: usize) -> Case {
    let ((variant, element), width) = (kind, model.hidden);
    let (pairs, row) = (tokens * TOP_K, width * element.bytes());
    let work = Work {
        read: (pairs + tokens) * row + 8 * pairs,
        written: tokens * row,
        flops: (2 * TOP_K + 1) * tokens * width,
    };
    Case::new("combine", kind, model, &[("N", tokens), ("D", width)], work, move |data| {
        let rows = data.numbers(element, &[pairs, width], 1.0)?;
        let places = data.integers(&[pairs], data.random.shuffled(pairs))?;
        let weights = data.numbers(Element::F32, &[tokens, TOP_K], 0.3)?;
        let shared = data.numbers(element, &[tokens, width], 1.0)?;
        let out = data.room(element, &[tokens, width])?;
        Ok(Box::new(move || combine(variant, &rows, &places, &weights, Some(&shared), &out)))
    })
}
