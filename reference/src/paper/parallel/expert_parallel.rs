//! Expert parallelism: the routed experts of a layer on D devices (paper 2.2.2), computed on one.
//!
//! ```text
//! dispatch      device d is sent token t, once, if t selected an expert of E_d
//! run           device d computes FFN_i(u_t) for its experts i and the tokens that selected them
//! combine       h'_t = sum_i g_{i,t} FFN_i(u_t) + shared experts, where token t is at home
//! ```
//!
//! It is the oracle for programs that run on many GPUs: what each device must be sent, what it must send back, and what
//! comes out. No placement changes the function; it changes the order of a sum at most ([`Combine`]).
//!
//! Every token keeps a home: there it is routed, there its shared experts run, there its results are combined. So the
//! router, its weights and the shared experts are the same with one device and with many.
//!
//! **Trap: one copy for each device.** A token that selected three experts of one device is sent there once, and the
//! device needs to know all three. Sending it once for each expert is right too, but three times the bytes (DeepSeek's
//! own `moe_infer` does so); sending one copy for each expert *and* letting every copy visit all of the token's experts
//! there counts each result three times.
//!
//! **Trap: weights once.** They may be applied on the device or at home, not in both places.

use ndarray::{Array2, ArrayView2, Axis};

use crate::model::experts::{DeepseekV2Moe, check_routing};
use crate::model::router::Routing;
use crate::paper::parallel::Placement;
use crate::{Real, Result};

/// In which order the results of a token's experts are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    /// Every result travels by itself, k vectors for each token; at home they are weighted and summed by rising index
    /// of the expert. The bits are those of the unsplit layer, for any placement. (DeepSeek's `moe_infer` lets each
    /// result travel too, and sums in the order of the slots.)
    ByExpert,
    /// Each device weights and sums its own experts' results, by rising index; one vector for each token and device
    /// travels; at home the devices' sums are added by rising device. Another order of the same sum: equal to the
    /// unsplit layer within rounding, and to the bit if all of a token's experts are on one device.
    ByDevice,
}

/// One expert's work: the tokens that selected it.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertWork<T> {
    /// The expert, by its index in the whole layer.
    pub expert: usize,
    /// Its tokens: rows of [`Shipment::rows`], rising.
    pub rows: Vec<usize>,
    /// g_{i,t} of each of them.
    pub weights: Vec<T>,
}

/// What one device is sent. A device whose experts nobody selected is sent nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Shipment<T> {
    /// The n tokens that selected an expert of this device, rising, each of them once.
    pub tokens: Vec<usize>,
    /// Their hidden states: \[n,D\].
    pub rows: Array2<T>,
    /// What to compute, by rising index of the expert; experts that nobody selected are left out.
    pub work: Vec<ExpertWork<T>>,
}

/// N tokens on their way to the devices.
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatch<T> {
    /// One for each device.
    pub shipments: Vec<Shipment<T>>,
    /// N and D.
    dim: (usize, usize),
}

impl<T: Real> Dispatch<T> {
    /// Sends `tokens` \[N,D\] where `routing` wants them.
    ///
    /// # Errors
    /// If the three do not agree on the number of tokens and of experts.
    pub fn new(tokens: ArrayView2<T>, routing: &Routing<T>, placement: &Placement) -> Result<Self> {
        check_routing(routing, tokens.nrows(), placement.experts())?;
        let tokens_of_experts = routing.tokens_of_experts();
        let ship = |device| Shipment::new(tokens, placement.experts_of(device), &tokens_of_experts);
        Ok(Dispatch { shipments: (0..placement.devices()).map(ship).collect(), dim: tokens.dim() })
    }

    /// Runs every device: `expert(i, x)` is FFN_i(x), \[n,D\] -> \[n,D\]. Returns, for each device, one array for each
    /// [`ExpertWork`] of its shipment, not weighted.
    pub fn run(&self, expert: impl Fn(usize, ArrayView2<T>) -> Array2<T>) -> Vec<Vec<Array2<T>>> {
        let run = |shipment: &Shipment<T>, work: &ExpertWork<T>| {
            expert(work.expert, shipment.rows.select(Axis(0), &work.rows).view())
        };
        self.shipments.iter().map(|shipment| shipment.work.iter().map(|work| run(shipment, work)).collect()).collect()
    }

    /// sum_i g_{i,t} FFN_i(u_t) of the results of [`Dispatch::run`]: \[N,D\].
    pub fn combine(&self, results: &[Vec<Array2<T>>], combine: Combine) -> Array2<T> {
        match combine {
            Combine::ByExpert => self.combine_by_expert(results),
            Combine::ByDevice => self.combine_by_device(results),
        }
    }

    fn combine_by_expert(&self, results: &[Vec<Array2<T>>]) -> Array2<T> {
        let of_device = self.shipments.iter().zip(results);
        let mut of_experts: Vec<_> = of_device
            .flat_map(|(shipment, results)| shipment.work.iter().zip(results).map(move |(work, y)| (shipment, work, y)))
            .collect();
        of_experts.sort_by_key(|(_, work, _)| work.expert);
        let mut sum = Array2::zeros(self.dim);
        for (shipment, work, y) in of_experts {
            work.add_weighted(y, &mut sum, |row| shipment.tokens[row]);
        }
        sum
    }

