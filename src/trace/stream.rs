//! A trace that is written as it is computed: no stage is kept, none is held in a wider type than it was computed in, and what
//! comes in chunks finds its place beside the others.

use std::iter::from_fn;
use std::path::Path;

use dsv2_reference::stage::{Layout, Stage, canonical, flow};
use dsv2_reference::tap::{StageValue, Tap};
use dsv2_reference::weights::safetensors_file::StreamedFile;
use dsv2_reference::{Dtype, Real, Tensor};
use indexmap::IndexMap;
use ndarray::{ArrayViewD, Axis, Slice};

use super::{axis_of_tokens, with_infinity};
use crate::case::Case;
use crate::error::{Error, Result};
use crate::inputs::varlen::Packed;
use crate::planned::Planned;

/// The sink of a run, that writes what it sees.
pub struct Stream<'a> {
    file: StreamedFile,
    stages: IndexMap<String, Joined>,
    packed: Option<&'a Packed>,
    refused: Option<Error>,
}

/// How the chunks of a stage make up its tensor.
#[derive(Clone, Copy)]
struct Joined {
    /// The type of its numbers, or nothing if they are indices.
    dtype: Option<Dtype>,
    layout: Layout,
    /// Its shape, as `[outer, tokens, inner]`: a chunk has fewer tokens, and scores and weights of it fewer keys.
    shape: [usize; 3],
    /// The axis of its tokens; nothing, if the last chunk has it all.
    axis: Option<usize>,
    /// How many tokens have been written.
    fed: usize,
}

/// So many elements are converted at a time.
const PIECE: usize = 1 << 16;

impl<'a> Stream<'a> {
    /// Begins the file `path` for these stages of a case; all others that the run computes are passed over. Where sequences are
    /// packed into one row, the tensors lie as a dump has them.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn create(path: &Path, case: &'a Case, planned: &IndexMap<String, Planned>) -> Result<Self> {
        let packed = case.inputs.packed.as_ref();
        let written = |shape: &[usize]| packed.map_or(shape.to_vec(), |packed| packed.dumped_shape(shape).to_vec());
        let shapes: Vec<_> = planned.values().map(|planned| written(&planned.shape)).collect();
        let tensors = planned.iter().zip(&shapes);
        let tensors = tensors.map(|((name, planned), shape)| (name.as_str(), planned.dtype, shape.as_slice()));
        let file = StreamedFile::create(path, tensors)?;
        let batch = case.inputs.batch();
        let stages = planned.iter().map(|(name, planned)| (name.clone(), Joined::of(name, planned, batch))).collect();
        Ok(Stream { file, stages, packed, refused: None })
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// If something could not be written, or the run lacked a stage.
    pub fn finish(self) -> Result<()> {
        self.refused.map_or(Ok(()), Err)?;
        Ok(self.file.finish()?)
    }

    fn write<T: Real>(&mut self, name: &str, value: &StageValue<'_, T>) -> Result<()> {
        let Some(stage) = self.stages.get(name).copied() else { return Ok(()) };
        let tokens = match value {
            StageValue::Index(indices) => {
                let bytes = |indices: &[i64]| indices.iter().flat_map(|index| index.to_le_bytes()).collect();
                self.write_chunk(name, &stage, indices.view(), 0, bytes)?
            }
            StageValue::Real(numbers) => {
                let dtype = stage.dtype.unwrap_or(Dtype::F32);
                let scores = stage.layout == Layout::Scores;
                let stored = |x: &T| {
                    let x = Real::to_f64(*x);
                    if scores { with_infinity(dtype, x) } else { x }
                };
                let bytes =
                    |piece: &[T]| Tensor::from_values(dtype, &[piece.len()], piece.iter().map(stored)).bytes().to_vec();
                let fill = T::from_f64(if scores { f64::NEG_INFINITY } else { 0.0 });
                let in_order = self.packed.and_then(|packed| packed.dumped_keys(name, numbers.shape()));
                let in_order = in_order.map(|(axis, order)| numbers.select(axis, &order));
                let chunk = in_order.as_ref().map_or(numbers.view(), |numbers| numbers.view());
                self.write_chunk(name, &stage, chunk, fill, bytes)?
            }
        };
        self.stages[name].fed += tokens;
        Ok(())
    }

