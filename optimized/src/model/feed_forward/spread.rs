//! A mixture of experts whose experts are on several ranks: tokens go there, results come back.
//!
//! ```text
//! at home    tokens are routed; one copy of each goes to every rank that has experts of it, with the numbers of these
//! there      sorted by expert, as on one device; a result for each pair of token and expert
//! back       every result by itself, rank after rank, and a token's by rising expert
//! at home    the weighted sum in the order of one device, and the shared experts
//! ```
//!
//! The host knows the counts: it reads the router's choice before it sends anything.

use super::{MixtureOfExperts, SharedExperts, check_indices};
use crate::model::Settings;
use crate::model::head::gather;
use crate::model::parallel::Share;
use crate::model::tap::Scope;
use crate::operators::combine::combine;
use crate::operators::dispatch::sort_by_expert;
use crate::{Element, Error, Result, Tensor};

/// Which tokens go where.
struct Dispatch {
    /// Tokens at home here, by the rank that they go to and then by number: \[n\].
    tokens: Vec<i32>,
    /// Of each of these the experts by their number on that rank; those of other ranks have the number behind the last: \[n,k\].
    experts: Vec<i32>,
    /// How many tokens go to each rank, and how many results come from it.
    sent: Vec<usize>,
    results: Vec<usize>,
    /// Where the result of each pair (token, j) comes to lie.
    places: Vec<i32>,
}

impl Dispatch {
    /// For a choice \[m,k\] among experts of which each rank has `each`.
    fn new(chosen: &[i32], k: usize, each: usize, ranks: usize) -> Self {
        let (tokens, experts, places) = (Vec::new(), Vec::new(), vec![-1; chosen.len()]);
        let mut dispatch = Dispatch { tokens, experts, sent: vec![0; ranks], results: vec![0; ranks], places };
        let mut place = 0;
        for rank in 0..ranks {
            for (token, row) in chosen.chunks(k).enumerate() {
                let there: Vec<i32> = row.iter().map(|expert| on_rank(*expert, rank, each)).collect();
                let pairs = pairs_of(&there, each);
                if pairs.is_empty() {
                    continue;
                }
                for &j in &pairs {
                    dispatch.places[token * k + j] = place;
                    place += 1;
                }
                dispatch.tokens.push(token as i32);
                dispatch.experts.extend(there);
                dispatch.sent[rank] += 1;
                dispatch.results[rank] += pairs.len();
            }
        }
        dispatch
    }
}

/// An expert's number on a rank; that behind its last, if it is on another.
fn on_rank(expert: i32, rank: usize, each: usize) -> i32 {
    let number = expert - (rank * each) as i32;
    if (0..each as i32).contains(&number) { number } else { each as i32 }
}

/// Which of a token's experts are on the rank, by rising number: the order of its results.
fn pairs_of(experts: &[i32], each: usize) -> Vec<usize> {
    let mut pairs: Vec<usize> = (0..experts.len()).filter(|j| experts[*j] < each as i32).collect();
    pairs.sort_by_key(|j| experts[*j]);
    pairs
}

fn times(counts: &[usize], width: usize) -> Vec<usize> {
    counts.iter().map(|count| count * width).collect()
}

