//! Other names: wrappers around a module, modules that are known by their last part, several stages side by side.

use crate::DeepseekV2Config;
use crate::stage::table::{
    ATTN_OUTPUT, CACHED_K_PE, CACHED_KV, DOWN_PROJ, GATE_PROJ, KV_A_PROJ, O_PROJ, Q_A_PROJ, ROUTER_LOGITS, UP_PROJ,
};
use crate::stage::{Stage, canonical, name, pattern};

/// Parts of a path that are a wrapper's, wherever they stand: of torch.compile, DistributedDataParallel, PEFT, FSDP, and
/// of models that see as well.
pub const WRAPPERS: &[&str] = &[
    "_orig_mod",
    "module",
    "base_model",
    "base_layer",
    "language_model",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
];

/// A tensor that goes by another name, or holds several stages.
#[derive(Debug)]
pub struct OtherName {
    /// Its names, with `*` for the layer.
    pub names: &'static [&'static str],
    /// Whether it means this only in a layer without experts.
    pub dense: bool,
    /// What it holds, side by side along the last axis.
    pub holds: &'static [Part],
    /// Whether two parts may come the other way round, too.
    pub either_order: bool,
    /// What a report says.
    pub says: &'static str,
}

/// A stage that a tensor holds.
#[derive(Debug)]
pub struct Part {
    /// The kind of stage.
    pub kind: &'static str,
    /// How many columns it has: in a tensor of another width, it is something else. `None`: whatever there are.
    pub width: Option<fn(&DeepseekV2Config) -> Option<usize>>,
}

const fn all(kind: &'static str) -> Part {
    Part { kind, width: None }
}

const fn wide(kind: &'static str, width: fn(&DeepseekV2Config) -> Option<usize>) -> Part {
    Part { kind, width: Some(width) }
}

/// The fused projections of a dense feed-forward network: `[gate | up]` on each rank, or the other way round.
pub const GATE_UP_PROJ: &str = "model.layers.*.mlp.gate_up_proj";

/// All other names.
pub const OTHER_NAMES: &[OtherName] = &[
    OtherName {
        names: &[GATE_UP_PROJ],
        dense: true,
        holds: &[wide(GATE_PROJ, |c| Some(c.intermediate_size)), wide(UP_PROJ, |c| Some(c.intermediate_size))],
        either_order: true,
        says: "mlp.gate_proj and mlp.up_proj, fused",
    },
    OtherName {
        names: &["model.layers.*.mlp.up_gate_proj"],
        dense: true,
        holds: &[wide(UP_PROJ, |c| Some(c.intermediate_size)), wide(GATE_PROJ, |c| Some(c.intermediate_size))],
        either_order: true,
        says: "mlp.up_proj and mlp.gate_proj, fused",
    },
    OtherName {
        // the first as in SGLang, the second as in vLLM
        names: &[
            "model.layers.*.self_attn.fused_qkv_a_proj_with_mqa",
            "model.layers.*.self_attn.fused_qkv_a_proj",
            "model.layers.*.self_attn.qkv_a_proj_with_mqa",
            "model.layers.*.self_attn.qkv_a_proj",
        ],
        dense: false,
        holds: &[wide(Q_A_PROJ, |c| c.q_lora_rank), wide(KV_A_PROJ, |c| Some(c.kv_lora_rank + c.qk_rope_head_dim))],
        either_order: false,
        says: "self_attn.q_a_proj and self_attn.kv_a_proj_with_mqa, fused",
    },
    OtherName {
        // latent and key as FlashMLA's caches have them; key and latent in llama.cpp
        names: &["past_key_values.*", "past_key_values.*.latent", "model.layers.*.self_attn.kv_cache"],
        dense: false,
        holds: &[wide(CACHED_KV, |c| Some(c.kv_lora_rank)), wide(CACHED_K_PE, |c| Some(c.qk_rope_head_dim))],
        either_order: true,
        says: "cached latent and rotary key in one tensor",
    },
    OtherName {
        // vLLM's wrapper ends with the projection, too
        names: &["model.layers.*.self_attn", "model.layers.*.self_attn.mla_attn"],
        dense: false,
        holds: &[all(O_PROJ)],
        either_order: false,
        says: "the output of self_attn.o_proj",
    },
    OtherName {
        names: &["model.layers.*.self_attn.mla_attn.mla_attn"],
        dense: false,
        holds: &[all(ATTN_OUTPUT)],
        either_order: false,
        says: "self_attn.attn_output, as vLLM calls it",
    },
    OtherName {
        names: &["model.layers.*.mlp"],
        dense: true,
        holds: &[all(DOWN_PROJ)],
        either_order: false,
        says: "the output of mlp.down_proj",
    },
    OtherName {
        // a gate may give a choice of experts as well: that has another width, or is no number
        names: &["model.layers.*.mlp.gate"],
        dense: false,
        holds: &[wide(ROUTER_LOGITS, |c| Some(c.num_experts()))],
        either_order: false,
        says: "mlp.gate.router_logits",
    },
];

