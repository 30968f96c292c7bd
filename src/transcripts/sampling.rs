//! Which tokens may be chosen, and with which probability: the processors of a request over the model's logits.
//!
//! ```text
//! the model's logits -> bias, repetition penalty, min_tokens -> temperature -> top_k -> top_p -> min_p
//!   Model                                                      Scaled                       Processed
//! ```
//!
//! **Trap.** Engines tell logprobs of three kinds, as the second line says: vLLM's and llama.cpp's are the model's unless told
//! otherwise, SGLang's are scaled, those that Transformers calls scores are processed.

use std::fmt;

use dsv2_text::generation::LogitsProcessor;
use dsv2_text::generation::sampler::LogProbabilities;

use super::ending::Stops;
use super::mutants::Bug;
use super::record::Request;

/// Which probabilities an engine tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogprobsOf {
    /// The model's own, before anything is done to them.
    Model,
    /// After bias, penalty and temperature, before the filters.
    Scaled,
    /// What the token was drawn by, after all of them.
    Processed,
}

impl LogprobsOf {
    /// All of them.
    pub const ALL: [LogprobsOf; 3] = [LogprobsOf::Model, LogprobsOf::Scaled, LogprobsOf::Processed];
}

impl fmt::Display for LogprobsOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            LogprobsOf::Model => "the model's own",
            LogprobsOf::Scaled => "after penalty and temperature, before the filters",
            LogprobsOf::Processed => "after all processors",
        })
    }
}

/// How tokens are chosen for a request.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// What makes tokens more or less likely, each by itself.
    adjusting: Vec<LogitsProcessor>,
    temperature: Option<LogitsProcessor>,
    /// What leaves some of them.
    filters: Vec<LogitsProcessor>,
    greedy: bool,
    bug: Option<Bug>,
}

impl Sampling {
    /// For a request whose prompt has so many tokens.
    pub fn new(request: &Request, stops: &Stops<'_>, prompt: usize, bug: Option<Bug>) -> Self {
        use LogitsProcessor as P;
        let unless = |ignored: Bug| bug != Some(ignored);
        let mut adjusting = Vec::new();
        if let Some(bias) = request.logit_bias.as_ref().filter(|_| unless(Bug::BiasIgnored)) {
            let one = |(token, bias): (&String, &f64)| Some((vec![token.parse().ok()?], *bias as f32));
            adjusting.push(P::SequenceBias(bias.iter().filter_map(one).collect()));
        }
        if let Some(penalty) = request.repetition_penalty.filter(|_| unless(Bug::PenaltyIgnored)) {
            let padding_ends = if bug == Some(Bug::PenaltyWithoutPrompt) { prompt } else { 0 };
            adjusting.push(P::RepetitionPenalty { penalty: penalty as f32, padding_ends });
        }
        if let Some(least) = request.min_tokens.filter(|_| unless(Bug::MinTokensIgnored)) {
            adjusting.push(P::MinLength { length: prompt.saturating_add(least), eos: stops.ends().to_vec() });
        }
        if bug == Some(Bug::EndTokenForbidden) {
            adjusting.push(P::SuppressTokens(stops.ends_of_model().to_vec()));
        }
        let temperature = request.temperature.unwrap_or(1.0);
        let greedy = temperature == 0.0 || request.top_k == Some(1);
        let mut filters = Vec::new();
        if !greedy {
            let likeliest = request.top_k.and_then(|k| usize::try_from(k).ok()).filter(|&k| k > 0);
            let likeliest = likeliest.filter(|_| unless(Bug::TopKIgnored));
            filters.extend(likeliest.map(|k| P::TopK(k + usize::from(bug == Some(Bug::TopKOffByOne)))));
            let nucleus = request.top_p.filter(|&p| p < 1.0 && unless(Bug::TopPIgnored));
            filters.extend(nucleus.map(|p| P::TopP((1.0 - p) as f32)));
            let least = request.min_p.filter(|&p| p > 0.0 && unless(Bug::MinPIgnored));
            filters.extend(least.map(|p| P::MinP(p as f32)));
        }
        let warm = !greedy && temperature != 1.0 && unless(Bug::TemperatureIgnored);
        let temperature = warm.then_some(P::Temperature(temperature as f32));
        Sampling { adjusting, temperature, filters, greedy, bug }
    }

