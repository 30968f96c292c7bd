//! What is measured of a dump while the model is run, and kept: of a stage how far off it is, not the stage.

mod free;

use std::collections::{BTreeMap, BTreeSet};

use dsv2_metrics::{Comparison, Metrics, Spread};
use dsv2_reference::DeepseekV2Config;
use dsv2_reference::stage::table::{MLP, ROUTER_LOGITS, TOPK_INDICES, TOPK_WEIGHTS};
use dsv2_reference::stage::{self, Stage, flow, forward_order};
use indexmap::{IndexMap, IndexSet};

use super::PlainDump;
use super::visit::Chunks;
use crate::budget::{Budgets, FACTORS};
use crate::case::Case;
use crate::check::Request;
use crate::check::align::{self, Order};
use crate::error::Result;
use crate::judge::{self, Disposition, LocalTruth, Truth, Verdict};
use crate::local::{factors, with_usual};
use crate::precision::Precision;
use crate::rows::ComparedRows;
use crate::trace::Trace;
use crate::values::Values;

/// How far a stage of the dump is off, as it was read, in one way or another.
pub struct Off {
    /// Against the truth's own run.
    pub carried: Comparison,
    /// Against what it should be by itself.
    pub own: Comparison,
}

/// What is kept of a stage of the dump.
pub struct Stagewise {
    pub shape: Vec<usize>,
    pub off: Off,
    /// How far off it is by itself by each other reading, if it is not sure that it passes by this one.
    pub by_others: Vec<Comparison>,
    /// Whether it must be bit-identical.
    pub exact: bool,
}

/// Where the dump's stages of routing are kept, those of the truth, and what each should be by itself.
pub const DUMP: usize = 0;
pub const TRUTH: usize = 1;
pub const OWN: usize = 2;

/// What was measured.
pub struct Measured {
    /// Which rows mean something.
    pub rows: ComparedRows,
    /// All stages of the model, in order.
    pub names: IndexSet<String>,
    /// The stages that must be bit-identical.
    pub exact: BTreeSet<String>,
    /// The stages of the dump that took the place of the reference's.
    pub taught: BTreeSet<String>,
    /// Logits, choice and weights of experts, as they are.
    pub routing: [Trace; 3],
    /// The dump's choices that the truth followed.
    pub choices: Trace,
    /// What was read in another way than it came, and in which.
    pub readings: Vec<(String, &'static str)>,
    /// How far the dump's experts are from its `mlp`, layer by layer, where it holds both.
    pub experts_as_mlp: BTreeMap<usize, Comparison>,
    /// Stages of routing whose shape allows another reading.
    ambiguous: BTreeSet<String>,
    /// Of every stage of the dump that is none of routing.
    pub stages: BTreeMap<String, Stagewise>,
    /// What a plain run errs by.
    pub noise: IndexMap<String, Metrics>,
    /// How what each stage should be is spread.
    pub spreads: BTreeMap<String, (Spread, f64)>,
    /// How many times the noise a stage may be off by itself.
    factors: Metrics,
    chunks: Chunks,
    /// What stages may be off that are judged by another computation than the reference's.
    otherwise: BTreeMap<String, Metrics>,
}

impl Measured {
    /// Before anything is measured.
    pub fn nothing(case: &Case, precision: Precision) -> Self {
        let own = factors(precision);
        Measured {
            rows: ComparedRows::of(&case.inputs),
            // what is cached before the new tokens has come through the whole model
            factors: if case.inputs.past() > 0 { own.zip(&FACTORS, f64::max) } else { own },
            chunks: Chunks::of(case),
            otherwise: BTreeMap::new(),
            names: IndexSet::new(),
            exact: BTreeSet::new(),
            taught: BTreeSet::new(),
            routing: Default::default(),
            choices: Trace::default(),
            readings: Vec::new(),
            experts_as_mlp: BTreeMap::new(),
            ambiguous: BTreeSet::new(),
            stages: BTreeMap::new(),
            noise: IndexMap::new(),
            spreads: BTreeMap::new(),
        }
    }

    /// Keeps what plain runs err by, which is no less than is `usual`.
    pub fn keep_noise(&mut self, name: &str, noise: &[Metrics], usual: f64) {
        self.noise.insert(name.to_owned(), with_usual(noise, usual));
    }

    /// How many times the noise a stage may be off by itself.
    pub fn factors(&self) -> &Metrics {
        &self.factors
    }

    /// Whether the dump's experts are not its `mlp`: they are further from it than it may be from the truth.
    pub fn experts_are_not_mlp(&self, layer: usize, budgets: &Budgets) -> bool {
        let (Some(off), Some(budget)) = (self.experts_as_mlp.get(&layer), budgets.get(&stage::name(MLP, layer))) else {
            return false;
        };
        let within = off.metrics.values().iter().zip(budget.values()).all(|(off, budget)| *off <= budget);
        !within || off.nonfinite.is_some()
    }

    /// Whether a stage is off by no more than what is the least that it may be, whatever the others of its kind.
    pub fn surely_passes(&self, name: &str, off: &Comparison) -> bool {
        let least = self.noise.get(name).map(|noise| noise.zip(&self.factors, |noise, factor| noise * factor));
        let within = |least: Metrics| off.metrics.values().iter().zip(least.values()).all(|(off, least)| *off <= least);
        off.nonfinite.is_none() && !self.exact.contains(name) && least.is_some_and(within)
    }

    /// Keeps a stage of routing.
    pub fn keep(&mut self, name: &str, got: Option<Values>, truth: Values, own: Values, config: &DeepseekV2Config) {
        if let Some(got) = got {
            if align::all_readings(name, &got, Some(&truth), config.num_attention_heads).len() > 1 {
                self.ambiguous.insert(name.to_owned());
            }
            put(&mut self.routing[DUMP], name, got);
        }
        put(&mut self.routing[TRUTH], name, truth);
        put(&mut self.routing[OWN], name, own);
    }

