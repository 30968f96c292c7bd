//! Layouts other than Hugging Face's, recognised: the same numbers in another place are no error, and it is said which.

use dsv2_reference::{DeepseekV2Config, Dialect};
use ndarray::{Array, ArrayD, Axis, Slice};
use serde::Serialize;

use crate::inputs::Inputs;
use crate::metrics::compare;
use crate::rows::ComparedRows;
use crate::stage::{Layout, Stage};
use crate::trace::Trace;
use crate::values::{Values, fit};

/// A tensor that came in another layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recognised {
    /// The stage, or the name that the dump has for it.
    pub stage: String,
    /// What its layout is.
    pub layout: String,
}

impl Recognised {
    fn new(stage: &str, layout: impl Into<String>) -> Self {
        Recognised { stage: stage.to_owned(), layout: layout.into() }
    }
}

/// Takes tensors apart that hold several stages, or are called otherwise:
///
/// * `mlp.gate_up_proj` of a dense layer: `gate_proj`, then `up_proj`;
/// * `self_attn.fused_qkv_a_proj_with_mqa`: `q_a_proj`, then `kv_a_proj_with_mqa`;
/// * `mlp` of a dense layer: its `down_proj`.
pub fn split_fused(dump: &Trace, config: &DeepseekV2Config, dialect: Dialect) -> (Trace, Vec<Recognised>) {
    let (mut stages, mut recognised) = (Vec::new(), Vec::new());
    for (name, values) in dump.iter() {
        match fused(name, values, config, dialect) {
            Some((parts, layout)) if parts.iter().all(|(part, _)| dump.get(part).is_none()) => {
                recognised.push(Recognised::new(name, layout));
                stages.extend(parts);
            }
            _ => stages.push((name.to_owned(), values.clone())),
        }
    }
    (stages.into_iter().collect(), recognised)
}

type Parts = Vec<(String, Values)>;

fn fused(name: &str, values: &Values, config: &DeepseekV2Config, dialect: Dialect) -> Option<(Parts, String)> {
    let layer: usize = name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()?;
    let path = |leaf: &str| format!("model.layers.{layer}.{leaf}");
    let dense = layer < config.num_hidden_layers && !config.is_moe_layer(layer, dialect);
    let halves = |at: usize, parts: [&str; 2]| {
        let Values::Real(dtype, a) = values else { return None };
        let last = Axis(a.ndim().checked_sub(1)?);
        (0 < at && at < a.len_of(last)).then(|| {
            let (first, second) = a.view().split_at(last, at);
            let part = |name: &str, a: ndarray::ArrayViewD<'_, f64>| (path(name), Values::Real(*dtype, a.to_owned()));
            let layout = format!("{} and {}, fused", parts[0], parts[1]);
            (vec![part(parts[0], first), part(parts[1], second)], layout)
        })
    };
    if name == path("mlp.gate_up_proj") && dense && values.shape().last() == Some(&(2 * config.intermediate_size)) {
        return halves(config.intermediate_size, ["mlp.gate_proj", "mlp.up_proj"]);
    }
    if name == path("self_attn.fused_qkv_a_proj_with_mqa") {
        return halves(config.q_lora_rank?, ["self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"]);
    }
    if name == path("mlp") && dense {
        return Some((vec![(path("mlp.down_proj"), values.clone())], "the output of mlp.down_proj".to_owned()));
    }
    None
}

/// Brings the stages of a dump into the shapes and the order of the model's.
///
/// * size-1 axes more or less;
/// * the batch flattened, `[B·S, ..]` for `[B, S, ..]`, or not flattened where the model's is;
/// * heads behind the tokens, `[B, S, H, ..]`;
/// * rotary numbers with all even ones in front (DeepSeek's own code, and whoever follows it).
///
/// Where the shape does not decide, the numbers do: an order is taken for another if that brings them four times nearer.
pub fn in_the_models(dump: &Trace, model: &Trace, inputs: &Inputs) -> (Trace, Vec<Recognised>) {
    let rows = ComparedRows::of(inputs);
    let mut recognised = Vec::new();
    let stages = dump.iter().map(|(name, values)| {
        let found = model.get(name).and_then(|want| in_place(name, values, want, &rows));
        let (values, layouts) = found.unwrap_or_else(|| (values.clone(), Vec::new()));
        recognised.extend(layouts.into_iter().map(|layout| Recognised::new(name, layout)));
        (name.to_owned(), values)
    });
    let stages = stages.collect();
    (stages, recognised)
}

