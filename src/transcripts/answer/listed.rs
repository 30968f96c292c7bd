//! Logprobs as a transcript lists them, in either shape, and where they contradict themselves.

use dsv2_foreign::Foreign;

use super::{Told, Vocabulary};
use crate::transcripts::record::{Fault, LogprobsRecord, TokenRecord};

/// A token and its logprob.
#[derive(Clone, Copy)]
pub struct Listed<'r> {
    id: Option<i64>,
    text: Option<&'r str>,
    bytes: Option<&'r [i64]>,
    logprob: Option<f64>,
}

/// A token of the answer, and the likeliest in its place.
pub struct Row<'r> {
    own: Listed<'r>,
    /// Whether such logprobs are listed.
    listed: bool,
    top: Vec<Listed<'r>>,
}

impl<'r> Listed<'r> {
    fn by_text(text: &'r str, logprob: Option<f64>) -> Self {
        Listed { id: None, text: Some(text), bytes: None, logprob }
    }

    fn of(record: &'r TokenRecord) -> Self {
        let TokenRecord { id, token, bytes, logprob, .. } = record;
        Listed { id: *id, text: token.as_deref(), bytes: bytes.as_deref(), logprob: *logprob }
    }

    fn id(&self, vocabulary: &Vocabulary<'_>) -> Option<i64> {
        self.id.or_else(|| vocabulary.id(self.text?))
    }

    /// What of it cannot be.
    fn fault(&self, vocabulary: &Vocabulary<'_>) -> Option<Fault> {
        let (id, text) = (self.id(vocabulary), self.text.unwrap_or_default());
        let shown = || format!("\"{}\"", Foreign(text));
        match id {
            Some(id) if vocabulary.lacks(id) => Some(("a token of the model".to_owned(), id.to_string())),
            Some(id) if !vocabulary.fits(text, id) => Some((format!("the text of token {id}"), shown())),
            None if vocabulary.is_none(text) => Some(("the text of a token".to_owned(), shown())),
            _ => {
                let other = self.bytes.filter(|bytes| !vocabulary.has_bytes(id, self.text, bytes));
                other.map(|bytes| (format!("the bytes of {}", shown()), format!("{}", Foreign(format!("{bytes:?}")))))
            }
        }
    }
}

impl Row<'_> {
    /// Which token it is, if that is clear.
    pub fn id(&self, vocabulary: &Vocabulary<'_>) -> Option<i64> {
        self.own.id(vocabulary)
    }

    /// What is said of its probability.
    pub fn told(&self, vocabulary: &Vocabulary<'_>) -> Told {
        let clear = |listed: &Listed<'_>| Some((listed.id(vocabulary)?, listed.logprob?));
        let top: Vec<_> = self.top.iter().map(clear).collect();
        let whole = top.iter().all(Option::is_some);
        let (own, lacks_own) = (self.own.logprob, self.listed && self.own.logprob.is_none());
        Told { own, lacks_own, top: top.into_iter().flatten().collect(), whole }
    }

    /// Whether this may be said of that token.
    pub fn fault_of(&self, id: i64, vocabulary: &Vocabulary<'_>) -> Option<Fault> {
        let other = self.own.id.filter(|&other| other != id).map(|other| format!("token {other}"));
        let text = self.own.text.filter(|text| !vocabulary.fits(text, id));
        let found = other.or_else(|| text.map(|text| format!("\"{}\"", Foreign(text))))?;
        Some((format!("the logprob of token {id}"), format!("that of {found}")))
    }

    fn fault(&self, vocabulary: &Vocabulary<'_>) -> Option<Fault> {
        let of_top = self.top.iter().find_map(|listed| listed.fault(vocabulary));
        let of_top = of_top.map(|(expected, found)| (format!("{expected} among the likeliest"), found));
        self.own.fault(vocabulary).or(of_top)
    }
}

/// The tokens of which something is said.
pub fn rows(record: &LogprobsRecord) -> Option<Vec<Row<'_>>> {
    if let Some(content) = &record.content {
        let rows = content.iter().map(|token| Row {
            own: Listed::of(token),
            listed: true,
            top: token.top_logprobs.iter().flatten().map(Listed::of).collect(),
        });
        return Some(rows.collect());
    }
    let own = |at: usize| record.token_logprobs.as_ref().and_then(|own| *own.get(at)?);
    let top = |at: usize| record.top_logprobs.as_ref().and_then(|top| top.get(at)?.as_ref());
    let rows = record.tokens.as_ref()?.iter().enumerate().map(|(at, token)| Row {
        own: Listed::by_text(token, own(at)),
        listed: record.token_logprobs.is_some(),
        top: top(at).into_iter().flatten().map(|(text, logprob)| Listed::by_text(text, *logprob)).collect(),
    });
    Some(rows.collect())
}

/// The first thing that cannot be.
pub fn contradiction(record: &LogprobsRecord, rows: &[Row<'_>], vocabulary: &Vocabulary<'_>) -> Option<Fault> {
    let there = |at: usize, (expected, found): Fault| (format!("{expected} at token {at} of the logprobs"), found);
    let of_rows = rows.iter().enumerate().find_map(|(at, row)| Some(there(at, row.fault(vocabulary)?)));
    of_rows.or_else(|| of_lengths(record)).or_else(|| of_offsets(record))
}

/// Lists of a completion that are not as long as its tokens. (An empty one, or none, says nothing.)
fn of_lengths(record: &LogprobsRecord) -> Option<Fault> {
    let tokens = record.tokens.as_ref()?.len();
    let lists = [
        ("token_logprobs", record.token_logprobs.as_ref().map(Vec::len)),
        ("top_logprobs", record.top_logprobs.as_ref().map(Vec::len)),
        ("text_offset", record.text_offset.as_ref().map(Vec::len)),
    ];
    let told = lists.into_iter().filter_map(|(name, length)| Some((name, length.filter(|&length| length > 0)?)));
    let mut other = told.filter(|(_, length)| *length != tokens);
    other.next().map(|(name, length)| (format!("{tokens} {name}, one for each of the tokens"), length.to_string()))
}

/// A token that begins in the text before the one that comes before it.
fn of_offsets(record: &LogprobsRecord) -> Option<Fault> {
    let back = |pair: &[i64]| pair[1] < pair[0];
    let at = 1 + record.text_offset.as_ref()?.windows(2).position(back)?;
    let offsets = record.text_offset.as_ref()?;
    Some((format!("a text_offset of at least {} at token {at}", offsets[at - 1]), offsets[at].to_string()))
}