    /// Whether the likeliest token is taken.
    pub fn greedy(&self) -> bool {
        self.greedy
    }

    /// The model's logits of the token after `row` (prompt and answer), with bias and penalty.
    pub fn adjusted(&self, row: &[i64], logits: &[f64]) -> Vec<f32> {
        let mut scores = single(logits);
        for processor in &self.adjusting {
            self.apply(processor, row, &mut scores);
        }
        scores
    }

    /// The same with the temperature, too.
    fn scaled(&self, row: &[i64], mut adjusted: Vec<f32>) -> Vec<f32> {
        self.temperature.iter().for_each(|temperature| temperature.apply(row, &mut adjusted));
        adjusted
    }

    /// What the token after `row` is chosen by: tokens that may not be are at −∞.
    pub fn processed(&self, row: &[i64], adjusted: Vec<f32>) -> Vec<f32> {
        let late = self.bug == Some(Bug::TemperatureLast);
        let mut scores = if late { adjusted } else { self.scaled(row, adjusted) };
        for filter in &self.filters {
            self.apply(filter, row, &mut scores);
        }
        if late { self.scaled(row, scores) } else { scores }
    }

    fn apply(&self, processor: &LogitsProcessor, row: &[i64], scores: &mut [f32]) {
        let seen = |token: usize| row.iter().filter(|&&id| id == token as i64).count();
        match (processor, self.bug) {
            (LogitsProcessor::RepetitionPenalty { penalty, .. }, Some(Bug::PenaltyAlwaysDivides)) => {
                let tokens = scores.iter_mut().enumerate().filter(|(token, _)| seen(*token) > 0);
                tokens.for_each(|(_, score)| *score /= penalty);
            }
            (LogitsProcessor::RepetitionPenalty { penalty, .. }, Some(Bug::PenaltyByCount)) => {
                for (token, score) in scores.iter_mut().enumerate() {
                    let all = penalty.powi(seen(token) as i32);
                    *score = if *score < 0.0 { *score * all } else { *score / all };
                }
            }
            (LogitsProcessor::MinP(p), Some(Bug::MinPAbsolute)) => {
                let far = LogProbabilities::new(scores).all().into_iter().map(|l| l.exp() < f64::from(*p));
                scores.iter_mut().zip(far).filter(|(_, far)| *far).for_each(|(score, _)| *score = f32::NEG_INFINITY);
            }
            _ => processor.apply(row, scores),
        }
    }

    /// The logprobs that an engine tells of each token \[V\] that could come after `row`.
    pub fn told(&self, of: LogprobsOf, row: &[i64], logits: &[f64]) -> Vec<f64> {
        let adjusted = match self.bug {
            Some(Bug::LogprobsBeforePenalty) => single(logits),
            _ => self.adjusted(row, logits),
        };
        let scores = match of {
            LogprobsOf::Model => single(logits),
            LogprobsOf::Scaled => self.scaled(row, adjusted),
            LogprobsOf::Processed => self.processed(row, adjusted),
        };
        let mut logprobs = LogProbabilities::new(&scores).all();
        match self.bug {
            Some(Bug::LogprobsBase2) => logprobs.iter_mut().for_each(|l| *l /= std::f64::consts::LN_2),
            Some(Bug::LogprobsBase10) => logprobs.iter_mut().for_each(|l| *l /= std::f64::consts::LN_10),
            Some(Bug::Probabilities) => logprobs.iter_mut().for_each(|l| *l = l.exp()),
            Some(Bug::LogprobsUnnormalised) => logprobs = scores.iter().map(|&score| f64::from(score)).collect(),
            Some(Bug::LogprobsAmongTop) => {
                let mut sorted = logprobs.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                let all: f64 = sorted.iter().take(20).map(|l| l.exp()).sum();
                logprobs.iter_mut().for_each(|l| *l -= all.ln());
            }
            _ => {}
        }
        logprobs
    }

