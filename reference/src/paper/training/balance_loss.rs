//! The losses that keep the load balanced (2.2.3, eq. 23 to 31), for the T tokens of one sequence.
//!
//! ```text
//! L_ExpBal  = α₁ Σ_{i=1..E} f_i P_i                                                         (23)
//!     f_i   = E/(k T) Σ_t 1(token t selects expert i)       P_i   = 1/T Σ_t s_{i,t}        (24), (25)
//! L_DevBal  = α₂ Σ_{i=1..D} f'_i P'_i                                                       (26)
//!     f'_i  = 1/|E_i| Σ_{j in E_i} f_j                      P'_i  = Σ_{j in E_i} P_j       (27), (28)
//! L_CommBal = α₃ Σ_{i=1..D} f''_i P''_i                                                     (29)
//!     f''_i = D/(M T) Σ_t 1(token t is sent to device i)    P''_i = Σ_{j in E_i} P_j       (30), (31)
//! ```
//!
//! s is the softmax over all experts, before any group is left out. f counts, so no gradient passes through it: it is a
//! weight, and P is pushed down where f is large.
//!
//! If all is balanced the losses are α₁, α₂ and α₃ (the last one only if each token uses M devices; it is smaller
//! otherwise). **Trap:** these are no lower bounds. f and P may point in opposite directions, and L < α.
//!
//! **Trap: f' is a mean over the device's experts, P' a sum.** Of two sums the loss of a balanced model is E/D times as
//! large, of two means D/E times. (The other way round, sum and mean, makes the same loss: their product counts.)
//!
//! DeepSeek's own code has the expert-level loss only, and Transformers none. That code gives the loss a gradient of 1
//! without adding it to the reported loss, and crashes in training if `aux_loss_alpha` is 0.

use ndarray::{Array1, Array2, ArrayView1, Axis, s};

use crate::arithmetic::matmul::dot;
use crate::model::router::Routing;
use crate::paper::parallel::Placement;
use crate::{Error, Real, Result};

/// α₁ of DeepSeek-V2 (3.1.2).
pub const V2_EXPERT_ALPHA: f64 = 0.003;
/// α₂ of DeepSeek-V2 (3.1.2), for D = 8 devices.
pub const V2_DEVICE_ALPHA: f64 = 0.05;
/// α₃ of DeepSeek-V2 (3.1.2), for D = 8 devices of which a token uses at most M = 3.
pub const V2_COMMUNICATION_ALPHA: f64 = 0.02;
/// α₁ of DeepSeek-V2-Lite (appendix B). All its experts are on one device: it has no other balance loss.
pub const V2_LITE_EXPERT_ALPHA: f64 = 0.001;

/// f_i, eq. 24: \[E\]. The sum is E.
pub fn expert_load<T: Real>(routing: &Routing<T>) -> Array1<T> {
    let (tokens, k) = routing.topk_indices.dim();
    let factor = T::from_f64(routing.router_logits.ncols() as f64 / (k * tokens) as f64);
    routing.tokens_per_expert().into_iter().map(|count| factor * T::from_f64(count as f64)).collect()
}

/// P_i, eq. 25: \[E\]. The sum is 1.
pub fn expert_affinity<T: Real>(routing: &Routing<T>) -> Array1<T> {
    routing.scores().sum_axis(Axis(0)) / T::from_f64(routing.router_logits.nrows() as f64)
}

/// f'_i, eq. 27: \[E\] -> \[D\]. The sum is D if the devices hold equally many. A device without experts has load 0
/// (ours).
pub fn device_load<T: Real>(expert_load: ArrayView1<T>, placement: &Placement) -> Array1<T> {
    let size = |device| T::from_f64(placement.experts_of(device).len().max(1) as f64);
    sums_of_devices(expert_load, placement).into_iter().enumerate().map(|(device, sum)| sum / size(device)).collect()
}

/// P'_i and P''_i, eq. 28 and 31: \[E\] -> \[D\]. The sum is 1.
pub fn device_affinity<T: Real>(expert_affinity: ArrayView1<T>, placement: &Placement) -> Array1<T> {
    sums_of_devices(expert_affinity, placement)
}

/// f''_i, eq. 30: \[D\]. The sum is D/M times the mean number of devices of a token, so at most D.
pub fn device_traffic<T: Real>(routing: &Routing<T>, placement: &Placement, device_limit: usize) -> Array1<T> {
    let tokens = routing.topk_indices.nrows();
    let factor = T::from_f64(placement.devices() as f64 / (device_limit * tokens) as f64);
    routing.tokens_per_device(placement).into_iter().map(|sent| factor * T::from_f64(sent as f64)).collect()
}

