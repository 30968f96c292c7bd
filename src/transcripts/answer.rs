//! Which tokens an answer has, and what it says of their probabilities.
//!
//! Servers name tokens by id, or only by their text. A text may be that of several tokens (parts of a character all look the
//! same): where it is not clear which is meant, nothing is guessed.

use std::collections::HashMap;

use super::prompt::Fed;
use super::record::{LogprobsRecord, Transcript};
use crate::error::Result;
use crate::generate::ModelFolder;

/// What is known of an answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Its tokens, after the prompt's.
    pub ids: Vec<i64>,
    /// The tokens of the prompt, if it was echoed.
    pub echoed: Option<Vec<i64>>,
    /// Of each token (those of an echoed prompt first): its logprob, and those of the likeliest.
    pub logprobs: Option<Vec<Told>>,
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
    fn of(own: Option<f64>, listed: bool, top: impl Iterator<Item = Option<(i64, f64)>>) -> Self {
        let all: Vec<_> = top.collect();
        let lacks_own = listed && own.is_none();
        Told { own, lacks_own, whole: all.iter().all(Option::is_some), top: all.into_iter().flatten().collect() }
    }

    /// The likeliest token by `right` of those that are not told, and the logprob that it has at most by what is told: the
    /// least of the likeliest. Nothing, unless that is too little. (`own` may be told without being one of the likeliest.)
    pub fn left_out(&self, own: i64, right: &[f64]) -> Option<(i64, f64)> {
        let listed = self.top.iter().filter(|(token, _)| *token != own);
        let least = listed.map(|(_, logprob)| *logprob).min_by(f64::total_cmp).filter(|_| self.whole)?;
        let told = |token: &i64| *token == own || self.top.iter().any(|(listed, _)| listed == token);
        let others = (0..).zip(right).filter(|(token, logprob)| !told(token) && **logprob > least);
        others.max_by(|a, b| a.1.total_cmp(b.1)).map(|(token, _)| (token, least))
    }
}

/// The texts of all tokens.
#[derive(Clone)]
pub struct Vocabulary(HashMap<String, Vec<i64>>);

impl Vocabulary {
    /// Of a tokenizer.
    pub fn new(model: &ModelFolder) -> Self {
        let mut texts: HashMap<String, Vec<i64>> = HashMap::new();
        for id in 0..model.config.vocab_size as i64 {
            let shown = model.tokenizer.decode(&[id], false).ok();
            let written = model.tokenizer.token_of(id);
            let same = shown == written;
            for text in shown.into_iter().chain(written.filter(|_| !same)) {
                texts.entry(text).or_default().push(id);
            }
        }
        Vocabulary(texts)
    }

    /// The token with this text, `token_id:17` included, if it is clear which is meant.
    fn id(&self, text: &str) -> Option<i64> {
        if let Some(id) = text.strip_prefix("token_id:") {
            return id.parse().ok();
        }
        match self.0.get(text)?[..] {
            [id] => Some(id),
            _ => None,
        }
    }
}

impl Answer {
    /// Of a transcript to this prompt. `Err` says what is missing.
    ///
    /// # Errors
    /// If the tokenizer refuses its text.
    pub fn of(
        transcript: &Transcript,
        model: &ModelFolder,
        vocabulary: &Vocabulary,
        prompt: &Fed,
    ) -> Result<std::result::Result<Self, String>> {
        let record = transcript.answer();
        let told = record.logprobs.as_ref().and_then(|logprobs| tokens_of(logprobs, vocabulary));
        let echoes = echoes(transcript, prompt);
        let ids = match (&record.token_ids, &told) {
            (Some(ids), _) if !echoes => Some(ids.clone()),
            (_, Some(told)) => told.iter().map(|(id, _)| *id).collect::<Option<Vec<i64>>>(),
            _ => None,
        };
        // What is not clear token by token may be clear of the whole.
        let whole = || -> Result<Option<Vec<i64>>> {
            let (Some(told), Some(text)) = (&told, transcript.text()) else { return Ok(None) };
            let ids = model.tokenizer.encode(text, false)?;
            let known = ids.iter().zip(told).all(|(id, (known, _))| known.is_none_or(|known| known == *id));
            Ok((ids.len() == told.len() && known).then_some(ids))
        };
        let ids = match ids {
            Some(ids) => Some(ids),
            None => whole()?,
        };
        let Some(mut ids) = ids else {
            let needs = "token_ids, or logprobs whose tokens are clear (`id`, or `token_id:17` as their text)";
            return Ok(Err(needs.to_owned()));
        };
        let mut logprobs: Option<Vec<Told>> = told.map(|told| told.into_iter().map(|(_, told)| told).collect());
        if let Some(told) = &mut logprobs {
            // The end token is among the tokens, or among the logprobs, and not among the others.
            if told.len().abs_diff(ids.len()) > 1 {
                return Ok(Err(format!("as many logprobs as tokens (there are {} and {})", told.len(), ids.len())));
            }
            told.truncate(ids.len());
        }
        let echoed = echoes.then(|| {
            let counted = transcript.response.usage.and_then(|usage| usage.prompt_tokens);
            let counted = counted.and_then(|counted| usize::try_from(counted).ok());
            let fed = transcript.prompt_token_ids().map(<[i64]>::len).or(counted).unwrap_or(prompt.ids.len());
            ids.drain(..fed.min(ids.len())).collect()
        });
        Ok(Ok(Answer { ids, echoed, logprobs }))
    }
}

/// Whether the prompt is part of the answer: it was asked for, and it is there.
pub fn echoes(transcript: &Transcript, prompt: &Fed) -> bool {
    let begins = |text: &str| transcript.text().is_none_or(|found| found.starts_with(text));
    transcript.request.echo == Some(true) && prompt.text.as_deref().is_none_or(begins)
}

/// Token by token: which it is, if that is clear, and what is said of it.
fn tokens_of(record: &LogprobsRecord, vocabulary: &Vocabulary) -> Option<Vec<(Option<i64>, Told)>> {
    if let Some(content) = &record.content {
        let told = content.iter().map(|token| {
            let id = token.id.or_else(|| vocabulary.id(&token.token));
            let top = token.top_logprobs.iter().flatten();
            let top = top.map(|token| Some((token.id.or_else(|| vocabulary.id(&token.token))?, token.logprob?)));
            (id, Told::of(token.logprob, true, top))
        });
        return Some(told.collect());
    }
    let tokens = record.tokens.as_ref()?;
    let told = tokens.iter().enumerate().map(|(at, token)| {
        let own = record.token_logprobs.as_ref().and_then(|own| *own.get(at)?);
        let top = record.top_logprobs.as_ref().and_then(|top| top.get(at)?.as_ref());
        let top = top.into_iter().flatten().map(|(token, logprob)| Some((vocabulary.id(token)?, (*logprob)?)));
        (vocabulary.id(token), Told::of(own, record.token_logprobs.is_some(), top))
    });
    Some(told.collect())
}
