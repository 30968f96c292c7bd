//! Laws of the packed formats of the latent cache: what their bytes keep of a token.

use dsv2_reference::model::cache::PackedFormat;
use dsv2_reference::weights::generator::splitmix64;
use dsv2_testing::for_all;
use proptest::prelude::*;

/// A token: its latent and its key.
type Token = (Vec<f32>, Vec<f32>);

/// The bytes that a format makes of a latent and a key.
type Encode = dyn Fn(PackedFormat, &[f32], &[f32]) -> Vec<u8>;
/// What is read back of a latent and a key.
type Keep = dyn Fn(PackedFormat, &[f32], &[f32]) -> Token;

fn encode(format: PackedFormat, latent: &[f32], key: &[f32]) -> Vec<u8> {
    format.encode(latent, key)
}

fn keep(format: PackedFormat, latent: &[f32], key: &[f32]) -> Token {
    read(format, &format.encode(latent, key), latent.len(), key.len())
}

fn read(format: PackedFormat, bytes: &[u8], c: usize, r: usize) -> Token {
    format.decode(bytes, c, r).expect("as many bytes as the format has")
}

pub fn formats() -> impl Strategy<Value = PackedFormat> {
    prop::sample::select(PackedFormat::ALL.to_vec())
}

/// Numbers of 12 bits and of sizes from 2^-12 to 2^14, a few or more than a tile of them; and a key.
fn tokens() -> impl Strategy<Value = Token> {
    let number = (-2047..=2047_i32, -12..=3_i32).prop_map(|(x, power)| x as f32 * 2_f32.powi(power));
    let few_or_many = prop_oneof![1..=40_usize, 120..=140_usize];
    let latent = few_or_many.prop_flat_map(move |count| prop::collection::vec(number.clone(), count));
    let key = prop::collection::vec((-255..=255_i32).prop_map(|x| x as f32 / 16.0), 1..=20);
    (latent, key)
}

/// How many numbers share a scale, and the largest code; of the latents, then of the keys. None: each number alone.
fn groups(format: PackedFormat) -> [Option<(usize, f32)>; 2] {
    match format {
        PackedFormat::Bf16 => [None, None],
        PackedFormat::Fp8 => [Some((128, 448.0)), None],
        PackedFormat::Int8 => [Some((32, 127.0)), Some((32, 127.0))],
        PackedFormat::SixBit => [Some((32, 15.0)), Some((8, 127.0))],
    }
}

fn largest(numbers: &[f32]) -> f32 {
    numbers.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()))
}

/// The bytes of a program whose e4m3 scale is what `scale` makes of the tile's largest number.
fn e4m3_scaled_by(scale: fn(f32) -> f32) -> impl Fn(PackedFormat, &[f32], &[f32]) -> Vec<u8> {
    move |format, latent, key| {
        let count = latent.len();
        if format != PackedFormat::Fp8 || count >= 128 {
            return encode(format, latent, key);
        }
        // The reference takes this very scale if 448 times it is the largest number of the tile.
        let top = 448.0 * scale(largest(latent));
        let with_largest: Vec<f32> = latent.iter().map(|x| x.clamp(-top, top)).chain([top]).collect();
        let mut bytes = encode(format, &with_largest, key);
        bytes.remove(count);
        bytes
    }
}

/// Integer latents, with another rounding, other groups or a shifted scale.
fn integer_latents(format: PackedFormat, latent: &[f32], key: &[f32], wrong: &Wrong) -> Token {
    let (_, kept_key) = keep(format, latent, key);
    let [Some((group, top)), Some(_)] = groups(format) else { return keep(format, latent, key) };
    let group = if wrong.one_scale { latent.len() } else { group };
    let scales: Vec<f32> = latent.chunks(group).map(|group| (largest(group) / top).max(f32::MIN_POSITIVE)).collect();
    let scale = |i: usize| scales[(i / group + wrong.shift) % scales.len()];
    let code = |i: usize| (wrong.round)(latent[i] / scale(i)).clamp(-top, top);
    ((0..latent.len()).map(|i| code(i) * scale(i)).collect(), kept_key)
}

