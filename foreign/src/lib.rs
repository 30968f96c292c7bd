//! Text that is not ours: names of tensors, cases and files, descriptions, reasons, messages of other programs. It comes from
//! files that anybody may have written, and goes to a terminal, into JSON, XML, HTML, SVG or Markdown. Here it is made
//! harmless and short.
//!
//! There are two nets, one behind the other.
//!
//! | | where | what it does |
//! |---|---|---|
//! | [`Foreign`], [`Place`], [`Words`], [`Markdown`], [`list`] | where a foreign text is put into a sentence or a cell | escapes, shortens |
//! | [`Text`] | where a whole text leaves the program; nothing else is printed or written | escapes what came through; no line of a terminal is longer than [`LONGEST_LINE`] |
//!
//! An escape is what Rust writes: `\n`, `\u{202e}`. A backslash is not escaped, so that doing this twice changes nothing.

#![deny(missing_docs)]

mod text;

use std::fmt::{self, Display, Write};
use std::path::Path;

pub use text::Text;

/// How many characters of a name are shown.
pub const LONGEST: usize = 300;

/// How many characters a line for people has at most.
pub const LONGEST_LINE: usize = 1000;

/// Whether a reader could be misled by a character, or a terminal or a parser obey it: control characters (C0, DEL, C1), what
/// turns the direction of writing, what has no width, separators of lines, tags, and what XML cannot hold.
pub fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e007f}')
}

/// Writes a character, or its escape.
fn harmless(c: char, out: &mut String) {
    if is_harmful(c) { out.extend(c.escape_default()) } else { out.push(c) }
}

/// A text that is not ours, as part of one line: escaped, and cut off after [`LONGEST`] characters.
///
/// ```
/// # use dsv2_foreign::Foreign;
/// assert_eq!(Foreign("a\n\u{1b}[31mb").to_string(), "a\\n\\u{1b}[31mb");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Foreign<T>(pub T);

impl<T: Display> Display for Foreign<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = Line { most: LONGEST, ..Line::default() };
        // It ends early when the line is full, however long the text goes on.
        let _ = write!(line, "{}", self.0);
        f.pad(&line.text)
    }
}

/// The name of a file that is not ours, as part of one line. Its end tells more than its middle.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a>(pub &'a Path);

impl Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&without_middle(&line(&self.0.display()), LONGEST))
    }
}

/// A part of a message: words of ours around a text that is not. Escaped, and without its middle if it is long.
#[derive(Clone, Copy, Debug)]
pub struct Words<T>(pub T);

impl<T: Display> Display for Words<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&without_middle(&line(&self.0), LONGEST + LONGEST / 5))
    }
}

/// A text that is not ours, within a line of Markdown: it makes no element, no link, no picture, no code, no cell.
#[derive(Clone, Copy, Debug)]
pub struct Markdown<T>(pub T);

impl<T: Display> Display for Markdown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in without_middle(&line(&self.0), LONGEST_LINE).chars() {
            match c {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '[' | ']' | '`' | '|' => write!(f, "\\{c}")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A text that is not ours as one line: escaped, at most [`LONGEST`] characters and `...`.
pub fn one_line(text: &(impl Display + ?Sized)) -> String {
    Foreign(text).to_string()
}

/// Some names in one line: those that have room, and how many there are besides.
pub fn list<T: Display>(names: impl IntoIterator<Item = T>, most: usize) -> String {
    let (mut line, mut held, mut more) = (String::new(), 0, 0);
    for name in names {
        if more > 0 || held == most || line.len() > LONGEST {
            more += 1;
            continue;
        }
        let separator = if held == 0 { "" } else { ", " };
        let _ = write!(line, "{separator}{}", Foreign(name));
        held += 1;
    }
    if more > 0 {
        let _ = write!(line, " and {more} more");
    }
    line
}

/// Escaped, and as long as it is.
fn line(text: &impl Display) -> String {
    let mut line = Line { most: usize::MAX, ..Line::default() };
    let _ = write!(line, "{text}");
    line.text
}

/// The text, or its ends with dots between them if it has more than `most` characters.
fn without_middle(text: &str, most: usize) -> String {
    let length = text.chars().count();
    if length <= most {
        return text.to_owned();
    }
    let (front, back) = (most / 3, most - most / 3 - 3);
    let start: String = text.chars().take(front).collect();
    let end: String = text.chars().skip(length - back).collect();
    start + "..." + &end
}

/// A line that grows as far as it may.
#[derive(Default)]
struct Line {
    text: String,
    length: usize,
    most: usize,
}

impl Write for Line {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        for c in more.chars() {
            let before = self.text.len();
            harmless(c, &mut self.text);
            self.length += self.text[before..].chars().count();
            if self.length > self.most {
                self.text.truncate(before);
                self.text += "...";
                return Err(fmt::Error);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_is_made_one_line_of_a_sensible_length() {
        assert_eq!(one_line("a\n\u{7f}\u{e4}"), "a\\n\\u{7f}\u{e4}");
        assert_eq!(one_line(&"x".repeat(300)), "x".repeat(300));
        assert_eq!(one_line(&"x".repeat(301)), "x".repeat(300) + "...");
        // A fuzzer found that escapes made the line six times as long.
        assert_eq!(one_line(&"\u{7f}".repeat(200)), "\\u{7f}".repeat(50) + "...");
    }

    #[test]
    fn what_is_harmless_stays_and_what_is_not_is_escaped_once() {
        for kept in ["model.layers.0", "größer", "日本語", "∞ ± 1e-3", "\\u{1b}", "\u{fffd}"] {
            assert_eq!(one_line(kept), kept);
        }
        for harmful in ['\u{0}', '\u{1b}', '\u{9b}', '\u{202e}', '\u{2066}', '\u{200b}', '\u{2028}', '\u{feff}', '\r'] {
            let once = one_line(&harmful);
            assert!(once.starts_with('\\') && !once.contains(harmful));
            assert_eq!(one_line(&once), once);
        }
    }

    #[test]
    fn a_list_names_some_and_counts_the_rest() {
        assert_eq!(list(["a"; 0], 3), "");
        assert_eq!(list(["a", "b\n", "c"], 3), "a, b\\n, c");
        assert_eq!(list(["a", "b", "c"], 2), "a, b and 1 more");
        let long = "x".repeat(5000);
        assert_eq!(list([&*long, "b", "c"], 3), "x".repeat(300) + "... and 2 more");
    }

    #[test]
    fn markdown_takes_nothing_for_markup() {
        let nasty = "<script>alert(1)</script> ![x](http://a/b) `c` | d & e\n";
        let shown = Markdown(nasty).to_string();
        assert_eq!(shown, "&lt;script&gt;alert(1)&lt;/script&gt; !\\[x\\](http://a/b) \\`c\\` \\| d &amp; e\\n");
    }

    #[test]
    fn a_long_place_keeps_its_end() {
        let place = format!("/{}/model.safetensors", "x".repeat(4000));
        let shown = Place(Path::new(&place)).to_string();
        assert!(shown.chars().count() == 300 && shown.ends_with("x/model.safetensors") && shown.starts_with("/xx"));
    }
}
