//! `dsv2 kv-cache`: what a token costs in the cache, and how far a memory goes (paper 2.1.4, table 1; 3.2.3).
//!
//! | attention | numbers per token and layer | the paper's formula, times l layers |
//! |---|---|---|
//! | MHA | H·(n + v) | 2 n_h d_h l |
//! | GQA | g·(n + v) | 2 n_g d_h l |
//! | MQA | n + v | 2 d_h l |
//! | MLA | c + r | (d_c + d_h^R) l, which is 9/2 d_h l |
//! | MLA, expanded | H·(n + r + v) | what Transformers before 5.15 kept (transformers#47761) |
//!
//! A latent's bytes are those of [`PackedFormat`], with its scales. For the other kinds this project has no layout; they
//! are counted with the same bits: 2 bytes a number in bf16; one in fp8, and an fp32 scale for each 128; 6 bits in
//! six-bit, scales included.

mod attention;
mod text;

use dsv2_reference::DeepseekV2Config;
use dsv2_reference::config::PRESETS;
use dsv2_reference::model::cache::PackedFormat;
use serde::Serialize;

pub use attention::Attention;
use attention::GQA_GROUPS;

use crate::error::{Error, Result};

/// Formats that are compared. (The fourth, int8, is one that nobody asks for beside fp8.)
const FORMATS: [PackedFormat; 3] = [PackedFormat::Bf16, PackedFormat::Fp8, PackedFormat::SixBit];

/// Keys and values of DeepSeek 67B: 95 layers, 8 heads of 128, in bf16. What the paper's 93.3 % refers to.
const DEEPSEEK_67B_BYTES_PER_TOKEN: usize = 95 * 2 * GQA_GROUPS * 128 * 2;

/// One kind of attention in one format.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What is kept.
    pub attention: Attention,
    /// How a number is kept.
    pub format: String,
    /// Numbers of a token in one layer.
    pub numbers_per_token_per_layer: usize,
    /// Bytes of a token in one layer.
    pub bytes_per_token_per_layer: usize,
    /// Bytes of a token in all layers.
    pub bytes_per_token: usize,
    /// Tokens in 10^9 bytes.
    pub tokens_per_gb: usize,
    /// Tokens of each sequence that the memory holds.
    pub tokens_that_fit: usize,
    /// The same, but no more than the model can see.
    pub longest_context: usize,
    /// Bytes against those of multi-head attention in bf16.
    pub of_mha_in_bf16: f64,
}

/// What the latent cache saves against the cache of DeepSeek 67B.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Saving {
    /// How a latent is kept; the cache of DeepSeek 67B is in bf16.
    pub format: String,
    /// 1 - bytes per token / bytes per token of DeepSeek 67B.
    pub saved: f64,
}

/// The table for one model, or for several with the same cache.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KvCacheTable {
    /// Names of presets, or the folder.
    pub models: Vec<String>,
    /// L.
    pub layers: usize,
    /// `max_position_embeddings`.
    pub max_context: usize,
    /// Memory for caches, in bytes.
    pub memory: u64,
    /// Sequences that share it.
    pub batch: usize,
    /// Each kind in each format.
    pub rows: Vec<Row>,
    /// Bytes per token of DeepSeek 67B, the model that the paper compares with: GQA, bf16.
    pub deepseek_67b_bytes_per_token: usize,
    /// How much less than that a token of MLA takes.
    pub saved_against_deepseek_67b: Vec<Saving>,
}

/// A memory, and how many sequences share it.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Bytes.
    pub memory: u64,
    /// Sequences of equal length.
    pub batch: usize,
}

impl KvCacheTable {
    /// For one configuration.
    ///
    /// # Errors
    /// If no sequence shares the memory, or the model keeps nothing of a token, or more than can be counted.
    pub fn new(name: &str, config: &DeepseekV2Config, room: Room) -> Result<Self> {
        if room.batch == 0 {
            return Err(Error::request("--batch", "one sequence or more", 0));
        }
        let layers = config.num_hidden_layers;
        check_countable(config)?;
        let mha = layers * Attention::Mha.bytes(config, PackedFormat::Bf16);
        let mut rows = Vec::new();
        for (attention, format) in Attention::ALL.iter().flat_map(|&kind| FORMATS.map(|format| (kind, format))) {
            let per_layer = attention.bytes(config, format);
            let bytes_per_token = layers * per_layer;
            if bytes_per_token == 0 {
                return Err(Error::request("model", "layers that keep something of a token", "none"));
            }
            let sequences = room.batch as u64;
            let tokens_that_fit = (room.memory / sequences / bytes_per_token as u64) as usize;
            rows.push(Row {
                attention,
                format: format.to_string(),
                numbers_per_token_per_layer: attention.numbers(config),
                bytes_per_token_per_layer: per_layer,
                bytes_per_token,
                tokens_per_gb: 1_000_000_000 / bytes_per_token,
                tokens_that_fit,
                longest_context: tokens_that_fit.min(config.max_position_embeddings),
                of_mha_in_bf16: bytes_per_token as f64 / mha as f64,
            });
        }
        let saving = |format: PackedFormat| {
            let bytes = (layers * Attention::Mla.bytes(config, format)) as f64;
            Saving { format: format.to_string(), saved: 1.0 - bytes / DEEPSEEK_67B_BYTES_PER_TOKEN as f64 }
        };
        Ok(KvCacheTable {
            models: vec![name.to_owned()],
            layers,
            max_context: config.max_position_embeddings,
            memory: room.memory,
            batch: room.batch,
            rows,
            deepseek_67b_bytes_per_token: DEEPSEEK_67B_BYTES_PER_TOKEN,
            saved_against_deepseek_67b: FORMATS.map(saving).into(),
        })
    }

