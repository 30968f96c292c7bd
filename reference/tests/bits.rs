//! What does not change a bit: chunks, threads, other rows in the batch, later tokens (checklist items 30, 45, 46, 54).

use crate::attention::ABSORBED;
use crate::common::{Stages, ids, input, logits, model};
use dsv2_reference::{AttentionForm, DeepseekV2ForCausalLM, LatentCache, NoTap, Real, Run};
use ndarray::{Array1, Array2, Array3, Axis, array, s};
use serde_json::{Value, json};

/// Structures that take different paths through the model.
pub fn structures() -> [Value; 4] {
    [
        json!({}),
        json!({"q_lora_rank": null, "topk_method": "greedy", "rope_scaling": null}),
        json!({"attention_bias": true, "mlp_bias": true, "first_k_dense_replace": 0}),
        json!({"first_k_dense_replace": 3, "num_attention_heads": 8, "v_head_dim": 3}),
    ]
}

/// The logits of `ids` fed in chunks of these lengths through one cache.
fn in_chunks<T: Real>(patch: &Value, ids: &Array2<i64>, chunks: &[usize], form: AttentionForm) -> Array3<T> {
    let model = model::<T>(patch.clone());
    let mut cache = LatentCache::new(model.model().config(), ids.nrows());
    let run = Run { attention: form, ..Run::default() };
    let mut rest = ids.view();
    let mut all = Array3::zeros((ids.nrows(), 0, 50));
    for &chunk in chunks {
        let (now, later) = rest.split_at(Axis(1), chunk);
        let output = model.forward(&input(now.to_owned()), Some(&mut cache), &run, &mut NoTap).unwrap();
        all.append(Axis(1), output.logits.view()).unwrap();
        rest = later;
    }
    assert_eq!(cache.len(), ids.ncols());
    all
}

fn chunks_have_the_bits_of_the_whole<T: Real>(chunks: &[usize]) {
    let ids = ids(2, chunks.iter().sum());
    for structure in structures() {
        let whole = logits(&model::<T>(structure.clone()), &input(ids.clone()));
        assert_eq!(in_chunks::<T>(&structure, &ids, chunks, AttentionForm::Expanded), whole, "{structure}");
    }
}

#[test]
fn token_by_token_has_the_same_bits_as_the_whole() {
    chunks_have_the_bits_of_the_whole::<f64>(&[1; 12]);
    chunks_have_the_bits_of_the_whole::<f32>(&[1; 12]);
}

#[test]
fn a_prompt_and_then_single_tokens_have_the_same_bits_as_the_whole() {
    chunks_have_the_bits_of_the_whole::<f64>(&[5, 1, 1, 1, 1, 1, 1, 1]);
    chunks_have_the_bits_of_the_whole::<f32>(&[5, 1, 1, 1, 1, 1, 1, 1]);
}

#[test]
fn chunks_have_the_same_bits_as_the_whole() {
    for chunks in [&[5, 4, 3][..], &[1, 17, 2], &[16, 1, 16]] {
        chunks_have_the_bits_of_the_whole::<f64>(chunks);
        chunks_have_the_bits_of_the_whole::<f32>(chunks);
    }
}

#[test]
fn absorbed_attention_has_the_same_bits_in_chunks_too() {
    for structure in structures() {
        let ids = ids(2, 12);
        let whole = in_chunks::<f32>(&structure, &ids, &[12], AttentionForm::Absorbed);
        assert_eq!(in_chunks::<f32>(&structure, &ids, &[5, 1, 1, 5], AttentionForm::Absorbed), whole, "{structure}");
    }
}

fn a_row_has_the_same_bits_in_any_batch<T: Real>() {
    let model = model::<T>(json!({}));
    let batch = logits(&model, &input(ids(5, 9)));
    for row in 0..5 {
        let alone = logits(&model, &input(ids(5, 9).slice(s![row..row + 1, ..]).to_owned()));
        assert_eq!(batch.slice(s![row..row + 1, .., ..]), alone);
    }
}

#[test]
fn a_batch_does_not_change_a_bit_of_its_rows() {
    a_row_has_the_same_bits_in_any_batch::<f64>();
    a_row_has_the_same_bits_in_any_batch::<f32>();
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let with_threads = |threads, form| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| in_chunks::<f32>(&json!({}), &ids(3, 20), &[13, 1, 6], form))
    };
    for form in [AttentionForm::Expanded, AttentionForm::Absorbed] {
        let one = with_threads(1, form);
        assert_eq!(with_threads(2, form), one);
        assert_eq!(with_threads(4, form), one);
    }
}

