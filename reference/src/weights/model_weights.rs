//! The weights of a checkpoint folder under the names that the model asks for, in whatever form they lie there.
//!
//! | form | written by | read as |
//! |---|---|---|
//! | without `model.` | a bare model (`DeepseekV2Model`) | with it |
//! | `mlp.experts.gate_up_proj` \[E,2I,D\], `.down_proj` \[E,D,I\] | Transformers 5, `save_original_format=False` | one matrix for each expert |
//! | `lm_head.weight` alone, of a tied model | some exports | the embedding |
//! | another `lm_head.weight` under a tied config | fine-tuning | itself: the two are **not** tied, as in Transformers |
//! | 8 bits and scales | fp8 checkpoints | fp32 numbers, made when they are read |
//!
//! Tensors of other names are not read: [`WeightSource::notes`] says which.
//!
//! **Trap.** A tied config is a wish. Transformers compares the two tensors when it loads them, and ties them only if they are
//! equal.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::WeightSource;
use super::checkpoint::Checkpoint;
use super::finite::Watch;
use super::quantization::Fp8;
use super::safetensors_file::FileDtype;
use super::scaled::{LARGEST, Scaled, Scales};
use crate::config::Head;
use crate::error::one_line;
use crate::{DeepseekV2Config, Dialect, Error, Result, Tensor};

/// Where a weight lies.
#[derive(Clone, Debug, PartialEq)]
struct Place {
    /// The tensor in the file.
    tensor: String,
    /// Which of its matrices, and from which row of it on, if it has those of all experts.
    part: Option<Part>,
    /// The tensor that has its scales.
    scales: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Part {
    expert: usize,
    /// The half of the rows: of `gate_up_proj`, the first is gate. `None`: all of them.
    half: Option<usize>,
}

/// See the module.
pub struct ModelWeights {
    checkpoint: Checkpoint,
    fp8: Option<Fp8>,
    /// By the model's name.
    places: HashMap<String, Place>,
    /// Tensors that have no place in the model.
    others: Vec<String>,
    notes: Vec<String>,
    unties: bool,
}

impl ModelWeights {
    /// The weights of a model of this `config` in the folder `dir`. Of weights for which `needed` does not hold, the shards
    /// need not be there.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; also if config.json names a form that is not read.
    pub fn open(
        dir: &Path,
        config: &DeepseekV2Config,
        head: Head,
        dialect: Dialect,
        needed: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        let fp8 = Fp8::of(config)?;
        let of_file = |name: &str| needed(name) || needed(&format!("model.{name}"));
        let checkpoint = Checkpoint::open_some(dir, of_file)?;
        Self::of(checkpoint, fp8, config, head, dialect, needed)
    }

    fn of(
        checkpoint: Checkpoint,
        fp8: Option<Fp8>,
        config: &DeepseekV2Config,
        head: Head,
        dialect: Dialect,
        needed: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        let names = checkpoint.names().unwrap_or_default();
        let held: HashSet<&str> = names.iter().map(String::as_str).collect();
        let mut taken: HashSet<String> = HashSet::new();
        let mut places = HashMap::new();
        // Whatever the config says of ties, an output head that is there has a place.
        let untied = DeepseekV2Config { tie_word_embeddings: false, ..config.clone() };
        for (name, _) in untied.weight_shapes(head, dialect) {
            let Some((tensor, part)) = find(&name, &held) else { continue };
            let scales = match checkpoint.file_dtype(&tensor) {
                Some(FileDtype::F8_E4M3) => scales_of(&tensor, &held),
                _ => None,
            };
            taken.insert(tensor.clone());
            taken.extend(scales.clone());
            places.insert(name, Place { tensor, part, scales });
        }
        let mut weights = ModelWeights { checkpoint, fp8, places, others: vec![], notes: vec![], unties: false };
        weights.notes.extend(weights.checkpoint.notes());
        if head == Head::CausalLm && config.tie_word_embeddings && needed(EMBEDDING) {
            weights.tie()?;
        }
        let in_8_bits = |place: &Place| weights.checkpoint.file_dtype(&place.tensor) == Some(FileDtype::F8_E4M3);
        if weights.fp8.is_some() && !weights.places.is_empty() && !weights.places.values().any(in_8_bits) {
            weights.notes.push(
                "config.json's quantization_config says fp8, but no weight that was looked for is in 8 bits: all are read as they are"
                    .into(),
            );
        }
        let is_activation_scale = |name: &&String| ACTIVATION_SCALES.iter().any(|end| name.ends_with(end));
        let (static_scales, others): (Vec<_>, Vec<_>) =
            names.iter().filter(|name| !taken.contains(*name)).partition(is_activation_scale);
        if !static_scales.is_empty() {
            weights.notes.push(format!(
                "{} scales of activations (`{}`) were not read: they round what an engine multiplies, and are no part of the model",
                static_scales.len(),
                one_line(static_scales[0])
            ));
        }
        weights.others = others.into_iter().cloned().collect();
        Ok(weights)
    }

    /// Whether the checkpoint has an output head of its own although config.json ties it to the embedding. The model is
    /// then that of a config which does not.
    pub fn unties(&self) -> bool {
        self.unties
    }