fn in_place(name: &str, got: &Values, want: &Values, rows: &ComparedRows) -> Option<(Values, Vec<&'static str>)> {
    let stage = Stage::parse(name)?;
    match (got, want) {
        (Values::Index(got), Values::Index(want)) => {
            let (got, layout) = reshaped(got, want.shape(), stage.layout)?;
            Some((Values::Index(got), layout.into_iter().collect()))
        }
        (Values::Real(dtype, got), Values::Real(_, want)) => {
            let error = |a: &ArrayD<f64>| {
                let rows = rows.of_stage(&stage, want.shape());
                compare(a.view(), want.view(), rows.as_deref()).metrics.l2
            };
            let nearer = |a: &ArrayD<f64>, than: &ArrayD<f64>| error(a) < 0.25 * error(than);
            let plain = reshaped(got, want.shape(), stage.layout);
            let turned = heads_in_front(got, want.shape(), stage.layout);
            let (mut a, mut layouts) = match (plain, turned) {
                (Some((plain, _)), Some(turned)) if nearer(&turned, &plain) => (turned, vec![HEADS_BEHIND]),
                (Some((plain, layout)), _) => (plain, layout.into_iter().collect()),
                (None, Some(turned)) => (turned, vec![HEADS_BEHIND]),
                (None, None) => return None,
            };
            if name.ends_with("_pe") {
                let paired = pairs_of_halves(&a);
                if nearer(&paired, &a) {
                    (a, _) = (paired, layouts.push(HALVES));
                }
            }
            Some((Values::Real(*dtype, a), layouts))
        }
        _ => None,
    }
}

const HEADS_BEHIND: &str = "heads behind the tokens, [B, S, H, ..]";
const HALVES: &str = "de-interleaved halves (even numbers first, as in DeepSeek's own code)";

/// The same numbers in `shape`, where their order is the same.
fn reshaped<T: Clone>(got: &ArrayD<T>, shape: &[usize], layout: Layout) -> Option<(ArrayD<T>, Option<&'static str>)> {
    if got.shape() == shape {
        return Some((got.clone(), None));
    }
    if let Some(fitted) = fit(got, shape) {
        return Some((fitted, Some("axes of length 1 more or less")));
    }
    let row = |shape: &[usize]| shape.last().copied();
    let by_tokens = matches!(layout, Layout::Tokens | Layout::Flat | Layout::Keys | Layout::Logits);
    (by_tokens && got.len() == shape.iter().product::<usize>() && row(got.shape()) == row(shape)).then(|| {
        let how = if got.ndim() < shape.len() {
            "the batch flattened, [B·S, ..]"
        } else {
            "the batch kept apart, [B, S, ..]"
        };
        got.to_shape(shape).ok().map(|a| (a.to_owned(), Some(how)))
    })?
}

/// `[B, S, H, ..]` or `[B·S, H, ..]` to `[B, H, S, ..]`.
fn heads_in_front(got: &ArrayD<f64>, shape: &[usize], layout: Layout) -> Option<ArrayD<f64>> {
    let (&[batch, heads, length, width], Layout::Heads) = (shape, layout) else { return None };
    let ends = if heads == 1 { got.len() == batch * length * width } else { got.shape().ends_with(&[heads, width]) };
    let behind = got.to_shape((batch, length, heads, width)).ok().filter(|_| ends)?;
    Some(behind.permuted_axes([0, 2, 1, 3]).as_standard_layout().into_owned().into_dyn())
}

/// x[0], x[r/2], x[1], x[r/2 + 1], .. along the last axis.
fn pairs_of_halves(a: &ArrayD<f64>) -> ArrayD<f64> {
    let last = Axis(a.ndim() - 1);
    let half = a.len_of(last) / 2;
    let mut paired = Array::zeros(a.raw_dim());
    for (start, from) in [(0, Slice::from(..half)), (1, Slice::from(half..2 * half))] {
        paired.slice_axis_mut(last, Slice::new(start, None, 2)).assign(&a.slice_axis(last, from));
    }
    paired
}

#[cfg(test)]
mod tests;
