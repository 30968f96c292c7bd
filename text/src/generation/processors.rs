//! What is done to logits before a token is chosen, in Transformers' order.

use std::cmp::Ordering;

use indexmap::IndexMap;

use super::{GenerationConfig, Lengths};
use crate::error::{Error, Result};

/// One thing that is done to the logits of a row, by the name of Transformers' class.
#[derive(Clone, Debug, PartialEq)]
pub enum LogitsProcessor {
    /// `SequenceBiasLogitsProcessor`: adds to the last token of each run whose other tokens have just come.
    SequenceBias(Vec<(Vec<i64>, f32)>),
    /// `RepetitionPenaltyLogitsProcessor`: makes tokens of the row less likely, once, however often they came. What is before
    /// `padding_ends` does not count.
    RepetitionPenalty {
        /// What a logit is divided by; multiplied with, if it is negative.
        penalty: f32,
        /// How many tokens at the row's beginning are padding.
        padding_ends: usize,
    },
    /// `NoRepeatNGramLogitsProcessor`: no run of this length comes twice.
    NoRepeatNGram(usize),
    /// `NoBadWordsLogitsProcessor`: these runs do not come.
    NoBadWords(Vec<(Vec<i64>, f32)>),
    /// `MinLengthLogitsProcessor` (and `MinNewTokensLengthLogitsProcessor`): no end before the row has this length.
    MinLength {
        /// The length.
        length: usize,
        /// The tokens that end a text.
        eos: Vec<i64>,
    },
    /// `SuppressTokensLogitsProcessor`: these tokens do not come.
    SuppressTokens(Vec<i64>),
    /// `SuppressTokensAtBeginLogitsProcessor`: these tokens do not come at this place.
    SuppressTokensAtBegin {
        /// The place: how many tokens are before it.
        place: usize,
        /// The tokens.
        tokens: Vec<i64>,
    },
    /// `TemperatureLogitsWarper`: divides by the temperature.
    Temperature(f32),
    /// `TopKLogitsWarper`: only tokens that are as likely as the k-th likeliest.
    TopK(usize),
    /// `TopPLogitsWarper`: without the least likely tokens that have this probability together at most.
    ///
    /// **Trap.** It is what is left out that is compared, with ≤: at `top_p` 0.5, of four equally likely tokens two stay.
    TopP(f32),
    /// `MinPLogitsWarper`: only tokens with this part of the likeliest one's probability.
    MinP(f32),
}

/// What is done to the logits of one row of a batch. Rows have nothing to do with each other.
#[derive(Clone, Debug, PartialEq)]
pub struct LogitsProcessors(Vec<LogitsProcessor>);

impl LogitsProcessors {
    /// For a row that begins with `padding` tokens of padding.
    ///
    /// # Errors
    /// If a bias is for a token that is not in the vocabulary.
    pub fn new(config: &GenerationConfig, lengths: &Lengths, padding: usize, vocabulary: usize) -> Result<Self> {
        use LogitsProcessor as P;
        let mut list = Vec::new();
        if let Some(biases) = &config.sequence_bias {
            within(biases.iter().map(|(run, _)| run), "sequence_bias", vocabulary)?;
            list.push(P::SequenceBias(by_run(biases.iter().map(|(run, bias)| (run, *bias as f32)))));
        }
        if let Some(penalty) = config.repetition_penalty.filter(|penalty| *penalty != 1.0) {
            list.push(P::RepetitionPenalty { penalty: penalty as f32, padding_ends: padding });
        }
        if let Some(size) = config.no_repeat_ngram_size.filter(|size| *size > 0) {
            list.push(P::NoRepeatNGram(size));
        }
        if let Some(words) = &config.bad_words_ids {
            within(words.iter(), "bad_words_ids", vocabulary)?;
            let end = |run: &[i64]| matches!(run, [token] if config.eos_token_id.contains(token));
            let words = words.iter().filter(|run| !end(run)).map(|run| (run, f32::NEG_INFINITY));
            list.push(P::NoBadWords(by_run(words)));
        }
        if lengths.fewest > 0 && !config.eos_token_id.is_empty() {
            list.push(P::MinLength { length: lengths.fewest, eos: config.eos_token_id.clone() });
        }
        if let Some(tokens) = &config.suppress_tokens {
            list.push(P::SuppressTokens(tokens.clone()));
        }
        if let Some(tokens) = &config.begin_suppress_tokens {
            list.push(P::SuppressTokensAtBegin { place: lengths.prompt, tokens: tokens.clone() });
        }
        if config.do_sample {
            if let Some(temperature) = config.temperature.filter(|temperature| *temperature != 1.0) {
                list.push(P::Temperature(temperature as f32));
            }
            if let Some(k) = config.top_k.filter(|k| *k != 0) {
                list.push(P::TopK(k));
            }
            if let Some(p) = config.top_p.filter(|p| *p < 1.0) {
                // The one subtraction is in double precision in Python too.
                list.push(P::TopP((1.0 - p) as f32));
            }
            if let Some(p) = config.min_p {
                list.push(P::MinP(p as f32));
            }
        }
        Ok(LogitsProcessors(list))
    }