    fn tie(&mut self) -> Result<()> {
        match (self.places.get(EMBEDDING).cloned(), self.places.get(HEAD).cloned()) {
            (None, Some(head)) => {
                self.notes.push(format!("`{}` is the embedding, too: config.json ties them", one_line(&head.tensor)));
                self.places.remove(HEAD);
                self.places.insert(EMBEDDING.into(), head);
            }
            (Some(embedding), Some(head)) if !self.are_equal(&embedding, &head)? => {
                self.unties = true;
                self.notes.push(
                    "config.json ties lm_head to the embedding, but the checkpoint holds both, and they differ: not tied, as in Transformers"
                        .into(),
                );
            }
            (Some(_), Some(_)) => drop(self.places.remove(HEAD)),
            (_, None) => {}
        }
        Ok(())
    }

    fn are_equal(&self, a: &Place, b: &Place) -> Result<bool> {
        const RUN: usize = 1 << 16;
        let file = |place: &Place| self.checkpoint.file_of(&place.tensor).expect("it has a place").real(&place.tensor);
        let (a, b) = (file(a)?, file(b)?);
        if a.shape() != b.shape() || a.dtype() == b.dtype() {
            return Ok(a.shape() == b.shape() && a.bytes() == b.bytes());
        }
        let values = |tensor: &Tensor, start: usize| {
            let mut values = vec![0f64; RUN.min(tensor.len() - start)];
            tensor.widen(start, &mut values);
            values
        };
        Ok((0..a.len()).step_by(RUN).all(|start| values(&a, start) == values(&b, start)))
    }

    /// The lengths of a place's axes.
    fn shape_at(&self, place: &Place) -> Option<Vec<usize>> {
        let shape = self.checkpoint.shape(&place.tensor)?;
        match (place.part, &shape[..]) {
            (None, _) => Some(shape),
            (Some(Part { half: None, .. }), &[_, rows, columns]) => Some(vec![rows, columns]),
            (Some(Part { half: Some(_), .. }), &[_, rows, columns]) if rows % 2 == 0 => Some(vec![rows / 2, columns]),
            // whatever it is, it is not what is looked for
            (Some(_), _) => Some(shape),
        }
    }

    fn plain(&self, place: &Place) -> Result<Tensor> {
        let file = self.checkpoint.file_of(&place.tensor).expect("it has a place");
        let tensor = file.real(&place.tensor)?;
        let Some(part) = place.part else { return Ok(tensor) };
        let (experts, rows, columns) = (tensor.shape()[0], tensor.shape()[1], tensor.shape()[2]);
        let (bytes, start) = file.place(&place.tensor).expect("it has a place");
        let flat = start..start + tensor.dtype().size() * experts * rows * columns;
        let flat = Tensor::new(&place.tensor, tensor.dtype(), &[experts * rows, columns], bytes.clone(), flat)?;
        let (first, count) = part.rows(rows);
        Ok(flat.rows(part.expert * rows + first..part.expert * rows + first + count))
    }

    fn scaled(&self, name: &str, place: &Place, shape: &[usize]) -> Result<Tensor> {
        let refuse = |expected: String, found: String| Error::weight(one_line(&place.tensor), expected, found);
        let (Some(fp8), &[_, columns]) = (self.fp8, shape) else {
            let found = "F8_E4M3".to_owned();
            return Err(match self.fp8 {
                None => refuse("a type that config.json's quantization_config explains (it has none)".into(), found),
                Some(_) => refuse("a matrix where there are 8 bits".into(), format!("shape {shape:?}")),
            });
        };
        let Some(scales) = &place.scales else {
            return Err(refuse("scales beside it (weight_scale_inv or weight_scale)".into(), "none".into()));
        };
        let (bytes, start) =
            self.checkpoint.file_of(&place.tensor).and_then(|file| file.place(&place.tensor)).expect("it has a place");
        let whole = self.checkpoint.shape(&place.tensor).expect("it has a place");
        let (matrices, rows) = match (place.part, &whole[..]) {
            (Some(_), &[experts, rows, _]) => (experts, rows),
            _ => (1, shape[0]),
        };
        let part = place.part.unwrap_or(Part { expert: 0, half: None });
        let scales = self.scales(scales, fp8, [matrices, rows, columns], part.expert)?;
        let matrix = Scaled::new(bytes.clone(), start + part.expert * rows * columns, columns, Arc::new(scales));
        let (first, count) = part.rows(rows);
        Ok(Tensor::scaled(shape, matrix.rows(first..first + count)).watched(self.checkpoint.watch().over(name)))
    }

