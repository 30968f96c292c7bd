//! Safetensors files out of a fuzzer's bytes. A fuzzer hardly finds a length prefix that fits, nor a shape that fits its
//! bytes; these do it for it.

use arbitrary::{Arbitrary, Result, Unstructured};

/// The file whose header is everything up to the first NUL (which JSON cannot hold), and whose tensors are the rest.
pub fn with_length_prefix(bytes: &[u8]) -> Vec<u8> {
    let (header, tensors) = split(bytes);
    [&(header.len() as u64).to_le_bytes(), header, tensors].concat()
}

/// What comes before the first NUL, and what comes after it.
pub fn split(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.iter().position(|&byte| byte == 0) {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[]),
    }
}

const TYPES: [(&str, usize); 12] = [
    ("BF16", 2),
    ("F16", 2),
    ("F32", 4),
    ("F64", 8),
    ("I64", 8),
    ("I32", 4),
    ("I16", 2),
    ("I8", 1),
    ("U8", 1),
    ("BOOL", 1),
    ("U32", 4),
    ("F8_E4M3", 1),
];

/// A file in good order, of tensors with names from `names`, in any type and small shape.
///
/// # Errors
/// If the fuzzer's bytes do not suffice.
pub fn in_good_order(names: &[&str], u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let (mut entries, mut tensors) = (Vec::new(), Vec::new());
    let mut left = names.to_vec();
    for _ in 0..u.int_in_range(1..=6)? {
        let name = left.remove(u.choose_index(left.len())?);
        let (dtype, size) = *u.choose(&TYPES)?;
        let shape = shape(u)?;
        let bytes = shape.iter().product::<usize>() * size;
        let start = tensors.len();
        fill(&mut tensors, start + bytes, dtype, u)?;
        let end = tensors.len();
        entries.push(format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#));
    }
    let header = format!("{{{}}}", entries.join(","));
    Ok([&(header.len() as u64).to_le_bytes(), header.as_bytes(), &tensors].concat())
}

/// Sizes of the small model most of the time.
fn shape(u: &mut Unstructured<'_>) -> Result<Vec<usize>> {
    let axes = u.int_in_range(0..=4)?;
    (0..axes).map(|_| Ok(*u.choose(&[1, 2, 3, 3, 4, 6, 0, 1, 2, 5, 7, 8, 9, 12])?)).collect()
}

/// Appends a tensor's bytes up to `end`: small whole numbers, or anything.
fn fill(tensors: &mut Vec<u8>, end: usize, dtype: &str, u: &mut Unstructured<'_>) -> Result<()> {
    let size = TYPES.iter().find(|(name, _)| *name == dtype).map_or(1, |(_, size)| *size);
    let any = bool::arbitrary(u)?;
    while tensors.len() < end {
        let element = if any { u64::arbitrary(u)? } else { u64::from(u8::arbitrary(u)? % 8) };
        let bytes = match (dtype, any) {
            ("BOOL", _) => (element & 1).to_le_bytes(),
            // The high bytes hold the exponent.
            ("BF16" | "F32", false) => (0x3f80 + element * 0x20 << (8 * (size - 2))).to_le_bytes(),
            _ => element.to_le_bytes(),
        };
        tensors.extend(&bytes[..size]);
    }
    Ok(())
}
