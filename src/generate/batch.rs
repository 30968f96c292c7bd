//! The loop over tokens.

use dsv2_text::generation::padding::left_padded;
use dsv2_text::generation::sampler::log_probability;
use dsv2_text::generation::{FinishReason, Lengths, LogitsProcessors, Sampler, StopStrings, StoppingCriteria};
use ndarray::{Array1, Array2, ArrayView1, Axis, s};

use super::decoder::{Decoder, Step};
use super::{Chosen, Completion, Listener, ModelFolder, Rules};
use crate::error::{Error, Result};

/// Goes on with each prompt until it ends.
///
/// # Errors
/// If a prompt is empty or has no room in the context, a rule is impossible, the backend fails, or the listener had enough.
pub fn generate(
    folder: &ModelFolder,
    decoder: &mut dyn Decoder,
    prompts: &[Vec<i64>],
    rules: &Rules,
    listener: &mut dyn Listener,
) -> Result<Vec<Completion>> {
    let lengths = lengths(folder, prompts, rules)?;
    // the last token is never fed
    decoder.start(prompts.len(), lengths.most - 1)?;
    run(folder, decoder, prompts, &lengths, rules, listener)
}

/// How long the rows of a batch are, and may become: no longer than the model's context.
pub(super) fn lengths(folder: &ModelFolder, prompts: &[Vec<i64>], rules: &Rules) -> Result<Lengths> {
    let context = folder.config.max_position_embeddings;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    if prompts.iter().any(Vec::is_empty) || prompts.is_empty() {
        return Err(Error::request("prompt", "at least one token", "none"));
    }
    prompts.iter().try_for_each(|prompt| folder.check(prompt))?;
    let lengths = Lengths::new(&rules.config, longest, Some(context))?;
    Ok(Lengths { most: lengths.most.min(context), ..lengths })
}

/// The loop. Of a single prompt, the first tokens may be cached already.
pub(super) fn run(
    folder: &ModelFolder,
    decoder: &mut dyn Decoder,
    prompts: &[Vec<i64>],
    lengths: &Lengths,
    rules: &Rules,
    listener: &mut dyn Listener,
) -> Result<Vec<Completion>> {
    let padded = left_padded(prompts, rules.config.padding().unwrap_or(0));
    let mut sequences = Vec::with_capacity(prompts.len());
    for (row, prompt) in padded.ids.iter().zip(prompts) {
        sequences.push(Sequence::new(folder, row.clone(), prompt.len(), lengths, rules)?);
    }
    let known = decoder.cached();
    let mut tokens = Array2::from_shape_fn((prompts.len(), lengths.prompt), |(b, t)| padded.ids[b][t]);
    tokens = tokens.slice_move(s![.., known..]);
    let real = Array2::from_shape_fn((prompts.len(), lengths.prompt), |(b, t)| padded.mask[b][t]);
    let mut real = Some(real).filter(has_padding);
    let mut working: Vec<usize> = (0..prompts.len()).collect();
    loop {
        let step = Step { tokens, real: real.clone() };
        let logits = decoder.forward(step, &mut |stage| listener.stage(stage))?;
        let (mut going_on, mut next) = (vec![], vec![]);
        for (row, &index) in working.iter().enumerate() {
            let (chosen, text) = sequences[index].choose(logits.row(row), rules.first_sequence + index)?;
            listener.token(index, chosen, &text)?;
            match &sequences[index].finish {
                None => {
                    going_on.push(row);
                    next.push(chosen.id);
                }
                Some(_) => listener.end(index, &sequences[index].last_text()?)?,
            }
        }
        if going_on.is_empty() {
            break;
        }
        if going_on.len() < working.len() {
            decoder.keep(&going_on)?;
            real = real.map(|real| real.select(Axis(0), &going_on)).filter(has_padding);
        }
        working = going_on.into_iter().map(|row| working[row]).collect();
        if let Some(real) = &mut real {
            let pushed = real.push_column(Array1::from_elem(working.len(), true).view());
            pushed.map_err(|error| Error::input("attention_mask", "a row for each sequence", error))?;
        }
        tokens = Array1::from_vec(next).insert_axis(Axis(1));
    }
    Ok(sequences.into_iter().map(Sequence::completion).collect())
}

fn has_padding(real: &Array2<bool>) -> bool {
    real.iter().any(|real| !real)
}

/// A sequence that grows.
struct Sequence<'a> {
    /// Padding, prompt and answer: what processors and stop rules see.
    row: Vec<i64>,
    processors: LogitsProcessors,
    sampler: Sampler,
    stopping: StoppingCriteria,
    strings: StopStrings<'a>,
    logprobs: bool,
    chosen: Vec<Chosen>,
    text: String,
    finish: Option<FinishReason>,
}

impl<'a> Sequence<'a> {
    fn new(folder: &'a ModelFolder, row: Vec<i64>, prompt: usize, lengths: &Lengths, rules: &Rules) -> Result<Self> {
        let (config, padding) = (&rules.config, row.len() - prompt);
        Ok(Sequence {
            row,
            processors: LogitsProcessors::new(config, lengths, padding, folder.config.vocab_size)?,
            sampler: if config.do_sample { Sampler::Seeded(rules.seed) } else { Sampler::Greedy },
            stopping: StoppingCriteria::new(config, lengths),
            strings: StopStrings::new(&folder.tokenizer, &config.stop_strings, true),
            logprobs: rules.logprobs,
            chosen: Vec::new(),
            text: String::new(),
            finish: None,
        })
    }

    /// Takes the next token by its logits \[V\]; `number` is that of the sequence. The token, and the text that it completes.
    fn choose(&mut self, logits: ArrayView1<f32>, number: usize) -> Result<(Chosen, String)> {
        let mut scores = logits.to_vec();
        self.processors.apply(&self.row, &mut scores)?;
        let id = self.sampler.choose(&scores, number as u64, self.chosen.len() as u64)?;
        let chosen = Chosen { id, logprob: self.logprobs.then(|| log_probability(&scores, id as usize)) };
        self.row.push(id);
        self.chosen.push(chosen);
        let piece = self.strings.push(id)?;
        self.finish = piece.stopped.or_else(|| self.stopping.after(&self.row));
        self.text += &piece.text;
        Ok((chosen, piece.text))
    }

    /// What its text ends with, where it was not a stop string that ended it.
    fn last_text(&mut self) -> Result<String> {
        let rest = match self.finish {
            Some(FinishReason::StopString(_)) => String::new(),
            _ => self.strings.clone().finish()?,
        };
        self.text += &rest;
        Ok(rest)
    }

    fn completion(self) -> Completion {
        let finish = self.finish.unwrap_or(FinishReason::Length);
        Completion { tokens: self.chosen, text: self.text, finish }
    }
}