impl MixtureOfExperts {
    /// The layer for tokens that were routed: x, indices, weights -> \[N,D\].
    pub(super) fn forward_spread(
        &self,
        share: &Share,
        [x, indices, weights]: [&Tensor; 3],
        [batch, new]: [usize; 2],
        settings: Settings,
        tap: &mut Scope,
    ) -> Result<Tensor> {
        let Settings { element, variant, .. } = settings;
        let (tokens, hidden) = (x.shape()[0], x.shape()[1]);
        let own = share.own_rows(tokens);
        let [x, indices, weights] = [x, indices, weights].map(|tensor| tensor.narrow(0, own.clone()));
        let (x, indices, weights) = (x?, indices?, weights?);
        let (rows, places) = self.results(share, &x, &indices, settings)?;
        let shared = self.shared(&x, settings, tap)?;
        let whole = |name: &str, shared: Option<&Tensor>| {
            let output = Tensor::empty(x.device(), element, &[own.len(), hidden])?;
            combine(variant, &rows, &places, &weights, shared, &output)?;
            share.sum(&format!("{}{name}", self.path), &output)?;
            share.gather(&format!("{}{name}", self.path), output, tokens)
        };
        let output = whole("", shared.as_ref())?;
        let mut changed = false;
        if tap.wants("experts") {
            let alone = whole(".experts", None)?;
            changed |= tap.show("experts", || Ok(alone))?;
        }
        if let Some(shared) = shared.filter(|_| tap.wants("shared_experts")) {
            let path = format!("{}.shared_experts", self.path);
            share.sum(&path, &shared)?;
            let shared = share.gather(&path, shared, tokens)?;
            changed |= tap.show("shared_experts", || shared.reshape(&[batch, new, hidden]))?;
        }
        if changed {
            let expected = "a tap that looks at parts of a layer's output and leaves them as they are";
            return Err(Error::operand("tap", "experts", expected, "other values"));
        }
        tap.show("", || output.reshape(&[batch, new, hidden]))?;
        Ok(output)
    }

    /// The results of all experts of tokens at home here, \[m k,D\], and where those of each token are.
    fn results(&self, share: &Share, x: &Tensor, indices: &Tensor, settings: Settings) -> Result<(Tensor, Tensor)> {
        let (device, group) = (x.device(), share.between_experts());
        let (hidden, k, each) = (x.shape()[1], self.rule.num_experts_per_tok(), self.down.shape()[0]);
        let of = |element, shape: &[usize]| Tensor::empty(device, element, shape);
        let integers = |values: &[i32], shape: &[usize]| Tensor::from_i32(device, shape, values);
        let purpose = |what: &str| format!("{}: {what}", self.path);
        check_indices(indices, self.gate.shape()[0])?;
        let ranks = group.ranks().len();
        let Dispatch { tokens, experts, sent, results, places } = Dispatch::new(&indices.to_i32()?, k, each, ranks);

        let counts: Vec<i32> = sent.iter().map(|count| *count as i32).collect();
        let (counts, coming) = (integers(&counts, &[ranks])?, of(Element::I32, &[ranks])?);
        group.all_to_all(&purpose("counts"), (&counts, vec![1; ranks]), (&coming, vec![1; ranks]))?;
        let coming: Vec<usize> = coming.to_i32()?.into_iter().map(|count| count as usize).collect();
        let all = coming.iter().sum::<usize>();

        let rows = gather(settings.variant, x, &tokens)?;
        let visitors = of(x.element(), &[all, hidden])?;
        group.all_to_all(&purpose("tokens"), (&rows, times(&sent, hidden)), (&visitors, times(&coming, hidden)))?;
        let experts = integers(&experts, &[tokens.len(), k])?;
        let theirs = of(Element::I32, &[all, k])?;
        group.all_to_all(&purpose("experts"), (&experts, times(&sent, k)), (&theirs, times(&coming, k)))?;

        let chosen = theirs.to_i32()?;
        let (made, order) = self.made(&visitors, (&theirs, &chosen), each, settings)?;
        let back = gather(settings.variant, &made, &order)?;
        let mut rest = &chosen[..];
        let of_each: Vec<usize> = coming
            .iter()
            .map(|count| {
                let (first, others) = rest.split_at(count * k);
                rest = others;
                first.iter().filter(|expert| **expert < each as i32).count()
            })
            .collect();
        let home = of(x.element(), &[places.len(), hidden])?;
        group.all_to_all(&purpose("results"), (&back, times(&of_each, hidden)), (&home, times(&results, hidden)))?;
        Ok((home, integers(&places, &[places.len()])?))
    }

