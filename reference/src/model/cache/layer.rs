//! What one layer keeps of each token.

use ndarray::{Array3, ArrayView3, ArrayViewMut3, Axis, CowArray, Ix3, aview1, s};

use super::format::{CacheFormat, PackedFormat};
use crate::Real;

/// What one layer keeps: `compressed_kv` \[B,T,c\] and `k_pe` \[B,T,r\], as numbers or packed.
#[derive(Debug, Clone)]
pub struct LayerCache<T> {
    storage: Storage<T>,
    kv_lora_rank: usize,
    qk_rope_head_dim: usize,
    length: usize,
}

#[derive(Debug, Clone)]
enum Storage<T> {
    Plain { compressed_kv: Slots<T>, k_pe: Slots<T> },
    Packed { format: PackedFormat, tokens: Slots<u8> },
}

/// Room for tokens, \[B,room,width\]. What is not in use holds `poison`.
#[derive(Debug, Clone)]
struct Slots<E> {
    slots: Array3<E>,
    poison: E,
}

/// Reads as NaN in every packed format.
const POISONED_BYTE: u8 = 0xff;

impl<E: Copy> Slots<E> {
    fn new(batch: usize, width: usize, poison: E) -> Self {
        Slots { slots: Array3::from_elem((batch, 0, width), poison), poison }
    }

    /// Makes room for `end` tokens; at least twice the room that was there, so that appending stays cheap.
    fn reserve(&mut self, end: usize) {
        let (batch, room, width) = self.slots.dim();
        if room < end {
            let mut larger = Array3::from_elem((batch, end.max(2 * room), width), self.poison);
            larger.slice_mut(s![.., ..room, ..]).assign(&self.slots);
            self.slots = larger;
        }
    }

    fn first(&self, length: usize) -> ArrayView3<'_, E> {
        self.slots.slice(s![.., ..length, ..])
    }

    fn first_mut(&mut self, length: usize) -> ArrayViewMut3<'_, E> {
        self.slots.slice_mut(s![.., ..length, ..])
    }

    /// The places of the new tokens `start..end`.
    fn append(&mut self, start: usize, end: usize) -> ArrayViewMut3<'_, E> {
        self.reserve(end);
        self.slots.slice_mut(s![.., start..end, ..])
    }

    fn forget_from(&mut self, length: usize) {
        self.slots.slice_mut(s![.., length.., ..]).fill(self.poison);
    }

    fn reorder(&mut self, rows: &[usize]) {
        self.slots = self.slots.select(Axis(0), rows);
    }

    fn bytes(&self) -> usize {
        self.slots.len() * size_of::<E>()
    }
}

impl<T: Real> LayerCache<T> {
    pub(crate) fn new(batch: usize, kv_lora_rank: usize, qk_rope_head_dim: usize, format: CacheFormat) -> Self {
        let storage = match format {
            CacheFormat::Plain => Storage::Plain {
                compressed_kv: Slots::new(batch, kv_lora_rank, T::nan()),
                k_pe: Slots::new(batch, qk_rope_head_dim, T::nan()),
            },
            CacheFormat::Packed(format) => {
                let width = format.bytes_per_token(kv_lora_rank, qk_rope_head_dim);
                Storage::Packed { format, tokens: Slots::new(batch, width, POISONED_BYTE) }
            }
        };
        LayerCache { storage, kv_lora_rank, qk_rope_head_dim, length: 0 }
    }

