//! The latent KV cache: all that MLA keeps of a token (paper 2.1.2 and 2.1.4).
//!
//! Per token and layer: the normed latent `c_KV` (\[c\], after `kv_a_layernorm`) and the rotated shared key `k_R`
//! (\[r\]), c + r numbers (576 for every published model) where multi-head attention keeps 2 H n. It is what
//! Transformers keeps since 5.15 (before, it kept the expanded keys and values of every head: transformers#47761).
//!
//! Places not yet written hold NaN, so that a read of them shows in every number that it touches.

use ndarray::{Array3, ArrayView3, ArrayViewMut3, Axis, s};

use crate::rope::DynamicNtk;
use crate::{DeepseekV2Config, Error, Real, Result};

/// What one layer keeps: `compressed_kv` \[B,T,c\] and `k_pe` \[B,T,r\].
#[derive(Debug, Clone)]
pub struct LayerCache<T> {
    compressed_kv: Array3<T>,
    k_pe: Array3<T>,
    length: usize,
}

impl<T: Real> LayerCache<T> {
    pub(crate) fn new(batch: usize, kv_lora_rank: usize, qk_rope_head_dim: usize) -> Self {
        let empty = |width| Array3::from_elem((batch, 0, width), T::nan());
        LayerCache { compressed_kv: empty(kv_lora_rank), k_pe: empty(qk_rope_head_dim), length: 0 }
    }

    /// Normed latents \[B,T,c\].
    pub fn compressed_kv(&self) -> ArrayView3<'_, T> {
        self.compressed_kv.slice(s![.., ..self.length, ..])
    }

    /// Rotated shared keys \[B,T,r\], interleaved pairs.
    pub fn k_pe(&self) -> ArrayView3<'_, T> {
        self.k_pe.slice(s![.., ..self.length, ..])
    }

    pub(crate) fn both_mut(&mut self) -> (ArrayViewMut3<'_, T>, ArrayViewMut3<'_, T>) {
        let filled = s![.., ..self.length, ..];
        (self.compressed_kv.slice_mut(filled), self.k_pe.slice_mut(filled))
    }

    /// Appends \[B,S,c\] and \[B,S,r\].
    pub(crate) fn append(&mut self, compressed_kv: ArrayView3<T>, k_pe: ArrayView3<T>) {
        let end = self.length + compressed_kv.len_of(Axis(1));
        for storage in [&mut self.compressed_kv, &mut self.k_pe] {
            let (batch, capacity, width) = storage.dim();
            if capacity < end {
                let mut larger = Array3::from_elem((batch, end.max(2 * capacity), width), T::nan());
                larger.slice_mut(s![.., ..capacity, ..]).assign(storage);
                *storage = larger;
            }
        }
        self.compressed_kv.slice_mut(s![.., self.length..end, ..]).assign(&compressed_kv);
        self.k_pe.slice_mut(s![.., self.length..end, ..]).assign(&k_pe);
        self.length = end;
    }

    fn crop(&mut self, length: usize) {
        self.compressed_kv.slice_mut(s![.., length.., ..]).fill(T::nan());
        self.k_pe.slice_mut(s![.., length.., ..]).fill(T::nan());
        self.length = length;
    }
}

/// The cache of a batch of sequences.
#[derive(Debug, Clone)]
pub struct LatentCache<T> {
    layers: Vec<LayerCache<T>>,
    batch: usize,
    pub(crate) dynamic_rope: Option<DynamicNtk>,
}

impl<T: Real> LatentCache<T> {
    /// An empty cache for `batch` sequences.
    pub fn new(config: &DeepseekV2Config, batch: usize) -> Self {
        let layer = LayerCache::new(batch, config.kv_lora_rank, config.qk_rope_head_dim);
        LatentCache { layers: vec![layer; config.num_hidden_layers], batch, dynamic_rope: None }
    }