    /// The processors, in the order in which they are applied.
    pub fn list(&self) -> &[LogitsProcessor] {
        &self.0
    }

    /// Applies all to the logits \[V\] of the row's next token. `row` is all that was there: padding, prompt, answer.
    ///
    /// # Errors
    /// If a logit is not a number.
    pub fn apply(&self, row: &[i64], logits: &mut [f32]) -> Result<()> {
        if let Some(at) = logits.iter().position(|logit| logit.is_nan()) {
            return Err(Error::input("logits", "numbers", format!("NaN for token {at}")));
        }
        for processor in &self.0 {
            processor.apply(row, logits);
        }
        Ok(())
    }
}

impl LogitsProcessor {
    /// The name of Transformers' class.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SequenceBias(_) => "SequenceBiasLogitsProcessor",
            Self::RepetitionPenalty { .. } => "RepetitionPenaltyLogitsProcessor",
            Self::NoRepeatNGram(_) => "NoRepeatNGramLogitsProcessor",
            Self::NoBadWords(_) => "NoBadWordsLogitsProcessor",
            Self::MinLength { .. } => "MinLengthLogitsProcessor",
            Self::SuppressTokens(_) => "SuppressTokensLogitsProcessor",
            Self::SuppressTokensAtBegin { .. } => "SuppressTokensAtBeginLogitsProcessor",
            Self::Temperature(_) => "TemperatureLogitsWarper",
            Self::TopK(_) => "TopKLogitsWarper",
            Self::TopP(_) => "TopPLogitsWarper",
            Self::MinP(_) => "MinPLogitsWarper",
        }
    }

    /// Changes the logits of the row's next token.
    pub fn apply(&self, row: &[i64], logits: &mut [f32]) {
        match self {
            Self::SequenceBias(biases) | Self::NoBadWords(biases) => add_biases(biases, row, logits),
            Self::RepetitionPenalty { penalty, padding_ends } => {
                let mut seen = vec![false; logits.len()];
                for token in row.iter().skip(*padding_ends) {
                    if let Some(seen) = usize::try_from(*token).ok().and_then(|token| seen.get_mut(token)) {
                        *seen = true;
                    }
                }
                for (logit, _) in logits.iter_mut().zip(seen).filter(|(_, seen)| *seen) {
                    *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
                }
            }
            Self::NoRepeatNGram(size) => {
                if row.len() >= *size {
                    let prefix = &row[row.len() + 1 - size..];
                    let again = row.windows(*size).filter(|window| window.starts_with(prefix));
                    forbid(again.filter_map(|window| window.last()), logits);
                }
            }
            Self::MinLength { length, eos } if row.len() < *length => forbid(eos, logits),
            Self::SuppressTokens(tokens) => forbid(tokens, logits),
            Self::SuppressTokensAtBegin { place, tokens } if row.len() == *place => forbid(tokens, logits),
            Self::MinLength { .. } | Self::SuppressTokensAtBegin { .. } => {}
            Self::Temperature(temperature) => logits.iter_mut().for_each(|logit| *logit /= temperature),
            Self::TopK(k) => top_k(*k, logits),
            Self::TopP(least) => top_p(*least, logits),
            Self::MinP(p) => {
                let probabilities = softmax(logits);
                let least = p * probabilities.iter().copied().fold(0.0, f32::max);
                keep(logits, |token| probabilities[token] >= least);
            }
        }
    }
}