struct Wrong {
    round: fn(f32) -> f32,
    one_scale: bool,
    shift: usize,
}

const NOT_WRONG: Wrong = Wrong { round: f32::round_ties_even, one_scale: false, shift: 0 };

/// The bytes as `change` leaves them, for one format.
fn misread(of: PackedFormat, change: fn(&mut [u8], usize)) -> impl Fn(PackedFormat, &[f32], &[f32]) -> Token {
    move |format, latent, key| {
        let mut bytes = format.encode(latent, key);
        if format == of {
            change(&mut bytes, latent.len());
        }
        read(format, &bytes, latent.len(), key.len())
    }
}

#[test]
fn what_is_read_is_near_what_was_written() {
    // Half a step: of bf16 2^-8 of the number; of e4m3 2^-4 of it, or 2^-10 scales where it is subnormal; of integers
    // half a scale, and a bf16 scale may be 2^-8 larger than the largest number wants.
    let law = |keep: &Keep, (format, (latent, key)): (PackedFormat, Token)| {
        let (kept_latent, kept_key) = keep(format, &latent, &key);
        for ((numbers, kept), shared) in [(&latent, &kept_latent), (&key, &kept_key)].into_iter().zip(groups(format)) {
            prop_assert_eq!(kept.len(), numbers.len());
            let (size, top) = shared.unwrap_or((1, f32::NAN));
            for (group, kept) in numbers.chunks(size).zip(kept.chunks(size)) {
                let scale = largest(group) / top;
                for (x, kept) in group.iter().zip(kept) {
                    let bound = match (shared, format) {
                        (None, _) => x.abs() / 256.0,
                        (_, PackedFormat::Fp8) => (x.abs() / 16.0).max(scale / 1024.0) * (1.0 + 1e-6),
                        _ => scale / 2.0 * (1.0 + 1.0 / 256.0),
                    };
                    prop_assert!((x - kept).abs() <= bound, "{x} became {kept}, bound {bound:e}");
                }
            }
        }
        Ok(())
    };
    let integers =
        |wrong: Wrong| move |format, latent: &[f32], key: &[f32]| integer_latents(format, latent, key, &wrong);
    for_all((formats(), tokens()), law)
        .holds_for(&keep)
        .holds_for(&integers(NOT_WRONG)) // with fp32 scales
        .fails_for("codes are cut off, not rounded", &integers(Wrong { round: f32::trunc, ..NOT_WRONG }))
        .fails_for("one scale for the whole token", &integers(Wrong { one_scale: true, ..NOT_WRONG }))
        .fails_for("the scale of the next group", &integers(Wrong { shift: 1, ..NOT_WRONG }))
        .fails_for(
            "codes are read from the highest bit on",
            &misread(PackedFormat::SixBit, |bytes, c| {
                bytes[..(5 * c).div_ceil(8)].iter_mut().for_each(|byte| *byte = byte.reverse_bits());
            }),
        )
        .fails_for(
            "scales are big-endian",
            &misread(PackedFormat::Fp8, |bytes, c| {
                bytes[c..c + 4 * c.div_ceil(128)].chunks_mut(4).for_each(<[u8]>::reverse);
            }),
        )
        .fails_for("e4m3 without a scale", &|format, latent, key| {
            read(format, &e4m3_scaled_by(|_| 1.0)(format, latent, key), latent.len(), key.len())
        });
}

#[test]
fn writing_what_was_read_gives_the_same_bytes() {
    let law = |encode: &Encode, (format, (latent, key)): (PackedFormat, Token)| {
        let bytes = encode(format, &latent, &key);
        let (kept_latent, kept_key) = read(format, &bytes, latent.len(), key.len());
        prop_assert_eq!(encode(format, &kept_latent, &kept_key), bytes);
        Ok(())
    };
    let power_of_two = e4m3_scaled_by(|largest| (largest / 448.0).max(1e-4).log2().ceil().exp2());
    let with_room = e4m3_scaled_by(|largest| 1.05 * (largest / 448.0));
    for_all((formats(), tokens()), law)
        .holds_for(&encode)
        .fails_for("scales are rounded up to powers of two", &power_of_two) // FlashMLA's tests
        .fails_for("scales leave five percent of room", &with_room);
}

