//! `dsv2 kv-cache`: what the latent cache saves (paper 2.1.4, table 1).
//!
//! Per token, MLA keeps `(c + r)·L` numbers, multi-head attention with the same heads `H·(n + v)·L` (the paper's `2 n_h d_h l`),
//! and an implementation of MLA that caches expanded keys and values `H·(n + r + v)·L`.

use comfy_table::Cell;
use dsv2_reference::DeepseekV2Config;

use crate::report::table::{align_right, table};

/// What a cache keeps of each token, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElementsPerToken {
    /// Latents and shared rotated keys.
    pub latent: usize,
    /// Keys and values of all heads, as multi-head attention has them.
    pub mha: usize,
    /// Keys and values of all heads, expanded from the latents.
    pub expanded: usize,
}

impl ElementsPerToken {
    /// Of the model of a config.
    pub fn of(config: &DeepseekV2Config) -> Self {
        let (nope, rope, value) = (config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim);
        let all_heads = config.num_attention_heads * config.num_hidden_layers;
        ElementsPerToken {
            latent: config.kv_cache_elements_per_token(),
            mha: all_heads * (nope + value),
            expanded: all_heads * (nope + rope + value),
        }
    }
}

/// The table for one model, each element of `bytes` bytes.
pub fn kv_cache_table(name: &str, config: &DeepseekV2Config, bytes: usize) -> String {
    let elements = ElementsPerToken::of(config);
    let contexts = contexts(config.max_position_embeddings);
    let titles: Vec<String> = contexts.iter().map(|tokens| format!("{tokens} tokens")).collect();
    let mut header = vec![name, "elements/token", "bytes/token"];
    header.extend(titles.iter().map(String::as_str));
    header.push("of MHA");
    let mut table = table(false, &header);
    for column in 1..header.len() {
        align_right(&mut table, column);
    }
    let rows = [
        ("latent cache (MLA)", elements.latent),
        ("MHA with the same heads", elements.mha),
        ("MLA, expanded", elements.expanded),
    ];
    for (kind, elements_per_token) in rows {
        let per_token = elements_per_token * bytes;
        let mut row = vec![Cell::new(kind), Cell::new(elements_per_token), Cell::new(per_token)];
        row.extend(contexts.iter().map(|&tokens| Cell::new(size(per_token as f64 * tokens as f64))));
        row.push(Cell::new(format!("{:.2} %", 100.0 * elements_per_token as f64 / elements.mha as f64)));
        table.add_row(row);
    }
    let saving = elements.mha as f64 / elements.latent as f64;
    format!(
        "{}\nThe latent cache is {saving:.1} times smaller than that of MHA at the same precision.",
        table.trim_fmt()
    )
}

/// Some lengths of context, up to the longest.
fn contexts(longest: usize) -> Vec<usize> {
    let mut contexts: Vec<usize> = [4096, 32768, 131_072].into_iter().filter(|&tokens| tokens < longest).collect();
    contexts.push(longest);
    contexts
}

fn size(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = (bytes.max(1.0).log2() / 10.0).floor().min(4.0);
    format!("{:.1} {}", bytes / 1024f64.powf(power), units[power as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_numbers() {
        let v2 = ElementsPerToken::of(&DeepseekV2Config::preset("v2").unwrap());
        assert_eq!((v2.latent, v2.mha), (34_560, 1_966_080));
        // 4.5 d_h l, with d_h = 128 and l = 60
        assert_eq!(v2.latent * 2, 9 * 128 * 60);
        let lite = ElementsPerToken::of(&DeepseekV2Config::preset("v2-lite").unwrap());
        assert_eq!(lite.latent, 15_552);
    }

    #[test]
    fn the_table() {
        insta::assert_snapshot!(kv_cache_table("v2", &DeepseekV2Config::preset("v2").unwrap(), 2));
    }
}
