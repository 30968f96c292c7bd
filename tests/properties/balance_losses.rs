//! The balance losses (2.2.3, eq. 23 to 31): their sums, values, bounds and gradients.

mod gradient;
mod loads;
mod values;

use dsv2_reference::config::TopkMethod;
use dsv2_reference::model::router::{Routing, RoutingRule};
use dsv2_reference::paper::parallel::Placement;
use dsv2_reference::paper::training::balance_loss::{
    BalanceLoss, Level, Over, device_affinity, device_load, device_traffic, expert_affinity, expert_load,
};
use ndarray::{Array1, Array2, Axis, s};
use proptest::collection::vec;
use proptest::prelude::*;

/// The error that is allowed, relative to α. Measured in 20000 cases: between 2e-15 and 4e-15, for 160 experts.
const TOLERANCE: f64 = 2e-14;

fn close(found: f64, expected: f64) -> Result<(), TestCaseError> {
    prop_assert!((found - expected).abs() <= TOLERANCE * expected.abs().max(1.0), "{} is not {}", found, expected);
    Ok(())
}

/// Some sequences, routed.
#[derive(Clone, Debug)]
struct Case {
    devices: usize,
    /// M.
    limit: usize,
    k: usize,
    batch: usize,
    /// The logits of each token, in eighths.
    eighths: Vec<Vec<i32>>,
}

impl Case {
    fn experts(&self) -> usize {
        self.eighths[0].len()
    }

    fn tokens(&self) -> usize {
        self.eighths.len()
    }

    fn placement(&self) -> Placement {
        Placement::contiguous(self.experts(), self.devices).unwrap()
    }

    fn logits(&self) -> Array2<f64> {
        Array2::from_shape_fn((self.tokens(), self.experts()), |(t, e)| f64::from(self.eighths[t][e]) / 8.0)
    }

    fn routing(&self) -> Routing<f64> {
        let method = TopkMethod::GroupLimitedGreedy { n_group: self.devices, topk_group: self.limit };
        RoutingRule::new(self.experts(), method, self.k).unwrap().route(self.logits()).unwrap()
    }
}

/// Up to 3 sequences of up to 4 tokens, up to 4 devices of up to 3 experts. Few logits are equal.
fn cases() -> impl Strategy<Value = Case> {
    (1..=4_usize, 1..=3_usize, 1..=3_usize, 1..=4_usize)
        .prop_flat_map(|(devices, size, batch, length)| {
            (1..=devices, vec(vec(-24..24, devices * size), batch * length), Just((devices, size, batch)))
        })
        .prop_flat_map(|(limit, eighths, (devices, size, batch))| {
            (1..=limit * size).prop_map(move |k| Case { devices, limit, k, batch, eighths: eighths.clone() })
        })
}

/// The value of a loss for the routing of a number of sequences.
type Loss = dyn Fn(&BalanceLoss, &Routing<f64>, usize) -> f64;

fn reference(loss: &BalanceLoss, routing: &Routing<f64>, batch: usize) -> f64 {
    loss.value(routing, batch).unwrap()
}

/// The loss of one sequence at each level, with α = 1.
fn of_levels(loss: &Loss, placement: &Placement, device_limit: usize, routing: &Routing<f64>) -> [f64; 3] {
    [Level::Expert, Level::Device(placement), Level::Communication { placement, device_limit }]
        .map(|level| loss(&BalanceLoss { level, over: Over::EachSequence, alpha: 1.0 }, routing, 1))
}

/// The equations by themselves, so that each can be wrong by itself.
#[derive(Clone, Copy)]
struct Equations {
    f: fn(&Routing<f64>) -> Array1<f64>,
    p: fn(&Routing<f64>) -> Array1<f64>,
    device_f: fn(&Array1<f64>, &Placement) -> Array1<f64>,
    device_p: fn(&Array1<f64>, &Placement) -> Array1<f64>,
    traffic: fn(&Routing<f64>, &Placement, usize) -> Array1<f64>,
}

const EQUATIONS: Equations = Equations {
    f: |routing| expert_load(routing),
    p: |routing| expert_affinity(routing),
    device_f: |f, placement| device_load(f.view(), placement),
    device_p: |p, placement| device_affinity(p.view(), placement),
    traffic: |routing, placement, limit| device_traffic(routing, placement, limit),
};

