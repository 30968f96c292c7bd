//! Bytes as tokenizers write them.

/// The byte that a character of a byte-level token stands for: a printable Latin-1 character for itself, the characters from 256 on
/// for the other bytes, in order. A character that stands for no byte is itself.
pub(super) fn of_character(c: char) -> Vec<u8> {
    let code = u32::from(c);
    let itself = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let byte = match u8::try_from(code) {
        Ok(byte) => Some(byte).filter(|byte| itself(*byte)),
        Err(_) => (0..=255).filter(|byte| !itself(*byte)).nth(code as usize - 256),
    };
    byte.map_or_else(|| c.to_string().into_bytes(), |byte| vec![byte])
}

/// The byte that a token such as `<0xE4>` stands for.
pub(super) fn of_fallback(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        let mut bytes: Vec<u8> = alphabet.into_iter().flat_map(of_character).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(
            [of_character('a'), of_character('Ġ'), of_character('Ċ'), of_character('ä')],
            [[97], [32], [10], [0xe4]]
        );
        assert_eq!(of_character('中'), "中".as_bytes());
    }

    #[test]
    fn a_byte_of_its_own_is_read() {
        assert_eq!(
            ["<0xE4>", "<0x0A>", "<0x>", "<0xE44>", "E4"].map(of_fallback),
            [Some(0xe4), Some(10), None, None, None]
        );
    }
}
