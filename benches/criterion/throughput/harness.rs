//! How prompts, pieces of prompts and steps are timed: the same for the CPU and for a device.

use std::time::Duration;

use criterion::Throughput;
use dsv2_bench_report::{Better, Measurement};
use dsv2_optimized::Result;
use dsv2_reference::{AttentionForm, LogitsToKeep};
use ndarray::Array2;

use super::model::Model;
use crate::bench::{Bench, Profile};
use crate::ceilings::Ceilings;

/// Different steps that are timed in turn.
pub const STEPS: usize = 8;
/// The number of the first text that steps take their tokens from: none that a prompt is made of.
const STEP_TEXTS: usize = 1 << 20;

/// Only the last token of each sequence gets logits.
pub const LOGITS: LogitsToKeep = LogitsToKeep::Last(1);

/// What fails while it is timed is a mistake of this program.
const RUNS: &str = "a pass that the model can run";

/// Where a model runs.
#[derive(Clone, Copy)]
pub struct Machine {
    /// For the titles of tables.
    pub name: &'static str,
    /// Bytes of a number of the cache, and of the absorbed form's copy of `kv_b_proj`.
    pub number: f64,
    /// A prompt of more operations takes too long for criterion's ten samples.
    pub long: f64,
    /// In the ids of numbers of experts.
    pub experts: &'static str,
    /// What a reader of its tables must know.
    pub note: &'static str,
}

impl Machine {
    /// What it can do, if it is this one: a GPU's ceilings are measured with its kernels.
    pub fn ceilings(self, bench: &Bench) -> Option<Ceilings> {
        (self.name == "CPU").then(|| bench.ceilings())
    }
}

/// A model on a machine.
pub trait Subject {
    /// What it keeps of the tokens before.
    type Cache;

    /// The machine.
    const MACHINE: Machine;

    /// In the ids of times: the form of attention, or the name of the device.
    fn way(form: AttentionForm) -> &'static str;

    /// What is run.
    fn model(&self) -> &Model;

    /// What of the memory for a batch is lacking, if any is.
    fn lacks(&self, _batch: usize, _context: usize) -> Result<Option<String>> {
        Ok(None)
    }

    /// How long a prompt \[1,S\] takes from the first token on.
    fn prompt(&self, ids: Array2<i64>) -> Result<Duration>;

    /// A cache of so many tokens of each sequence.
    fn filled(&self, batch: usize, context: usize) -> Result<Self::Cache>;

    /// Runs new tokens, each time on the cache as it is: how long that took together.
    fn passes(&self, cache: &mut Self::Cache, ids: Vec<Array2<i64>>, form: AttentionForm) -> Result<Duration>;

    /// How many different experts such a pass uses, summed over the layers.
    fn experts(&self, cache: &mut Self::Cache, ids: Array2<i64>) -> Result<usize>;
}

/// What a pass is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A prompt from the first token on.
    Prompt,
    /// Several new tokens behind cached ones.
    Piece,
    /// One more token of each sequence.
    Step,
}

/// A pass that is timed.
#[derive(Clone, Copy)]
pub struct Point {
    pub kind: Kind,
    pub form: AttentionForm,
    pub batch: usize,
    /// Tokens of each sequence before.
    pub context: usize,
    /// New tokens of each sequence.
    pub new: usize,
    /// Whether the different experts are counted.
    pub experts: bool,
}

impl Point {
    /// A prompt, in the expanded form.
    pub fn prompt(new: usize) -> Self {
        Point { kind: Kind::Prompt, form: AttentionForm::Expanded, batch: 1, context: 0, new, experts: false }
    }

    /// A piece of a prompt.
    pub fn piece(form: AttentionForm, context: usize, new: usize) -> Self {
        Point { kind: Kind::Piece, form, context, ..Point::prompt(new) }
    }

    /// A step.
    pub fn step(form: AttentionForm, context: usize, batch: usize) -> Self {
        Point { kind: Kind::Step, batch, ..Point::piece(form, context, 1) }
    }

    /// Group and name on a machine.
    fn id<S: Subject>(&self, model: &str) -> (String, String) {
        let Point { kind, batch, context, new, .. } = self;
        let way = S::way(self.form);
        match kind {
            Kind::Prompt => (format!("throughput/prefill/{model}/{way}"), format!("tokens={new}")),
            Kind::Piece => (format!("throughput/piece/{model}/{way}/context={context}"), format!("tokens={new}")),
            Kind::Step => (format!("throughput/decode/{model}/{way}/context={context}"), format!("batch={batch}")),
        }
    }

