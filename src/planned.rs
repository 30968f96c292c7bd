//! What a run records, before it is run: the name, the type and the shape of every stage.
//!
//! All of it follows from the config and the inputs, by the [table](dsv2_reference::stage::table) of stages. So the header of a
//! trace is written before its numbers are known, a dump is held against the shapes before it is widened, and memory is
//! counted before it is needed.

use dsv2_reference::Dtype;
use dsv2_reference::config::Head;
use dsv2_reference::model::attention::AttentionForm;
use dsv2_reference::stage::table::*;
use dsv2_reference::stage::{self, Stage, forward_order};
use indexmap::IndexMap;

use crate::case::{Case, Entering};
use crate::inputs::LogitsToKeep;
use crate::precision::Precision;

/// What is known of a stage beforehand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The type of its numbers, or nothing if they are indices.
    pub dtype: Option<Dtype>,
    /// The lengths of its axes.
    pub shape: Vec<usize>,
}

impl Planned {
    /// How many elements it has; more than any memory holds, if that cannot be counted.
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |product: u64, &n| product.saturating_mul(n as u64))
    }

    /// How many bytes they take in a file.
    pub fn bytes(&self) -> u64 {
        self.elements().saturating_mul(self.dtype.map_or(size_of::<i64>(), Dtype::size) as u64)
    }
}

/// Every stage that the reference records of a case, in forward order.
pub fn stages(case: &Case, form: AttentionForm, precision: Precision) -> IndexMap<String, Planned> {
    let alone = case.part.as_ref();
    let layers = alone.map_or(0..case.config.num_hidden_layers, |part| part.layers.0.clone());
    let whole = alone.is_none();
    let embeds = alone.is_none_or(|part| matches!(part.entering, Entering::Embedding));
    let mut planned = IndexMap::new();
    for row in STAGES {
        let per_layer = row.kind.contains('*');
        let kept = match row.kind {
            EMBED_TOKENS => embeds,
            COS | SIN => true,
            _ => per_layer || whole,
        };
        let in_layers = if per_layer { layers.clone() } else { 0..1 };
        for layer in in_layers.filter(|&layer| kept && exists(row.kind, layer, case, form)) {
            let name = stage::name(row.kind, layer);
            let shape = row.shape.trim_matches(['[', ']']).split(',').filter(|axis| !axis.is_empty());
            let shape = shape.map(|axis| length(axis, row, case)).collect();
            let dtype = (row.kind != TOPK_INDICES).then(|| precision.stored(&name));
            planned.insert(name, Planned { dtype, shape });
        }
    }
    planned.sort_by_key(|name, _| forward_order(name));
    planned
}

/// Whether the model has this kind of stage in this layer.
fn exists(kind: &str, layer: usize, case: &Case, form: AttentionForm) -> bool {
    let config = &case.config;
    let experts = config.is_moe_layer(layer, case.dialect);
    match kind {
        Q_PROJ => config.q_lora_rank.is_none(),
        Q_A_PROJ | Q_A_LAYERNORM | Q_B_PROJ => config.q_lora_rank.is_some(),
        CACHED_KV | CACHED_K_PE => case.use_cache,
        KV_B_PROJ => form == AttentionForm::Expanded,
        GATE_PROJ | UP_PROJ | DOWN_PROJ => !experts,
        SHARED_EXPERTS => experts && config.n_shared_experts.is_some(),
        ROUTER_LOGITS | TOPK_INDICES | TOPK_WEIGHTS | EXPERTS | MLP => experts,
        LM_HEAD => case.head == Head::CausalLm,
        SCORE | POOLED_LOGITS => case.head == Head::SequenceClassification,
        LOSS => case.inputs.labels.is_some(),
        _ => true,
    }
}

/// How long an axis is that the table calls so.
fn length(axis: &str, row: &Row, case: &Case) -> usize {
    let (c, inputs) = (&case.config, &case.inputs);
    let (b, s, h) = (inputs.batch(), inputs.looked_at(), c.num_attention_heads);
    match axis {
        "1" => 1,
        // marked tokens of all sequences stand in one row
        "B" if row.kind == LM_HEAD && matches!(inputs.logits_to_keep, Some(LogitsToKeep::Mask(_))) => 1,
        "B" => b,
        "1 or B" => inputs.position_ids.as_ref().map_or(1, |ids| ids.nrows()),
        "S" => s,
        "T" if inputs.cache_before && [CACHED_KV, CACHED_K_PE].contains(&row.kind) => inputs.past(),
        "T" => inputs.length(),
        "kept" => kept(inputs.logits_to_keep.as_ref(), s),
        "BS" => b.saturating_mul(s),
        "D" => c.hidden_size,
        "H" => h,
        "r" => c.qk_rope_head_dim,
        "r/2" => c.qk_rope_head_dim / 2,
        "c" => c.kv_lora_rank,
        "c+r" => c.kv_lora_rank + c.qk_rope_head_dim,
        "q" => c.q_lora_rank.unwrap_or(0),
        "H(n+r)" => h * c.qk_head_dim(),
        "H(n+v)" => h * (c.qk_nope_head_dim + c.v_head_dim),
        "Hv" => h * c.v_head_dim,
        "I" => c.intermediate_size,
        "E" => c.num_experts(),
        "k" => c.experts_per_token().unwrap_or(0),
        "V" => c.vocab_size,
        "labels" => c.num_labels(),
        other => unreachable!("the table of stages has no axis {other}"),
    }
}

