//! The loop over tokens.

use dsv2_text::generation::Lengths;
use dsv2_text::generation::padding::left_padded;
use ndarray::{Array1, Array2, Axis, s};

use super::decoder::{Decoder, Step};
use super::sequence::Sequence;
use super::{Completion, Listener, ModelFolder, Rules};
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
            match sequences[index].finish() {
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
