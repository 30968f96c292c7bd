//! The CUDA model over several ranks as a backend: emulated devices of this process.

use std::str::FromStr;

use dsv2_optimized::collective::emulated::{Rank, Ranks};
use dsv2_optimized::model::Settings as ModelSettings;
use dsv2_optimized::model::head::CausalLm;
use dsv2_optimized::model::parallel::{Homes, Layout};
use dsv2_optimized::{Emulated, Library, Variant};
use dsv2_reference::config::Head;
use dsv2_reference::tap::{NoTap, StageValue, Tap};
use indexmap::IndexMap;

use super::device::{self, Model, OF_MODULES, Stages};
use super::{Backend, Precision, Settings};
use crate::case::Case;
use crate::check::shards::{self, plans::Rule};
use crate::error::{Error, Result};
use crate::memory;
use crate::planned::Planned;
use crate::taps::{AnyTap, PartialSums, Recorder};
use crate::trace::Trace;
use crate::values::Values;

/// The CUDA model split over ranks, on emulated devices.
///
/// What they record is joined as the dumps of ranks are ([`shards`]). What several ranks have of one stage must be the same to
/// the bit: it is computed from the same numbers, or comes from a sum of which all get the same.
///
/// The ranks run side by side, so that a run's tap sees what was joined, afterwards: what it changes is recorded, and nothing
/// follows from it.
#[derive(Clone, Copy, Debug)]
pub struct OnRanks {
    layout: Layout,
}

impl OnRanks {
    /// So many parts of heads and columns, and so many blocks of experts.
    pub const fn new(tensor: usize, experts: usize) -> Self {
        OnRanks { layout: Layout { tensor, experts, homes: Homes::Every } }
    }

    /// P and Q of `PxQ`: parts of heads and columns, and blocks of experts.
    pub fn parts(text: &str) -> Option<[usize; 2]> {
        let (tensor, experts) = text.split_once('x')?;
        Some([tensor.parse().ok()?, experts.parse().ok()?])
    }

    /// The traces of all ranks.
    fn traces(self, case: &Case, settings: &Settings<'_>) -> Result<Vec<Trace>> {
        let Settings { precision, attention, replay, teacher, .. } = *settings;
        let element = device::element(precision)
            .ok_or_else(|| Error::request("--ranks", "a type that the kernels compute in", precision))?;
        let of_rank = |rank: &Rank| {
            let settings = Settings { precision, attention, replay, teacher, ..Settings::default() };
            let of_model = ModelSettings::new(element, Variant::Tuned);
            let (config, weights, part) = (&case.config, &*case.weights, (rank, self.layout));
            let model = CausalLm::load_share(config, case.dialect, weights, part, of_model, &mut |_| ())?;
            let (mut tap, mut recorder) = (NoTap, Recorder::new(precision, None));
            let mut stages = Stages::new(case, &settings, &mut tap, &mut recorder);
            let done = Model::CausalLm(model).feed(case, &settings, &mut stages);
            // The ranks know errors of devices; what a case does wrong is found by all of them, and named below.
            Ok(done.and_then(|()| Trace::join(recorder.into_chunks(), case.inputs.batch())))
        };
        let devices = (0..self.layout.ranks()).map(|_| Emulated::new(Library::embedded())).collect();
        Ranks::new(devices).run(of_rank)?.into_iter().collect()
    }

    /// One trace of those of all ranks: rank q P + p has part p of heads and columns, and block q of the experts.
    fn joined(self, case: &Case, traces: Vec<Trace>) -> Result<Trace> {
        let rule: Rule = "transformers".parse()?;
        let names = (0..traces.len()).map(|rank| format!("rank {rank}"));
        let files: Vec<shards::File> = names.zip(traces).collect();
        let mut blocks = files.chunks(self.layout.tensor).enumerate().map(|(block, files)| {
            let joined = shards::join(files, &rule, case)?;
            match joined.others.first() {
                None => Ok(joined.first),
                Some(other) => {
                    let first = block * self.layout.tensor;
                    Err(differ(&other.names[0], first, first + other.rank))
                }
            }
        });
        let first = blocks.next().unwrap_or_else(|| Err(Error::request("--ranks", "a rank at least", 0)))?;
        for (block, other) in (1..).zip(blocks) {
            let other = other?;
            let differs = |(name, values): &(&str, &Values)| !other.get(name).is_some_and(|of| of.identical(values));
            if let Some((name, _)) = first.iter().find(differs) {
                return Err(differ(name, 0, block * self.layout.tensor));
            }
        }
        Ok(first)
    }
}