    /// For every preset; those with the same cache share a table.
    ///
    /// # Errors
    /// If no sequence shares the memory.
    pub fn of_presets(room: Room) -> Result<Vec<Self>> {
        let mut tables: Vec<KvCacheTable> = Vec::new();
        for name in PRESETS {
            let table = KvCacheTable::new(name, &DeepseekV2Config::preset(name)?, room)?;
            match tables.iter_mut().find(|other| other.rows == table.rows && other.layers == table.layers) {
                Some(same) => same.models.extend(table.models),
                None => tables.push(table),
            }
        }
        Ok(tables)
    }
}

/// Sizes that are possible one by one may make a token larger than 64 bits can count.
fn check_countable(config: &DeepseekV2Config) -> Result<()> {
    // A number takes 5 bytes at most: a vector of one, in fp8, with its scale.
    let of_layer =
        |kind: &Attention| kind.vectors(config).map(|(n, length)| n as u128 * length as u128 * 5).iter().sum();
    let largest: u128 = Attention::ALL.iter().map(of_layer).max().unwrap_or(0);
    let bytes = largest * config.num_hidden_layers as u128;
    if bytes > i64::MAX as u128 {
        return Err(Error::request("model", "fewer than 2^63 bytes per token", bytes));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use dsv2_reference::LatentCache;
    use dsv2_reference::model::cache::CacheFormat;
    use dsv2_reference::model::causal_lm::{CausalLmInput, DeepseekV2ForCausalLM};
    use dsv2_reference::model::{ModelInput, Run};
    use dsv2_reference::tap::NoTap;

    use super::*;
    use crate::golden::GoldenCases;

    const ROOM: Room = Room { memory: 10_000_000_000, batch: 1 };

    fn preset(name: &str) -> KvCacheTable {
        KvCacheTable::new(name, &DeepseekV2Config::preset(name).unwrap(), ROOM).unwrap()
    }

    fn row(table: &KvCacheTable, attention: Attention, format: PackedFormat) -> &Row {
        table.rows.iter().find(|row| row.attention == attention && row.format == format.to_string()).unwrap()
    }

    #[test]
    fn the_papers_table_1() {
        // n_h d_h = 16384, l = 60
        let v2 = preset("v2");
        let numbers = |attention| 60 * row(&v2, attention, PackedFormat::Bf16).numbers_per_token_per_layer;
        assert_eq!(numbers(Attention::Mha), 2 * 128 * 128 * 60);
        assert_eq!(numbers(Attention::Gqa), 2 * 8 * 128 * 60);
        assert_eq!(numbers(Attention::Mqa), 2 * 128 * 60);
        assert_eq!(2 * numbers(Attention::Mla), 9 * 128 * 60);
    }

    #[test]
    fn the_papers_saving_is_six_bits_against_sixteen() {
        let saved = preset("v2").saved_against_deepseek_67b;
        let percent: Vec<_> =
            saved.iter().map(|saving| (saving.format.as_str(), (1000.0 * saving.saved).round() / 10.0)).collect();
        assert_eq!(percent, [("bf16", 82.2), ("fp8", 89.9), ("six-bit", 93.3)]);
    }

    #[test]
    fn a_caches_bytes_are_those_that_it_allocates() {
        let case = GoldenCases::embedded().load("v2-real-heads").unwrap().case;
        let model = DeepseekV2ForCausalLM::<f32>::load(&case.config, case.dialect, &*case.weights).unwrap();
        let table = KvCacheTable::new("v2-real-heads", &case.config, ROOM).unwrap();
        for format in FORMATS {
            let mut cache = LatentCache::with_format(&case.config, 2, CacheFormat::Packed(format));
            let input = ModelInput::ids(ndarray::Array2::ones((2, 5)));
            let input = CausalLmInput { input, logits_to_keep: Default::default(), labels: None };
            model.forward(&input, Some(&mut cache), &Run::default(), &mut NoTap).unwrap();
            assert_eq!(
                cache.allocated_bytes(),
                2 * 5 * row(&table, Attention::Mla, format).bytes_per_token,
                "{format}"
            );
        }
    }

    #[test]
    fn no_context_is_longer_than_the_models() {
        let v2 = preset("v2");
        let mla = row(&v2, Attention::Mla, PackedFormat::SixBit);
        assert_eq!((mla.tokens_that_fit, mla.longest_context), (385_802, 163_840));
        let config = DeepseekV2Config::preset("v2").unwrap();
        let batch = KvCacheTable::new("v2", &config, Room { batch: 64, ..ROOM }).unwrap();
        assert_eq!(row(&batch, Attention::Mla, PackedFormat::SixBit).longest_context, 6_028);
        let refused = KvCacheTable::new("v2", &config, Room { batch: 0, ..ROOM }).unwrap_err();
        assert_eq!(refused.to_string(), "--batch: expected one sequence or more, found 0");
    }

    #[test]
    fn a_token_that_is_too_large_to_count_is_refused() {
        let huge = i32::MAX as usize;
        let config = DeepseekV2Config { num_attention_heads: huge, qk_nope_head_dim: huge, ..Default::default() };
        let refused = KvCacheTable::new("huge", &config, ROOM).unwrap_err().to_string();
        assert!(refused.starts_with("model: expected fewer than 2^63 bytes per token, found 7"), "{refused}");
    }

    #[test]
    fn models_with_the_same_cache_share_a_table() {
        let tables = KvCacheTable::of_presets(ROOM).unwrap();
        let models: Vec<_> = tables.into_iter().map(|table| table.models).collect();
        assert_eq!(models, [vec!["v2", "coder-v2", "v2.5"], vec!["v2-lite", "coder-v2-lite"]]);
    }
}