impl Equations {
    /// f as a share of the scores instead of the choices.
    const F_FROM_SCORES: Equations = Equations {
        f: |routing| {
            let mut chosen = routing.scores() * routing.router_logits.ncols() as f64;
            for ((t, e), s) in chosen.indexed_iter_mut() {
                *s *= f64::from(u8::from(routing.topk_indices.row(t).iter().any(|&chosen| chosen == e as i64)));
            }
            chosen.mean_axis(Axis(0)).unwrap()
        },
        ..EQUATIONS
    };
    /// f without the K_r below the line: every choice of a token counts in full.
    const F_WITHOUT_K: Equations =
        Equations { f: |routing| expert_load(routing) * routing.topk_indices.ncols() as f64, ..EQUATIONS };
    /// f from the best expert of each token alone, as in Switch Transformers.
    const F_OF_THE_FIRST: Equations = Equations {
        f: |routing| {
            let k = routing.topk_indices.ncols() as f64;
            let mut load = Array1::zeros(routing.router_logits.ncols());
            routing.topk_indices.column(0).iter().for_each(|&e| load[e as usize] += 1.0);
            load * (routing.router_logits.ncols() as f64 / k / routing.topk_indices.nrows() as f64)
        },
        ..EQUATIONS
    };
    /// P summed over the tokens, not averaged.
    const P_SUMMED: Equations = Equations { p: |routing| routing.scores().sum_axis(Axis(0)), ..EQUATIONS };
    /// P from the scores of the selected experts only.
    const P_OF_SELECTED: Equations = Equations {
        p: |routing| {
            let mut scores = routing.scores();
            for ((t, e), s) in scores.indexed_iter_mut() {
                *s *= f64::from(u8::from(routing.topk_indices.row(t).iter().any(|&chosen| chosen == e as i64)));
            }
            scores.mean_axis(Axis(0)).unwrap()
        },
        ..EQUATIONS
    };
    /// P of the last token.
    const P_OF_THE_LAST: Equations =
        Equations { p: |routing| routing.scores().row(routing.router_logits.nrows() - 1).to_owned(), ..EQUATIONS };
    /// f' a sum over the device's experts.
    const DEVICE_F_SUMMED: Equations =
        Equations { device_f: |f, placement| device_affinity(f.view(), placement), ..EQUATIONS };
    /// P' a mean over the device's experts.
    const DEVICE_P_AVERAGED: Equations =
        Equations { device_p: |p, placement| device_load(p.view(), placement), ..EQUATIONS };
    /// f' with E/D experts on each device, however many there are.
    const DEVICE_F_OVER_EQUAL_SHARES: Equations = Equations {
        device_f: |f, placement| {
            device_affinity(f.view(), placement) * (placement.devices() as f64 / placement.experts() as f64)
        },
        ..EQUATIONS
    };
    /// f'' with a token counted once for each of its experts on the device.
    const TRAFFIC_OF_EXPERTS: Equations = Equations {
        traffic: |routing, placement, limit| {
            let counts: Array1<f64> = routing.tokens_per_expert().into_iter().map(|count| count as f64).collect();
            let tokens = routing.router_logits.nrows();
            device_affinity(counts.view(), placement) * (placement.devices() as f64 / (limit * tokens) as f64)
        },
        ..EQUATIONS
    };
    /// f'' without the M below the line.
    const TRAFFIC_WITHOUT_M: Equations = Equations {
        traffic: |routing, placement, limit| device_traffic(routing, placement, limit) * limit as f64,
        ..EQUATIONS
    };

    /// Eq. 23, 26 and 29, without α.
    fn of_sequence(&self, level: Level, routing: &Routing<f64>) -> f64 {
        let p = (self.p)(routing);
        match level {
            Level::Expert => (self.f)(routing).dot(&p),
            Level::Device(placement) => {
                (self.device_f)(&(self.f)(routing), placement).dot(&(self.device_p)(&p, placement))
            }
            Level::Communication { placement, device_limit } => {
                (self.traffic)(routing, placement, device_limit).dot(&(self.device_p)(&p, placement))
            }
        }
    }

    /// The loss that these equations make.
    fn loss(self) -> impl Fn(&BalanceLoss, &Routing<f64>, usize) -> f64 {
        move |loss, routing, batch| {
            let sequences = if loss.over == Over::EachSequence { batch } else { 1 };
            let length = routing.router_logits.nrows() / sequences;
            let value = |i| self.of_sequence(loss.level, &tokens(routing, i * length, length));
            loss.alpha * (0..sequences).map(value).sum::<f64>() / sequences as f64
        }
    }
}

/// Some of the tokens of a routing.
fn tokens(routing: &Routing<f64>, start: usize, length: usize) -> Routing<f64> {
    let rows = s![start..start + length, ..];
    Routing {
        router_logits: routing.router_logits.slice(rows).to_owned(),
        topk_indices: routing.topk_indices.slice(rows).to_owned(),
        topk_weights: routing.topk_weights.slice(rows).to_owned(),
    }
}

/// T tokens of which the j-th selects the experts j, j + 1, ..., with the same score for each expert.
fn in_turn(experts: usize, k: usize, tokens: usize) -> Routing<f64> {
    Routing {
        router_logits: Array2::zeros((tokens, experts)),
        topk_indices: Array2::from_shape_fn((tokens, k), |(t, slot)| ((t + slot) % experts) as i64),
        topk_weights: Array2::from_elem((tokens, k), 1.0 / experts as f64),
    }
}
