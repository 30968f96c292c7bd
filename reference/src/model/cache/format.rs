//! The formats that a token's latent and rotary key may be kept in.

use std::fmt;
use std::str::FromStr;

use super::encoding::Encoding;
use crate::{Error, Real, Result};

/// How a cache keeps its numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CacheFormat {
    /// In the type of the computation.
    #[default]
    Plain,
    /// As bytes of a narrower format, read back wherever attention needs them.
    Packed(PackedFormat),
}

/// The bytes of a token in one layer: those of its latent \[c\], then those of its rotary key \[r\].
///
/// | format | latent | key | bytes | for c = 512, r = 64 | bits per element |
/// |---|---|---|---|---|---|
/// | `bf16` | bf16 | bf16 | 2c + 2r | 1152 | 16 |
/// | `fp8` | e4m3, an fp32 scale per 128 | bf16 | c + 4⌈c/128⌉ + 2r | 656 | 9.11 |
/// | `int8` | 8-bit integers, a bf16 scale per 32 | the same | c + 2⌈c/32⌉ + r + 2⌈r/32⌉ | 612 | 8.5 |
/// | `six-bit` | 5-bit integers, a bf16 scale per 32 | 8-bit integers, a bf16 scale per 8 | ⌈5c/8⌉ + 2⌈c/32⌉ + r + 2⌈r/8⌉ | 432 | 6 |
///
/// Within each part the codes come first, then the scales; every number is little-endian; the last group may be
/// shorter. Numbers are rounded to nearest, ties to even. Finite numbers never become NaN or infinite: those beyond
/// bf16's largest become that. A group of numbers that share a scale reads as NaN if one of them was not finite.
/// Encoding what was decoded gives the same bytes.
///
/// `fp8` is FlashMLA's layout for c = 512 and r = 64. The paper (3.2.3) says that the cache is quantised to "6 bits on
/// average" and cites KVQuant and Atom, but gives no format. `six-bit` is therefore **ours**: exactly 6 bits of real
/// bytes, scales included. It gives more bits to the key, because trained keys are the sensitive part: fp8 keys alone
/// moved the predictions of a trained model 8 times as far (KL divergence) as fp8 latents alone. Random weights show the
/// opposite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PackedFormat {
    /// All in bf16: what a bf16 program caches.
    Bf16,
    /// FlashMLA's "FP8 with scale", 656 bytes for the published models.
    Fp8,
    /// Symmetric integers of 8 bits. Ours.
    Int8,
    /// 6 bits per element on average. Ours.
    SixBit,
}

impl PackedFormat {
    /// All of them, the most exact first.
    pub const ALL: [Self; 4] = [Self::Bf16, Self::Int8, Self::Fp8, Self::SixBit];

    fn latent(self) -> Encoding {
        match self {
            Self::Bf16 => Encoding::Bf16,
            Self::Fp8 => Encoding::E4m3 { tile: 128 },
            Self::Int8 => Encoding::Integers { bits: 8, group: 32 },
            Self::SixBit => Encoding::Integers { bits: 5, group: 32 },
        }
    }

    fn key(self) -> Encoding {
        match self {
            Self::Bf16 | Self::Fp8 => Encoding::Bf16,
            Self::Int8 => Encoding::Integers { bits: 8, group: 32 },
            Self::SixBit => Encoding::Integers { bits: 8, group: 8 },
        }
    }

    /// How many bytes a token takes in one layer, scales included; c = `kv_lora_rank`, r = `qk_rope_head_dim`.
    pub fn bytes_per_token(self, kv_lora_rank: usize, qk_rope_head_dim: usize) -> usize {
        self.latent().bytes(kv_lora_rank) + self.key().bytes(qk_rope_head_dim)
    }