/// One bias for each run: the last that is given. Single tokens first, then runs of one length after those of another: sums
/// of biases depend on the order in their last bits.
fn by_run<'a>(biases: impl Iterator<Item = (&'a Vec<i64>, f32)>) -> Vec<(Vec<i64>, f32)> {
    let mut runs = IndexMap::new();
    for (run, bias) in biases {
        runs.insert(run.clone(), bias);
    }
    let mut by_length: IndexMap<usize, Vec<_>> = IndexMap::from([(1, Vec::new())]);
    for run in runs {
        by_length.entry(run.0.len()).or_default().push(run);
    }
    by_length.into_values().flatten().collect()
}

/// Refuses runs with tokens that are not in the vocabulary.
fn within<'a>(mut runs: impl Iterator<Item = &'a Vec<i64>>, name: &str, vocabulary: usize) -> Result<()> {
    let beyond = |token: &&i64| usize::try_from(**token).map_or(true, |token| token >= vocabulary);
    match runs.find_map(|run| run.iter().find(beyond)) {
        Some(token) => Err(Error::setting(name, format!("tokens below {vocabulary}"), token)),
        None => Ok(()),
    }
}

/// Adds the biases of runs of which all tokens but the last have come. They are added up before they are added to a logit.
fn add_biases(biases: &[(Vec<i64>, f32)], row: &[i64], logits: &mut [f32]) {
    let mut sums = vec![0.0f32; logits.len()];
    for (run, bias) in biases {
        let Some((last, before)) = run.split_last() else { continue };
        if row.ends_with(before)
            && let Some(sum) = usize::try_from(*last).ok().and_then(|last| sums.get_mut(last))
        {
            *sum += bias;
        }
    }
    logits.iter_mut().zip(sums).for_each(|(logit, bias)| *logit += bias);
}

fn forbid<'a>(tokens: impl IntoIterator<Item = &'a i64>, logits: &mut [f32]) {
    for token in tokens {
        if let Some(logit) = usize::try_from(*token).ok().and_then(|token| logits.get_mut(token)) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

fn keep(logits: &mut [f32], stays: impl Fn(usize) -> bool) {
    for (token, logit) in logits.iter_mut().enumerate() {
        if !stays(token) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

fn top_k(k: usize, logits: &mut [f32]) {
    if k >= logits.len() {
        return;
    }
    let mut sorted = logits.to_vec();
    let (_, least, _) = sorted.select_nth_unstable_by(k - 1, |a, b| descending(*a, *b));
    let least = *least;
    logits.iter_mut().filter(|logit| **logit < least).for_each(|logit| *logit = f32::NEG_INFINITY);
}

fn top_p(least: f32, logits: &mut [f32]) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // Of equals, those with the lower number go first.
    order.sort_by(|a, b| descending(logits[*b], logits[*a]));
    let sorted: Vec<f32> = order.iter().map(|token| logits[*token]).collect();
    let mut together = 0.0f64;
    let likely = softmax(&sorted);
    for (token, probability) in order.iter().zip(likely).take(order.len().saturating_sub(1)) {
        together += f64::from(probability);
        if together as f32 > least {
            break;
        }
        logits[*token] = f32::NEG_INFINITY;
    }
}

fn descending(a: f32, b: f32) -> Ordering {
    b.partial_cmp(&a).unwrap_or(Ordering::Equal)
}

/// Probabilities in single precision, as PyTorch has them but for the last bit.
fn softmax(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let parts: Vec<f32> = logits.iter().map(|logit| f64::from(logit - most).exp() as f32).collect();
    let all = parts.iter().copied().map(f64::from).sum::<f64>() as f32;
    parts.into_iter().map(|part| part / all).collect()
}

#[cfg(test)]
mod tests;