    fn combine_by_device(&self, results: &[Vec<Array2<T>>]) -> Array2<T> {
        let mut sum = Array2::zeros(self.dim);
        for (shipment, results) in self.shipments.iter().zip(results) {
            let mut of_device = Array2::zeros(shipment.rows.dim());
            for (work, y) in shipment.work.iter().zip(results) {
                work.add_weighted(y, &mut of_device, |row| row);
            }
            for (&token, of_device) in shipment.tokens.iter().zip(of_device.rows()) {
                sum.row_mut(token).scaled_add(T::one(), &of_device);
            }
        }
        sum
    }

    /// What has travelled.
    pub fn traffic(&self) -> Traffic {
        let (tokens, width) = self.dim;
        let mut devices_per_token = vec![0; tokens];
        self.shipments.iter().flat_map(|shipment| &shipment.tokens).for_each(|&token| devices_per_token[token] += 1);
        let pairs = self.shipments.iter().flat_map(|shipment| &shipment.work).map(|work| work.rows.len()).sum();
        Traffic { devices_per_token, pairs, width }
    }
}

impl<T: Real> Shipment<T> {
    fn new(tokens: ArrayView2<T>, experts: &[usize], tokens_of_experts: &[Vec<(usize, T)>]) -> Self {
        let selected = || experts.iter().map(|&expert| (expert, &tokens_of_experts[expert]));
        let mut sent: Vec<usize> = selected().flat_map(|(_, of)| of.iter().map(|(token, _)| *token)).collect();
        sent.sort_unstable();
        sent.dedup(); // one copy, however many of the experts here it selected
        let row_of = |token| sent.binary_search(&token).expect("every token that selected an expert here is sent");
        let work = selected().filter(|(_, of)| !of.is_empty()).map(|(expert, of)| ExpertWork {
            expert,
            rows: of.iter().map(|(token, _)| row_of(*token)).collect(),
            weights: of.iter().map(|(_, weight)| *weight).collect(),
        });
        Shipment { work: work.collect(), rows: tokens.select(Axis(0), &sent), tokens: sent }
    }
}

impl<T: Real> ExpertWork<T> {
    /// Adds g y to the row of `sum` that belongs to each row of this work.
    fn add_weighted(&self, y: &Array2<T>, sum: &mut Array2<T>, row_of: impl Fn(usize) -> usize) {
        for ((&row, &weight), y) in self.rows.iter().zip(&self.weights).zip(y.rows()) {
            sum.row_mut(row_of(row)).scaled_add(weight, &y);
        }
    }
}

/// What travels between the tokens' homes and the devices. A device that is some token's home is counted like any other
/// (the paper's count: "devices per token").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// How many devices each of the N tokens is sent to: at most M with device-limited routing.
    pub devices_per_token: Vec<usize>,
    /// N k: how many (token, expert) pairs there are.
    pub pairs: usize,
    /// D.
    pub width: usize,
}

impl Traffic {
    /// Hidden states sent out: one for each token and device.
    pub fn copies(&self) -> usize {
        self.devices_per_token.iter().sum()
    }

    /// Bytes of hidden states sent out, of `size` bytes a number. (Indices and weights, k small numbers a token, are
    /// not counted.)
    pub fn bytes_out(&self, size: usize) -> usize {
        self.copies() * self.width * size
    }

    /// Bytes of results sent back, of `size` bytes a number.
    pub fn bytes_back(&self, combine: Combine, size: usize) -> usize {
        let vectors = match combine {
            Combine::ByExpert => self.pairs,
            Combine::ByDevice => self.copies(),
        };
        vectors * self.width * size
    }
}

/// A mixture-of-experts layer whose routed experts are on the devices of `placement`: \[N,D\] -> \[N,D\], and what has
/// travelled.
///
/// # Errors
/// If `placement` is one of another number of experts, or the tokens have another width than the layer.
pub fn forward<T: Real>(
    moe: &DeepseekV2Moe<T>,
    tokens: ArrayView2<T>,
    placement: &Placement,
    combine: Combine,
) -> Result<(Array2<T>, Traffic)> {
    let dispatch = Dispatch::new(tokens, &moe.route(tokens)?, placement)?;
    let results = dispatch.run(|expert, x| moe.experts()[expert].forward(x));
    let mut output = dispatch.combine(&results, combine);
    if let Some(shared_experts) = moe.shared_experts() {
        output += &shared_experts.forward(tokens); // at home, once for each token
    }
    Ok((output, dispatch.traffic()))
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    /// Three tokens of width 1, four experts, two of them for each token.
    fn routing() -> Routing<f64> {
        Routing {
            router_logits: Array2::zeros((3, 4)),
            topk_indices: array![[3, 0], [2, 3], [3, 2]],
            topk_weights: array![[0.5, 0.25], [2.0, 1.0], [4.0, 8.0]],
        }
    }

    #[test]
    fn a_placement_of_another_layer_is_refused() {
        let placement = Placement::contiguous(6, 2).unwrap();
        let refused = Dispatch::new(Array2::zeros((3, 1)).view(), &routing(), &placement).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "input `routing`: expected logits [3, 6] and indices [3, k], found logits [3, 4] and indices [3, 2]"
        );
    }
}
