//! Text to tokens (PTX manual, "Syntax": statements, comments, identifiers, constants).

use crate::Error;

/// One token. A word is an identifier, a keyword without its dot, or a number: the parser knows which it wants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Token<'a> {
    Word(&'a str),
    Text(&'a str),
    Mark(char),
    End,
}

/// A token and the line it stands on, counted from one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot<'a> {
    pub(crate) token: Token<'a>,
    pub(crate) line: u32,
}

const MARKS: &str = ".,;{}[]():+-!@<>=|*";

/// Splits a module into tokens; the last one is `End`.
pub(crate) fn tokens(text: &str) -> Result<Vec<Spot<'_>>, Error> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(text.len() / 4);
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let rest = &text[at..];
        let first = bytes[at];
        if first == b'\n' {
            line += 1;
            at += 1;
        } else if first.is_ascii_whitespace() || first == 0 {
            // NVRTC ends its text with a zero byte.
            at += 1;
        } else if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with("/*") {
            let end = rest.find("*/").ok_or_else(|| Error::syntax(line, "a comment that never ends"))?;
            line += rest[..end].matches('\n').count() as u32;
            at += end + 2;
        } else if first == b'"' {
            let end = rest[1..].find('"').ok_or_else(|| Error::syntax(line, "a string that never ends"))?;
            out.push(Spot { token: Token::Text(&rest[1..=end]), line });
            line += rest[..end].matches('\n').count() as u32;
            at += end + 2;
        } else if is_word(first) {
            let length = word_length(rest.as_bytes(), matches!(out.last(), Some(Spot { token: Token::Mark('.'), .. })));
            out.push(Spot { token: Token::Word(&rest[..length]), line });
            at += length;
        } else if MARKS.contains(first as char) {
            out.push(Spot { token: Token::Mark(first as char), line });
            at += 1;
        } else {
            let odd = rest.chars().next().unwrap_or(' ');
            return Err(Error::syntax(line, format!("the character {odd:?} has no place in PTX")));
        }
    }
    out.push(Spot { token: Token::End, line });
    Ok(out)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%')
}

/// The length of the word at the start of `rest`; a number may hold one decimal point and an exponent.
fn word_length(rest: &[u8], after_dot: bool) -> usize {
    let run = |from: usize| rest[from..].iter().take_while(|b| is_word(**b)).count();
    let whole = run(0);
    let digits = rest[..whole].iter().all(u8::is_ascii_digit);
    // `0.5`, and `0.` as people write it in inline assembly: what follows a number is never a modifier.
    let fraction = rest.get(whole) == Some(&b'.');
    if !after_dot && digits && fraction {
        let length = whole + 1 + run(whole + 1);
        let signed = matches!(rest[length - 1], b'e' | b'E') && matches!(rest.get(length), Some(b'+' | b'-'));
        return if signed { length + 1 + run(length + 1) } else { length };
    }
    whole
}