fn sums_of_devices<T: Real>(of_experts: ArrayView1<T>, placement: &Placement) -> Array1<T> {
    (0..placement.devices()).map(|device| of_experts.select(Axis(0), placement.experts_of(device)).sum()).collect()
}

/// What is to be balanced.
#[derive(Clone, Copy, Debug)]
pub enum Level<'a> {
    /// The experts, eq. 23.
    Expert,
    /// The computation of the devices, eq. 26.
    Device(&'a Placement),
    /// The communication: how many tokens the devices receive, eq. 29.
    Communication {
        /// Which device holds which expert.
        placement: &'a Placement,
        /// M: the most devices that a token is sent to.
        device_limit: usize,
    },
}

impl Level<'_> {
    /// Σ f P of one sequence: the loss without its α.
    fn of_sequence<T: Real>(self, routing: &Routing<T>) -> T {
        let affinity = expert_affinity(routing);
        match self {
            Level::Expert => dot(expert_load(routing).view(), affinity.view()),
            Level::Device(placement) => dot(
                device_load(expert_load(routing).view(), placement).view(),
                device_affinity(affinity.view(), placement).view(),
            ),
            Level::Communication { placement, device_limit } => dot(
                device_traffic(routing, placement, device_limit).view(),
                device_affinity(affinity.view(), placement).view(),
            ),
        }
    }

    /// ∂(Σ f P)/∂P_j, \[E\]: f_j, f' or f'' of the device of expert j. (P' and P'' are sums of P, so each of the three
    /// losses is linear in P.)
    fn load<T: Real>(self, routing: &Routing<T>) -> Array1<T> {
        let (of_devices, placement) = match self {
            Level::Expert => return expert_load(routing),
            Level::Device(placement) => (device_load(expert_load(routing).view(), placement), placement),
            Level::Communication { placement, device_limit } => {
                (device_traffic(routing, placement, device_limit), placement)
            }
        };
        (0..placement.experts()).map(|expert| of_devices[placement.device_of(expert)]).collect()
    }

    fn validate(self, experts: usize) -> Result<()> {
        let placement = match self {
            Level::Expert => return Ok(()),
            Level::Device(placement) | Level::Communication { placement, .. } => placement,
        };
        if placement.experts() != experts {
            return Err(Error::input("placement", format!("{experts} experts"), placement.experts()));
        }
        match self {
            Level::Communication { device_limit, .. } if !(1..=placement.devices()).contains(&device_limit) => {
                Err(Error::input("device_limit", format!("1 to {} devices", placement.devices()), device_limit))
            }
            _ => Ok(()),
        }
    }
}

/// Whose tokens are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Each sequence on its own, and the mean of their losses: the paper's T, and `seq_aux: true` in DeepSeek's code.
    EachSequence,
    /// All tokens as if they were one sequence: `seq_aux: false`. Sequences may then make up for each other.
    WholeBatch,
}

/// A balance loss: α Σ f P.
#[derive(Clone, Copy, Debug)]
pub struct BalanceLoss<'a> {
    /// What is to be balanced.
    pub level: Level<'a>,
    /// Whose tokens are counted together.
    pub over: Over,
    /// The balance factor.
    pub alpha: f64,
}