    /// The bytes of one token: `latent` \[c\], normed, and `key` \[r\], rotated.
    pub fn encode<T: Real>(self, latent: &[T], key: &[T]) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes_per_token(latent.len(), key.len())];
        let (latents, keys) = bytes.split_at_mut(self.latent().bytes(latent.len()));
        self.latent().encode(latent, latents);
        self.key().encode(key, keys);
        bytes
    }

    /// The latent \[c\] and the key \[r\] that the bytes of one token stand for. Each number is an fp32 number.
    /// (FlashMLA rounds them to bf16 when it reads them; that is the reader's choice.)
    ///
    /// # Errors
    /// If there are not as many bytes as such a token has.
    pub fn decode<T: Real>(
        self,
        bytes: &[u8],
        kv_lora_rank: usize,
        qk_rope_head_dim: usize,
    ) -> Result<(Vec<T>, Vec<T>)> {
        let wanted = self.bytes_per_token(kv_lora_rank, qk_rope_head_dim);
        if bytes.len() != wanted {
            let expected = format!("{wanted} bytes ({self}, {kv_lora_rank} and {qk_rope_head_dim} numbers)");
            return Err(Error::input("bytes", expected, bytes.len()));
        }
        let (mut latent, mut key) = (vec![T::zero(); kv_lora_rank], vec![T::zero(); qk_rope_head_dim]);
        self.decode_into(bytes, &mut latent, &mut key);
        Ok((latent, key))
    }

    /// The same, where the number of bytes is known to be right.
    pub(super) fn decode_into<T: Real>(self, bytes: &[u8], latent: &mut [T], key: &mut [T]) {
        let (latents, keys) = bytes.split_at(self.latent().bytes(latent.len()));
        self.latent().decode(latents, latent);
        self.key().decode(keys, key);
    }

    /// Rounds a latent \[c\] to what reading it from the cache would give.
    pub fn quantise_latent<T: Real>(self, latent: &mut [T]) {
        quantise(self.latent(), latent);
    }

    /// Rounds a rotary key \[r\] to what reading it from the cache would give.
    pub fn quantise_key<T: Real>(self, key: &mut [T]) {
        quantise(self.key(), key);
    }
}

fn quantise<T: Real>(encoding: Encoding, numbers: &mut [T]) {
    let mut bytes = vec![0; encoding.bytes(numbers.len())];
    encoding.encode(numbers, &mut bytes);
    encoding.decode(&bytes, numbers);
}

impl fmt::Display for PackedFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
            Self::SixBit => "six-bit",
        })
    }
}

impl fmt::Display for CacheFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CacheFormat::Plain => f.pad("plain"),
            CacheFormat::Packed(format) => format.fmt(f),
        }
    }
}

impl FromStr for CacheFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let packed = || PackedFormat::ALL.into_iter().map(CacheFormat::Packed);
        let named = packed().chain([CacheFormat::Plain]).find(|format| format.to_string() == text);
        named.ok_or_else(|| Error::input("cache", "plain, bf16, int8, fp8 or six-bit", format!("{text:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_the_published_models_takes_so_many_bytes() {
        let bytes = PackedFormat::ALL.map(|format| format.bytes_per_token(512, 64));
        assert_eq!(bytes, [1152, 612, 656, 432]);
        assert_eq!(432 * 8, 6 * (512 + 64));
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in ["plain", "bf16", "fp8", "int8", "six-bit"] {
            assert_eq!(name.parse::<CacheFormat>().unwrap().to_string(), name);
        }
        assert_eq!(
            "fp4".parse::<CacheFormat>().unwrap_err().to_string(),
            "input `cache`: expected plain, bf16, int8, fp8 or six-bit, found \"fp4\""
        );
    }

    #[test]
    fn a_wrong_number_of_bytes_is_refused() {
        assert_eq!(
            PackedFormat::Fp8.decode::<f32>(&[0; 655], 512, 64).unwrap_err().to_string(),
            "input `bytes`: expected 656 bytes (fp8, 512 and 64 numbers), found 655"
        );
    }

    #[test]
    fn the_key_follows_the_latent() {
        // bf16 of 1, 2 and -3
        assert_eq!(PackedFormat::Bf16.encode(&[1.0_f64], &[2.0, -3.0]), [0x80, 0x3f, 0x00, 0x40, 0x40, 0xc0]);
        // e4m3 of 448 = 0x7e, the scale 1 in fp32, bf16 of 2
        assert_eq!(PackedFormat::Fp8.encode(&[448.0_f32], &[2.0]), [0x7e, 0, 0, 0x80, 0x3f, 0x00, 0x40]);
    }

    #[test]
    fn bytes_of_ones_read_as_nan_in_every_format() {
        for format in PackedFormat::ALL {
            let (latent, key) = format.decode::<f32>(&vec![0xff; format.bytes_per_token(512, 64)], 512, 64).unwrap();
            assert!(latent.iter().chain(&key).all(|x| x.is_nan()), "{format}");
        }
    }
}
