//! The end of a decode step on the device: the chosen tokens become the next input.

use ptx_emulator::{Arg, Grid};

use super::Operand;
use crate::{Element, Kernel, Result, Tensor};

/// Where sequences are between two steps; all \[B\] i32 but the draws.
#[derive(Debug)]
pub struct Sequences {
    /// The input of the next step.
    pub tokens: Tensor,
    /// Its position among the real tokens.
    pub positions: Tensor,
    /// Keys that the next step sees, its own included.
    pub lengths: Tensor,
    /// The place of its key in the cache; -1 if there is none.
    pub slots: Tensor,
    /// Whether the text has ended: 0 or 1.
    pub ended: Tensor,
    /// \[B,max_pages\]: a place for every token that may come.
    pub block_table: Tensor,
    /// What decides the draws, if there are any.
    pub draws: Option<Draws>,
}

/// The numbers from \[0,1) that decide which tokens are drawn.
#[derive(Debug)]
pub struct Draws {
    /// \[steps,B\] f32: of all steps.
    pub all: Tensor,
    /// \[B\] f32: of the next step.
    pub next: Tensor,
    /// \[B\] i32: how many each sequence has had.
    pub drawn: Tensor,
}

/// Takes what a step has chosen, \[B\] i32, as the input of the next one. A sequence that has ended goes on with `filler`; it
/// ends with one of `ends` \[E\] i32.
///
/// # Errors
/// If shapes or types do not fit, or the launch fails.
pub fn advance(sequences: &Sequences, chosen: &Tensor, ends: &Tensor, filler: i32, page_size: usize) -> Result<()> {
    const OPERATOR: &str = "advance";
    let Sequences { tokens, positions, lengths, slots, ended, block_table, draws } = sequences;
    let integers = |name, tensor| Operand::new(OPERATOR, name, tensor).element(Element::I32)?.contiguous();
    let [batch] = integers("chosen", chosen)?.axes()?;
    let [end_count] = integers("ends", ends)?.axes()?;
    let [_, max_pages] = integers("block_table", block_table)?.axes()?;
    Operand::new(OPERATOR, "block_table", block_table).shape(&[batch, max_pages])?;
    for (name, tensor) in
        [("tokens", tokens), ("positions", positions), ("lengths", lengths), ("slots", slots), ("ended", ended)]
    {
        integers(name, tensor)?.shape(&[batch])?;
    }
    let mut steps = 0;
    if let Some(Draws { all, next, drawn }) = draws {
        [steps, _] = Operand::new(OPERATOR, "draws", all).element(Element::F32)?.contiguous()?.axes()?;
        Operand::new(OPERATOR, "draws", all).shape(&[steps, batch])?;
        Operand::new(OPERATOR, "next", next).element(Element::F32)?.shape(&[batch])?;
        integers("drawn", drawn)?.shape(&[batch])?;
    }
    if batch == 0 {
        return Ok(());
    }
    let of_draws = |of: fn(&Draws) -> &Tensor| draws.as_ref().map_or(0, |draws| of(draws).address());
    let [chosen_at, ends, table] = [chosen, ends, block_table].map(Tensor::address);
    let [tokens, positions, lengths, slots, ended] = [tokens, positions, lengths, slots, ended].map(Tensor::address);
    let (all, next, drawn) = (of_draws(|it| &it.all), of_draws(|it| &it.next), of_draws(|it| &it.drawn));
    // `struct Step` of advance.cu.
    let words = [chosen_at, ends, table, all, tokens, positions, lengths, slots, ended, drawn, next];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let numbers = [batch as i32, end_count as i32, filler, max_pages as i32, page_size as i32, steps as i32];
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    let grid = Grid::linear(batch.div_ceil(128) as u32, 128);
    chosen.device().launch(&Kernel::new(OPERATOR, "advance_i32"), grid, &[Arg::bytes(&bytes)])
}
