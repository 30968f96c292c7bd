//! The latent KV cache: all that MLA keeps of a token (paper 2.1.2 and 2.1.4).
//!
//! Per token and layer: the normed latent `c_KV` (\[c\], after `kv_a_layernorm`) and the rotated shared key `k_R`
//! (\[r\]), c + r numbers (576 for every published model) where multi-head attention keeps 2 H n. It is what
//! Transformers keeps since 5.15 (before, it kept the expanded keys and values of every head: transformers#47761).
//!
//! A cache keeps the numbers as they are, or packed in one of the narrower formats of [`PackedFormat`] (paper 3.2.3:
//! "KV cache quantization"). Against DeepSeek 67B, whose grouped-query attention caches 2 · 8 · 128 numbers in each of
//! 95 layers, V2 at equal precision saves 82.2 %, and with 6 bits per element against 16 the paper's 93.3 %.
//!
//! Places not yet written hold NaN, so that a read of them shows in every number that it touches.

mod encoding;
mod format;
mod layer;

pub(crate) use encoding::as_e4m3;
pub use format::{CacheFormat, PackedFormat};
pub use layer::LayerCache;
use ndarray::{ArrayView3, Axis};

use crate::model::rope::DynamicNtk;
use crate::{DeepseekV2Config, Error, Real, Result};

/// The cache of a batch of sequences.
#[derive(Debug, Clone)]
pub struct LatentCache<T> {
    layers: Vec<LayerCache<T>>,
    batch: usize,
    pub(crate) dynamic_rope: Option<DynamicNtk>,
}

/// How far a cache had got before a pass.
pub(crate) struct CacheState {
    length: usize,
    dynamic_rope: Option<DynamicNtk>,
}

impl<T: Real> LatentCache<T> {
    /// An empty cache for `batch` sequences, in the type of the computation.
    pub fn new(config: &DeepseekV2Config, batch: usize) -> Self {
        LatentCache::with_format(config, batch, CacheFormat::Plain)
    }

    /// An empty cache for `batch` sequences. What a packed one is given is rounded when it is appended; every token,
    /// also one of the same forward pass, is read as it was packed.
    ///
    /// **Trap.** A program that attends over its fresh keys during the prefill, and over the packed ones only while
    /// decoding, computes another function: feeding a prompt in chunks changes its result.
    pub fn with_format(config: &DeepseekV2Config, batch: usize, format: CacheFormat) -> Self {
        let layer = LayerCache::new(batch, config.kv_lora_rank, config.qk_rope_head_dim, format);
        LatentCache { layers: vec![layer; config.num_hidden_layers], batch, dynamic_rope: None }
    }

