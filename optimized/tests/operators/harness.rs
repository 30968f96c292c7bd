//! What a case is, and when it passes.
//!
//! A case runs an operator and gives, for each output, what the operator made, what is true (f64), and what a plain
//! implementation in the same type makes of the same input. An error may be as large as the plain implementation's, times
//! the factors of `dsv2-metrics`: no tolerance is typed in.

use std::fmt::Write;
use std::sync::Arc;

use dsv2_metrics::{LOCAL_FACTORS, Metrics, NAMES, NARROW_LOCAL_FACTORS, Spread, compare, with_floors};
use dsv2_optimized::{Device, Element, Emulated, Library, Result, Tensor, Variant};
use dsv2_reference::weights::WeightSource;
use dsv2_reference::weights::generator::GeneratedWeights;
use half::bf16;
use libtest_mimic::Failed;
use ndarray::{Array, ArrayD, Dimension, IntoDimension};

/// The kernels of an operator: all types in all variants.
pub const KINDS: [(Element, Variant); 4] = [
    (Element::F32, Variant::Naive),
    (Element::F32, Variant::Tuned),
    (Element::Bf16, Variant::Naive),
    (Element::Bf16, Variant::Tuned),
];

/// One test of an operator.
pub struct Case {
    /// `operator/variant/type/shape`
    pub name: String,
    /// The module of its kernels: mutants of that module are tried on this case.
    pub module: &'static str,
    /// Whether it is small enough to be watched for races.
    pub watched: bool,
    /// Runs it on a device.
    pub run: Run,
}

/// A case that the emulator cannot run, and what it needs of a GPU.
pub struct OnGpu {
    /// The case; its module is never changed by a mutant.
    pub case: Case,
    /// Why it cannot be run on this GPU, if it cannot.
    pub needs: Needs,
}

type Needs = Box<dyn Fn(&dyn Device) -> Result<()> + Send + Sync>;

/// What a case does on a device.
pub type Run = Box<dyn Fn(&Arc<dyn Device>) -> Result<Vec<Output>> + Send + Sync>;

/// One output of an operator.
pub struct Output {
    name: &'static str,
    got: Vec<f64>,
    want: Want,
}

enum Want {
    /// Within the budget that a plain implementation's error gives.
    Near(Box<Near>),
    /// These numbers and no others.
    Exactly(Vec<f64>),
}

struct Near {
    truth: ArrayD<f64>,
    plain: ArrayD<f64>,
    element: Element,
}

impl Output {
    /// Numbers that have an error: `truth` in f64, `plain` computed in the tensor's own type.
    pub fn near<D: Dimension>(
        name: &'static str,
        got: &Tensor,
        truth: Array<f64, D>,
        plain: Array<f64, D>,
    ) -> Result<Self> {
        let values = got.to_f32()?.into_iter().map(f64::from).collect();
        let near = Near { truth: truth.into_dyn(), plain: plain.into_dyn(), element: got.element() };
        Ok(Output { name, got: values, want: Want::Near(Box::new(near)) })
    }

    /// Integers, or numbers that must be these to the bit.
    pub fn exactly(name: &'static str, got: &Tensor, want: impl IntoIterator<Item: Into<f64>>) -> Result<Self> {
        let got = match got.element() {
            Element::I32 => got.to_i32()?.into_iter().map(f64::from).collect(),
            _ => got.to_f32()?.into_iter().map(f64::from).collect(),
        };
        Ok(Output { name, got, want: Want::Exactly(want.into_iter().map(Into::into).collect()) })
    }

    /// The numbers of another tensor, to the bit.
    pub fn same(name: &'static str, got: &Tensor, want: &Tensor) -> Result<Self> {
        Output::exactly(name, got, want.to_f32()?)
    }

    /// What is wrong with it, if anything.
    fn complaint(&self) -> Option<String> {
        let name = self.name;
        match &self.want {
            Want::Exactly(want) => {
                if want.len() != self.got.len() {
                    return Some(format!("{name}: {} elements, expected {}", self.got.len(), want.len()));
                }
                let same = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan());
                let at = self.got.iter().zip(want).position(|(got, want)| !same(*got, *want))?;
                Some(format!("{name}: element {at} is {}, expected exactly {}", self.got[at], want[at]))
            }
            Want::Near(near) => {
                let Near { truth, plain, element } = &**near;
                let got = match ArrayD::from_shape_vec(truth.shape(), self.got.clone()) {
                    Ok(got) => got,
                    Err(error) => return Some(format!("{name}: {error}")),
                };
                let found = compare(got.view(), truth.view(), None);
                if let Some(at) = found.nonfinite {
                    return Some(format!("{name}: {:?} is {}, expected {}", at.index, at.got, at.want));
                }
                let budget = budget(truth, plain, *element);
                let over: Vec<String> = NAMES
                    .iter()
                    .zip(found.metrics.values().iter().zip(budget.values()))
                    .filter(|(_, (error, budget))| error.is_nan() || **error > *budget)
                    .map(|(metric, (error, budget))| format!("{metric} {error:.2e} of {budget:.2e} allowed"))
                    .collect();
                let worst = found.worst.map_or(String::new(), |worst| {
                    format!("; worst at {:?}: {}, expected {}", worst.index, worst.got, worst.want)
                });
                (!over.is_empty()).then(|| format!("{name}: {}{worst}", over.join(", ")))
            }
        }
    }
}

