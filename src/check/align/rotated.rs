//! Rotated queries and keys, in halves or in pairs: a program has all of them in one order.
//!
//! They are multiplied with each other, number by number, or copied from each other, and all layers are computed alike: what
//! shows its order shows it for all. Where some show one and some the other, each may be a right tensor by itself, but no program
//! has both; then the fewer are wrong (those in halves, if it is as many), and judged in the order of the others. What is wrong
//! in either order shows nothing, and is judged in that of the others, too.

use dsv2_reference::stage::convention::place::{self, Turn};
use dsv2_reference::stage::table::{CACHED_K_PE, K_PE, Q_PE};
use dsv2_reference::stage::{Stage, flow};

use super::places::{halves_of_pairs, pairs_of_halves};
use super::reading::is_in_order;
use super::{Judged, Placed};
use crate::check::truth::Truth;
use crate::values::Values;

/// What is said of a stage in halves, where most others are in pairs.
pub const ALONE_IN_HALVES: &str = "it would be right in halves, but most of what is rotated in this dump, of this layer or of \
                                   others, is in pairs, and no program has both; it is judged as it came";

/// The same the other way round.
pub const ALONE_IN_PAIRS: &str = "it would be right as it came, in pairs, but most of what is rotated in this dump, of this layer \
                                  or of others, is in halves, and no program has both; it is judged as halves";

/// Whether some of these stages are read in halves, and some in pairs: then it takes a look at all of them to say which are wrong.
pub fn are_mixed<'a>(
    stages: impl Iterator<Item = &'a str>,
    width: impl Fn(&str) -> Option<usize>,
    readings: &[(String, &'static str)],
) -> bool {
    let halves = place::says(Turn::Halves);
    let in_halves = |name: &&str| readings.iter().any(|(read, says)| read == name && *says == halves);
    let rotated = stages.filter(|name| is_rotated(name) && width(name).is_some_and(has_orders));
    let (in_halves, in_pairs): (Vec<_>, Vec<_>) = rotated.partition(in_halves);
    !in_halves.is_empty() && !in_pairs.is_empty()
}

/// Queries and keys that are multiplied with each other, and the copy of the keys.
fn is_rotated(name: &str) -> bool {
    Stage::parse(name).is_some_and(|stage| [Q_PE, K_PE, CACHED_K_PE].contains(&stage.kind))
}

/// Whether halves of so many numbers are another order than pairs.
fn has_orders(width: usize) -> bool {
    width > 2
}

/// In which order a stage is, and whether its numbers show it.
struct Rotated {
    name: String,
    in_halves: bool,
    is_shown: bool,
}

impl Placed {
    /// Reads all that is rotated in one order. Says whether that changes something. Without `judged`, nothing is known of a stage
    /// but how far it is from the truth.
    pub fn read_rotated_alike(&mut self, truth: &Truth, judged: Option<&Judged>) -> bool {
        let halves = place::says(Turn::Halves);
        let rotated = self.rotated(truth, judged);
        let show = |in_halves: bool| rotated.iter().filter(|one| one.is_shown && one.in_halves == in_halves).count();
        let in_halves = show(true) > show(false);
        let others: Vec<&Rotated> = rotated.iter().filter(|one| one.in_halves != in_halves).collect();
        for Rotated { name, is_shown, .. } in &others {
            let Some(Values::Real(dtype, a)) = self.trace.get(name) else { continue };
            let turned = if in_halves { pairs_of_halves(a) } else { halves_of_pairs(a) };
            let Some(turned) = turned.map(|turned| Values::Real(*dtype, turned)) else { continue };
            let mut says = self.says.get(name).cloned().unwrap_or_default();
            says.retain(|says| *says != halves);
            says.push(match (in_halves, is_shown) {
                (true, true) => ALONE_IN_PAIRS,
                (true, false) => halves,
                (false, _) => ALONE_IN_HALVES,
            });
            self.put(name, turned, says);
        }
        !others.is_empty()
    }

    /// What is rotated, of the model's shapes, if it may be in either order; nothing, if all of it is in one.
    fn rotated(&self, truth: &Truth, judged: Option<&Judged>) -> Vec<Rotated> {
        let halves = place::says(Turn::Halves);
        let may_be_either = |name: &str| {
            let (got, want) = (self.trace.get(name)?, truth.trace.get(name)?);
            Some(is_rotated(name) && got.shape() == want.shape() && has_orders(*got.shape().last()?))
        };
        let of_model = self.says.iter().filter(|(name, _)| may_be_either(name).unwrap_or(false));
        let all: Vec<(&str, bool)> = of_model.map(|(name, says)| (name.as_str(), says.contains(&halves))).collect();
        if all.windows(2).all(|two| two[0].1 == two[1].1) {
            return Vec::new();
        }
        let shown = |(name, in_halves): (&str, bool)| {
            let is_shown = self.shows_order(name, in_halves, truth, judged)?;
            Some(Rotated { name: name.to_owned(), in_halves, is_shown })
        };
        all.into_iter().filter_map(shown).collect()
    }

    /// Whether its numbers show the order that it is in; nothing, if they cannot be compared.
    fn shows_order(&self, name: &str, in_halves: bool, truth: &Truth, judged: Option<&Judged>) -> Option<bool> {
        let off = truth.rows.measure(name, self.trace.get(name)?, truth.trace.get(name)?)?;
        // a copy is right in the order of what it was copied from, whichever that is
        let is_copy = || flow::is_copy(name) && self.holds_source_of(name);
        let passes = || judged.is_some_and(|judged| judged.passes(name)) && !is_copy();
        Some(in_halves || is_in_order(&off) || passes())
    }

    fn holds_source_of(&self, copy: &str) -> bool {
        let layer = Stage::parse(copy).and_then(|stage| stage.layer);
        layer.is_some_and(|layer| self.trace.get(&dsv2_reference::stage::name(K_PE, layer)).is_some())
    }
}
