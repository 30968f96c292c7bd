//! Every operator, in every variant and type, against the f64 reference: on the emulator, under the emulator's race
//! detector, and on a GPU where there is one. Wrong kernels, each of which must be caught. And the recipe of the kernels.
//!
//! `cargo test -p dsv2-optimized --test operators -- router` runs what has `router` in its name.

mod absorb;
mod advance;
#[path = "../support/mutants.rs"]
mod archive;
mod argmax;
mod attention;
mod combine;
mod dispatch;
mod embedding;
mod experts;
mod far;
mod gemm;
mod generated;
mod harness;
mod latent;
mod latent_read;
mod library;
mod linear_norm;
mod linear_route;
mod loss;
mod merge;
mod mixture;
mod mla_decode;
mod mla_decode_edges;
mod mla_prefill;
mod mutants;
mod recipe;
mod rms_norm;
mod rope;
mod rotary;
mod router;
mod sample;
mod swiglu;

use std::sync::Arc;

use dsv2_optimized::{Cuda, Device, Emulated, Error, Library, Summation};
use libtest_mimic::{Arguments, Failed, Trial};

use harness::{Case, OnGpu};

/// What needs more than the emulator has: its library of products, or tens of gigabytes.
fn cases_on_gpu() -> Vec<OnGpu> {
    [library::cases(), far::cases()].into_iter().flatten().collect()
}

/// All cases, those of an operator together and the cheap ones first.
fn cases() -> Vec<Arc<Case>> {
    let operators = [
        rms_norm::cases(),
        rotary::cases(),
        rope::cases(),
        latent::cases(),
        latent_read::cases(),
        router::cases(),
        dispatch::cases(),
        experts::cases(),
        combine::cases(),
        mixture::cases(),
        gemm::cases(),
        absorb::cases(),
        linear_norm::cases(),
        linear_route::cases(),
        generated::cases(),
        swiglu::cases(),
        mla_decode::cases(),
        mla_decode_edges::cases(),
        mla_prefill::cases(),
        merge::cases(),
        embedding::cases(),
        loss::cases(),
        advance::cases(),
        argmax::cases(),
        sample::cases(),
    ];
    operators.into_iter().flatten().map(Arc::new).collect()
}

/// The modules with kernels that use tensor cores, and the ways in which those of a card may add up besides the emulator's own.
const TENSOR_CORES: [&str; 7] =
    ["absorb", "experts", "gemm", "linear_norm", "linear_route", "mla_decode", "mla_prefill"];
const SUMS: [(&str, Summation); 2] = [
    ("aligned-8-2", Summation::Aligned { terms: 8, extra_bits: 2 }),
    ("aligned-16-2", Summation::Aligned { terms: 16, extra_bits: 2 }),
];

fn main() {
    let arguments = Arguments::from_args();
    let cases = cases();
    let mut trials = vec![];
    for case in &cases {
        let name = &case.name;
        // The fp32 logarithm of a prompt's attention shows most of it: there, all cases.
        let shows = case.watched || case.module == "mla_prefill";
        if shows && TENSOR_CORES.contains(&case.module) && name.contains("/tuned/bf16") {
            for (sums, how) in SUMS {
                let judge = move |case: &Case| case.judge(&(Emulated::with_sums(Library::embedded(), how) as _));
                trials.push(trial(format!("{sums}/{name}"), case, judge));
            }
        }
        trials.push(trial(format!("emulated/{name}"), case, |case| {
            case.judge(&(Emulated::new(Library::embedded()) as _))
        }));
        if case.watched {
            let watch = |case: &Case| case.judge(&(Emulated::watching_races(Library::embedded()) as _));
            trials.push(trial(format!("races/{name}"), case, watch));
        }
    }
    trials.extend(mutants::trials(&cases));
    trials.extend(recipe::trials());
    trials.extend(sample::trials());
    trials.extend(mla_decode::trials());
    match Cuda::new(Library::embedded()) {
        Ok(gpu) => {
            let gpu: Arc<dyn Device> = gpu;
            trials.extend(cases.iter().map(|case| {
                let gpu = gpu.clone();
                trial(format!("cuda/{}", case.name), case, move |case| case.judge_and_calibrate(&gpu))
            }));
            trials.extend(cases_on_gpu().into_iter().map(|OnGpu { case, needs }| match needs(&*gpu) {
                Ok(()) => {
                    let gpu = gpu.clone();
                    trial(format!("cuda/{}", case.name), &Arc::new(case), move |case| case.judge(&gpu))
                }
                Err(reason) => not_run(&case.name, &reason),
            }));
        }
        Err(reason) => {
            trials.push(not_run(&format!("all {} cases", cases.len()), &reason));
            trials.extend(cases_on_gpu().iter().map(|on_gpu| not_run(&on_gpu.case.name, &reason)));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial(name: String, case: &Arc<Case>, run: impl FnOnce(&Case) -> Result<(), Failed> + Send + 'static) -> Trial {
    let case = case.clone();
    Trial::test(name, move || run(&case))
}

/// Shown among the tests, with the reason.
fn not_run(name: &str, reason: &Error) -> Trial {
    Trial::test(format!("cuda/{name} (not run: {reason})"), || Ok(())).with_ignored_flag(true)
}