    /// Whether it is certain which tokens the filters leave after `row`, where each difference of two of these logits may be off by
    /// `tolerance`.
    pub fn leaves_the_same(&self, row: &[i64], adjusted: &[f32], tolerance: impl Fn(usize) -> f64) -> bool {
        let scores = self.processed(row, adjusted.to_vec());
        let which = |left: bool| {
            let known = (0..scores.len()).filter(|&at| adjusted[at].is_finite());
            known.filter(|&at| scores[at].is_finite() == left).collect::<Vec<_>>()
        };
        let by_logit = |a: &usize, b: &usize| adjusted[*a].total_cmp(&adjusted[*b]);
        let stays = |token: usize, tolerance: f64| self.may_choose(row, adjusted, token as i64, tolerance);
        let enters = which(false).into_iter().max_by(by_logit).is_some_and(|token| stays(token, tolerance(token)));
        let leaves = which(true).into_iter().min_by(by_logit).is_some_and(|token| !stays(token, -tolerance(token)));
        !enters && !leaves
    }

    /// Whether filters leave some tokens alone.
    pub fn filters(&self) -> bool {
        !self.filters.is_empty()
    }

    /// Whether `token` may be chosen after `row`, where each difference of two of these logits may be off by `tolerance`.
    pub fn may_choose(&self, row: &[i64], adjusted: &[f32], token: i64, tolerance: f64) -> bool {
        let Some(own) = usize::try_from(token).ok().filter(|&token| token < adjusted.len()) else { return false };
        let scores = self.processed(row, favouring(own, adjusted, tolerance));
        match self.greedy {
            true => best(&scores).is_some_and(|best| scores[own] >= scores[best]),
            false => scores[own].is_finite(),
        }
    }
}

/// The logits that are as good for a token as they may be: what is far above it comes as near as it can, and all else stays
/// below it, but as near as it can, so that what is above has as small a part of the whole as possible. With a negative
/// tolerance, those that are as bad for it.
fn favouring(own: usize, logits: &[f32], tolerance: f64) -> Vec<f32> {
    let (half, at) = ((tolerance / 2.0) as f32, logits[own]);
    let (raised, below) = (at + half, at + half * 0.999);
    let other = |&logit: &f32| if logit - at > 2.0 * half { logit - half } else { (logit + half).min(below) };
    let mut favouring: Vec<f32> = logits.iter().map(other).collect();
    favouring[own] = raised;
    favouring
}

fn single(logits: &[f64]) -> Vec<f32> {
    logits.iter().map(|&logit| logit as f32).collect()
}

/// The token with the highest score; of equals the first.
pub fn best(scores: &[f32]) -> Option<usize> {
    let finite = scores.iter().enumerate().filter(|(_, score)| score.is_finite());
    let higher = |best: Option<(usize, f32)>, (at, &score): (usize, &f32)| match best {
        Some((_, most)) if most >= score => best,
        _ => Some((at, score)),
    };
    finite.fold(None, higher).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_favoured_as_far_as_the_tolerance_goes() {
        let favoured = favouring(1, &[3.0, 1.0, 1.4, -2.0, f32::NEG_INFINITY], 0.5);
        // the first is too far above to be passed, the third is not
        assert_eq!([favoured[0], favoured[1], favoured[3], favoured[4]], [2.75, 1.25, -1.75, f32::NEG_INFINITY]);
        assert!(favoured[2] < favoured[1] && favoured[2] > 1.24, "{favoured:?}");
        assert_eq!(favouring(1, &[3.0, 1.0], 0.0), [3.0, 1.0]);
        // and the other way: the third, which was a little below, passes the second
        assert_eq!(favouring(1, &[3.0, 1.0, 0.625, -2.0], -0.5), [3.25, 0.75, 0.875, -2.25]);
    }
}
