//! Pairs of stages that came in one tensor, in the order that the numbers show.

use dsv2_reference::stage::Stage;
use ndarray::{Axis, concatenate};

use super::reading::first_reading;
use super::{Judged, Placed};
use crate::check::dump::Dump;
use crate::check::request::Request;
use crate::check::truth::Truth;
use crate::error::Result;
use crate::values::Values;

/// What is said of two stages in one tensor, if the second comes first.
pub(super) const OTHER_ORDER: &str = "in one tensor with another stage, the second before the first";

/// A stage as it is read: its name, its numbers, and what is said of them.
type Read = (String, Values, Vec<&'static str>);

impl Placed {
    /// The pairs that fail as they came, and are right if the second comes first.
    ///
    /// They are judged as a dump that has them so: what a step should have added to a cache is held against what was there before,
    /// which is another by the other order.
    pub fn turned_pairs(
        &self,
        request: &Request,
        dump: &Dump,
        truth: &Truth,
        judged: &Judged,
    ) -> Result<Vec<[Read; 2]>> {
        let heads = request.case.config.num_attention_heads;
        let mut turned = Vec::new();
        for [first, second] in &dump.pairs {
            let is_turned = self.says.get(first).is_some_and(|says| says.contains(&OTHER_ORDER));
            if is_turned || !(judged.fails(first) || judged.fails(second)) {
                continue;
            }
            let Some([a, b]) = other_order(dump.trace.get(first), dump.trace.get(second)) else { continue };
            let read = |name: &String, values| {
                let (values, mut says) = first_reading(name, values, truth.trace.get(name), &truth.rows, heads);
                says.push(OTHER_ORDER);
                (name.clone(), values, says)
            };
            turned.push([read(first, a), read(second, b)]);
        }
        if turned.is_empty() {
            return Ok(turned);
        }
        let mut trace = self.trace.clone();
        for (name, values, _) in turned.iter().flatten() {
            trace = trace.with(name, values.clone());
        }
        let judged = Judged::new(request, dump, truth, &trace)?;
        // one layer shows how a program has them; in another one a part of the pair may be wrong
        let kinds = |pair: &[Read; 2]| pair.each_ref().map(|(name, ..)| Stage::parse(name).map(|stage| stage.kind));
        let pass = turned.iter().filter(|pair| pair.iter().all(|(name, ..)| judged.passes(name)));
        let shown: Vec<_> = pass.map(kinds).collect();
        turned.retain(|pair| shown.contains(&kinds(pair)));
        Ok(turned)
    }
}

/// Two stages that came side by side in one tensor, if they are in it the other way round.
fn other_order(first: Option<&Values>, second: Option<&Values>) -> Option<[Values; 2]> {
    let (Values::Real(dtype, a), Values::Real(_, b)) = (first?, second?) else { return None };
    let last = Axis(a.ndim().checked_sub(1)?);
    let whole = concatenate(last, &[a.view(), b.view()]).ok()?;
    let (b, a) = whole.view().split_at(last, b.len_of(last));
    Some([a, b].map(|part| Values::Real(*dtype, part.to_owned())))
}
