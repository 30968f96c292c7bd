//! The rotary embedding's rules, by their names in config.json.

use std::fmt;

/// How position p turns into angles: the inverse frequencies' rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeType {
    /// θ^(-2i/r), unscaled.
    Default,
    /// Positions divided by `factor`.
    Linear,
    /// NTK: θ grows with the longest position seen ("dynamic").
    Dynamic,
    /// YaRN: high frequencies unscaled, low frequencies divided by `factor`, a ramp between them. All released
    /// DeepSeek-V2 models.
    Yarn,
    /// As YaRN, with a ramp over the number of turns ("llama3"). Transformers only.
    Llama3,
    /// A list of divisors for short sequences, and another one for long ones ("longrope"). Transformers only.
    LongRope,
    /// Only the first pairs turn ("proportional"). Transformers only.
    Proportional,
}

impl RopeType {
    /// All of them.
    pub const ALL: [RopeType; 7] = [
        RopeType::Default,
        RopeType::Linear,
        RopeType::Dynamic,
        RopeType::Yarn,
        RopeType::Llama3,
        RopeType::LongRope,
        RopeType::Proportional,
    ];

    /// The name in config.json.
    pub fn name(self) -> &'static str {
        match self {
            RopeType::Default => "default",
            RopeType::Linear => "linear",
            RopeType::Dynamic => "dynamic",
            RopeType::Yarn => "yarn",
            RopeType::Llama3 => "llama3",
            RopeType::LongRope => "longrope",
            RopeType::Proportional => "proportional",
        }
    }

    /// Do the angles of a token depend on the longest sequence of its call?
    pub fn depends_on_length(self) -> bool {
        matches!(self, RopeType::Dynamic | RopeType::LongRope)
    }

    /// Does DeepSeek's own code have it?
    pub fn is_deepseeks(self) -> bool {
        !matches!(self, RopeType::Llama3 | RopeType::LongRope | RopeType::Proportional)
    }

    /// Does it start from a context length before the extension?
    pub(super) fn has_original_context(self) -> bool {
        matches!(self, RopeType::Yarn | RopeType::Llama3 | RopeType::LongRope)
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        RopeType::ALL.into_iter().find(|t| t.name() == name)
    }

    /// The names, for a message.
    pub(super) fn names() -> String {
        let names = RopeType::ALL.map(RopeType::name);
        let (last, others) = names.split_last().expect("there are some");
        format!("{} or {last}", others.join(", "))
    }
}

impl fmt::Display for RopeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
