//! Kinds of dump: what programs give of themselves, which is seldom every stage.

use dsv2_reference::DeepseekV2Config;
use dsv2_reference::config::Head;
use dsv2_reference::stage::Stage;
use dsv2_reference::stage::table::{EMBED_TOKENS, INSIDE, LAYER, LM_HEAD, NORM, POOLED_LOGITS};
use ndarray::{ArrayD, Axis};

use crate::case::Case;
use crate::error::{Error, Result};
use crate::inputs::AttentionMask;
use crate::rows::ComparedRows;
use crate::trace::Trace;
use crate::values::Values;

/// A kind of dump.
#[derive(Debug)]
pub struct DumpKind {
    /// Its name.
    pub name: &'static str,
    /// What such a dump holds, in a sentence.
    pub what: &'static str,
    holds: fn(&Stage, &DeepseekV2Config) -> bool,
    /// Whether it holds the logits of one token of each sequence.
    last_token: bool,
}

/// What a model returns.
const LOGITS: [&str; 2] = [LM_HEAD, POOLED_LOGITS];

/// Every stage.
pub static ALL: DumpKind = DumpKind { name: "all", what: "every stage", holds: |_, _| true, last_token: false };

/// What forward hooks give.
pub static HOOKS: DumpKind = DumpKind {
    name: "hooks",
    what: "what modules return, as forward hooks keep it: no rotary tables, rotated queries and keys, cache, scores, \
           weights of attention, choice of experts",
    holds: |stage, _| !INSIDE.contains(&stage.kind),
    last_token: false,
};

/// All kinds.
pub static KINDS: [&DumpKind; 5] = [
    &ALL,
    &DumpKind {
        name: "logits",
        what: "the logits alone (of a classifier: the pooled ones)",
        holds: |stage, _| LOGITS.contains(&stage.kind),
        last_token: false,
    },
    &DumpKind {
        name: "last-token",
        what: "the logits of the last token of each sequence alone",
        holds: |stage, _| stage.kind == LM_HEAD,
        last_token: true,
    },
    &DumpKind {
        name: "hidden-states",
        what: "what Transformers returns for output_hidden_states (the embedding, each layer but the last, the last \
               norm), and the logits",
        holds: |stage, config| match stage.layer {
            Some(layer) => stage.kind == LAYER && layer + 1 < config.num_hidden_layers,
            None => [EMBED_TOKENS, NORM].contains(&stage.kind) || LOGITS.contains(&stage.kind),
        },
        last_token: false,
    },
    &HOOKS,
];

/// The kinds of these names; `each` is all of them.
///
/// # Errors
/// If there is none of a name.
pub fn named(names: &[String]) -> Result<Vec<&'static DumpKind>> {
    let known = || KINDS.map(|kind| kind.name).join(", ");
    let is_named = |kind: &&&DumpKind| names.iter().any(|name| name == "each" || name == kind.name);
    match names.iter().find(|name| *name != "each" && KINDS.iter().all(|kind| kind.name != *name)) {
        Some(name) => Err(Error::request("--dump", format!("{} or each", known()), format!("{name:?}"))),
        None => Ok(KINDS.iter().filter(is_named).copied().collect()),
    }
}

impl DumpKind {
    /// Whether it is that one.
    pub fn is(&self, other: &DumpKind) -> bool {
        self.name == other.name
    }

    /// Whether such a dump of a model holds a stage.
    pub fn holds(&self, stage: &str, config: &DeepseekV2Config) -> bool {
        Stage::parse(stage).is_some_and(|stage| (self.holds)(&stage, config))
    }

    /// Whether it holds a stage of this kind in some layer.
    pub fn holds_kind(&self, kind: &str, config: &DeepseekV2Config) -> bool {
        self.holds(&dsv2_reference::stage::name(kind, 0), config)
    }

    /// What a dump of this kind of a case is cut out of; nothing if it is no other than one of another kind.
    pub fn of(&'static self, case: &Case) -> Option<Cut> {
        let last = if self.last_token { Some(last_tokens(case)?) } else { None };
        Some(Cut { kind: self, last })
    }
}

/// How a dump is cut out of a trace of all stages.
pub struct Cut {
    /// The kind of dump.
    pub kind: &'static DumpKind,
    /// The token of each sequence whose logits it holds, if it does not hold all.
    last: Option<Vec<usize>>,
}

impl Cut {
    /// Such a dump.
    pub fn cut(&self, trace: &Trace, config: &DeepseekV2Config) -> Trace {
        let held = trace.iter().filter(|(name, _)| self.kind.holds(name, config));
        held.map(|(name, values)| (name.to_owned(), self.rows(values))).collect()
    }

    fn rows(&self, values: &Values) -> Values {
        match (&self.last, values) {
            (Some(last), Values::Real(dtype, a)) => Values::Real(*dtype, chosen(a, last)),
            _ => values.clone(),
        }
    }
}

/// One row of each sequence, `[B, 1, ..]`.
fn chosen(a: &ArrayD<f64>, positions: &[usize]) -> ArrayD<f64> {
    let rows: Vec<_> = a.outer_iter().zip(positions).map(|(a, &at)| a.index_axis_move(Axis(0), at)).collect();
    let stacked = ndarray::stack(Axis(0), &rows).expect("rows of one length");
    stacked.insert_axis(Axis(1))
}

/// The last token of each sequence that is no padding. Nothing, if there is no such choice: the logits are those of a
/// classifier, or chosen already, or there is one token; or if nobody could know which tokens those are.
fn last_tokens(case: &Case) -> Option<Vec<usize>> {
    let (batch, length) = (case.inputs.batch(), case.inputs.length());
    if case.head != Head::CausalLm || case.inputs.logits_to_keep.is_some() || length < 2 {
        return None;
    }
    let rows = ComparedRows::of(&case.inputs).of_stage(&Stage::parse(LM_HEAD)?, &[batch, length, 1]);
    let Some(rows) = rows else { return Some(vec![length - 1; batch]) };
    let last: Vec<usize> = rows.chunks(length).filter_map(|row| row.iter().rposition(|&compared| compared)).collect();
    let padded = matches!(case.inputs.attention_mask, Some(AttentionMask::Padding(_))) && case.chunks.len() == 1;
    (last.len() == batch && (padded || last.iter().all(|&last| last + 1 == length))).then_some(last)
}