/// Of a format, c and r.
type BytesPerToken = dyn Fn(PackedFormat, usize, usize) -> usize;

fn encoded(format: PackedFormat, c: usize, r: usize) -> usize {
    format.encode(&vec![1_f32; c], &vec![1_f32; r]).len()
}

#[test]
fn a_token_takes_the_bytes_that_its_format_says() {
    let law = |bytes: &BytesPerToken, (format, c, r): (PackedFormat, usize, usize)| {
        let expected = match format {
            PackedFormat::Bf16 => 2 * (c + r),
            PackedFormat::Fp8 => c + 4 * c.div_ceil(128) + 2 * r,
            PackedFormat::Int8 => c + 2 * c.div_ceil(32) + r + 2 * r.div_ceil(32),
            PackedFormat::SixBit => (5 * c).div_ceil(8) + 2 * c.div_ceil(32) + r + 2 * r.div_ceil(8),
        };
        prop_assert_eq!(format.bytes_per_token(c, r), expected);
        prop_assert_eq!(bytes(format, c, r), expected);
        Ok(())
    };
    for_all((formats(), 1..=600_usize, 1..=80_usize), law)
        .holds_for(&encoded)
        .fails_for("the shorter last group has no scale", &|format, c, r| {
            let shorter = usize::from(format == PackedFormat::Fp8 && c % 128 != 0);
            encoded(format, c, r) - 4 * shorter
        })
        .fails_for("six bits by name, scales not counted", &|format, c, r| {
            if format == PackedFormat::SixBit { (5 * c).div_ceil(8) + r } else { encoded(format, c, r) }
        });
}

#[test]
fn finite_numbers_stay_finite_and_others_are_never_hidden() {
    let number = || prop_oneof![8 => any::<f32>(), 1 => Just(f32::NAN), 1 => Just(f32::INFINITY), 8 => -3_f32..3.0];
    let numbers = move |longest| prop::collection::vec(number(), 1..=longest);
    let law = |keep: &Keep, (format, latent, key): (PackedFormat, Vec<f32>, Vec<f32>)| {
        let (kept_latent, kept_key) = keep(format, &latent, &key);
        for ((numbers, kept), shared) in [(&latent, &kept_latent), (&key, &kept_key)].into_iter().zip(groups(format)) {
            let size = shared.map_or(1, |(size, _)| size);
            for (group, kept) in numbers.chunks(size).zip(kept.chunks(size)) {
                let finite = group.iter().all(|x| x.is_finite());
                prop_assert!(kept.iter().all(|x| x.is_finite() == finite), "{group:?} became {kept:?}");
            }
        }
        Ok(())
    };
    let nan_is_zero = |format: PackedFormat, latent: &[f32], key: &[f32]| {
        let latent: Vec<f32> = latent.iter().map(|x| if x.is_nan() { 0.0 } else { *x }).collect();
        keep(format, &latent, key)
    };
    let no_saturation = |format: PackedFormat, latent: &[f32], key: &[f32]| {
        let (mut kept, key) = keep(format, latent, key);
        if format == PackedFormat::Fp8 {
            latent.iter().zip(&mut kept).filter(|(x, _)| x.abs() > 448.0).for_each(|(_, kept)| *kept = f32::NAN);
        }
        (kept, key)
    };
    for_all((formats(), numbers(40), numbers(12)), law)
        .holds_for(&keep)
        .fails_for("NaN becomes the code 0, as a cast to an integer makes it", &nan_is_zero)
        .fails_for("e4m3 of more than 448 is NaN", &no_saturation); // PyTorch's cast, without a scale
}