    /// T: how many tokens of each sequence are cached.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, LayerCache::len)
    }

    /// Whether nothing is cached yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// B: how many sequences.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Layer by layer.
    pub fn layers(&self) -> &[LayerCache<T>] {
        &self.layers
    }

    /// L, c and r.
    pub(crate) fn shape(&self) -> (usize, usize, usize) {
        let (c, r) = self.layers.first().map_or((0, 0), LayerCache::widths);
        (self.layers.len(), c, r)
    }

    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut LayerCache<T> {
        &mut self.layers[layer]
    }

    /// Appends tokens that were computed elsewhere: for each layer the normed latents \[B,S,c\] and the rotated keys
    /// \[B,S,r\]. So a cache of another program is carried over, or one is filled to see how large it is.
    ///
    /// # Errors
    /// If there are not as many layers, or a shape is another; then nothing has changed.
    pub fn append(&mut self, layers: &[(ArrayView3<T>, ArrayView3<T>)]) -> Result<()> {
        if layers.len() != self.layers.len() {
            return Err(Error::input("layers", format!("{} layers", self.layers.len()), layers.len()));
        }
        let new = layers.first().map_or(0, |(latents, _)| latents.len_of(Axis(1)));
        let (_, c, r) = self.shape();
        for (index, (latents, keys)) in layers.iter().enumerate() {
            let (wanted, found) = ([(self.batch, new, c), (self.batch, new, r)], [latents.dim(), keys.dim()]);
            if wanted != found {
                return Err(Error::input(format!("layers[{index}]"), format!("{wanted:?}"), format!("{found:?}")));
            }
        }
        for (layer, (latents, keys)) in self.layers.iter_mut().zip(layers) {
            layer.append(latents.view(), keys.view());
        }
        Ok(())
    }

    /// Forgets the newest tokens: keeps the first `length`, or, if it is negative, drops the last `-length`
    /// (Transformers' `crop`). Used to take back rejected drafts, or a forward pass that failed.
    ///
    /// # Errors
    /// If fewer tokens than that are cached.
    pub fn crop(&mut self, length: i64) -> Result<()> {
        let cached = self.len() as i64;
        let kept = if length < 0 { cached + length } else { length };
        if !(0..=cached).contains(&kept) {
            return Err(Error::input("length", format!("-{cached} to {cached} (tokens in the cache)"), length));
        }
        self.crop_to(kept as usize);
        Ok(())
    }

    /// Keeps the first `length` tokens of each layer (a layer that holds fewer keeps those).
    fn crop_to(&mut self, length: usize) {
        self.layers.iter_mut().for_each(|layer| layer.crop(length.min(layer.len())));
    }

    /// Runs `pass`, which may append to the cache. If it fails, the cache (if there is one) is put back as it was.
    pub(crate) fn undo_on_error<V>(
        mut cache: Option<&mut Self>,
        pass: impl FnOnce(Option<&mut Self>) -> Result<V>,
    ) -> Result<V> {
        let before = cache.as_deref().map(Self::state);
        let result = pass(cache.as_deref_mut());
        if let (Err(_), Some(cache), Some(before)) = (&result, cache, before) {
            cache.restore(before);
        }
        result
    }

    /// What a pass may change besides the tokens that are there.
    pub(crate) fn state(&self) -> CacheState {
        CacheState { length: self.len(), dynamic_rope: self.dynamic_rope.clone() }
    }

    /// Puts the cache back as it was.
    pub(crate) fn restore(&mut self, before: CacheState) {
        self.crop_to(before.length);
        self.dynamic_rope = before.dynamic_rope;
    }

    /// Takes the sequences in the order of `rows`; a row may come several times or not at all (beam search).
    ///
    /// # Errors
    /// If a row is not one of the batch.
    pub fn reorder(&mut self, rows: &[usize]) -> Result<()> {
        if let Some(row) = rows.iter().find(|&&row| row >= self.batch) {
            return Err(Error::input("beam_idx", format!("rows below {}", self.batch), row));
        }
        self.layers.iter_mut().for_each(|layer| layer.reorder(rows));
        self.batch = rows.len();
        Ok(())
    }

    /// Bytes allocated for latents and keys, the unused room included.
    pub fn allocated_bytes(&self) -> usize {
        self.layers.iter().map(LayerCache::allocated_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use ndarray::{Array3, Array5, Axis, s};

    use super::*;

    /// A cache of the published model's shape that was given `tokens` tokens at once, so that it has no room to spare.
    fn filled(preset: &str, tokens: usize, format: CacheFormat) -> LatentCache<f32> {
        let config = DeepseekV2Config::preset(preset).unwrap();
        let mut cache = LatentCache::with_format(&config, 2, format);
        let numbers =
            |width, sign: f32| Array3::from_shape_fn((2, tokens, width), |(b, t, _)| sign * (10 * b + t) as f32);
        for layer in 0..config.num_hidden_layers {
            cache.layer_mut(layer).append(numbers(512, 1.0).view(), numbers(64, -1.0).view());
        }
        cache
    }

    /// Whether tokens of these numbers are kept, by sequence; bf16 keeps them exactly.
    fn kept(cache: &LatentCache<f32>) -> Vec<Vec<f32>> {
        let last = cache.layers().last().unwrap();
        assert_eq!(last.k_pe().mapv(|x| -x).index_axis(Axis(2), 63), last.compressed_kv().index_axis(Axis(2), 511));
        last.compressed_kv().outer_iter().map(|row| row.slice(s![.., 0]).to_vec()).collect()
    }

    #[test]
    fn only_whole_tokens_are_appended() {
        let config = DeepseekV2Config { num_hidden_layers: 2, ..DeepseekV2Config::preset("v2-lite").unwrap() };
        let mut cache = LatentCache::<f32>::new(&config, 1);
        let (latents, keys) = (Array3::ones((1, 3, 512)), Array3::zeros((1, 3, 64)));
        let layer = (latents.view(), keys.view());
        cache.append(&[layer, layer]).unwrap();
        assert_eq!((cache.len(), cache.layers()[1].compressed_kv().sum()), (3, 3.0 * 512.0));
        let too_few = cache.append(&[layer]).unwrap_err().to_string();
        assert_eq!(too_few, "input `layers`: expected 2 layers, found 1");
        let shorter = (latents.slice(s![.., ..2, ..]), keys.view());
        let uneven = cache.append(&[layer, shorter]).unwrap_err().to_string();
        assert_eq!(uneven, "input `layers[1]`: expected [(1, 3, 512), (1, 3, 64)], found [(1, 2, 512), (1, 3, 64)]");
        assert_eq!(cache.len(), 3);
    }

    const BF16: CacheFormat = CacheFormat::Packed(PackedFormat::Bf16);

    #[test]
    fn crop_counts_from_either_end() {
        for format in [CacheFormat::Plain, BF16] {
            let mut cache = filled("v2-lite", 5, format);
            cache.crop(-2).unwrap();
            assert_eq!(cache.len(), 3);
            cache.crop(1).unwrap();
            assert_eq!(kept(&cache), [[0.0], [10.0]]);
            assert_eq!(
                cache.crop(2).unwrap_err().to_string(),
                "input `length`: expected -1 to 1 (tokens in the cache), found 2"
            );
            assert!(cache.crop(-2).is_err());
        }
    }

    #[test]
    fn reorder_takes_rows_as_told() {
        for format in [CacheFormat::Plain, BF16] {
            let mut cache = filled("v2-lite", 2, format);
            cache.reorder(&[1, 1, 0]).unwrap();
            assert_eq!(cache.batch(), 3);
            assert_eq!(kept(&cache), [[10.0, 11.0], [10.0, 11.0], [0.0, 1.0]]);
            assert!(cache.reorder(&[3]).is_err());
        }
    }

    /// What DeepSeek 67B's grouped-query attention keeps: layers, keys and values, tokens, KV heads, head dimension.
    fn deepseek_67b(tokens: usize) -> usize {
        let cache = Array5::from_elem((95, 2, 2 * tokens, 8, 128), bf16::ZERO);
        cache.len() * size_of::<bf16>()
    }

    /// By how many percent V2's cache is smaller.
    fn saved(format: PackedFormat) -> f64 {
        let allocated = filled("v2", 3, CacheFormat::Packed(format)).allocated_bytes();
        assert_eq!(allocated, 2 * 3 * 60 * format.bytes_per_token(512, 64));
        100.0 * (1.0 - allocated as f64 / deepseek_67b(3) as f64)
    }

    #[test]
    fn the_papers_93_3_percent_at_six_bits_against_sixteen() {
        assert_eq!(format!("{:.1}", saved(PackedFormat::SixBit)), "93.3");
    }

    #[test]
    fn the_papers_latents_at_equal_precision_save_82_2_percent() {
        assert_eq!(format!("{:.1}", saved(PackedFormat::Bf16)), "82.2");
    }
}