fn differ(name: &str, first: usize, other: usize) -> Error {
    Error::request("--ranks", format!("`{name}` with the same bits on rank {first} and rank {other}"), "others")
}

/// As [`OnRanks::parts`] reads it.
impl FromStr for OnRanks {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        const MOST: usize = 64;
        let refused =
            || Error::request("--ranks", format!("PxQ, such as 2x4, of 1 to {MOST} ranks"), format!("{text:?}"));
        let [tensor, experts] = OnRanks::parts(text).ok_or_else(refused)?;
        let ranks = OnRanks::new(tensor, experts);
        if (1..=MOST).contains(&ranks.layout.ranks()) { Ok(ranks) } else { Err(refused()) }
    }
}

impl Backend for OnRanks {
    fn name(&self) -> &'static str {
        "ranks"
    }

    fn precisions(&self) -> &'static [Precision] {
        &[Precision::F32, Precision::Bf16]
    }

    fn leaves_out(&self, stage: &str, _: &Settings<'_>) -> bool {
        device::is_fused(stage)
    }

    fn cannot_run(&self, case: &Case, settings: &Settings<'_>) -> Option<String> {
        device::cannot_run(settings).or_else(|| device::cannot_run_case(case)).or_else(|| {
            if case.head != Head::CausalLm {
                return Some("what is split over ranks is a model of language".to_owned());
            }
            let refused = self.layout.check(&case.config, case.dialect, self.layout.ranks()).err();
            refused.map(|error| error.to_string())
        })
    }

    fn partial_sums(&self) -> PartialSums {
        // What experts make goes to where their token is at home one by one, and is added up there.
        PartialSums::over(self.layout.tensor)
    }

    fn takes(&self, case: &Case, settings: &Settings<'_>, planned: &IndexMap<String, Planned>) -> Result<u64> {
        // Each rank has less than one device would; all that they record is there at once.
        let of_rank =
            device::sum([device::device_memory(case, settings)?, memory::largest(planned).saturating_mul(16)]);
        let of_each = device::sum([of_rank, of_rank / 4, memory::all(planned).saturating_mul(8), OF_MODULES]);
        Ok(of_each.saturating_mul(self.layout.ranks() as u64))
    }

    fn run(&self, case: &Case, settings: &Settings<'_>, tap: &mut dyn AnyTap) -> Result<Trace> {
        let trace = self.joined(case, self.traces(case, settings)?)?;
        let chosen = |name: &str| settings.stages.is_none_or(|chosen| chosen(name));
        let looked_at = trace.iter().filter(|(name, _)| chosen(name)).map(|(name, values)| {
            let mut values = values.clone();
            match &mut values {
                Values::Real(_, a) => Tap::<f64>::stage(tap, name, StageValue::Real(a.view_mut())),
                Values::Index(a) => Tap::<f64>::stage(tap, name, StageValue::Index(a.view_mut())),
                _ => {}
            }
            (name.to_owned(), values)
        });
        Ok(looked_at.collect())
    }
}

#[cfg(test)]
mod tests {
    use ndarray::arr1;

    use std::sync::Arc;

    use dsv2_reference::weights::WeightSource;
    use dsv2_reference::{Dtype, Tensor};

    use super::*;
    use crate::check::Request;
    use crate::golden::GoldenCases;

    /// Which weights are, by their names.
    type IsWrong = fn(&str) -> bool;

    /// Weights of which some are wrong: the second of four blocks of their columns is a twentieth too large.
    struct WithLargerBlock {
        weights: Arc<dyn WeightSource + Send + Sync>,
        is_wrong: IsWrong,
    }

