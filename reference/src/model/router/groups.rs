//! The groups that a token's choice of experts is limited to.

use crate::{Error, Result};

/// Experts 0 to E - 1 in groups 0 to `n_group` - 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    group_of_expert: Vec<usize>,
    experts_of_group: Vec<Vec<usize>>,
}

impl Groups {
    /// Group g has the experts from g·E/`n_group` on: the groups of every published model.
    ///
    /// # Errors
    /// If `n_group` does not divide `experts`, or there is none.
    pub fn contiguous(experts: usize, n_group: usize) -> Result<Self> {
        if n_group == 0 || experts == 0 || !experts.is_multiple_of(n_group) {
            return Err(Error::input("n_group", format!("a divisor of the number of experts, {experts}"), n_group));
        }
        let size = experts / n_group;
        Ok(Groups::new((0..experts).map(|expert| expert / size).collect(), n_group))
    }

    /// Any groups: the group of each expert. A group may be empty.
    ///
    /// # Panics
    /// If a group is not one of `n_group`.
    pub fn new(group_of_expert: Vec<usize>, n_group: usize) -> Self {
        let mut experts_of_group = vec![Vec::new(); n_group];
        for (expert, &group) in group_of_expert.iter().enumerate() {
            experts_of_group[group].push(expert);
        }
        Groups { group_of_expert, experts_of_group }
    }

    /// E.
    pub fn experts(&self) -> usize {
        self.group_of_expert.len()
    }

    /// `n_group`.
    pub fn count(&self) -> usize {
        self.experts_of_group.len()
    }

    /// The group that an expert is in.
    pub fn group_of(&self, expert: usize) -> usize {
        self.group_of_expert[expert]
    }

    /// The experts of a group, by rising index.
    pub fn experts_of(&self, group: usize) -> &[usize] {
        &self.experts_of_group[group]
    }
}
