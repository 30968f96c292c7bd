//! A plain implementation that sends tokens to other experts, where the router's logits are nearly equal.
//!
//! **Trap.** A token that went elsewhere is another one for the layers after it, and for the tokens that attend to it: their
//! routers have other logits, some of them nearly equal that were not before. So it is decided while the run goes on, from the
//! logits that it has; nothing of the truth's choice is held fast.

use std::collections::BTreeSet;

use dsv2_reference::Real;
use dsv2_reference::config::TopkMethod;
use dsv2_reference::stage::sibling;
use dsv2_reference::stage::table::{ROUTER_LOGITS, TOPK_INDICES};
use dsv2_reference::tap::{StageValue, Tap};
use dsv2_reference::weights::generator::splitmix64;
use indexmap::IndexMap;
use ndarray::{Array2, ArrayViewD, Ix2};

use super::{is, root_mean_square};
use crate::judge::near_tie::alternatives;
use crate::judge::routing::as_choice;
use crate::trace::Trace;

/// How far off the logits of each router may be, token by token.
pub struct RouterErrors(IndexMap<String, Vec<f64>>);

impl RouterErrors {
    /// `factor` times those of plain implementations that go where the truth goes.
    pub fn of(truth: &Trace, plain: &[Trace], factor: f64) -> Self {
        let logits = |trace: &Trace, stage: &str| by_token(trace.get(stage)?.real()?.view());
        let of_stage = |stage: &str| {
            let truth = logits(truth, stage)?;
            let plain: Vec<Array2<f64>> = plain.iter().filter_map(|plain| logits(plain, stage)).collect();
            let of_token = |token: usize| {
                let right = truth.row(token);
                let errors: Vec<f64> =
                    plain.iter().flat_map(|plain| (&plain.row(token) - &right).into_iter()).collect();
                factor * root_mean_square(errors.into_iter())
            };
            Some((stage.to_owned(), (0..truth.nrows()).map(of_token).collect()))
        };
        let routers = truth.iter().map(|(name, _)| name).filter(|name| is(name, ROUTER_LOGITS));
        RouterErrors(routers.filter_map(of_stage).collect())
    }
}

/// Sends about half of the tokens elsewhere that may go there.
pub struct Rerouting<'e> {
    method: TopkMethod,
    errors: &'e RouterErrors,
    draw: u64,
    /// Of the router that is about to choose.
    logits: Option<Array2<f64>>,
    /// The tokens that may go elsewhere, in some layer.
    pub open: BTreeSet<usize>,
}

impl<'e> Rerouting<'e> {
    /// The one that draws so.
    pub fn new(method: TopkMethod, errors: &'e RouterErrors, draw: u64) -> Self {
        Rerouting { method, errors, draw, logits: None, open: BTreeSet::new() }
    }

    /// Other experts for a token, if it may go there and the draw says so.
    fn elsewhere(&mut self, router: usize, token: usize, logits: &[f64], chosen: &BTreeSet<usize>) -> Option<Vec<i64>> {
        let may_be_off = *self.errors.0.get_index(router)?.1.get(token)?;
        let mut others = alternatives(self.method, logits, chosen, may_be_off).sets;
        if others.is_empty() {
            return None;
        }
        self.open.insert(token);
        let place = (self.draw << 48) + ((router as u64) << 32) + token as u64;
        let drawn = splitmix64(place) as usize % (2 * others.len());
        (drawn < others.len()).then(|| others.swap_remove(drawn).1.into_iter().map(|expert| expert as i64).collect())
    }
}

impl<T: Real> Tap<T> for Rerouting<'_> {
    fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
        match value {
            StageValue::Real(logits) if is(name, ROUTER_LOGITS) => {
                self.logits = by_token(logits.view()).map(|logits| logits.mapv(Real::to_f64));
            }
            StageValue::Index(mut chosen) if is(name, TOPK_INDICES) => {
                let router = self.errors.0.get_index_of(&sibling(name, "router_logits"));
                let (Some(router), Some(logits)) = (router, self.logits.take()) else { return };
                let width = chosen.shape().last().copied().unwrap_or(0).max(1);
                let mut slots: Vec<&mut i64> = chosen.iter_mut().collect();
                for (token, (slots, z)) in slots.chunks_mut(width).zip(logits.rows()).enumerate() {
                    let own = slots.iter().map(|slot| **slot).collect::<Vec<_>>();
                    let Some(own) = as_choice(own.as_slice().into(), z.len()) else { continue };
                    if let Some(experts) = self.elsewhere(router, token, &z.to_vec(), &own) {
                        slots.iter_mut().zip(experts).for_each(|(slot, expert)| **slot = expert);
                    }
                }
            }
            _ => {}
        }
    }
}

/// A tensor of a row a token.
fn by_token<T: Clone>(values: ArrayViewD<'_, T>) -> Option<Array2<T>> {
    let width = *values.shape().last()?;
    let tokens = values.len().checked_div(width)?;
    values.to_shape((tokens, width)).ok()?.into_owned().into_dimensionality::<Ix2>().ok()
}
