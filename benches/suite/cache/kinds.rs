//! What is cached of a token, by kind of attention, and a cache of it that is really filled.
//!
//! | kind | numbers per token and layer |
//! |---|---|
//! | MHA, GQA, MQA | heads x (key + value) |
//! | MLA | latent c + rotary key r |
//! | MLA, expanded | heads x (n + r + v) |
//!
//! The latent is kept by the reference's [`LatentCache`]; keys and values in one plain array of bf16 for each layer, \[T,
//! heads, width\], that grows as Rust's vectors do. Both double their room when it is full.

use dsv2_reference::LatentCache;
use dsv2_reference::config::DeepseekV2Config;
use dsv2_reference::model::cache::{CacheFormat, PackedFormat};
use dsv2_reference::weights::generator::splitmix64;
use half::bf16;
use ndarray::{Array3, s};

use super::count::{self, Taken};

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Keys and values of so many heads, in bf16.
    Heads { heads: usize, key: usize, value: usize },
    /// The latent and the rotary key, of the widths that all published models have.
    Latent { format: CacheFormat },
}

/// A kind of attention, as one model would have it.
#[derive(Clone, Debug)]
pub struct Kind {
    /// For ids.
    pub id: String,
    /// For tables.
    pub name: &'static str,
    /// The type of a number.
    pub format: String,
    /// What is kept.
    pub kept: Kept,
}

/// A model's cache in several ways.
pub struct Model {
    /// For ids.
    pub id: &'static str,
    /// For tables.
    pub name: &'static str,
    /// L.
    pub layers: usize,
    /// The ways.
    pub kinds: Vec<Kind>,
}

/// c and r.
const LATENT: usize = 512;
const ROTARY: usize = 64;

/// n and v; and of DeepSeek 67B the only width.
const HEAD: usize = 128;

/// Groups of heads of GQA: those of DeepSeek 67B.
const GROUPS: usize = 8;

/// Tokens come in pieces of this size, as a long prompt does.
pub const PIECE: usize = 512;

/// At most so much is filled; the rest is multiplied. At least one head of one layer is.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Tokens, counted once for each layer.
    pub tokens: usize,
    /// Bytes.
    pub bytes: usize,
}

impl Model {
    /// V2 and V2-Lite in every way, and DeepSeek 67B as it is.
    pub fn all() -> [Model; 3] {
        [
            Model { id: "v2", name: "DeepSeek-V2", layers: 60, kinds: kinds(128) },
            Model { id: "v2-lite", name: "DeepSeek-V2-Lite", layers: 27, kinds: kinds(16) },
            Model {
                id: "67b",
                name: "DeepSeek 67B",
                layers: 95,
                kinds: vec![heads("gqa", "GQA, 8 groups", GROUPS, HEAD)],
            },
        ]
    }

    /// The model with MHA that the paper's table 9 compares its large MLA model with.
    pub fn large_with_mha() -> Model {
        let kinds = vec![heads("mha", "MHA", 56, HEAD)];
        Model { id: "paper-large-moe", name: "large MoE of table 9", layers: 60, kinds }
    }

    /// A kind by its id.
    pub fn kind(&self, id: &str) -> &Kind {
        self.kinds.iter().find(|kind| kind.id == id).expect("a kind of this model")
    }
}

fn heads(id: &str, name: &'static str, heads: usize, key: usize) -> Kind {
    let kept = Kept::Heads { heads, key, value: HEAD };
    Kind { id: format!("{id}-bf16"), name, format: "bf16".into(), kept }
}

fn kinds(all_heads: usize) -> Vec<Kind> {
    let latent = |format: CacheFormat| {
        let name = if format == CacheFormat::Plain { "fp32".into() } else { format.to_string() };
        Kind { id: format!("mla-{name}"), name: "MLA", format: name, kept: Kept::Latent { format } }
    };
    let formats = [CacheFormat::Plain].into_iter().chain(PackedFormat::ALL.map(CacheFormat::Packed));
    let plain = [
        heads("mha", "MHA", all_heads, HEAD),
        heads("gqa", "GQA, 8 groups", GROUPS, HEAD),
        heads("mqa", "MQA", 1, HEAD),
        heads("mla-expanded", "MLA, expanded", all_heads, HEAD + ROTARY),
    ];
    plain.into_iter().chain(formats.map(latent)).collect()
}

impl Kind {
    /// Numbers per token and layer.
    pub fn numbers(&self) -> usize {
        match self.kept {
            Kept::Heads { heads, key, value } => heads * (key + value),
            Kept::Latent { .. } => LATENT + ROTARY,
        }
    }

    /// Bytes per token and layer, scales included, as they should be.
    pub fn formula(&self) -> usize {
        match self.kept {
            Kept::Heads { .. } => self.numbers() * size_of::<bf16>(),
            Kept::Latent { format: CacheFormat::Plain } => self.numbers() * size_of::<f32>(),
            Kept::Latent { format: CacheFormat::Packed(format) } => format.bytes_per_token(LATENT, ROTARY),
        }
    }

    /// The bytes that a cache of so many layers takes when it is given so many tokens.
    pub fn fill(&self, layers: usize, tokens: usize, limit: Limit) -> u64 {
        let bytes_of_layer = tokens * self.formula();
        let some_layers = (limit.tokens / tokens).min(limit.bytes / bytes_of_layer).clamp(1, layers);
        let pieces: Vec<usize> = (0..tokens).step_by(PIECE).map(|start| PIECE.min(tokens - start)).collect();
        let (filled, parts) = match self.kept {
            Kept::Latent { format } => (fill_latent(format, some_layers, &pieces), 1),
            Kept::Heads { heads, key, value } => {
                let some_heads = (limit.bytes * heads / bytes_of_layer).clamp(1, heads);
                // Each head takes as much as the next, so the bytes can be divided by their number.
                let filled = fill_heads([some_heads * key, some_heads * value], some_layers, &pieces);
                (Taken { kept: filled.kept / some_heads as u64, ..filled }, heads)
            }
        };
        filled.kept / some_layers as u64 * (layers * parts) as u64
    }
}

/// What the reference's cache takes when it is given pieces of a sequence.
pub fn fill_latent(format: CacheFormat, layers: usize, pieces: &[usize]) -> Taken {
    let config = DeepseekV2Config {
        num_hidden_layers: layers,
        kv_lora_rank: LATENT,
        qk_rope_head_dim: ROTARY,
        ..DeepseekV2Config::default()
    };
    let longest = pieces.iter().copied().max().unwrap_or(0);
    let random = |width| Array3::from_shape_fn((1, longest, width), |(_, t, i)| random(t * width + i));
    let (latents, keys) = (random(LATENT), random(ROTARY));
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

/// What plain arrays take when they are given pieces of a sequence; two for each layer, of these widths.
fn fill_heads(widths: [usize; 2], layers: usize, pieces: &[usize]) -> Taken {
    let token = widths.map(|width| (0..width).map(|i| bf16::from_f32(random(i))).collect::<Vec<_>>());
    let mut arrays: Vec<[Vec<bf16>; 2]> = vec![Default::default(); layers];
    count::begin();
    for &piece in pieces {
        for (array, token) in arrays.iter_mut().flat_map(|layer| layer.iter_mut().zip(&token)) {
            array.reserve(piece * token.len());
            (0..piece).for_each(|_| array.extend_from_slice(token));
        }
    }
    let taken = count::end();
    drop(arrays);
    taken
}

/// From -1 to 1.
fn random(index: usize) -> f32 {
    (splitmix64(index as u64) >> 40) as f32 / (1 << 23) as f32 - 1.0
}
