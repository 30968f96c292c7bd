//! What the program does where the driver's library is the emulated one.

use std::path::Path;
use std::sync::Arc;

use dsv2_optimized::device::products::MatrixProduct;
use dsv2_optimized::device::{Allocation, Counts};
use dsv2_optimized::model::Settings;
use dsv2_optimized::model::generate::GenerateOptions;
use dsv2_optimized::model::head::CausalLm;
use dsv2_optimized::operators::argmax::argmax;
use dsv2_optimized::operators::gemm::linear;
use dsv2_optimized::{Cuda, Device, Element, Emulated, Error, Library, Tensor, Variant};
use dsv2_reference::weights::generator::GeneratedWeights;
use dsv2_reference::{DeepseekV2Config, Dialect};
use ndarray::Array2;

use super::{TRACE, calls, graphs};

/// Everything that a device can be asked for, with the numbers that must come of it. How many calls were made by then.
pub fn everything() -> Result<usize, Error> {
    let gpu = Cuda::timing(Library::embedded())?;
    let device: Arc<dyn Device> = gpu.clone();
    // More than goes through pinned memory at once, and more than all of it in small pieces.
    let (large, small) = (vec![7_u8; 100 << 10], vec![9_u8; 60 << 10]);
    let places = [Allocation::new(&device, large.len())?, Allocation::new(&device, large.len())?];
    let [a, b] = [places[0].address(), places[1].address()];
    let mut read = vec![0; large.len()];
    gpu.write(a, &large)?;
    gpu.copy(a, b, large.len())?;
    gpu.read(b, &mut read)?;
    assert_eq!(read, large);
    for index in 0..6 {
        gpu.write(a, &small)?;
        gpu.fill(a, index, 4)?;
        gpu.copy(a, b, small.len())?;
    }
    gpu.read(b, &mut read[..small.len()])?;
    assert!(read[..4] == [5; 4] && read[4..small.len()] == small[4..]);
    let logits = Tensor::from_f32(&device, Element::F32, &[1, 5], &[1.0, 4.0, 2.0, 8.0, 3.0])?;
    let token = Tensor::empty(&device, Element::I32, &[1])?;
    argmax(Variant::Tuned, &logits, &token)?;
    assert_eq!(token.to_i32()?, [3]);
    let graph = device.clone().capture(&mut || {
        argmax(Variant::Naive, &logits, &token)?;
        device.copy(token.address(), a, 4)
    })?;
    logits.write_f32(&[1.0, 4.0, 2.0, 3.0, 3.0])?;
    graph.launch()?;
    gpu.read(a, &mut read[..4])?;
    assert_eq!((&read[..4], token.to_i32()?), (&[1, 0, 0, 0][..], vec![1]));
    // Kernels that may have their shared memory only because it was asked for; in f32 it is 48 KiB and a byte.
    for element in [Element::Bf16, Element::F32] {
        let [x, weight, out] = [128; 3].map(|rows| Tensor::empty(&device, element, &[rows, 128]));
        let (x, weight, out) = (x?, weight?, out?);
        x.write_f32(&vec![1.0; x.len()])?;
        weight.write_f32(&vec![0.5; weight.len()])?;
        linear(Variant::Tuned, &x, &weight, None, &out)?;
        assert_eq!(out.to_f32()?, vec![64.0; out.len()]);
    }
    gpu.products()?.multiply(&MatrixProduct::linear([2, 3, 4], 4, [4, 1], 3, [Element::F32; 2]), a, a, b)?;
    let kernels: Vec<(String, usize)> = gpu.timings()?.into_iter().map(|time| (time.kernel, time.launches)).collect();
    for kernel in ["argmax_tuned_f32", "graph", "gemm_tuned_f32", "gemm_tuned_bf16", "cublaslt_f32"] {
        assert!(kernels.contains(&(kernel.to_string(), 1)), "{kernel}: {kernels:?}");
    }
    assert!(gpu.memory()?.0 > 0);
    let refused = gpu.allocate(1 << 41).expect_err("no GPU has so much");
    if !refused.to_string().starts_with("an allocation of 2199023255552 bytes: CUDA_ERROR_OUT_OF_MEMORY") {
        return Err(refused);
    }
    gpu.synchronize()?;
    Ok(std::env::var_os(TRACE).map_or(0, |trace| calls(Path::new(&trace)).len()))
}

/// What graphs promise on any device, and a model that is decoded with them.
pub fn promises() {
    let device: Arc<dyn Device> = Cuda::new(Library::embedded()).expect("there is a driver");
    graphs::replays(&device);
    graphs::refuses(&device);
    graphs::refuses_grids(&device);
    device.counts();
    graphs::counts(&device);
    generates(&device);
    println!("kept");
}

/// A small model has the tokens that it has on the emulator, with a graph for each step; and such a step asks the host for
/// nothing but its tokens.
fn generates(gpu: &Arc<dyn Device>) {
    let config = DeepseekV2Config::from_json_str(include_str!("config.json")).expect("a config");
    let rules =
        r#"{"seed": 11, "rules": [{"suffix": "norm.weight", "mean": 1.0, "std": 0.3}, {"suffix": "", "gain": 1.3}]}"#;
    let weights: GeneratedWeights = serde_json::from_str(rules).expect("rules");
    let prompts = Array2::from_shape_fn((3, 5), |(b, s)| (37 * b as i64 + 23 * s as i64 + 5) % 90);
    let options = GenerateOptions { page_size: 4, ..GenerateOptions::new(6) };
    let emulated: Arc<dyn Device> = Emulated::new(Library::embedded());
    let [found, expected] = [gpu, &emulated].map(|device| {
        let settings = Settings::new(Element::Bf16, Variant::Tuned);
        let model = CausalLm::load(&config, Dialect::Hf, &weights, device, settings, &mut |_| ()).expect("it fits");
        let tokens = model.generate(&prompts, None, &options).expect("it runs");
        let mut generation = model.start(&prompts, None, &options).expect("it runs");
        (0..2).for_each(|_| assert!(generation.step(None).expect("it runs").is_some()));
        device.counts();
        generation.step(None).expect("it runs");
        (tokens, device.counts())
    });
    assert_eq!(found, expected);
    let (_, Counts { launches, .. }) = found;
    assert!(launches > 20);
    let step = Counts { launches, graphs: 1, downloads: 1, synchronizations: 1, ..Counts::default() };
    assert_eq!(found.1, step);
}