impl BalanceLoss<'_> {
    /// The loss of one layer: `routing` of B·S tokens, all of which count (what is padding is the caller's to leave
    /// out; ours).
    ///
    /// # Errors
    /// If the routing is none, there is no token or no expert for each, B does not divide the tokens, or the placement
    /// is one of other experts.
    pub fn value<T: Real>(&self, routing: &Routing<T>, batch: usize) -> Result<T> {
        let sequences = self.sequences(routing, batch)?;
        let sum = sequences.iter().map(|sequence| self.level.of_sequence(sequence)).fold(T::zero(), |a, b| a + b);
        Ok(T::from_f64(self.alpha) * sum / T::from_f64(sequences.len() as f64))
    }

    /// Its gradient with respect to the logits, f frozen: \[B S,E\].
    ///
    /// ```text
    /// ∂L/∂z_{e,t} = α/T · s_{e,t} (f_e - Σ_j f_j s_{j,t})        (f' or f'' of the expert's device in place of f)
    /// ```
    ///
    /// Every row sums to 0: what one expert loses the others gain.
    ///
    /// # Errors
    /// As [`BalanceLoss::value`].
    pub fn gradient<T: Real>(&self, routing: &Routing<T>, batch: usize) -> Result<Array2<T>> {
        let mut gradient = routing.scores();
        let sequences = self.sequences(routing, batch)?;
        let length = gradient.nrows() / sequences.len();
        let factor = T::from_f64(self.alpha) / T::from_f64(gradient.nrows() as f64);
        for (sequence, mut scores) in sequences.iter().zip(gradient.axis_chunks_iter_mut(Axis(0), length)) {
            let load = self.level.load(sequence);
            for mut scores in scores.rows_mut() {
                let mean = dot(load.view(), scores.view());
                scores.zip_mut_with(&load, |s, &load| *s = factor * *s * (load - mean));
            }
        }
        Ok(gradient)
    }

    /// The routing of each sequence, or of the batch as one.
    fn sequences<T: Real>(&self, routing: &Routing<T>, batch: usize) -> Result<Vec<Routing<T>>> {
        routing.validate()?;
        let (tokens, k) = routing.topk_indices.dim();
        if tokens == 0 || k == 0 {
            return Err(Error::input("topk_indices", "a token and an expert for it", format!("[{tokens}, {k}]")));
        }
        if batch == 0 || !tokens.is_multiple_of(batch) {
            return Err(Error::input("batch", format!("a divisor of the number of tokens, {tokens}"), batch));
        }
        self.level.validate(routing.router_logits.ncols())?;
        let length = if self.over == Over::EachSequence { tokens / batch } else { tokens };
        let sequence = |start: usize| Routing {
            router_logits: routing.router_logits.slice(s![start..start + length, ..]).to_owned(),
            topk_indices: routing.topk_indices.slice(s![start..start + length, ..]).to_owned(),
            topk_weights: routing.topk_weights.slice(s![start..start + length, ..]).to_owned(),
        };
        Ok((0..tokens).step_by(length).map(sequence).collect())
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;
    use ndarray::array;

    use super::*;

    const LOSS: BalanceLoss = BalanceLoss { level: Level::Expert, over: Over::EachSequence, alpha: 1.0 };

    /// Two sequences of one token each, four experts, of which one is selected.
    fn routing() -> Routing<f64> {
        Routing {
            router_logits: array![[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]].ln(),
            topk_indices: array![[0], [3]],
            topk_weights: array![[0.4], [0.4]],
        }
    }

    #[test]
    fn the_three_levels_of_one_sequence() {
        let placement = Placement::contiguous(4, 2).unwrap();
        let sequence = Routing { topk_indices: array![[0], [1]], ..routing() };
        assert_eq!(expert_load(&sequence), array![2.0, 2.0, 0.0, 0.0]);
        assert_eq!(device_load(expert_load(&sequence).view(), &placement), array![2.0, 0.0]);
        assert_eq!(device_traffic(&sequence, &placement, 1), array![2.0, 0.0]);
        assert_eq!(device_traffic(&sequence, &placement, 2), array![1.0, 0.0]);
        let affinity = expert_affinity(&sequence);
        assert_abs_diff_eq!(affinity, Array1::from_elem(4, 0.25), epsilon = 1e-15);
        assert_abs_diff_eq!(device_affinity(affinity.view(), &placement), array![0.5, 0.5], epsilon = 1e-15);
        for (level, expected) in [
            (Level::Expert, 1.0),
            (Level::Device(&placement), 1.0),
            (Level::Communication { placement: &placement, device_limit: 2 }, 0.5),
        ] {
            let loss = BalanceLoss { level, alpha: 0.1, ..LOSS };
            assert_abs_diff_eq!(loss.value(&sequence, 1).unwrap(), 0.1 * expected, epsilon = 1e-15);
        }
    }

    #[test]
    fn what_has_no_loss_is_refused() {
        let refusal = |loss: BalanceLoss, batch| loss.value(&routing(), batch).unwrap_err().to_string();
        assert_eq!(refusal(LOSS, 3), "input `batch`: expected a divisor of the number of tokens, 2, found 3");
        let placement = Placement::contiguous(6, 2).unwrap();
        let level = Level::Device(&placement);
        assert_eq!(refusal(BalanceLoss { level, ..LOSS }, 1), "input `placement`: expected 4 experts, found 6");
        let placement = Placement::contiguous(4, 2).unwrap();
        let level = Level::Communication { placement: &placement, device_limit: 0 };
        assert_eq!(refusal(BalanceLoss { level, ..LOSS }, 1), "input `device_limit`: expected 1 to 2 devices, found 0");
        let nothing = Routing { router_logits: Array2::<f64>::zeros((0, 4)), ..routing() };
        assert_eq!(
            LOSS.value(&nothing, 1).unwrap_err().to_string(),
            "input `topk_indices`: expected 0 tokens, found 2"
        );
    }
}
