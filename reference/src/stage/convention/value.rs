//! Values: numbers that are others on the way, and right again where the layer goes on.
//!
//! A line changes stages of one layer back into Hugging Face's ([`Edit`]). It is about a pair of places whose effects
//! cancel: it holds only if the stage that follows is right by it. So a factor that is left out altogether stays a bug.

use crate::stage::table::{EXPERTS, MLP, TOPK_WEIGHTS};

/// What is done at the stages of a layer, and what a report says.
#[derive(Debug)]
pub struct Restated {
    /// What is done where, in forward order.
    pub edits: &'static [(&'static str, &'static [Edit])],
    /// What a report says.
    pub says: &'static str,
}

/// How a stage becomes Hugging Face's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Times `routed_scaling_factor`.
    TimesFactor,
    /// Each token's numbers times the sum of its experts' weights.
    TimesSum,
    /// Column e is expert e's; they are put into the order of the choice.
    ByExpert,
    /// It is another stage: the one of this kind.
    Is(&'static str),
}

use Edit::{ByExpert, Is, TimesFactor, TimesSum};

/// All conventions about values, in the order in which they are tried.
pub const CONVENTIONS: &[Restated] = &[
    Restated {
        edits: &[(TOPK_WEIGHTS, &[TimesFactor]), (EXPERTS, &[TimesFactor])],
        says: "routed_scaling_factor is applied after the sum over experts",
    },
    Restated {
        edits: &[(TOPK_WEIGHTS, &[TimesFactor])],
        says: "routed_scaling_factor is applied in the sum over experts, not to the weights",
    },
    Restated { edits: &[(EXPERTS, &[Is(MLP)])], says: "the shared experts are among the experts" },
    Restated {
        edits: &[(TOPK_WEIGHTS, &[TimesFactor]), (EXPERTS, &[TimesFactor, Is(MLP)])],
        says: "the shared experts are among the experts, and routed_scaling_factor is applied after the sum",
    },
    Restated {
        edits: &[(TOPK_WEIGHTS, &[TimesFactor]), (EXPERTS, &[Is(MLP)])],
        says: "the shared experts are among the experts, and routed_scaling_factor is applied in the sum",
    },
    Restated {
        edits: &[(TOPK_WEIGHTS, &[TimesSum]), (EXPERTS, &[TimesSum])],
        says: "the weights are divided by their sum, which is applied after the sum over experts",
    },
    Restated {
        edits: &[(TOPK_WEIGHTS, &[TimesSum])],
        says: "the weights are divided by their sum, which is applied in the sum over experts",
    },
    Restated {
        edits: &[(TOPK_WEIGHTS, &[TimesSum]), (EXPERTS, &[Is(MLP)])],
        says: "the shared experts are among the experts, and the weights are divided by their sum",
    },
    Restated { edits: &[(TOPK_WEIGHTS, &[ByExpert])], says: "a weight for every expert, [B·S, E]" },
];