/// A plain implementation's error, no less than that of rounding the truth itself, times the factor of its type.
fn budget(truth: &ArrayD<f64>, plain: &ArrayD<f64>, element: Element) -> Metrics {
    let stored = truth.mapv(|x| round(x, element));
    let error = |of: &ArrayD<f64>| compare(of.view(), truth.view(), None).metrics;
    let spread = Spread::of(truth.view(), None);
    let noise = with_floors(error(plain).zip(&error(&stored), f64::max), spread, spread.rows as f64);
    let factors = if element == Element::F32 { LOCAL_FACTORS } else { NARROW_LOCAL_FACTORS };
    noise.zip(&factors, |noise, factor| noise * factor)
}

impl Case {
    /// Runs the case and looks at every output.
    pub fn judge(&self, device: &Arc<dyn Device>) -> std::result::Result<(), Failed> {
        let outputs = (self.run)(device).map_err(|error| error.to_string())?;
        complaints(&outputs)
    }

    /// The same on a GPU; and shows where its bits are not the emulator's.
    pub fn judge_and_calibrate(&self, gpu: &Arc<dyn Device>) -> std::result::Result<(), Failed> {
        let run = |device: &Arc<dyn Device>| (self.run)(device).map_err(|error| error.to_string());
        let outputs = run(gpu)?;
        let emulated = run(&(Emulated::new(Library::embedded()) as _))?;
        for (real, emulated) in outputs.iter().zip(&emulated) {
            let pairs = || real.got.iter().zip(&emulated.got);
            let differ = pairs().filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            if differ > 0 {
                let largest = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                let (name, output, all) = (&self.name, real.name, real.got.len());
                println!("calibration: {name}: {output}: {differ} of {all} elements differ, by {largest:.2e} at most");
            }
        }
        complaints(&outputs)
    }
}

/// An error with all complaints, if there are any.
pub fn complaints(outputs: &[Output]) -> std::result::Result<(), Failed> {
    let mut text = String::new();
    for complaint in outputs.iter().filter_map(Output::complaint) {
        let _ = writeln!(text, "{complaint}");
    }
    if text.is_empty() { Ok(()) } else { Err(text.into()) }
}

/// The nearest number of a type.
pub fn round(x: f64, element: Element) -> f64 {
    match element {
        // f64 to f32 to bf16 rounds twice, as every implementation with fp32 arithmetic does.
        Element::Bf16 => bf16::from_f32(x as f32).to_f64(),
        _ => f64::from(x as f32),
    }
}

/// The nearest fp32 number towards zero.
pub fn cut_off(x: f64) -> f64 {
    let nearest = x as f32;
    let beyond = f64::from(nearest).abs() > x.abs();
    f64::from(if beyond { f32::from_bits(nearest.to_bits() - 1) } else { nearest })
}

/// Random numbers that bf16 holds exactly, so that one input serves every type: mean 0, and the same for the same name.
pub fn random<S: IntoDimension>(name: &str, shape: S, std: f64) -> Array<f32, S::Dim> {
    let rules = format!(r#"{{"seed": 20, "rules": [{{"suffix": "", "std": {std}}}]}}"#);
    let source: GeneratedWeights = serde_json::from_str(&rules).expect("rules");
    source.tensor(name, shape.into_dimension().slice()).expect("a tensor of any name and shape").to_array()
}

/// A tensor of a type with an array's elements, row by row.
pub fn upload<D: Dimension>(device: &Arc<dyn Device>, element: Element, array: &Array<f32, D>) -> Result<Tensor> {
    let values: Vec<f32> = array.iter().copied().collect();
    Tensor::from_f32(device, element, array.shape(), &values)
}

/// Room for an output. Every byte must be written: the emulator knows which are, and on a GPU they are NaN before.
pub fn output(device: &Arc<dyn Device>, element: Element, shape: &[usize]) -> Result<Tensor> {
    let tensor = Tensor::empty(device, element, shape)?;
    if device.name() != "emulator" {
        device.fill(tensor.address(), 0xff, tensor.len() * element.bytes())?;
    }
    Ok(tensor)
}
