//! The router and the experts.

use std::rc::Rc;

use dsv2_reference::Activation;
use dsv2_reference::config::TopkMethod;
use dsv2_reference::model::router::selection::highest;
use dsv2_reference::stage::{self, table};
use ndarray::{Array1, Array2, ArrayD, ArrayView1, Axis};

use crate::mutants::arithmetic::{Dot, exact, product, softmax};
use crate::mutants::scene::{Scene, shaped};

/// What experts are chosen from.
pub struct Router {
    /// `[N,E]`, before the softmax.
    pub logits: Array2<f64>,
    /// The number of groups, and of those that a token may visit; one of one, if there are none.
    pub groups: (usize, usize),
    /// How many experts a token goes to.
    pub per_token: usize,
    /// The factor on the weights.
    pub factor: f64,
}

impl Router {
    /// Softmax of a token's logits.
    pub fn scores(&self, token: usize) -> Array1<f64> {
        softmax(self.logits.row(token))
    }

    /// Chooses the best experts of each token among the candidates that `candidates(scores)` names.
    pub fn choose(&self, candidates: impl Fn(ArrayView1<'_, f64>) -> Vec<usize>) -> ArrayD<i64> {
        let mut choice = Array2::zeros((self.logits.nrows(), self.per_token));
        for (token, mut row) in choice.axis_iter_mut(Axis(0)).enumerate() {
            let scores = self.scores(token);
            let best = highest(candidates(scores.view()), scores.view(), self.per_token);
            row.iter_mut().zip(best).for_each(|(slot, e)| *slot = e as i64);
        }
        choice.into_dyn()
    }

    /// The experts of the best `count` groups, a group being as good as `value(its experts' scores)` says.
    pub fn of_best_groups(
        &self,
        scores: ArrayView1<'_, f64>,
        count: usize,
        value: impl Fn(&[f64]) -> f64,
    ) -> Vec<usize> {
        let (groups, _) = self.groups;
        let size = scores.len() / groups;
        let of = |group: usize| group * size..(group + 1) * size;
        let values: Array1<f64> =
            (0..groups).map(|group| value(&of(group).map(|e| scores[e]).collect::<Vec<_>>())).collect();
        highest((0..groups).collect(), values.view(), count).into_iter().flat_map(of).collect()
    }
}

/// A gated MLP: a routed expert, or the shared ones.
#[derive(Clone)]
pub struct Expert {
    /// `[I,D]`
    pub gate: Rc<Array2<f64>>,
    /// `[I,D]`
    pub up: Rc<Array2<f64>>,
    /// `[D,I]`
    pub down: Rc<Array2<f64>>,
    /// Of gate, up and down, if there are.
    pub biases: [Option<Array1<f64>>; 3],
    /// The activation of the gate.
    pub activation: Activation,
}

impl Expert {
    /// act(gate x) ⊙ up x, for rows `[N,D]`.
    pub fn gated(&self, x: &Array2<f64>, dot: Dot) -> Array2<f64> {
        let [gate, up] = [&self.gate, &self.up].map(|weight| product(x.view(), weight.view(), dot));
        let (gate, up) = (biased(gate, &self.biases[0]), biased(up, &self.biases[1]));
        gate.mapv(|x| self.activation.apply(x)) * up
    }

    /// down(act(gate x) ⊙ up x).
    pub fn forward(&self, x: &Array2<f64>, dot: Dot) -> Array2<f64> {
        biased(product(self.gated(x, dot).view(), self.down.view(), dot), &self.biases[2])
    }
}

fn biased(y: Array2<f64>, bias: &Option<Array1<f64>>) -> Array2<f64> {
    match bias {
        Some(bias) => y + bias,
        None => y,
    }
}

/// What the routed experts are computed from.
pub struct Routed {
    /// The tokens, `[N,D]`.
    pub x: Array2<f64>,
    /// Their experts, `[N,k]`.
    pub choice: Array2<i64>,
    /// With which weights, `[N,k]`.
    pub weights: Array2<f64>,
    /// All experts.
    pub experts: Vec<Expert>,
}

impl Routed {
    /// The weighted sum of what each of a token's experts makes of it, each computed by `expert(its index, the token)`.
    pub fn sum(&self, like: &ArrayD<f64>, expert: impl Fn(usize, &Array2<f64>) -> Array2<f64>) -> Option<ArrayD<f64>> {
        let mut sum = Array2::zeros(self.x.dim());
        for ((token, slot), &chosen) in self.choice.indexed_iter() {
            let weight = self.weights[[token, slot]];
            if weight != 0.0 {
                let y = expert(chosen as usize, &self.token(token));
                sum.row_mut(token).scaled_add(weight, &y.row(0));
            }
        }
        shaped(sum, like)
    }

    /// One token, as a matrix of one row.
    pub fn token(&self, token: usize) -> Array2<f64> {
        self.x.row(token).insert_axis(Axis(0)).to_owned()
    }

    /// The sum as it should be.
    pub fn right(&self, like: &ArrayD<f64>) -> Option<ArrayD<f64>> {
        self.sum(like, |e, x| self.experts[e].forward(x, exact))
    }
}

impl Scene<'_> {
    /// The router of a layer.
    pub fn router(&self, layer: usize) -> Option<Router> {
        let c = self.config();
        let groups = match c.topk_method().ok()? {
            TopkMethod::Greedy => (1, 1),
            TopkMethod::GroupLimitedGreedy { n_group, topk_group } => (n_group, topk_group),
        };
        let logits = self.rows(table::ROUTER_LOGITS, layer)?;
        Some(Router { logits, groups, per_token: c.experts_per_token().ok()?, factor: c.routed_scaling_factor })
    }

    /// The routed experts of a layer.
    pub fn routed(&self, layer: usize) -> Option<Routed> {
        let expert = |e| self.expert(&format!("{}.{e}", stage::name(table::EXPERTS, layer)));
        Some(Routed {
            x: self.rows(table::POST_ATTENTION_LAYERNORM, layer)?,
            choice: self.index(table::TOPK_INDICES, layer)?,
            weights: self.rows(table::TOPK_WEIGHTS, layer)?,
            experts: (0..self.config().num_experts()).map(expert).collect::<Option<_>>()?,
        })
    }

    /// The shared experts of a layer, and their input.
    pub fn shared(&self, layer: usize) -> Option<(Array2<f64>, Expert)> {
        let shared = self.expert(&stage::name(table::SHARED_EXPERTS, layer))?;
        Some((self.rows(table::POST_ATTENTION_LAYERNORM, layer)?, shared))
    }

    fn expert(&self, path: &str) -> Option<Expert> {
        let matrix = |name: &str| self.weights().matrix(&format!("{path}.{name}_proj.weight"));
        let bias = |name: &str| self.weights().vector(&format!("{path}.{name}_proj.bias"));
        Some(Expert {
            gate: matrix("gate")?,
            up: matrix("up")?,
            down: matrix("down")?,
            biases: ["gate", "up", "down"].map(bias),
            activation: self.config().activation().ok()?,
        })
    }
}