/// How many logits are kept of `length` tokens, in each row.
fn kept(choice: Option<&LogitsToKeep>, length: usize) -> usize {
    match choice {
        None => length,
        Some(LogitsToKeep::Last(k)) if *k > 0 => length.min(*k as usize),
        Some(LogitsToKeep::Last(k)) => length.saturating_sub(k.unsigned_abs() as usize),
        Some(LogitsToKeep::Positions(positions)) => positions.len(),
        Some(LogitsToKeep::PerSample(positions)) => positions.ncols(),
        Some(LogitsToKeep::Mask(mask)) => mask.iter().filter(|kept| **kept).count(),
    }
}

/// The layer after which nothing that `wanted` names is computed; nothing, if that is behind the layers.
pub fn layers_needed(layers: usize, wanted: impl Fn(&str) -> bool) -> Option<usize> {
    let (of_layers, others): (Vec<&Row>, Vec<&Row>) = STAGES.iter().partition(|row| row.kind.contains('*'));
    let behind = |row: &&Row| Stage::parse(row.kind).is_some_and(|stage| stage.place().0 == 2);
    if others.into_iter().filter(behind).any(|row| wanted(row.kind)) {
        return None;
    }
    let last = (0..layers).rev().find(|&layer| of_layers.iter().any(|row| wanted(&stage::name(row.kind, layer))));
    Some(last.map_or(1, |last| last + 1)).filter(|needed| *needed < layers)
}

#[cfg(test)]
mod tests {
    use dsv2_reference::tap::NoTap;

    use super::*;
    use crate::backend::{Backend, Reference, Settings};
    use crate::case::Part;
    use crate::golden::GoldenCases;
    use crate::trace::Trace;
    use crate::values::Values;

    fn recorded(trace: &Trace) -> IndexMap<String, Planned> {
        let planned = |values: &Values| Planned {
            dtype: if let Values::Real(dtype, _) = values { Some(*dtype) } else { None },
            shape: values.shape().to_vec(),
        };
        trace.iter().map(|(name, values)| (name.to_owned(), planned(values))).collect()
    }

    #[test]
    fn every_run_records_what_was_planned() {
        let golden = GoldenCases::embedded();
        for name in golden.names() {
            let case = golden.load(name).unwrap().case;
            if case.config.parameter_count() > 3_000_000 {
                continue;
            }
            for (attention, precision) in
                [(AttentionForm::Expanded, Precision::Bf16), (AttentionForm::Absorbed, Precision::F64)]
            {
                let settings = Settings { attention, precision, ..Settings::default() };
                let run = |case: &Case| recorded(&Reference.run(case, &settings, &mut NoTap).unwrap());
                assert_eq!(stages(&case, attention, precision), run(&case), "{name}");
                let first = Case { part: Some(Part::first(1)), ..case.clone() };
                assert_eq!(stages(&first, attention, precision), run(&first), "{name}: the first layer");
                assert!(run(&first).len() > 10);
                // a classifier's positions and labels are those of whole sequences
                let Ok(inputs) = case.inputs.clone().decoding(1) else { continue };
                if case.use_cache && case.head == Head::CausalLm {
                    let chunks = vec![inputs.past(), 1];
                    for cache_before in [false, true] {
                        let inputs = crate::inputs::Inputs { cache_before, ..inputs.clone() };
                        let step = Case { inputs, chunks: chunks.clone(), ..case.clone() };
                        assert_eq!(stages(&step, attention, precision), run(&step), "{name}: a decoding step");
                    }
                }
            }
        }
    }

    #[test]
    fn the_layers_that_are_needed_are_those_up_to_the_last_that_is_wanted() {
        let of = |pattern: &str| {
            let pattern = glob::Pattern::new(pattern).unwrap();
            layers_needed(12, |name| pattern.matches(name))
        };
        assert_eq!(of("model.layers.0.*"), Some(1));
        assert_eq!(of("model.layers.?.mlp"), Some(10));
        assert_eq!(of("past_key_values.3.k_pe"), Some(4));
        assert_eq!(of("model.embed_tokens"), Some(1));
        assert_eq!(of("*.11.mlp*"), None);
        assert_eq!(of("*"), None);
        assert_eq!(of("model.norm"), None);
    }
}