    /// Those of one of `matrices`.
    fn scales(&self, name: &str, fp8: Fp8, [matrices, rows, columns]: [usize; 3], at: usize) -> Result<Scales> {
        let raw = self.checkpoint.file_of(name).and_then(|file| file.raw(name)).expect("it was found");
        let all: usize = raw.shape.iter().product();
        let of_one = all / matrices.max(1);
        let last: &[usize] = match raw.shape {
            [first, rest @ ..] if matrices > 1 && *first == matrices => rest,
            other => other,
        };
        let (in_row, block) = match (fp8.block, last) {
            (Some([r, c]), &[grid_rows, grid_columns])
                if [grid_rows, grid_columns] == [rows.div_ceil(r), columns.div_ceil(c)] =>
            {
                (grid_columns, [r, c])
            }
            _ if last.iter().product::<usize>() == 1 && of_one == 1 => (1, [rows.max(1), columns.max(1)]),
            (_, &[length] | &[length, 1]) if length == rows => (1, [1, columns.max(1)]),
            _ => {
                let grid = fp8.block.map_or(String::new(), |[r, c]| {
                    format!("[{}, {}] (blocks of {r} x {c}), ", rows.div_ceil(r), columns.div_ceil(c))
                });
                let expected = format!("scales {grid}[{rows}, 1] (for each row) or [1]");
                return Err(Error::weight(one_line(name), expected, one_line(&format!("shape {:?}", raw.shape))));
            }
        };
        let one = |i: usize, size: usize| &raw.bytes[i * size..(i + 1) * size];
        let value: Box<dyn Fn(usize) -> f32> = match raw.dtype {
            FileDtype::F32 => Box::new(|i| f32::from_le_bytes(one(i, 4).try_into().expect("four bytes"))),
            FileDtype::BF16 => {
                Box::new(|i| half::bf16::from_le_bytes(one(i, 2).try_into().expect("two bytes")).to_f32())
            }
            FileDtype::F16 => Box::new(|i| half::f16::from_le_bytes(one(i, 2).try_into().expect("two bytes")).to_f32()),
            FileDtype::F8_E8M0 => Box::new(|i| f32::exp2(f32::from(one(i, 1)[0]) - 127.0)),
            other => return Err(Error::weight(one_line(name), "scales in F32, BF16, F16 or F8_E8M0", other)),
        };
        let values: Vec<f32> = (at * of_one..(at + 1) * of_one).map(value).collect();
        if let Some(bad) = values.iter().find(|scale| !(*scale * LARGEST).is_finite()) {
            return Err(Error::weight(one_line(name), "finite scales", bad));
        }
        Ok(Scales { values, in_row, block })
    }
}

impl Part {
    /// The first row, and how many, of a matrix of so many.
    fn rows(self, all: usize) -> (usize, usize) {
        match self.half {
            None => (0, all),
            Some(half) => (half * (all / 2), all / 2),
        }
    }
}

impl WeightSource for ModelWeights {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let Some(place) = self.places.get(name) else {
            let found = format!("no such tensor in {}", self.checkpoint.path().display());
            return Err(Error::weight(one_line(name), format!("shape {shape:?}"), found));
        };
        let found = self.shape_at(place).expect("it has a place");
        let experts = place.part.map_or(0, |part| part.expert);
        let missing = place.part.is_some() && self.checkpoint.shape(&place.tensor).is_some_and(|all| experts >= all[0]);
        if found != shape || missing {
            let found = one_line(&format!("shape {found:?}")) + &format!(" in {}", self.checkpoint.path().display());
            return Err(Error::weight(one_line(name), format!("shape {shape:?}"), found));
        }
        match self.checkpoint.file_dtype(&place.tensor) {
            Some(FileDtype::F8_E4M3) => self.scaled(name, place, shape),
            _ => Ok(self.plain(place)?.watched(self.checkpoint.watch().over(name))),
        }
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(self.places.keys().chain(&self.others).cloned().collect())
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.shape_at(self.places.get(name)?)
    }

    fn watch(&self) -> Arc<Watch> {
        self.checkpoint.watch()
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
/// How names of scales end that an engine applies to what it multiplies with a weight.
const ACTIVATION_SCALES: [&str; 4] = [".activation_scale", ".input_scale", ".output_scale", "_activation_scale"];

/// The tensor that has the weight `name`, and which part of it that is.
fn find(name: &str, held: &HashSet<&str>) -> Option<(String, Option<Part>)> {
    let bare = name.strip_prefix("model.");
    let of = |name: &str, part| held.contains(name).then(|| (name.to_owned(), part));
    let fused = |name: &str| {
        let (path, rest) = name.split_once(".mlp.experts.")?;
        let (expert, matrix) = rest.split_once('.')?;
        let (tensor, half) = match matrix {
            "gate_proj.weight" => ("gate_up_proj", Some(0)),
            "up_proj.weight" => ("gate_up_proj", Some(1)),
            "down_proj.weight" => ("down_proj", None),
            _ => return None,
        };
        of(&format!("{path}.mlp.experts.{tensor}"), Some(Part { expert: expert.parse().ok()?, half }))
    };
    of(name, None)
        .or_else(|| bare.and_then(|bare| of(bare, None)))
        .or_else(|| fused(name))
        .or_else(|| bare.and_then(fused))
}

/// The tensor that has the scales of `tensor`.
fn scales_of(tensor: &str, held: &HashSet<&str>) -> Option<String> {
    let names = [format!("{tensor}_scale_inv"), format!("{tensor}_scale")];
    names.into_iter().find(|name| held.contains(name.as_str()))
}