#[test]
fn signs_and_powers_of_two_pass_through() {
    let law = |keep: &Keep, (format, (latent, key), power): (PackedFormat, Token, i32)| {
        let factor = 2_f32.powi(power);
        let times = |numbers: &[f32], factor: f32| numbers.iter().map(|x| factor * x).collect::<Vec<f32>>();
        let (kept_latent, kept_key) = keep(format, &latent, &key);
        for factor in [-1.0, factor] {
            let kept = keep(format, &times(&latent, factor), &times(&key, factor));
            prop_assert_eq!(kept, (times(&kept_latent, factor), times(&kept_key, factor)), "factor {}", factor);
        }
        Ok(())
    };
    let smallest_scale = |format: PackedFormat, latent: &[f32], key: &[f32]| {
        let bytes = e4m3_scaled_by(|largest| (largest / 448.0).max(1e-4))(format, latent, key);
        read(format, &bytes, latent.len(), key.len())
    };
    let one_code_more = |format: PackedFormat, latent: &[f32], key: &[f32]| {
        // from -128 to 127 with the scale largest / 127.5: two's complement used to the full
        let (kept, key) = keep(format, latent, key);
        let scale = largest(latent) / 127.5;
        let full = |x: &f32| (x / scale - 0.5).round_ties_even().clamp(-128.0, 127.0) * scale + scale / 2.0;
        (if format == PackedFormat::Int8 { latent.iter().map(full).collect() } else { kept }, key)
    };
    for_all((formats(), tokens(), -20..=20_i32), law)
        .holds_for(&keep)
        .fails_for("scales are never below 1e-4", &smallest_scale) // FlashMLA's tests
        .fails_for("codes are not symmetric", &one_code_more);
}

/// Numbers as a norm leaves them: of mean square 1, the seed's.
fn normal(seed: u64, count: usize) -> Vec<f32> {
    let uniform = |i: u64| splitmix64(seed + i) as f64 / 2_f64.powi(64) - 0.5;
    (0..count as u64).map(|i| ((0..4).map(|j| uniform(4 * i + j)).sum::<f64>() * 3_f64.sqrt()) as f32).collect()
}

/// Error relative to the whole, both root mean square.
fn error(kept: &[f32], numbers: &[f32]) -> f64 {
    let square = |numbers: &mut dyn Iterator<Item = f32>| numbers.map(|x| f64::from(x).powi(2)).sum::<f64>();
    (square(&mut kept.iter().zip(numbers).map(|(a, b)| a - b)) / square(&mut numbers.iter().copied())).sqrt()
}

#[test]
fn latents_of_a_published_model_err_by_what_their_format_costs() {
    // Of 1500 latents: bf16 1.5e-3 to 1.9e-3, int8 4.6e-3 to 5.8e-3, fp8 2.3e-2 to 2.9e-2, six-bit 3.8e-2 to 4.8e-2.
    let bands = [(1.3e-3, 2.2e-3), (4e-3, 7e-3), (2e-2, 3.4e-2), (3.4e-2, 5.6e-2)];
    let law = |keep: &Keep, seed: u64| {
        let latent = normal(seed, 512);
        let errors = PackedFormat::ALL.map(|format| error(&keep(format, &latent, &[]).0, &latent));
        prop_assert!(errors.is_sorted_by(|a, b| a < b), "{errors:?}");
        for (error, (least, most)) in errors.into_iter().zip(bands) {
            prop_assert!(error >= least && error <= most, "{error:e} is not in {least:e} to {most:e}");
        }
        Ok(())
    };
    for_all(0..1_000_000_u64, law)
        .tried(64)
        .holds_for(&keep)
        .fails_for("nothing is rounded", &|_, latent, key| (latent.to_vec(), key.to_vec()))
        .fails_for("fp8 is stored where int8 is asked for", &|format, latent, key| {
            keep(if format == PackedFormat::Int8 { PackedFormat::Fp8 } else { format }, latent, key)
        })
        .fails_for("one scale for the whole token", &|format, latent, key| {
            integer_latents(format, latent, key, &Wrong { one_scale: true, ..NOT_WRONG })
        });
}