    /// Writes a chunk behind those before it, `fill` where it has no number. Returns how many tokens it has.
    fn write_chunk<X: Copy>(
        &mut self,
        name: &str,
        stage: &Joined,
        mut chunk: ArrayViewD<'_, X>,
        fill: X,
        bytes: impl Fn(&[X]) -> Vec<u8>,
    ) -> Result<usize> {
        let [outer, tokens, inner] = stage.shape;
        if stage.axis.is_none() {
            self.file.begin_again(name);
            if chunk.len() != inner {
                return Ok(0);
            }
        }
        // each chunk has the keys before it once more
        if let (Layout::Keys, Some(axis)) = (stage.layout, stage.axis) {
            chunk.slice_axis_inplace(Axis(axis), Slice::from(stage.fed.min(chunk.len_of(Axis(axis)))..));
        }
        let (new, columns) = stage
            .of_chunk(chunk.shape())
            .filter(|(new, _)| stage.fed + new <= tokens)
            .ok_or_else(|| Error::request("--chunks", format!("chunks of `{name}` that fit together"), "others"))?;
        let size = stage.dtype.map_or(size_of::<i64>(), Dtype::size);
        let mut numbers = chunk.iter().copied();
        for row in 0..outer {
            let mut column = (0..inner).cycle();
            let padded = from_fn(|| if column.next()? < columns { numbers.next() } else { Some(fill) });
            let mut rest = padded.take(new * inner);
            let mut at = (row * tokens + stage.fed) * inner;
            loop {
                let piece: Vec<X> = rest.by_ref().take(PIECE).collect();
                if piece.is_empty() {
                    break;
                }
                self.file.write(name, (at * size) as u64, &bytes(&piece))?;
                at += piece.len();
            }
        }
        Ok(if stage.axis.is_some() { new } else { 0 })
    }
}

impl Joined {
    fn of(name: &str, planned: &Planned, batch: usize) -> Self {
        let layout = Stage::parse(name).map_or(Layout::Whole, |stage| stage.layout);
        let axis = match layout {
            Layout::Keys if flow::is_copy(name) => axis_of_tokens(Layout::Tokens),
            layout => axis_of_tokens(layout),
        };
        let Planned { dtype, shape } = planned;
        let product = |axes: &[usize]| axes.iter().product::<usize>();
        let shape = match axis {
            None => [1, 1, product(shape)],
            // [B·S, ..]
            Some(0) => [batch, shape[0] / batch, product(&shape[1..])],
            Some(axis) => [product(&shape[..axis]), shape[axis], product(&shape[axis + 1..])],
        };
        Joined { dtype: *dtype, layout, shape, axis, fed: 0 }
    }

    /// How many tokens a chunk of this shape has, and how many numbers of each; nothing, if it is none of this stage.
    fn of_chunk(&self, shape: &[usize]) -> Option<(usize, usize)> {
        let [outer, _, inner] = self.shape;
        let all: usize = shape.iter().product();
        let Some(axis) = self.axis else { return (all == inner).then_some((1, inner)) };
        let tokens = if self.layout == Layout::Flat { shape.first()? / outer } else { *shape.get(axis)? };
        let columns = shape.get(axis + 1..)?.iter().product();
        let padded = matches!(self.layout, Layout::Scores | Layout::Weights);
        let fits = if padded { columns <= inner } else { columns == inner };
        (fits && outer * tokens * columns == all).then_some((tokens, columns))
    }
}

impl<T: Real> Tap<T> for Stream<'_> {
    fn stage(&mut self, name: &str, value: StageValue<'_, T>) {
        if self.refused.is_none() {
            self.refused = self.write(canonical(name), &value).err();
        }
    }
}

#[cfg(test)]
mod tests {
    use dsv2_reference::config::Head;
    use dsv2_reference::model::attention::AttentionForm;
    use dsv2_reference::tap::NoTap;
    use ndarray::s;

    use super::*;
    use crate::backend::{Backend, Precision, Reference, Settings, Streaming};
    use crate::golden::GoldenCases;
    use crate::inputs::{Inputs, Tokens};
    use crate::planned;
    use crate::trace::Trace;

    fn streamed(case: &Case, settings: &Settings<'_>) -> Result<Trace> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.safetensors");
        let mut stream = Stream::create(&path, case, &planned::stages(case, settings.attention, settings.precision))?;
        Reference.show(case, settings, &mut NoTap, &mut stream)?;
        stream.finish()?;
        Trace::read(&path)
    }

