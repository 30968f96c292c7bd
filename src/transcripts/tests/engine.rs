//! An engine: the rules, with a bug in them or none, around the program's own decoder.

use dsv2_text::Sampler;
use ndarray::Array2;
use serde_json::{Value, json};

use crate::generate::decoder::{Decoder, OnHost, Step};
use crate::precision::Precision;
use crate::transcripts::ending::Stops;
use crate::transcripts::judge::Judge;
use crate::transcripts::mutants::Bug;
use crate::transcripts::prompt::prompt;
use crate::transcripts::record::{Request, Transcript};
use crate::transcripts::sampling::{LogprobsOf, Sampling, best};
use crate::transcripts::truth::plain_logits;

/// An engine for the model of a judge.
pub struct Engine<'j> {
    judge: &'j Judge<'j>,
    of: LogprobsOf,
    precision: Precision,
    bug: Option<Bug>,
}

impl<'j> Engine<'j> {
    pub fn new(judge: &'j Judge<'j>, of: LogprobsOf, precision: Precision, bug: Option<Bug>) -> Self {
        Engine { judge, of, precision, bug }
    }

    /// What it answers.
    pub fn answer(&self, request: &Value, tells_tokens: bool) -> Transcript {
        let (speech, bug) = (&self.judge.speech, self.bug);
        let asked: Request = serde_json::from_value(request.clone()).unwrap();
        let fed = prompt(speech, &asked, bug).unwrap().ids;
        let stops = Stops::new(speech, &asked, fed.len(), bug);
        let sampling = Sampling::new(&asked, &stops, fed.len(), bug);
        let mut decoder = OnHost::<f32>::load(speech.model, self.precision).unwrap();
        decoder.start(1, 0).unwrap();
        let mut logits = |tokens: &[i64]| -> Vec<f64> {
            let tokens = Array2::from_shape_fn((1, tokens.len()), |(_, at)| tokens[at]);
            let logits = decoder.forward(Step { tokens, real: None }, &mut |_| ()).unwrap();
            logits.iter().map(|&logit| f64::from(logit)).collect()
        };
        let (mut row, mut told, mut ids) = (fed.clone(), Vec::new(), Vec::new());
        let mut new = fed.clone();
        let reason = loop {
            let logits = logits(&new);
            let scores = sampling.processed(&row, sampling.adjusted(&row, &logits));
            let token = match sampling.greedy() {
                true => best(&scores).unwrap() as i64,
                false => Sampler::Seeded(11).choose(&scores, 0, ids.len() as u64).unwrap(),
            };
            told.push(self.record(&sampling.told(self.of, &row, &logits), token));
            row.push(token);
            ids.push(token);
            new = vec![token];
            match stops.end(&ids).unwrap() {
                Some((length, reason)) if length == ids.len() => break reason.name(),
                _ => {}
            }
        };
        if bug == Some(Bug::LogprobsShifted) {
            let own: Vec<Value> = told.iter().skip(1).chain(told.last()).map(|told| told["logprob"].clone()).collect();
            told.iter_mut().zip(own).for_each(|(told, own)| told["logprob"] = own);
        }
        let reason = match (bug, reason) {
            (Some(Bug::ReasonSwapped), "stop") => "length",
            (Some(Bug::ReasonSwapped), _) => "stop",
            (_, reason) => reason,
        };
        let bos = speech.model.tokenizer.bos_token_id();
        let counted = fed.iter().filter(|&&id| bug != Some(Bug::BosNotCounted) || Some(id) != bos).count();
        let mut text = stops.shown(&ids).unwrap();
        let completion = if bug == Some(Bug::CharactersCounted) { text.chars().count() } else { ids.len() };
        if asked.echo == Some(true) && bug != Some(Bug::EchoIgnored) {
            let of_prompt = plain_logits(speech.model, &row, 1, self.precision).unwrap();
            let of_prompt = (1..fed.len())
                .map(|at| self.record(&sampling.told(self.of, &fed[..at], &of_prompt.row(at - 1).to_vec()), fed[at]));
            told = [json!({"id": fed[0]})].into_iter().chain(of_prompt).chain(told).collect();
            text = request["prompt"].as_str().unwrap().to_owned() + &text;
        }
        let mut choice = json!({"logprobs": {"content": told}, "finish_reason": reason});
        if tells_tokens {
            choice["prompt_token_ids"] = json!(fed);
            choice["token_ids"] = json!(ids);
        }
        match asked.messages {
            Some(_) => choice["message"] = json!({"role": "assistant", "content": text}),
            None => choice["text"] = json!(text),
        }
        let usage =
            json!({"prompt_tokens": counted, "completion_tokens": completion, "total_tokens": counted + completion});
        let line = json!({"request": request, "response": {"choices": [choice], "usage": usage}}).to_string();
        Transcript::from_json(&line, speech.model.config.vocab_size).unwrap().answers().remove(0)
    }

    /// A token, and the five likeliest.
    fn record(&self, logprobs: &[f64], token: i64) -> Value {
        let mut order: Vec<usize> = (0..logprobs.len()).collect();
        order.sort_by(|&a, &b| logprobs[b].total_cmp(&logprobs[a]));
        let finite = |l: f64| if l.is_finite() { l } else { -9999.0 };
        let top = order[..5].iter().map(|&id| json!({"id": id, "logprob": finite(logprobs[id])}));
        json!({"id": token, "logprob": finite(logprobs[token as usize]), "top_logprobs": top.collect::<Vec<_>>()})
    }
}