    /// T: how many tokens of each sequence are cached.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.length)
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
        let width =
            |of: fn(&LayerCache<T>) -> &Array3<T>| self.layers.first().map_or(0, |layer| of(layer).len_of(Axis(2)));
        (self.layers.len(), width(|layer| &layer.compressed_kv), width(|layer| &layer.k_pe))
    }

    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut LayerCache<T> {
        &mut self.layers[layer]
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
        self.layers.iter_mut().for_each(|layer| layer.crop(length.min(layer.length)));
    }

    /// Runs `pass`, which may append to the cache. If it fails, the cache (if there is one) is put back as it was.
    pub(crate) fn undo_on_error<V>(
        mut cache: Option<&mut Self>,
        pass: impl FnOnce(Option<&mut Self>) -> Result<V>,
    ) -> Result<V> {
        let before = cache.as_deref().map(|cache| (cache.len(), cache.dynamic_rope.clone()));
        let result = pass(cache.as_deref_mut());
        if let (Err(_), Some(cache), Some((length, dynamic_rope))) = (&result, cache, before) {
            cache.crop_to(length);
            cache.dynamic_rope = dynamic_rope;
        }
        result
    }

    /// Takes the sequences in the order of `rows`; a row may come several times or not at all (beam search).
    ///
    /// # Errors
    /// If a row is not one of the batch.
    pub fn reorder(&mut self, rows: &[usize]) -> Result<()> {
        if let Some(row) = rows.iter().find(|&&row| row >= self.batch) {
            return Err(Error::input("beam_idx", format!("rows below {}", self.batch), row));
        }
        for layer in &mut self.layers {
            layer.compressed_kv = layer.compressed_kv.select(Axis(0), rows);
            layer.k_pe = layer.k_pe.select(Axis(0), rows);
        }
        self.batch = rows.len();
        Ok(())
    }

    /// Bytes allocated for latents and keys, the unused room included.
    pub fn allocated_bytes(&self) -> usize {
        let numbers: usize = self.layers.iter().map(|layer| layer.compressed_kv.len() + layer.k_pe.len()).sum();
        numbers * size_of::<T>()
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array;

    use super::*;

    fn filled() -> LatentCache<f32> {
        let mut cache = LatentCache { layers: vec![LayerCache::new(2, 3, 2); 2], batch: 2, dynamic_rope: None };
        for layer in 0..2 {
            for chunk in 0..5 {
                let latents = Array::from_shape_fn((2, 1, 3), |(b, _, i)| (100 * b + 10 * chunk + i) as f32);
                let keys = Array::from_shape_fn((2, 1, 2), |(b, _, i)| -((100 * b + 10 * chunk + i) as f32));
                cache.layer_mut(layer).append(latents.view(), keys.view());
            }
        }
        cache
    }

    #[test]
    fn appended_tokens_stay_in_order_and_earlier_ones_unchanged() {
        let cache = filled();
        assert_eq!(cache.len(), 5);
        let latents = cache.layers()[1].compressed_kv();
        assert_eq!(latents.slice(s![1, .., 2]).to_vec(), [102.0, 112.0, 122.0, 132.0, 142.0]);
    }

    #[test]
    fn crop_counts_from_either_end_and_poisons_what_it_forgets() {
        let mut cache = filled();
        cache.crop(-2).unwrap();
        assert_eq!(cache.len(), 3);
        cache.crop(1).unwrap();
        assert_eq!(cache.layers()[0].k_pe().dim(), (2, 1, 2));
        assert!(cache.layers()[0].compressed_kv.slice(s![.., 1.., ..]).iter().all(|x| x.is_nan()));
        assert_eq!(
            cache.crop(2).unwrap_err().to_string(),
            "input `length`: expected -1 to 1 (tokens in the cache), found 2"
        );
        assert!(cache.crop(-2).is_err());
    }

    #[test]
    fn reorder_takes_rows_as_told() {
        let mut cache = filled();
        cache.reorder(&[1, 1, 0]).unwrap();
        assert_eq!(cache.batch(), 3);
        assert_eq!(cache.layers()[0].compressed_kv().slice(s![.., 0, 0]).to_vec(), [100.0, 100.0, 0.0]);
        assert!(cache.reorder(&[3]).is_err());
    }
}
