//! Numbers for the values that a second run follows, and whether they are used: see
//! [`Observer::again`](crate::observe::Observer::again).
//!
//! A value that is computed of two others has a number of its own, and whoever uses it uses both. A number that says
//! nothing more may always be replaced by [`USED`].

use super::Origin;

/// The number of a value that is used, whatever comes.
pub(crate) const USED: Origin = 1;

/// More numbers than this are not given out; then values count as used.
const MOST: usize = 1 << 24;

#[derive(Debug)]
pub(crate) struct Values {
    /// What each is computed of, and whether it is used; a load has no parents. The first two are for nothing and for
    /// what is used anyway.
    nodes: Vec<([Origin; 2], bool)>,
}

impl Default for Values {
    fn default() -> Self {
        Self { nodes: vec![([0; 2], false), ([0; 2], true)] }
    }
}

impl Values {
    /// A number for what a lane loads.
    pub(crate) fn fresh(&mut self) -> Origin {
        self.push([0; 2])
    }

    fn push(&mut self, parents: [Origin; 2]) -> Origin {
        if self.nodes.len() >= MOST {
            parents.into_iter().for_each(|parent| self.use_value(parent));
            return USED;
        }
        self.nodes.push((parents, false));
        self.nodes.len() as Origin - 1
    }

    /// The number of what is computed of two values; zero is a value that is not followed.
    pub(super) fn join(&mut self, a: Origin, b: Origin) -> Origin {
        match (a, b) {
            (a, b) if a == b || b == 0 => a,
            (0, b) => b,
            (a, b) if self.is_used(a) && self.is_used(b) => USED,
            (a, b) => self.push([a, b]),
        }
    }

    /// A value has reached something that matters.
    pub(super) fn use_value(&mut self, value: Origin) {
        let mut open = vec![value];
        while let Some(value) = open.pop() {
            let (parents, used) = &mut self.nodes[value as usize];
            if value != 0 && !*used {
                *used = true;
                open.extend(*parents);
            }
        }
    }

    /// Whether it has.
    pub(crate) fn is_used(&self, value: Origin) -> bool {
        self.nodes[value as usize].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_uses_a_result_uses_what_it_was_computed_of() {
        let mut values = Values::default();
        let [a, b, c] = [values.fresh(), values.fresh(), values.fresh()];
        let ab = values.join(a, b);
        let abc = values.join(ab, c);
        assert_eq!((values.join(a, 0), values.join(0, b), values.join(c, c)), (a, b, c));
        values.use_value(ab);
        assert_eq!([a, b, ab, c, abc].map(|value| values.is_used(value)), [true, true, true, false, false]);
        values.use_value(abc);
        assert!(values.is_used(c) && !values.is_used(0) && values.is_used(USED));
        assert_eq!(values.join(a, b), USED);
    }
}
