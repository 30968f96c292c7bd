//! A tap sees every named tensor of the forward pass, and may change it. Here: print attention weights, and plant a bug.
//!
//! ```text
//! cargo run --release --example tap
//! ```

use dsv2::golden::GoldenCases;
use dsv2_reference::{CausalLmInput, DeepseekV2ForCausalLM, LogitsToKeep, ModelInput, NoTap, Run, StageValue, Tap};
use ndarray::{Array3, Ix4, array, s};

const LAYER_0: &str = "model.layers.0.self_attn.attn_weights";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A golden case brings a config and weights with it. `DeepseekV2Config::from_file` and `Checkpoint::open` read those of
    // a Hugging Face folder.
    let case = GoldenCases::embedded().load("v2")?.case;
    let model = DeepseekV2ForCausalLM::<f64>::load(&case.config, case.dialect, &*case.weights)?;
    let input = CausalLmInput {
        input: ModelInput::ids(array![[11, 5, 42, 7, 7, 3]]),
        logits_to_keep: LogitsToKeep::default(),
        labels: None,
    };
    let logits = |tap: &mut dyn Tap<f64>| model.forward(&input, None, &Run::default(), tap).map(|output| output.logits);

    // To record: look at the stages whose name you want. A closure is a tap.
    println!("Head 0 of layer 0: how much each token attends to those before it");
    let right = logits(&mut |name: &str, value: StageValue<'_, f64>| {
        let (LAYER_0, StageValue::Real(weights)) = (name, value) else { return };
        let weights = weights.into_dimensionality::<Ix4>().expect("[batch, heads, queries, keys]");
        for (token, row) in weights.slice(s![0, 0, .., ..]).outer_iter().enumerate() {
            let seen: Vec<String> = row.iter().take(token + 1).map(|weight| format!("{weight:.3}")).collect();
            println!("  token {token}  {}", seen.join("  "));
        }
    })?;

    // To plant a bug: change what passes by; the forward pass goes on with it. This one was in Transformers up to 5.14,
    // which left YaRN's mscale² out of the softmax scale.
    let mscale = 0.1 * 0.707 * 40f64.ln() + 1.0;
    let wrong = logits(&mut |name: &str, value: StageValue<'_, f64>| {
        if let (true, StageValue::Real(mut scores)) = (name.ends_with(".attn_scores"), value) {
            scores.mapv_inplace(|score| score / (mscale * mscale));
        }
    })?;
    println!("Scores {:.2} times too small: the logits are off by {:.3}", mscale * mscale, relative(&wrong, &right));

    let again = logits(&mut NoTap)?;
    println!("Without a tap, or with one that only looks: off by {}", relative(&again, &right));
    Ok(())
}

/// Relative error in the Euclidean norm.
fn relative(got: &Array3<f64>, want: &Array3<f64>) -> f64 {
    let norm = |a: &Array3<f64>| a.iter().map(|x| x * x).sum::<f64>().sqrt();
    norm(&(got - want)) / norm(want)
}
