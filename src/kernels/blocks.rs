//! Choices of experts, sorted into blocks of one expert each.

use std::collections::BTreeMap;

use ndarray::ArrayD;

use super::{Judge, OutputVerdict};
use crate::judge::Disposition;
use crate::values::Values;

impl Judge {
    /// Every choice of the inputs once, in a block of its expert; `experts` are those of the blocks, if they were returned.
    pub(super) fn judge_blocks(&self, name: &str, got: &ArrayD<i64>, experts: Option<&Values>) -> OutputVerdict {
        let wrong = |note: String| OutputVerdict::noted(name, Disposition::WrongRouting, note);
        let chosen: Vec<i64> = self.inputs["topk_ids"].as_index().expect("experts").iter().copied().collect();
        let right = self.blocks();
        let experts = experts.and_then(Values::index).unwrap_or(right);
        let size = self.block_size();
        let count = right.iter().filter(|expert| **expert >= 0).count();
        if got.len() < count * size || experts.len() < count {
            return wrong(format!(
                "{} places in {} blocks, of which {count} blocks of {size} count",
                got.len(),
                experts.len()
            ));
        }
        let mut seen = vec![false; chosen.len()];
        let mut of = experts.iter().take(count).flat_map(|expert| std::iter::repeat_n(*expert, size));
        for (place, &choice) in got.iter().take(count * size).enumerate() {
            let expert = of.next().unwrap_or(-1);
            let Ok(at) = usize::try_from(choice) else { return wrong(format!("place {place} holds {choice}")) };
            match chosen.get(at) {
                None => {}
                Some(_) if seen[at] => {
                    return wrong(format!("choice {at} is there twice, the second time in place {place}"));
                }
                Some(&own) if own != expert => {
                    return wrong(format!(
                        "choice {at}, of expert {own}, is in a block of expert {expert} (place {place})"
                    ));
                }
                Some(_) => seen[at] = true,
            }
        }
        match seen.iter().position(|seen| !seen) {
            Some(at) => wrong(format!("choice {at}, of expert {}, is in no block that counts", chosen[at])),
            None => OutputVerdict::new(name, Disposition::Pass),
        }
    }

    /// As many blocks of each expert as its choices need.
    pub(super) fn judge_experts_of_blocks(&self, name: &str, got: &ArrayD<i64>) -> OutputVerdict {
        let counts = |experts: &mut dyn Iterator<Item = i64>| {
            let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
            experts.for_each(|expert| *counts.entry(expert).or_default() += 1);
            counts
        };
        let want = counts(&mut self.blocks().iter().copied().filter(|expert| *expert >= 0));
        let count = want.values().sum();
        let got = counts(&mut got.iter().copied().take(count));
        let other = want.keys().chain(got.keys()).find(|expert| want.get(expert) != got.get(expert));
        match other {
            None => OutputVerdict::new(name, Disposition::Pass),
            Some(expert) => {
                let of = |counts: &BTreeMap<i64, usize>| counts.get(expert).copied().unwrap_or(0);
                let note = format!("{} blocks of expert {expert} in place of {}", of(&got), of(&want));
                OutputVerdict::noted(name, Disposition::WrongRouting, note)
            }
        }
    }

    /// The expert of each block; -1 behind the last.
    fn blocks(&self) -> &ArrayD<i64> {
        self.truth["expert_ids"].as_index().expect("experts")
    }

    fn block_size(&self) -> usize {
        let size = self.inputs["block_size"].as_index().and_then(|size| size.first()).copied();
        size.and_then(|size| usize::try_from(size).ok()).expect("an operator checks its inputs")
    }
}