    /// Whether the command line wants it.
    pub fn is_wanted<S: Subject>(&self, bench: &Bench, model: &str) -> bool {
        let (group, name) = self.id::<S>(model);
        bench.wants(&format!("{group}/{name}"))
    }
}

/// A point that was measured.
pub struct Timed {
    pub point: Point,
    pub seconds: f64,
    /// Different experts in all layers, the mean of some steps; if they were counted.
    pub experts: Option<f64>,
}

/// What was measured of a model.
pub struct Measured {
    pub model: Model,
    pub machine: Machine,
    pub timed: Vec<Timed>,
}

impl Measured {
    /// All of a kind.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &Timed> {
        self.timed.iter().filter(move |timed| timed.point.kind == kind)
    }

    /// Contexts and seconds of steps of one sequence.
    pub fn by_context(&self, form: AttentionForm) -> Vec<(f64, f64)> {
        let steps = self.of(Kind::Step).filter(|timed| timed.point.form == form && timed.point.batch == 1);
        steps.map(|timed| (timed.point.context as f64, timed.seconds)).collect()
    }

    /// Of new tokens of one sequence behind cached ones: a piece or, of one token, a step.
    pub fn seconds(&self, form: AttentionForm, context: usize, new: usize) -> Option<f64> {
        let is_it = |point: &Point| (point.batch, point.form, point.context, point.new) == (1, form, context, new);
        self.timed.iter().find(|timed| is_it(&timed.point)).map(|timed| timed.seconds)
    }
}

/// Times all points, as far as they are wanted and fit.
pub fn measure<S: Subject>(bench: &mut Bench, subject: S, points: &[Point]) -> Measured {
    let timed = points.iter().filter_map(|point| timed(bench, &subject, *point)).collect();
    Measured { model: subject.model().clone(), machine: S::MACHINE, timed }
}

fn timed<S: Subject>(bench: &mut Bench, subject: &S, point: Point) -> Option<Timed> {
    let Point { kind, form, batch, context, new, experts } = point;
    let model = subject.model();
    if !point.is_wanted::<S>(bench, model.name) {
        return None;
    }
    let (group, name) = point.id::<S>(model.name);
    if let (Kind::Step, Some(lacking)) = (kind, subject.lacks(batch, context).expect("a possible plan")) {
        bench.not_run(&format!("{group}/{name}"), lacking);
        return None;
    }
    let text = |pass: usize| if kind == Kind::Step { STEP_TEXTS + (pass % STEPS) * 1000 } else { pass + 1 };
    let ids = |pass| model.tokens(text(pass), batch, new);
    let (mut cache, mut counted, mut done) = (None, None, 0);
    let mut passes = |count: usize| {
        let next = (done..done + count).map(ids);
        done += count;
        if kind == Kind::Prompt {
            return next.map(|ids| subject.prompt(ids).expect(RUNS)).sum::<Duration>();
        }
        let cache = cache.get_or_insert_with(|| {
            let mut cache = subject.filled(batch, context).expect(RUNS);
            let mut count = |pass| subject.experts(&mut cache, ids(pass)).expect(RUNS);
            counted = experts.then(|| (0..STEPS).map(&mut count).sum::<usize>() as f64 / STEPS as f64);
            cache
        });
        subject.passes(cache, next.collect(), form).expect(RUNS)
    };
    let cached = context as f64 * model.work.key_flops(form);
    let seconds = if kind != Kind::Step && model.work.prefill_flops(new as f64) + cached > S::MACHINE.long {
        let rounds = if bench.profile() == Profile::Quick { 2 } else { 3 };
        bench.time_few(&group, &name, rounds, || passes(1))
    } else {
        let work = Throughput::Elements((batch * new) as u64);
        bench.time(&group, &name, work, |iterations| passes(iterations as usize))
    }?;
    if let Some(experts) = counted {
        let id = format!("throughput/experts/{}{}/context={context}/batch={batch}", model.name, S::MACHINE.experts);
        bench.keep(Measurement::exact(id, "", Better::Neither, experts / model.work.moe_layers));
    }
    Some(Timed { point, seconds, experts: counted })
}
