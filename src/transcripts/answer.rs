//! Which tokens an answer has, and what it says of their probabilities.
//!
//! Servers name tokens by id, or only by their text. A text may be that of several tokens (parts of a character all look the
//! same): where it is not clear which is meant, nothing is guessed. Where a transcript says a thing twice (ids and texts, tokens
//! and their logprobs), both must say the same: so engines are found that put logprobs beside the wrong tokens.

mod listed;
mod vocabulary;

use super::prompt::Fed;
use super::record::{AnswerRecord, Fault, Transcript};
use crate::error::Result;
use crate::generate::ModelFolder;
use listed::Row;
pub use vocabulary::Vocabulary;

/// What is known of an answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Its tokens, after the prompt's.
    pub ids: Vec<i64>,
    /// The tokens of the prompt, if it was echoed.
    pub echoed: Option<Vec<i64>>,
    /// Of each token (those of an echoed prompt first): its logprob, and those of the likeliest.
    pub logprobs: Option<Vec<Told>>,
    /// Where its logprobs contradict themselves, or the tokens.
    pub contradiction: Option<Fault>,
}

/// What is said of a token's probability.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// Its own logprob; the first token of a text has none.
    pub own: Option<f64>,
    /// Whether it has none where such logprobs are listed: many programs write NaN as `null`.
    pub lacks_own: bool,
    /// The likeliest tokens, and their logprobs; those that are not clear are left out.
    pub top: Vec<(i64, f64)>,
    /// Whether all are clear, so that tokens that are not among them are not the likeliest.
    pub whole: bool,
}

impl Told {
    /// The likeliest token by `right` of those that are not listed, and the logprob that it has at most by what is listed: the
    /// least of the likeliest. Nothing, unless that is too little. (`own` may be listed without being one of the likeliest.)
    pub fn left_out(&self, own: i64, right: &[f64]) -> Option<(i64, f64)> {
        let listed = self.top.iter().filter(|(token, _)| *token != own);
        let least = listed.map(|(_, logprob)| *logprob).min_by(f64::total_cmp).filter(|_| self.whole)?;
        let listed = |token: &i64| self.top.iter().any(|(listed, _)| listed == token);
        let others = (0..).zip(right).filter(|(token, logprob)| !listed(token) && **logprob > least);
        others.max_by(|a, b| a.1.total_cmp(b.1)).map(|(token, _)| (token, least))
    }

    /// How many of the likeliest are listed, if it is clear which these are.
    pub fn listed(&self) -> Option<usize> {
        let again = |at: usize| self.top[..at].iter().any(|(before, _)| *before == self.top[at].0);
        self.whole.then(|| (0..self.top.len()).filter(|&at| !again(at)).count())
    }
}

impl Answer {
    /// Of a transcript to this prompt, which one of `ends` may end. `Err` says what is missing.
    ///
    /// # Errors
    /// If the tokenizer refuses its text.
    pub fn of(
        transcript: &Transcript,
        model: &ModelFolder,
        vocabulary: &Vocabulary<'_>,
        prompt: &Fed,
        ends: &[i64],
    ) -> Result<std::result::Result<Self, String>> {
        let record = transcript.answer();
        let rows = record.logprobs.as_ref().and_then(listed::rows);
        let named: Option<Vec<Option<i64>>> =
            rows.as_ref().map(|rows| rows.iter().map(|row| row.id(vocabulary)).collect());
        let echoes = echoes(transcript, prompt);
        let by_id = by_id(record, transcript.prompt_token_ids(), echoes);
        let ids = by_id.or_else(|| named.as_ref()?.iter().copied().collect::<Option<Vec<i64>>>());
        // What is not clear token by token may be clear of the whole.
        let whole = || -> Result<Option<Vec<i64>>> {
            let (Some(named), Some(text)) = (&named, transcript.text()) else { return Ok(None) };
            let ids = model.tokenizer.encode(text, false)?;
            let known = ids.iter().zip(named).all(|(id, named)| named.is_none_or(|named| named == *id));
            Ok((ids.len() == named.len() && known).then_some(ids))
        };
        let ids = match ids {
            Some(ids) => Some(ids),
            None => whole()?,
        };
        let Some(mut ids) = ids else {
            let needs = "token_ids, or logprobs whose tokens are clear (`id`, or `token_id:17` as their text)";
            return Ok(Err(needs.to_owned()));
        };
        // An end token that is among the logprobs alone is one of the answer's.
        let last = named.as_ref().filter(|named| named.len() == ids.len() + 1).and_then(|named| *named.last()?);
        ids.extend(last.filter(|last| ends.contains(last)));
        let of_itself = || listed::contradiction(record.logprobs.as_ref()?, rows.as_ref()?, vocabulary);
        let of_tokens = || differing(&ids, rows.as_ref()?, vocabulary, ends);
        let contradiction = of_itself().or_else(of_tokens);
        let told = |rows: &Vec<Row<'_>>| rows.iter().take(ids.len()).map(|row| row.told(vocabulary)).collect();
        let logprobs = rows.as_ref().map(told);
        let echoed = echoes.then(|| {
            let counted = transcript.response.usage.and_then(|usage| usage.prompt_tokens);
            let counted = counted.and_then(|counted| usize::try_from(counted).ok());
            let fed = transcript.prompt_token_ids().map(<[i64]>::len).or(counted).unwrap_or(prompt.ids.len());
            ids.drain(..fed.min(ids.len())).collect()
        });
        Ok(Ok(Answer { ids, echoed, logprobs, contradiction }))
    }
}

/// The tokens that an answer lists by id; those of an echoed prompt come before them, if they are told.
fn by_id(record: &AnswerRecord, fed: Option<&[i64]>, echoes: bool) -> Option<Vec<i64>> {
    let ids = record.token_ids.as_ref()?;
    match fed {
        _ if !echoes => Some(ids.clone()),
        Some(fed) if ids.starts_with(fed) => Some(ids.clone()),
        Some(fed) => Some([fed, ids].concat()),
        None => None,
    }
}

/// Where logprobs are not those of these tokens. One of `ends` that ends them may have none, and one that is not clear may
/// follow them.
fn differing(ids: &[i64], rows: &[Row<'_>], vocabulary: &Vocabulary<'_>, ends: &[i64]) -> Option<Fault> {
    let (more, less) = (rows.len().checked_sub(ids.len()), ids.len().checked_sub(rows.len()));
    let same = match (more, less) {
        (Some(1), _) => rows.last().is_some_and(|row| row.id(vocabulary).is_none()),
        (_, Some(1)) => ids.last().is_some_and(|last| ends.contains(last)),
        (more, less) => more == less,
    };
    // an empty list says nothing
    if !same && !rows.is_empty() {
        return Some((format!("logprobs of {} tokens, as the answer has", ids.len()), rows.len().to_string()));
    }
    let mut pairs = ids.iter().zip(rows).enumerate();
    pairs.find_map(|(at, (&id, row))| {
        let (expected, found) = row.fault_of(id, vocabulary)?;
        Some((format!("{expected} at token {at} of the logprobs, as the answer has"), found))
    })
}

/// Whether the prompt is part of the answer: it was asked for, and it is there.
pub fn echoes(transcript: &Transcript, prompt: &Fed) -> bool {
    let begins = |text: &str| transcript.text().is_none_or(|found| found.starts_with(text));
    transcript.request.echo == Some(true) && prompt.text.as_deref().is_none_or(begins)
}
