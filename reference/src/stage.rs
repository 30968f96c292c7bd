//! Stages: the named tensors of the forward pass.
//!
//! A stage has the path of Hugging Face's module (`model.layers.1.self_attn.o_proj`), so that anyone's forward hooks
//! produce it without a translation table; a few tensors that are no module's output have a name below their module.
//! The [`table`] says of each kind of stage what its axes are and what it is computed from; [`flow`] follows these
//! inputs; a [`convention`] is another way to write the same numbers. No other place spells a stage's name.

pub mod convention;
pub mod flow;
pub mod table;

pub use table::Layout;
use table::{ALIASES, LAYER, Row, STAGES};

/// A stage's name, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The name with `*` for the layer: the kind of tap, the same in every layer.
    pub kind: &'static str,
    /// The layer, if the stage belongs to one.
    pub layer: Option<usize>,
    /// What the axes are.
    pub layout: Layout,
    index: usize,
}

impl Stage {
    /// Takes a name apart; `None` if there is no such stage.
    pub fn parse(name: &str) -> Option<Self> {
        let (pattern, layer) = pattern(canonical(name));
        let index = STAGES.iter().position(|row| row.kind == pattern)?;
        let Row { kind, layout, .. } = STAGES[index];
        Some(Stage { kind, layer, layout, index })
    }

    /// Its row of the table.
    pub fn row(&self) -> &'static Row {
        &STAGES[self.index]
    }

    /// Sorts stages into the order of the forward pass: before the layers, layer by layer, behind them.
    pub fn place(&self) -> (usize, usize, usize) {
        let behind_the_layers = || STAGES[..self.index].iter().any(|row| row.kind.contains('*'));
        let section = match self.layer {
            Some(_) => 1,
            None if behind_the_layers() => 2,
            None => 0,
        };
        (section, self.layer.unwrap_or(0), self.index)
    }
}

/// The name with `*` for its layer, and the layer if there is one: as Hugging Face writes it, without zeros or a sign
/// before it.
fn pattern(name: &str) -> (String, Option<usize>) {
    match name
        .split('.')
        .find_map(|part| Some((part, part.parse::<usize>().ok().filter(|layer| layer.to_string() == part)?)))
    {
        Some((digits, layer)) => (name.replacen(&format!(".{digits}"), ".*", 1), Some(layer)),
        None => (name.to_owned(), None),
    }
}

/// The name of the stage of this kind in `layer`.
pub fn name(kind: &str, layer: usize) -> String {
    kind.replacen('*', &layer.to_string(), 1)
}

/// The path of a decoder layer: of its stages and of its weights.
pub fn layer_path(layer: usize) -> String {
    name(LAYER, layer)
}

/// The name under which a tensor of a dump is compared: `logits` is `lm_head`.
pub fn canonical(name: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, kind)| kind)
}

/// The key that sorts names into the order of the forward pass; names of no stage come last.
pub fn forward_order(name: &str) -> (usize, usize, usize) {
    Stage::parse(name).map_or((usize::MAX, 0, 0), |stage| stage.place())
}

/// The stage beside `name` in the same module: `sibling("a.gate.topk_weights", "topk_indices")` is
/// `a.gate.topk_indices`.
pub fn sibling(name: &str, leaf: &str) -> String {
    match name.rsplit_once('.') {
        Some((module, _)) => format!("{module}.{leaf}"),
        None => leaf.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let stage = Stage::parse("model.layers.12.self_attn.q_pe").unwrap();
        assert_eq!((stage.kind, stage.layer, stage.layout), ("model.layers.*.self_attn.q_pe", Some(12), Layout::Heads));
        assert_eq!(name(stage.kind, 12), "model.layers.12.self_attn.q_pe");
        assert_eq!(Stage::parse("past_key_values.0.k_pe").unwrap().layout, Layout::Keys);
        assert_eq!(Stage::parse(&layer_path(3)).unwrap().kind, "model.layers.*");
        assert_eq!(Stage::parse("loss").unwrap().layout, Layout::Whole);
        assert_eq!(Stage::parse("logits"), Stage::parse("lm_head"));
        for none in ["x", "00", "+0", "01", "-1", "0 ", "99999999999999999999"] {
            assert_eq!(Stage::parse(&format!("model.layers.{none}.mlp")), None, "{none}");
        }
        assert_eq!(Stage::parse("transformer.h.0"), None);
    }

    #[test]
    fn the_table_is_in_forward_order_and_names_no_stage_twice() {
        let places: Vec<_> = STAGES.iter().map(|row| Stage::parse(&name(row.kind, 0)).unwrap().place()).collect();
        assert!(places.is_sorted(), "{places:?}");
        let sections: Vec<_> = places.iter().map(|(section, ..)| section).collect();
        assert_eq!(sections.iter().filter(|section| ***section == 0).count(), 3);
        assert_eq!(sections.iter().filter(|section| ***section == 2).count(), 5);
        let indices: Vec<_> = places.iter().map(|(.., index)| *index).collect();
        assert_eq!(indices, Vec::from_iter(0..STAGES.len()));
    }

    #[test]
    fn forward_order_goes_layer_by_layer() {
        let forward = [
            "model.embed_tokens",
            "model.layers.0.input_layernorm",
            "past_key_values.0.k_pe",
            "model.layers.0.self_attn.attn_scores",
            "model.layers.0",
            "model.layers.1.input_layernorm",
            "model.layers.10.input_layernorm",
            "model.norm",
            "lm_head",
            "loss",
            "anything else",
        ];
        let mut sorted = forward;
        sorted.reverse();
        sorted.sort_by_key(|name| forward_order(name));
        assert_eq!(sorted, forward);
    }
}