fn later_tokens_leave_earlier_bits<T: Real>(run: Run) {
    let model = model::<T>(json!({}));
    let mut other = ids(2, 9);
    other.slice_mut(s![.., 5..]).mapv_inplace(|id| (id + 7) % 50);
    let all = |ids| Stages::of(&model, &input(ids), &run, |_, _| {}).1;
    let (a, b) = (all(ids(2, 9)), all(other));
    for stage in ["model.layers.0", "model.layers.1", "model.layers.2", "model.norm", "lm_head"] {
        assert_eq!(a.d3(stage).slice(s![.., ..5, ..]), b.d3(stage).slice(s![.., ..5, ..]), "{stage}");
        assert_ne!(a.d3(stage).slice(s![.., 5, ..]), b.d3(stage).slice(s![.., 5, ..]), "{stage}");
    }
}

#[test]
fn later_tokens_do_not_change_a_bit_of_earlier_ones() {
    later_tokens_leave_earlier_bits::<f64>(Run::default());
    later_tokens_leave_earlier_bits::<f64>(ABSORBED);
    later_tokens_leave_earlier_bits::<f32>(Run::default());
    later_tokens_leave_earlier_bits::<f32>(ABSORBED);
}

#[test]
fn longer_sequences_do_not_change_a_bit_of_their_beginning() {
    let model = model::<f32>(json!({}));
    let whole = logits(&model, &input(ids(1, 21)));
    for length in [1, 2, 15, 16, 17, 20] {
        let part = logits(&model, &input(ids(1, length)));
        assert_eq!(part, whole.slice(s![.., ..length, ..]), "{length}");
    }
}

/// The logits of each step after the prompt, of a sequence alone.
fn alone(model: &DeepseekV2ForCausalLM<f32>, prompt: &Array2<i64>, steps: &[i64]) -> Vec<Array1<f32>> {
    let mut cache = LatentCache::new(model.model().config(), 1);
    model.forward(&input(prompt.clone()), Some(&mut cache), &Run::default(), &mut NoTap).unwrap();
    let run = Run { attention: AttentionForm::Absorbed, ..Run::default() };
    let step = |token: &i64| {
        let output = model.forward(&input(array![[*token]]), Some(&mut cache), &run, &mut NoTap).unwrap();
        output.logits.index_axis(Axis(0), 0).index_axis(Axis(0), 0).to_owned()
    };
    steps.iter().map(step).collect()
}

#[test]
fn sequences_that_join_and_leave_a_batch_change_no_bit_of_the_others() {
    let dynamic = json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 20});
    let long = json!({"type": "longrope", "factor": 4.0, "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.5, 2.0, 3.0, 9.0], "original_max_position_embeddings": 20});
    // long enough that some of them pass the length at which the angles change, and others do not
    for structure in structures().into_iter().chain([dynamic, json!({"rope_scaling": long})]) {
        let model = model::<f32>(structure.clone());
        let (prompts, steps) = ([3, 17, 30].map(|length| ids(1, length)), [7, 11, 2, 40, 23]);
        let mut caches = prompts.each_ref().map(|prompt| {
            let mut cache = LatentCache::new(model.model().config(), 1);
            model.forward(&input(prompt.clone()), Some(&mut cache), &Run::default(), &mut NoTap).unwrap();
            cache
        });
        let expected = prompts.each_ref().map(|prompt| alone(&model, prompt, &steps));
        let mut done = [0; 3];
        for who in [&[0][..], &[0, 1], &[2, 0, 1], &[2, 1], &[1, 2, 0], &[2, 1], &[0, 2]] {
            let tokens: Vec<i64> = who.iter().map(|&row| steps[done[row]]).collect();
            let mut places = caches.each_mut().map(Some);
            let mut theirs: Vec<_> = who.iter().map(|&row| places[row].take().unwrap()).collect();
            let before: Vec<usize> = theirs.iter().map(|cache| cache.len()).collect();
            let refused = model.step_each(&vec![50; who.len()], &mut theirs, &mut NoTap).unwrap_err();
            assert!(refused.to_string().contains("token ids 0 to 49"), "{refused}");
            assert_eq!(theirs.iter().map(|cache| cache.len()).collect::<Vec<_>>(), before);
            let logits = model.step_each(&tokens, &mut theirs, &mut NoTap).unwrap();
            for (&row, logits) in who.iter().zip(logits.rows()) {
                assert_eq!(logits, expected[row][done[row]], "{structure}: step {} of {row}", done[row]);
                done[row] += 1;
            }
        }
        assert_eq!(done, [5, 5, 5]);
        assert!(model.step_each(&[1], &mut [], &mut NoTap).is_err());
    }
}
