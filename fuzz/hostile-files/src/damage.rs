//! Damage to a file: to its bytes, to its text, to the header of a safetensors file.

use fastrand::Rng;

/// Names and texts that a terminal, a parser or a person might trip over.
const TEXTS: [&str; 12] = [
    "",
    "\u{1b}]0;title\u{7}\u{1b}[2J",
    "\u{9b}31m",
    "\u{202e}txt.exe",
    "\\n\\r",
    "\\u001b[2J\\u0000",
    "<script>alert(1)</script>",
    "]]><!--",
    "../../../etc/passwd",
    "/dev/zero",
    "\u{200b}\u{feff}",
    "%s%n{}",
];

/// Numbers that a program might trip over.
const NUMBERS: [&str; 22] = [
    "0",
    "-1",
    "1",
    "2",
    "3",
    "7",
    "255",
    "65536",
    "1000000000",
    "2147483647",
    "4294967296",
    "9007199254740993",
    "1000000000000000000",
    "9223372036854775807",
    "18446744073709551615",
    "1e308",
    "-1e308",
    "5e-324",
    "0.5",
    "null",
    "true",
    "1e999",
];

/// Damages the content of a file, once or a few times.
pub fn damage(bytes: &mut Vec<u8>, safetensors: bool, rng: &mut Rng) {
    for _ in 0..=rng.usize(..3) {
        match (safetensors, rng.usize(..4)) {
            (true, 0) => in_bytes(bytes, rng),
            (true, 1) => in_tensors(bytes, rng),
            (true, _) => in_header(bytes, rng),
            (false, 0 | 1) => in_bytes(bytes, rng),
            (false, _) => in_text(bytes, rng),
        }
    }
}

/// Bits, bytes, cuts, repetitions.
fn in_bytes(bytes: &mut Vec<u8>, rng: &mut Rng) {
    let Some(at) = (!bytes.is_empty()).then(|| rng.usize(..bytes.len())) else { return };
    match rng.usize(..7) {
        0 => bytes.truncate(at),
        1 => bytes.insert(at, rng.u8(..)),
        2 => drop(bytes.remove(at)),
        3 => bytes[at] ^= 1 << rng.usize(..8),
        4 => bytes[at] = rng.u8(..),
        5 => {
            let end = (at + rng.usize(1..=64)).min(bytes.len());
            drop(bytes.drain(at..end));
        }
        _ => {
            let again = bytes[at..(at + rng.usize(1..=64)).min(bytes.len())].to_vec();
            drop(bytes.splice(at..at, again));
        }
    }
}

/// The header of a safetensors file, with a length prefix that fits it afterwards.
fn in_header(bytes: &mut Vec<u8>, rng: &mut Rng) {
    let Some((length, rest)) = bytes.split_first_chunk() else { return };
    let Some((header, tensors)) = rest.split_at_checked(u64::from_le_bytes(*length) as usize) else { return };
    let mut header = header.to_vec();
    in_text(&mut header, rng);
    *bytes = [&(header.len() as u64).to_le_bytes()[..], &header, tensors].concat();
}

/// The numbers behind the header.
fn in_tensors(bytes: &mut [u8], rng: &mut Rng) {
    const VALUES: [u32; 8] =
        [0x7fc0_0000, 0x7f80_0000, 0xff80_0000, 0x7f7f_ffff, 1, 0x8000_0000, 0xffff_ffff, 0x3f80_0000];
    let Some(start) = bytes.first_chunk().map(|length| u64::from_le_bytes(*length).saturating_add(8)) else { return };
    let words = (bytes.len() as u64).saturating_sub(start) / 4;
    if words > 0 {
        let at = (start + 4 * rng.u64(..words)) as usize;
        bytes[at..at + 4].copy_from_slice(&VALUES[rng.usize(..VALUES.len())].to_le_bytes());
    }
}

/// A number, a text, a part of a structure.
fn in_text(bytes: &mut Vec<u8>, rng: &mut Rng) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let changed = match rng.usize(..8) {
        0..=2 => replace(&text, number, NUMBERS[rng.usize(..NUMBERS.len())], rng),
        3 => replace(&text, string, TEXTS[rng.usize(..TEXTS.len())], rng),
        4 => replace(&text, string, &"\u{e4}x\u{7f}"[rng.usize(..2) * 2..].repeat(rng.usize(1..3000)), rng),
        5 => replace(&text, string, "model.layers.0", rng),
        6 => replace(&text, number, &("[".repeat(rng.usize(1..300)) + "1"), rng),
        _ => swapped(&text, rng),
    };
    *bytes = changed.unwrap_or(text).into_bytes();
}

/// One of the parts that `find` finds becomes `new`.
fn replace(text: &str, find: impl Fn(&str) -> Vec<(usize, usize)>, new: &str, rng: &mut Rng) -> Option<String> {
    let found = find(text);
    let (start, end) = *found.get(rng.usize(..found.len().max(1)))?;
    Some([&text[..start], new, &text[end..]].concat())
}

/// Where numbers stand.
fn number(text: &str) -> Vec<(usize, usize)> {
    runs(text, |c| c.is_ascii_digit() || "+-.eE".contains(c))
        .filter(|&(start, _)| !text[start..].starts_with(['e', 'E']))
        .collect()
}

/// Where texts stand, without their quotes.
fn string(text: &str) -> Vec<(usize, usize)> {
    let quotes: Vec<usize> = text.match_indices('"').map(|(at, _)| at).collect();
    quotes.chunks_exact(2).map(|pair| (pair[0] + 1, pair[1])).collect()
}

fn runs(text: &str, of: impl Fn(char) -> bool) -> impl Iterator<Item = (usize, usize)> {
    let (mut found, mut start) = (Vec::new(), None);
    for (at, c) in text.char_indices().chain([(text.len(), '\0')]) {
        match (of(c), start) {
            (true, None) => start = Some(at),
            (false, Some(from)) => {
                found.push((from, at));
                start = None;
            }
            _ => {}
        }
    }
    found.into_iter()
}

/// Two lines or entries change places, or one is there twice.
fn swapped(text: &str, rng: &mut Rng) -> Option<String> {
    let separator = if text.contains('\n') { "\n" } else { "," };
    let mut parts: Vec<&str> = text.split(separator).collect();
    let (a, b) = (rng.usize(..parts.len()), rng.usize(..parts.len()));
    if rng.bool() {
        parts.swap(a, b)
    } else {
        parts.insert(a, parts[b])
    }
    Some(parts.join(separator))
}
