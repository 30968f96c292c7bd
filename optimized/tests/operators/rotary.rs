//! Tables of angles: positions of short and of long contexts and beyond, in any order; angles near multiples of pi/2.

use std::sync::Arc;

use dsv2_optimized::operators::rotary::rotary;
use dsv2_optimized::{Device, Element, Result, Tensor, Variant};
use dsv2_reference::model::rope::{RotaryEmbedding, RotaryTables};
use dsv2_reference::{DeepseekV2Config, Dialect, Real};
use ndarray::{Array2, Axis};

use crate::harness::{Case, Output, output};

/// The first positions, gaps, the ends of the published contexts, beyond a million, beyond what fp32 holds exactly, the
/// ends of the type, and a negative one, which a wrong mask makes of padding.
const POSITIONS: [i32; 19] = [
    0,
    1,
    2,
    3,
    100,
    4_095,
    4_096,
    163_839,
    163_840,
    131_072,
    105_615,
    1_048_576,
    1_048_577,
    9_999_999,
    16_777_217,
    123_456_789,
    i32::MAX,
    i32::MIN,
    -1,
];

/// Numerators of the continued fraction of pi/2: the rest of the angle is tiny, and all its digits come from the
/// reduction.
const NEAR_QUARTER_TURNS: [i32; 12] =
    [11, 344, 355, 710, 51_819, 52_174, 573_204, 260_515, 4_846_147, 5_419_351, 80_143_857, 245_850_922];

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for variant in Variant::ALL {
        let case = |shape: &str, run| Case {
            name: format!("rotary/{variant}/f32/{shape}"),
            module: "rotary",
            watched: true,
            run,
        };
        for (rope, attention_factor) in [(2, 1.0), (6, 0.625), (64, 1.0), (64, 1.25), (70, 1.0)] {
            let shape = format!("tokens={},rope={rope},factor={attention_factor}", POSITIONS.len());
            let run = move |device: &Arc<dyn Device>| compared(device, variant, &POSITIONS, rope, attention_factor);
            cases.push(case(&shape, Box::new(run)));
        }
        cases.push(case("near quarter turns", Box::new(move |device| near_quarter_turns(device, variant))));
        cases.push(case("alone as in the batch", Box::new(move |device| alone(device, variant))));
    }
    cases
}

/// The frequencies of V2 (YaRN) for a width.
pub fn embedding(rope: usize) -> RotaryEmbedding {
    let mut config = DeepseekV2Config::preset("v2").expect("a preset");
    config.qk_rope_head_dim = rope;
    RotaryEmbedding::new(&config, Dialect::Hf).expect("a valid config")
}

/// The reference's tables: [1,N,r/2].
pub fn tables<T: Real>(positions: &[i32], rope: usize) -> RotaryTables<T> {
    let positions = Array2::from_shape_fn((1, positions.len()), |(_, n)| i64::from(positions[n]));
    embedding(rope).tables(&positions, None)
}

/// The kernel's tables.
fn made(
    device: &Arc<dyn Device>,
    variant: Variant,
    positions: &[i32],
    inv_freq: &[f32],
    attention_factor: f32,
) -> Result<[Tensor; 2]> {
    let inv_freq = Tensor::from_f32(device, Element::F32, &[inv_freq.len()], inv_freq)?;
    let shape = [positions.len(), inv_freq.len()];
    let positions = Tensor::from_i32(device, &shape[..1], positions)?;
    let (cos, sin) = (output(device, Element::F32, &shape)?, output(device, Element::F32, &shape)?);
    rotary(variant, &positions, &inv_freq, attention_factor, &cos, &sin)?;
    Ok([cos, sin])
}

fn compared(
    device: &Arc<dyn Device>,
    variant: Variant,
    positions: &[i32],
    rope: usize,
    attention_factor: f32,
) -> Result<Vec<Output>> {
    let [cos, sin] = made(device, variant, positions, embedding(rope).inv_freq(), attention_factor)?;
    let (truth, plain) = (tables::<f64>(positions, rope), tables::<f32>(positions, rope));
    let truth = [truth.cos, truth.sin].map(|table| table.index_axis_move(Axis(0), 0) * f64::from(attention_factor));
    let plain =
        [plain.cos, plain.sin].map(|table| (table.index_axis_move(Axis(0), 0) * attention_factor).mapv(f64::from));
    let ([true_cos, true_sin], [plain_cos, plain_sin]) = (truth, plain);
    Ok(vec![Output::near("cos", &cos, true_cos, plain_cos)?, Output::near("sin", &sin, true_sin, plain_sin)?])
}

/// Each output by itself, so that nothing larger hides its error.
fn near_quarter_turns(device: &Arc<dyn Device>, variant: Variant) -> Result<Vec<Output>> {
    let mut outputs = vec![];
    for position in NEAR_QUARTER_TURNS {
        let [cos, sin] = made(device, variant, &[position], &[1.0], 1.0)?;
        let angle = f64::from(position as f32);
        for (name, got, truth) in [("cos", cos, angle.cos()), ("sin", sin, angle.sin())] {
            let truth = Array2::from_elem((1, 1), truth);
            outputs.push(Output::near(name, &got, truth.clone(), truth.mapv(|x| f64::from(x as f32)))?);
        }
    }
    Ok(outputs)
}

/// A token's row is the same to the bit, whatever else is in the batch and wherever it is there.
fn alone(device: &Arc<dyn Device>, variant: Variant) -> Result<Vec<Output>> {
    let inv_freq = embedding(64);
    let reversed: Vec<i32> = POSITIONS.iter().rev().copied().collect();
    let batch = made(device, variant, &reversed, inv_freq.inv_freq(), 1.0)?;
    let mut outputs = vec![];
    for (row, position) in reversed.iter().enumerate() {
        let single = made(device, variant, &[*position], inv_freq.inv_freq(), 1.0)?;
        for (single, batch) in single.iter().zip(&batch) {
            let in_batch = batch.narrow(0, row..row + 1)?.to_f32()?;
            outputs.push(Output::exactly("a token alone", single, in_batch)?);
        }
    }
    Ok(outputs)
}