    impl WeightSource for WithLargerBlock {
        fn tensor(&self, name: &str, shape: &[usize]) -> dsv2_reference::Result<Tensor> {
            let right = self.weights.tensor(name, shape)?;
            if !(self.is_wrong)(name) {
                return Ok(right);
            }
            let numbers = right.to_array::<f64, ndarray::Ix2>();
            let factor = |column: usize| if column / (shape[1] / 4) == 1 { 1.05 } else { 1.0 };
            let numbers = numbers.indexed_iter().map(|((_, column), x)| x * factor(column));
            Ok(Tensor::from_values(Dtype::F32, shape, numbers))
        }

        fn names(&self) -> Option<Vec<String>> {
            self.weights.names()
        }
    }

    /// The first stage that is wrong in the dumps of four ranks in bf16, the second of which has such blocks.
    fn first_wrong_of_four(is_wrong: IsWrong) -> Option<String> {
        let case = GoldenCases::embedded().load("v2").unwrap().case;
        let weights = Arc::new(WithLargerBlock { weights: case.weights.clone(), is_wrong });
        let wrong = Case { weights, ..case.clone() };
        let settings = Settings { precision: Precision::Bf16, ..Settings::default() };
        let traces = OnRanks::new(4, 1).traces(&wrong, &settings).unwrap();
        let files: Vec<shards::File> = (0..4).map(|rank| format!("rank {rank}")).zip(traces).collect();
        let joined = shards::join(&files, &"transformers".parse().unwrap(), &case).unwrap();
        let checked = shards::check_ranks(&mut Request::new(case, Trace::default()), joined).unwrap();
        checked.verdict.first_failure().map(|stage| stage.stage.clone())
    }

    #[test]
    fn dumps_of_four_ranks_in_bf16_are_right_and_a_wrong_part_of_a_sum_is_found_at_its_stage() {
        assert_eq!(first_wrong_of_four(|_| false), None);
        let wrong: [(IsWrong, &str); 4] = [
            (|name| name == "model.layers.1.self_attn.o_proj.weight", "model.layers.1.self_attn.o_proj"),
            (|name| name == "model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.down_proj"),
            (|name| name.ends_with("1.mlp.shared_experts.down_proj.weight"), "model.layers.1.mlp.shared_experts"),
            (|name| name.contains("2.mlp.experts.") && name.contains("down"), "model.layers.2.mlp.experts"),
        ];
        for (is_wrong, stage) in wrong {
            assert_eq!(first_wrong_of_four(is_wrong).as_deref(), Some(stage));
        }
    }

    #[test]
    fn ranks_that_differ_in_what_all_have_are_an_error() {
        let case = GoldenCases::embedded().load("v2").unwrap().case;
        let name = "model.layers.0.input_layernorm";
        let of = |x: f64| {
            let shape = [case.inputs.batch(), case.inputs.length(), case.config.hidden_size];
            let same = arr1(&[x]).broadcast(shape).unwrap().to_owned().into_dyn();
            Trace::default().with(name, Values::Real(dsv2_reference::Dtype::F32, same))
        };
        let joined = |tensor, of_ranks: [f64; 4]| {
            let traces = of_ranks.into_iter().map(of).collect();
            OnRanks::new(tensor, 4 / tensor).joined(&case, traces).map(|_| ()).map_err(|error| error.to_string())
        };
        let differ = |first: usize, other: usize| {
            Err(format!("--ranks: expected `{name}` with the same bits on rank {first} and rank {other}, found others"))
        };
        assert_eq!(joined(2, [1.0; 4]), Ok(()));
        assert_eq!(joined(2, [1.0, 2.0, 1.0, 1.0]), differ(0, 1));
        assert_eq!(joined(2, [1.0, 1.0, 1.0, 2.0]), differ(2, 3));
        assert_eq!(joined(2, [1.0, 1.0, 2.0, 2.0]), differ(0, 2));
        assert_eq!(joined(1, [1.0, 1.0, 1.0, 2.0]), differ(0, 3));
    }
}