    /// How far off each stage may be by itself.
    pub fn budgets(&self, config: &DeepseekV2Config) -> Budgets {
        let spread = |name: &str| self.spreads.get(name).copied();
        let from_its_inputs = |name: &str| {
            flow::sources(name, config, |name| self.names.contains(name), |name| self.taught.contains(name))
                .not_held
                .is_empty()
        };
        let mut budgets = Budgets::by_spread(&self.noise, spread, from_its_inputs, self.factors);
        self.otherwise.iter().for_each(|(stage, budget)| budgets.put(stage, *budget));
        budgets
    }

    /// What becomes of each stage, now that all budgets are known.
    ///
    /// # Errors
    /// If the config's way of routing is impossible.
    pub fn verdict(&self, request: &Request) -> Result<Verdict> {
        let budgets = self.budgets(&request.case.config);
        let mut verdict = self.of_routing(&self.routing[DUMP], request, &budgets)?;
        for (name, stage) in &self.stages {
            let Off { carried, own } = &stage.off;
            let budget = stage.budget(name, &budgets);
            verdict.stages.push(judge::of_comparisons(name, &stage.shape, own.clone(), carried.clone(), budget));
        }
        verdict.stages.sort_by_key(|stage| forward_order(&stage.stage));
        Ok(verdict)
    }

    /// What becomes of these stages of routing.
    ///
    /// # Errors
    /// If the config's way of routing is impossible.
    pub fn of_routing(&self, stages: &Trace, request: &Request, budgets: &Budgets) -> Result<Verdict> {
        let (none, rows) = (Budgets::default(), &self.rows);
        let own = LocalTruth {
            truth: Truth { trace: &self.routing[OWN], budgets, rows },
            exact: &self.exact,
            method: Some(request.case.config.topk_method()?),
        };
        let truth = Truth { trace: &self.routing[TRUTH], budgets: &none, rows };
        Ok(judge::judge(stages, &truth, Some(&own), |_| false))
    }

    /// How far off a stage is by itself, and from the truth.
    pub fn off(&self, name: &str) -> Option<[Comparison; 2]> {
        let Some(stage) = self.stages.get(name) else {
            let off = |of: usize| self.rows.measure(name, self.routing[DUMP].get(name)?, self.routing[of].get(name)?);
            return Some([off(OWN)?, off(TRUTH)?]);
        };
        Some([stage.off.own.clone(), stage.off.carried.clone()])
    }

    /// Judges a stage by what it should be in `other`, of the same dump, and allows it `budget`.
    pub fn judge_by(&mut self, other: &Measured, name: &str, budget: Metrics) {
        match (self.stages.get_mut(name), other.stages.get(name)) {
            (Some(own), Some(other)) => own.off.own = other.off.own.clone(),
            _ => {
                if let Some(values) = other.routing[OWN].get(name) {
                    put(&mut self.routing[OWN], name, values.clone());
                }
            }
        }
        self.otherwise.insert(name.to_owned(), budget);
    }

    /// What of the dump took the place of a choice of experts.
    pub fn lesson(&self, choice: &str) -> Option<&Values> {
        self.routing[OWN].get(choice).filter(|_| self.taught.contains(choice))
    }

    /// A stage was not read in its other ways.
    pub fn may_be_another_reading(&mut self, name: &str) {
        self.ambiguous.insert(name.to_owned());
    }

    /// Whether a stage may be right if it is read in another way.
    pub fn may_be_read_otherwise(&self, name: &str, budgets: &Budgets) -> bool {
        self.ambiguous.contains(name)
            || self.stages.get(name).is_some_and(|stage| {
                let budget = stage.budget(name, budgets);
                let by = |own: &Comparison| judge::of_comparisons(name, &stage.shape, own.clone(), own.clone(), budget);
                stage.by_others.iter().any(|own| by(own).disposition == Disposition::Pass)
            })
    }

    /// Whether of what is rotated some is read in halves and some is not: no program has both.
    pub fn halves_are_mixed(&self, dump: &PlainDump) -> bool {
        let width = |name: &str| self.stages.get(name).and_then(|stage| stage.shape.last().copied());
        align::are_mixed(dump.names(), width, &self.readings)
    }

    /// The last stage that is none of routing, and what was measured of it.
    fn last(&self) -> Option<(&String, &Stagewise)> {
        self.stages.iter().max_by_key(|(name, _)| forward_order(name))
    }

    /// Whether the last stage does not lie in its file as the model has it.
    pub fn ends_otherwise(&self, dump: &PlainDump) -> bool {
        self.last().is_some_and(|(last, _)| {
            let turned = self.readings.iter().any(|(name, says)| name == last && !align::in_rows(says));
            turned || dump.order(last) == Some(Order::Other)
        })
    }
}

impl Stagewise {
    fn budget(&self, name: &str, budgets: &Budgets) -> Option<Metrics> {
        if self.exact { Some(Metrics::default()) } else { budgets.get(name) }
    }
}

/// Weights of experts are compared with the help of the choice of experts, and that with the help of the logits.
pub fn is_compared_with_help_of(name: &str) -> bool {
    name.ends_with(".topk_indices") || name.ends_with(".router_logits")
}

/// Whether it is kept as it is.
pub fn is_routing(name: &str) -> bool {
    Stage::parse(name).is_some_and(|stage| [ROUTER_LOGITS, TOPK_INDICES, TOPK_WEIGHTS].contains(&stage.kind))
}

/// Adds a stage, or replaces it.
pub fn put(all: &mut Trace, name: &str, values: Values) {
    *all = std::mem::take(all).with(name, values);
}