    fn assert_streamed_as_joined(what: &str, case: &Case, settings: &Settings<'_>) {
        let joined = Reference.run(case, settings, &mut NoTap).unwrap();
        let joined = case.inputs.packed.as_ref().map_or(joined.clone(), |packed| packed.as_dumped(&joined));
        let streamed = streamed(case, settings).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(streamed.iter().map(|(name, _)| name).eq(joined.iter().map(|(name, _)| name)), "{what}");
        for (name, values) in joined.iter() {
            let found = streamed.get(name).unwrap();
            assert!(found.identical(values), "{what}: {name}, {} for {}", found.describe(), values.describe());
        }
    }

    #[test]
    fn what_is_streamed_is_what_is_kept_and_joined() {
        let golden = GoldenCases::embedded();
        let mut chunked = 0;
        for name in golden.names() {
            let case = golden.load(name).unwrap().case;
            if case.config.parameter_count() > 3_000_000 {
                continue;
            }
            for (attention, precision) in
                [(AttentionForm::Expanded, Precision::Bf16), (AttentionForm::Absorbed, Precision::F32)]
            {
                let settings = Settings { attention, precision, ..Settings::default() };
                assert_streamed_as_joined(name, &case, &settings);
                let of_tokens = case.inputs.labels.is_none() && case.inputs.logits_to_keep.is_none();
                if !case.use_cache || case.head != Head::CausalLm || !of_tokens || case.inputs.length() < 5 {
                    continue;
                }
                if case.inputs.past() == 0 {
                    let in_chunks = Case { chunks: vec![2, case.inputs.length() - 3, 1], ..case.clone() };
                    assert_streamed_as_joined(name, &in_chunks, &settings);
                    chunked += 1;
                }
                let Ok(inputs) = case.inputs.clone().decoding(2) else { continue };
                for cache_before in [false, true] {
                    let inputs = Inputs { cache_before, ..inputs.clone() };
                    let chunks = vec![inputs.past() - 1, 1, inputs.length() - inputs.past()];
                    assert_streamed_as_joined(name, &Case { inputs, chunks, ..case.clone() }, &settings);
                }
            }
        }
        assert!(chunked > 100, "{chunked} in chunks");
    }

    #[test]
    fn packed_sequences_and_a_step_of_them_are_streamed_as_a_dump_has_them() {
        let case = GoldenCases::embedded().load("v2").unwrap().case;
        let Tokens::InputIds(ids) = &case.inputs.tokens else { panic!("ids") };
        let length = ids.ncols();
        let ids = ids.slice(s![..1, ..]).to_owned();
        let inputs = Inputs::new(Tokens::InputIds(ids)).laid_end_to_end(vec![length - 5, 5]).unwrap();
        let settings = Settings::default();
        assert_streamed_as_joined(
            "at once",
            &Case { chunks: vec![length], inputs: inputs.clone(), ..case.clone() },
            &settings,
        );
        let in_chunks = Case { chunks: vec![3, length - 3], inputs: inputs.clone(), ..case.clone() };
        assert_streamed_as_joined("in chunks", &in_chunks, &settings);
        let inputs = inputs.decoding(2).unwrap();
        let step = Case { chunks: vec![inputs.past(), 4], inputs, ..case };
        assert_streamed_as_joined("a step", &step, &settings);
        let keys = streamed(&step, &settings).unwrap().get("past_key_values.0.k_pe").unwrap().clone();
        let in_order = Reference.run(&step, &settings, &mut NoTap).unwrap();
        let in_order = in_order.get("past_key_values.0.k_pe").unwrap().fit(keys.shape()).unwrap();
        assert!(!keys.identical(&in_order), "the file's order is another than the row's");
    }

    #[test]
    fn chunks_that_do_not_fit_together_are_refused() {
        let golden = GoldenCases::embedded();
        let case = golden.load("decode").unwrap().case;
        let planned = planned::stages(&case, AttentionForm::Expanded, Precision::F32);
        let folder = tempfile::tempdir().unwrap();
        let mut stream = Stream::create(&folder.path().join("trace.safetensors"), &case, &planned).unwrap();
        let mut norm = ndarray::Array3::<f32>::zeros((1, 3, 5));
        stream.stage("model.norm", StageValue::Real(norm.view_mut().into_dyn()));
        let refused = stream.finish().unwrap_err().to_string();
        assert_eq!(refused, "--chunks: expected chunks of `model.norm` that fit together, found others");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
