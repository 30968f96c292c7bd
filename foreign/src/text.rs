//! Whole texts on their way out.

use std::fmt::{self, Display};

use super::{LONGEST_LINE, harmless, is_harmful, line, without_middle};

/// A text that may be printed or written: made by one of the functions below, each for one kind of reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(String);

impl Text {
    /// Lines for a terminal or a log. No line is longer than [`LONGEST_LINE`].
    pub fn lines(text: &str) -> Text {
        Text(each_line(text, |line| cut(escaped(line))))
    }

    /// Lines for a terminal that shows colour: sequences that choose a colour stay, all others are escaped.
    ///
    /// **Trap.** Whether a sequence is ours cannot be told any more: foreign text must have gone through
    /// [`Foreign`](super::Foreign) before.
    pub fn coloured(text: &str) -> Text {
        Text(each_line(text, |line| {
            let mut out = String::with_capacity(line.len());
            let mut rest = line;
            while let Some(c) = rest.chars().next() {
                let length = match colour(rest) {
                    Some(length) => {
                        out += &rest[..length];
                        length
                    }
                    None => {
                        harmless(c, &mut out);
                        c.len_utf8()
                    }
                };
                rest = &rest[length..];
            }
            cut(out)
        }))
    }

    /// One line about what went wrong; line breaks in it become spaces.
    pub fn message(text: &str) -> Text {
        let words: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        Text(without_middle(&line(&words.join(" ")), LONGEST_LINE))
    }

    /// JSON, where every character has an escape that means the same: nothing is lost.
    pub fn json(text: &str) -> Text {
        let mut out = String::with_capacity(text.len());
        let mut units = [0; 2];
        for c in text.chars() {
            if c != '\n' && is_harmful(c) {
                c.encode_utf16(&mut units).iter().for_each(|unit| out += &format!("\\u{unit:04x}"));
            } else {
                out.push(c);
            }
        }
        Text(out)
    }

    /// HTML, XML, SVG or Markdown, whose own characters were escaped when it was made.
    pub fn markup(text: &str) -> Text {
        Text(each_line(text, escaped))
    }

    /// As it is printed.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Line breaks stay; a line is what `change` makes of it.
fn each_line(text: &str, change: impl Fn(&str) -> String) -> String {
    text.split('\n').map(change).collect::<Vec<_>>().join("\n")
}

fn escaped(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    line.chars().for_each(|c| harmless(c, &mut out));
    out
}

/// A line, or its beginning if it is too long; then without colours, so that none is left open.
fn cut(made: String) -> String {
    if made.chars().count() <= LONGEST_LINE {
        return made;
    }
    escaped(&without_colour(&made)).chars().take(LONGEST_LINE - 3).chain("...".chars()).collect()
}

/// How long the sequence is that `text` begins with, if it is one that chooses a colour.
fn colour(text: &str) -> Option<usize> {
    let codes = text.strip_prefix("\u{1b}[")?;
    let end = codes.find(|c: char| !(c.is_ascii_digit() || c == ';'))?;
    codes[end..].starts_with('m').then_some(2 + end + 1)
}

fn without_colour(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        match colour(rest) {
            Some(length) => rest = &rest[length..],
            None => {
                out.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const NASTY: &str = "a\u{1b}]0;title\u{7}\u{9b}31m\u{202e}b\u{200b}\r\u{0}";

    #[test]
    fn no_kind_of_text_lets_a_harmful_character_through() {
        for text in
            [Text::lines(NASTY), Text::coloured(NASTY), Text::message(NASTY), Text::json(NASTY), Text::markup(NASTY)]
        {
            assert!(!text.as_str().chars().any(is_harmful), "{text:?}");
        }
    }

    #[test]
    fn lines_stay_lines_and_none_is_too_long() {
        assert_eq!(Text::lines("a\nb\n").as_str(), "a\nb\n");
        assert_eq!(Text::lines(&"\u{7f}".repeat(999)).as_str().chars().count(), 1000);
        assert_eq!(Text::message("a\n  b\n\nc").as_str(), "a b c");
        assert_eq!(Text::message(&"x".repeat(2000)).as_str().chars().count(), 1000);
    }

    #[test]
    fn colours_stay_where_they_are_wanted() {
        let red = "\u{1b}[1;31mFAIL\u{1b}[0m";
        assert_eq!(Text::coloured(red).as_str(), red);
        assert_eq!(Text::coloured("\u{1b}[2J").as_str(), "\\u{1b}[2J");
        assert_eq!(Text::lines(red).as_str(), "\\u{1b}[1;31mFAIL\\u{1b}[0m");
        let long = Text::coloured(&(red.to_owned() + &"x".repeat(1000)));
        assert!(long.as_str().chars().count() == 1000 && !long.as_str().contains('\u{1b}'));
    }

    #[test]
    fn json_means_the_same_as_before() {
        assert_eq!(Text::json("{\"a\u{9b}\u{e0041}\": 1}\n").as_str(), "{\"a\\u009b\\udb40\\udc41\": 1}\n");
    }
}