/// What a tensor of this name is taken for, and its layer.
pub fn other_name(tensor: &str) -> Option<(&'static OtherName, usize)> {
    let (pattern, layer) = pattern(tensor);
    let layer = layer?;
    let own = |of: &&str| **of == pattern && name(of, layer) == tensor;
    let other = OTHER_NAMES.iter().find(|other| other.names.iter().any(&own))?;
    Some((other, layer))
}

/// The name of a tensor without what wrappers add, if only so it is one that is known; and what is said of the name.
pub fn unwrapped(tensor: &str) -> Option<(String, String)> {
    let known = |name: &str| Stage::parse(name).is_some() || other_name(name).is_some();
    if known(tensor) {
        return None;
    }
    let (wrappers, parts): (Vec<&str>, Vec<&str>) = tensor.split('.').partition(|part| WRAPPERS.contains(part));
    let models = parts.iter().take_while(|part| **part == "model").count();
    let rest = parts[models..].join(".");
    let found = [format!("model.{rest}"), rest].into_iter().find(|name| known(name))?;
    let found = canonical(&found).to_owned();
    let mut extra: Vec<String> = wrappers.iter().map(|wrapper| format!("`{wrapper}`")).collect();
    extra.dedup();
    let needed = usize::from(found.starts_with("model."));
    if models > needed {
        extra.push("`model`".to_owned());
    }
    let says = match (extra.is_empty(), models < needed) {
        (false, false) => format!("names with {} in them", extra.join(", ")),
        (false, true) => format!("names with {} in them, and without `model`", extra.join(", ")),
        (true, _) => "names without `model`".to_owned(),
    };
    Some((found, says))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_names_are_known_by_their_layer() {
        let named = |name: &str| other_name(name).map(|(other, layer)| (other.says, layer));
        assert_eq!(named("model.layers.3.mlp"), Some(("the output of mlp.down_proj", 3)));
        assert_eq!(named("model.layers.3.mlp.gate_up_proj").unwrap().1, 3);
        assert_eq!(named("past_key_values.3"), Some(("cached latent and rotary key in one tensor", 3)));
        assert_eq!(named("model.layers.03.mlp"), None);
        assert_eq!(named("model.layers.*.mlp"), None);
        assert_eq!(named("mlp.gate_up_proj"), None);
    }

    #[test]
    fn wrappers_are_taken_off_wherever_they_stand() {
        let o_proj = "model.layers.2.self_attn.o_proj";
        for (wrapped, name, says) in [
            ("_orig_mod.model.layers.2.self_attn.o_proj", o_proj, "names with `_orig_mod` in them"),
            ("model.layers.2._orig_mod.self_attn.o_proj", o_proj, "names with `_orig_mod` in them"),
            ("module.model.layers.2.self_attn.o_proj", o_proj, "names with `module` in them"),
            ("base_model.model.model.layers.2.self_attn.o_proj", o_proj, "names with `base_model`, `model` in them"),
            (
                "base_model.model.model.layers.2.self_attn.o_proj.base_layer",
                o_proj,
                "names with `base_model`, `base_layer`, `model` in them",
            ),
            ("language_model.model.layers.2.self_attn.o_proj", o_proj, "names with `language_model` in them"),
            ("model.language_model.layers.2.self_attn.o_proj", o_proj, "names with `language_model` in them"),
            ("model.model.layers.2.self_attn.o_proj", o_proj, "names with `model` in them"),
            ("layers.2.self_attn.o_proj", o_proj, "names without `model`"),
            ("_orig_mod.layers.2.self_attn.o_proj", o_proj, "names with `_orig_mod` in them, and without `model`"),
            ("base_model.model.lm_head", "lm_head", "names with `base_model`, `model` in them"),
            ("language_model.logits", "lm_head", "names with `language_model` in them"),
            ("module.past_key_values.0", "past_key_values.0", "names with `module` in them"),
        ] {
            assert_eq!(unwrapped(wrapped), Some((name.to_owned(), says.to_owned())), "{wrapped}");
        }
        for not in
            [o_proj, "lm_head", "logits", "vision.module.norm", "mtp.norm", "model", "module", "", "..", "model.layers"]
        {
            assert_eq!(unwrapped(not), None, "{not}");
        }
    }

    #[test]
    fn every_line_holds_kinds_of_the_table_and_no_name_is_there_twice() {
        let mut names: Vec<&str> = OTHER_NAMES.iter().flat_map(|other| other.names).copied().collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
        for other in OTHER_NAMES {
            assert!(other.holds.iter().all(|part| Stage::parse(&name(part.kind, 0)).is_some()), "{}", other.says);
            assert!(!other.either_order || other.holds.len() == 2, "{}", other.says);
        }
    }
}