    /// Normed latents \[B,T,c\]; of a packed cache: as they are read from it.
    pub fn compressed_kv(&self) -> CowArray<'_, T, Ix3> {
        match &self.storage {
            Storage::Plain { compressed_kv, .. } => compressed_kv.first(self.length).into(),
            Storage::Packed { format, tokens } => decode(*format, tokens.first(self.length), self.widths()).0.into(),
        }
    }

    /// Rotated shared keys \[B,T,r\], interleaved pairs; of a packed cache: as they are read from it.
    pub fn k_pe(&self) -> CowArray<'_, T, Ix3> {
        match &self.storage {
            Storage::Plain { k_pe, .. } => k_pe.first(self.length).into(),
            Storage::Packed { format, tokens } => decode(*format, tokens.first(self.length), self.widths()).1.into(),
        }
    }

    /// The bytes of a packed cache \[B,T,bytes per token\].
    pub fn packed(&self) -> Option<ArrayView3<'_, u8>> {
        match &self.storage {
            Storage::Plain { .. } => None,
            Storage::Packed { tokens, .. } => Some(tokens.first(self.length)),
        }
    }

    /// T: how many tokens of each sequence are cached.
    pub(in crate::model) fn len(&self) -> usize {
        self.length
    }

    /// c and r.
    pub(super) fn widths(&self) -> (usize, usize) {
        (self.kv_lora_rank, self.qk_rope_head_dim)
    }

    /// What attention reads, \[B,T,c\] and \[B,T,r\], to be changed in place: the numbers of a plain cache themselves, or
    /// those of a packed one, decoded into `decoded`. (What is changed there, this pass reads; the bytes stay.)
    pub(crate) fn read<'a>(
        &'a mut self,
        decoded: &'a mut Option<(Array3<T>, Array3<T>)>,
    ) -> (ArrayViewMut3<'a, T>, ArrayViewMut3<'a, T>) {
        let (length, widths) = (self.length, self.widths());
        match &mut self.storage {
            Storage::Plain { compressed_kv, k_pe } => (compressed_kv.first_mut(length), k_pe.first_mut(length)),
            Storage::Packed { format, tokens } => {
                let (latents, keys) = decoded.insert(decode(*format, tokens.first(length), widths));
                (latents.view_mut(), keys.view_mut())
            }
        }
    }

    /// Appends \[B,S,c\] and \[B,S,r\].
    pub(crate) fn append(&mut self, new_latents: ArrayView3<T>, new_keys: ArrayView3<T>) {
        let (start, end) = (self.length, self.length + new_latents.len_of(Axis(1)));
        match &mut self.storage {
            Storage::Plain { compressed_kv, k_pe } => {
                compressed_kv.append(start, end).assign(&new_latents);
                k_pe.append(start, end).assign(&new_keys);
            }
            Storage::Packed { format, tokens } => {
                let numbers = new_latents.lanes(Axis(2)).into_iter().zip(new_keys.lanes(Axis(2)));
                let mut places = tokens.append(start, end);
                for (mut place, (latent, key)) in places.lanes_mut(Axis(2)).into_iter().zip(numbers) {
                    place.assign(&aview1(&format.encode(&latent.to_vec(), &key.to_vec())));
                }
            }
        }
        self.length = end;
    }

    pub(super) fn crop(&mut self, length: usize) {
        match &mut self.storage {
            Storage::Plain { compressed_kv, k_pe } => {
                compressed_kv.forget_from(length);
                k_pe.forget_from(length);
            }
            Storage::Packed { tokens, .. } => tokens.forget_from(length),
        }
        self.length = length;
    }

    pub(super) fn reorder(&mut self, rows: &[usize]) {
        match &mut self.storage {
            Storage::Plain { compressed_kv, k_pe } => {
                compressed_kv.reorder(rows);
                k_pe.reorder(rows);
            }
            Storage::Packed { tokens, .. } => tokens.reorder(rows),
        }
    }

    pub(super) fn allocated_bytes(&self) -> usize {
        match &self.storage {
            Storage::Plain { compressed_kv, k_pe } => compressed_kv.bytes() + k_pe.bytes(),
            Storage::Packed { tokens, .. } => tokens.bytes(),
        }
    }
}

/// The latents \[B,T,c\] and keys \[B,T,r\] that packed tokens stand for.
fn decode<T: Real>(format: PackedFormat, tokens: ArrayView3<u8>, (c, r): (usize, usize)) -> (Array3<T>, Array3<T>) {
    let (batch, length, _) = tokens.dim();
    let (mut latents, mut keys) = (Array3::zeros((batch, length, c)), Array3::zeros((batch, length, r)));
    let numbers = latents.lanes_mut(Axis(2)).into_iter().zip(keys.lanes_mut(Axis(2)));
    for (bytes, (latent, key)) in tokens.lanes(Axis(2)).into_iter().zip(numbers) {
        let (bytes, latent, key) = (bytes.to_slice(), latent.into_slice(), key.into_slice());
        let together = "the numbers of a token lie together";
        format.decode_into(bytes.expect(together), latent.expect(together), key.expect(together));
    }
    (latents, keys)
}

#[cfg(test)]
mod tests {
    use ndarray::Array;

    use super::*;

    /// Two sequences of five tokens, appended one by one.
    fn filled(format: CacheFormat) -> LayerCache<f32> {
        let mut layer = LayerCache::new(2, 3, 2, format);
        for token in 0..5 {
            let latents = Array::from_shape_fn((2, 1, 3), |(b, _, i)| (100 * b + 10 * token + i) as f32);
            let keys = Array::from_shape_fn((2, 1, 2), |(b, _, i)| -((100 * b + 10 * token + i) as f32));
            layer.append(latents.view(), keys.view());
        }
        layer
    }

    const BOTH: [CacheFormat; 2] = [CacheFormat::Plain, CacheFormat::Packed(PackedFormat::Bf16)];

    #[test]
    fn what_is_not_in_use_is_poisoned() {
        for format in BOTH {
            let mut layer = filled(format);
            layer.crop(1);
            layer.length = 8; // the room that five tokens, one by one, have made
            let (latents, keys) = (layer.compressed_kv(), layer.k_pe());
            assert!(latents.slice(s![.., 1.., ..]).iter().all(|x| x.is_nan()), "{format}");
            assert!(keys.slice(s![.., 1.., ..]).iter().all(|x| x.is_nan()), "{format}");
            assert!(latents.slice(s![.., ..1, ..]).iter().all(|x| x.is_finite()), "{format}");
        }
    }

    #[test]
    fn packed_tokens_lie_side_by_side_as_their_format_says() {
        let layer = filled(BOTH[1]);
        let token = PackedFormat::Bf16.encode(&[130.0, 131.0, 132.0_f32], &[-130.0, -131.0]);
        assert_eq!(layer.packed().unwrap().slice(s![1, 3, ..]).to_vec(), token);
        assert!(filled(CacheFormat::Plain).packed().is_none());
    }
}
