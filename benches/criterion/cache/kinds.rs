//! What is cached of a token, by kind of attention, and a cache of it that is really filled. What it should take is what
//! `dsv2 kv-cache` says.
//!
//! The latent is kept by the reference's [`LatentCache`]; keys and values in one plain array of bf16 for each layer, \[T,
//! numbers\], that grows as Rust's vectors do. Both double their room when it is full.

use dsv2::kv_cache::Attention;
use dsv2_reference::LatentCache;
use dsv2_reference::config::DeepseekV2Config;
use dsv2_reference::model::cache::{CacheFormat, PackedFormat};
use half::bf16;
use ndarray::{Array3, s};

use super::count::{self, Taken};

/// A model, whose cache may be of several kinds.
pub struct Model {
    /// For ids.
    pub id: &'static str,
    /// For tables.
    name: &'static str,
    pub config: DeepseekV2Config,
    /// The only kind of attention that is looked at.
    only: Option<Attention>,
}

/// A kind of attention and the type of a number.
#[derive(Clone, Copy)]
pub struct Kind<'a> {
    pub model: &'a Model,
    attention: Attention,
    format: CacheFormat,
}

const BF16: CacheFormat = CacheFormat::Packed(PackedFormat::Bf16);

/// Tokens come in pieces of this size, as a long prompt does.
pub const PIECE: usize = 512;

/// At most so much is filled; the rest is multiplied.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Tokens, counted once for each layer.
    pub tokens: usize,
    /// Bytes.
    pub bytes: usize,
}

impl Model {
    /// V2 and V2-Lite with every kind, DeepSeek 67B as it is, and the model with MHA that the paper's table 9 compares its
    /// large MLA model with.
    pub fn all() -> [Model; 4] {
        let config = |id| DeepseekV2Config::preset(id).expect("a published model");
        [
            Model { id: "v2", name: "DeepSeek-V2", config: config("v2"), only: None },
            Model { id: "v2-lite", name: "DeepSeek-V2-Lite", config: config("v2-lite"), only: None },
            Model::without_latent("67b", "DeepSeek 67B", [95, 64], Attention::Gqa),
            Model::without_latent("paper-large-moe", "large MoE of table 9", [60, 56], Attention::Mha),
        ]
    }

    /// Heads of 128.
    fn without_latent(id: &'static str, name: &'static str, [layers, heads]: [usize; 2], kind: Attention) -> Model {
        let config = DeepseekV2Config {
            num_hidden_layers: layers,
            num_attention_heads: heads,
            qk_nope_head_dim: 128,
            v_head_dim: 128,
            ..DeepseekV2Config::default()
        };
        Model { id, name, config, only: Some(kind) }
    }

    /// All kinds: in bf16, MLA in every format.
    pub fn kinds(&self) -> impl Iterator<Item = Kind<'_>> {
        let plain = [Attention::Mha, Attention::Gqa, Attention::Mqa, Attention::MlaExpanded].map(|kind| (kind, BF16));
        let formats = [CacheFormat::Plain].into_iter().chain(PackedFormat::ALL.map(CacheFormat::Packed));
        let all = plain.into_iter().chain(formats.map(|format| (Attention::Mla, format)));
        let is_there = |attention| self.only.is_none_or(|only| only == attention);
        all.filter(move |(attention, _)| is_there(*attention)).map(|(attention, format)| Kind {
            model: self,
            attention,
            format,
        })
    }
}

impl Kind<'_> {
    /// The type of a number.
    fn format(&self) -> String {
        if self.format == CacheFormat::Plain { "fp32".into() } else { self.format.to_string() }
    }

    /// For ids: `v2/mla-bf16`
    pub fn id(&self) -> String {
        let attention = serde_json::json!(self.attention);
        let attention = attention.as_str().expect("a name");
        format!("{}/{attention}-{}", self.model.id, self.format())
    }

    /// `DeepSeek-V2: MLA, bf16`
    pub fn name(&self) -> String {
        format!("{}: {}, {}", self.model.name, self.attention, self.format())
    }

    /// Numbers per token and layer.
    fn numbers(&self) -> usize {
        self.attention.numbers(&self.model.config)
    }

    /// Bytes per token and layer, scales included, as they should be.
    pub fn formula(&self) -> usize {
        match self.format {
            CacheFormat::Plain => self.numbers() * size_of::<f32>(),
            CacheFormat::Packed(format) => self.attention.bytes(&self.model.config, format),
        }
    }

    /// The bytes that a cache of all layers takes when it is given so many tokens.
    pub fn fill(&self, tokens: usize, limit: Limit) -> u64 {
        let (layers, of_layer) = (self.model.config.num_hidden_layers, tokens * self.formula());
        let some_layers = (limit.tokens / tokens).min(limit.bytes / of_layer).clamp(1, layers);
        let pieces: Vec<usize> = (0..tokens).step_by(PIECE).map(|start| PIECE.min(tokens - start)).collect();
        let filled = if self.attention == Attention::Mla {
            fill_latent(&self.model.config, self.format, some_layers, &pieces).kept
        } else {
            // An array of half the width takes half the bytes.
            let numbers = self.numbers();
            let small = |parts: &usize| numbers.is_multiple_of(*parts) && of_layer / parts <= limit.bytes;
            let parts = (1..=numbers).find(small).unwrap_or(numbers);
            fill_arrays(numbers / parts, some_layers, &pieces) * parts as u64
        };
        filled / some_layers as u64 * layers as u64
    }
}

/// What the reference's cache takes when it is given pieces of a sequence.
pub fn fill_latent(config: &DeepseekV2Config, format: CacheFormat, layers: usize, pieces: &[usize]) -> Taken {
    let config = DeepseekV2Config { num_hidden_layers: layers, ..config.clone() };
    let longest = pieces.iter().copied().max().unwrap_or(0);
    let ones = |width| Array3::ones((1, longest, width));
    let (latents, keys) = (ones(config.kv_lora_rank), ones(config.qk_rope_head_dim));
    let mut cache = LatentCache::<f32>::with_format(&config, 1, format);
    count::begin();
    for &piece in pieces {
        let of_layer = (latents.slice(s![.., ..piece, ..]), keys.slice(s![.., ..piece, ..]));
        cache.append(&vec![of_layer; layers]).expect("the shapes of the cache");
    }
    let taken = count::end();
    drop(cache);
    taken
}

/// What plain arrays take when they are given pieces of a sequence; one for each layer, of this width.
fn fill_arrays(width: usize, layers: usize, pieces: &[usize]) -> u64 {
    let mut arrays: Vec<Vec<bf16>> = vec![Vec::new(); layers];
    count::begin();
    for &piece in pieces {
        for array in &mut arrays {
            array.resize(array.len() + piece * width, bf16::ONE);
        }
    }
    let kept = count::end().kept;
    drop(arrays);
    kept
}