    /// What the experts here make of visitors, a row for each visitor and expert that is here, and these rows in the order in
    /// which they go back. `experts` are on the device and on the host.
    fn made(
        &self,
        visitors: &Tensor,
        (experts, chosen): (&Tensor, &[i32]),
        each: usize,
        settings: Settings,
    ) -> Result<(Tensor, Vec<i32>)> {
        let (device, variant, element) = (visitors.device(), settings.variant, visitors.element());
        let of = |element, shape: &[usize]| Tensor::empty(device, element, shape);
        let (k, width, hidden) = (experts.shape()[1], self.down.shape()[2], visitors.shape()[1]);
        let pairs = experts.len();
        let (offsets, order) = (of(Element::I32, &[each + 1])?, of(Element::I32, &[pairs])?);
        let places = of(Element::I32, &[pairs])?;
        sort_by_expert(variant, experts, each, &offsets, &order, &places)?;
        let tokens = chosen.chunks(k).map(|chosen| pairs_of(chosen, each));
        let here = tokens.clone().map(|pairs| pairs.len()).sum();
        let (h, y) = (of(element, &[here, width])?, of(element, &[here, hidden])?);
        self.visit(variant, visitors, [&offsets, &order], k, [&h, &y], None)?;
        let places = places.to_i32()?;
        let back = tokens.zip(places.chunks(k)).flat_map(|(pairs, places)| pairs.into_iter().map(|j| places[j]));
        Ok((y, back.collect()))
    }

    /// What the shared experts make of tokens at home here.
    fn shared(&self, x: &Tensor, settings: Settings, tap: &mut Scope) -> Result<Option<Tensor>> {
        let width = match &self.shared_experts {
            None => return Ok(None),
            Some(SharedExperts::Mlp(mlp)) => return mlp.forward(x, None, settings, tap).map(Some),
            Some(SharedExperts::Expert { down, .. }) => down.shape()[1],
        };
        let (device, variant, element) = (x.device(), settings.variant, x.element());
        let of = |element, shape: &[usize]| Tensor::empty(device, element, shape);
        let (tokens, hidden, each) = (x.shape()[0], x.shape()[1], self.down.shape()[0]);
        // As on one device they are one more expert in the launches of the others, of which none has a row here.
        let offsets = Tensor::from_i32(device, &[each + 1], &vec![0; each + 1])?;
        let none = of(Element::I32, &[0])?;
        let (no_h, no_y) = (of(element, &[0, self.down.shape()[2]])?, of(element, &[0, hidden])?);
        let room = (of(element, &[tokens, width])?, of(element, &[tokens, hidden])?);
        self.visit(variant, x, [&offsets, &none], 0, [&no_h, &no_y], Some(&room))?;
        Ok(Some(room.1))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dsv2_reference::Activation;

    use super::*;
    use crate::operators::router::RoutingRule;
    use crate::{Device, Emulated, Library, Variant};

    #[test]
    fn a_rank_takes_a_row_for_each_pair_of_a_visitor_and_an_expert_here_and_none_for_others() -> Result<()> {
        let device: Arc<dyn Device> = Emulated::new(Library::embedded());
        let ones = |shape: &[usize]| Tensor::from_f32(&device, Element::F32, shape, &vec![1.0; shape.iter().product()]);
        let (each, hidden, width) = (2, 4, 3);
        let mixture = MixtureOfExperts {
            gate: ones(&[8, hidden])?,
            rule: RoutingRule::greedy(8, 3)?,
            gate_up: ones(&[each, 2 * width, hidden])?,
            down: ones(&[each, hidden, width])?,
            shared_experts: None,
            activation: Activation::Relu,
            path: "mlp".into(),
            share: None,
        };
        // Of three visitors' experts those that are elsewhere have the number behind the last one here.
        let chosen = [2, 1, 2, 1, 2, 0, 2, 2, 2];
        let experts = Tensor::from_i32(&device, &[3, 3], &chosen)?;
        let visitors =
            Tensor::from_f32(&device, Element::F32, &[3, hidden], &[1.0, 2.0, 3.0].map(|x| [x; 4]).concat())?;
        let settings = Settings::new(Element::F32, Variant::Tuned);
        let (made, order) = mixture.made(&visitors, (&experts, &chosen), each, settings)?;
        // relu(4 x) 4 x, three times: of the second visitor by expert 0, then of the first and the second by expert 1.
        let row = |x: f32| [3.0 * (4.0 * x) * (4.0 * x); 4];
        assert_eq!(made.shape(), [3, hidden]);
        assert_eq!(made.to_f32()?, [row(2.0), row(1.0), row(2.0)].concat());
        assert_eq!(order, [1, 0, 2]);
        Ok(())
    }
}
