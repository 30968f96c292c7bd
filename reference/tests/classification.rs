//! Checklist items 77 and 78: sequence classification.

use crate::common::{self, Stages, config, ids, model, nll, weight, weights};
use approx::{assert_abs_diff_eq, assert_relative_eq};
use dsv2_reference::model::sequence_classification::SequenceClassificationOutput;
use dsv2_reference::{
    AttentionMask, ClassificationLabels, DeepseekV2ForSequenceClassification, Dialect, ModelInput, NoTap, Real, Run,
    StageValue, Tokens,
};
use ndarray::{Array1, Array2, Array3, array, s};
use serde_json::{Value, json};

fn classifier<T: Real>(dialect: Dialect, patch: Value) -> DeepseekV2ForSequenceClassification<T> {
    DeepseekV2ForSequenceClassification::load(&config(patch), dialect, &weights()).unwrap()
}

fn classify(
    model: &DeepseekV2ForSequenceClassification<f64>,
    input: &ModelInput<f64>,
    labels: Option<ClassificationLabels<f64>>,
) -> Result<SequenceClassificationOutput<f64>, String> {
    model.forward(input, labels.as_ref(), None, &Run::default(), &mut NoTap).map_err(|error| error.to_string())
}

/// At which position each sequence is read.
fn pooled_at(dialect: Dialect, patch: Value, input: ModelInput<f64>) -> Vec<Vec<usize>> {
    let mut score = Array3::zeros((0, 0, 0));
    let mut keep = |name: &str, value: StageValue<f64>| {
        if let ("score", StageValue::Real(value)) = (name, value) {
            score = value.to_owned().into_dimensionality().unwrap();
        }
    };
    let output = classifier(dialect, patch).forward(&input, None, None, &Run::default(), &mut keep).unwrap();
    let positions = |(b, pooled): (usize, ndarray::ArrayView1<f64>)| {
        (0..score.dim().1).filter(|&t| score.slice(s![b, t, ..]) == pooled).collect()
    };
    output.pooled_logits.rows().into_iter().enumerate().map(positions).collect()
}

#[test]
fn each_sequence_is_read_at_its_last_token_that_is_not_padding() {
    let pad = || json!({"pad_token_id": 0});
    let padded = array![[5, 6, 7, 0, 0], [0, 0, 5, 6, 7], [5, 0, 0, 6, 0], [5, 6, 7, 8, 9], [0, 0, 0, 0, 0]];
    // In the last row all tokens are padding: position 0.
    let positions = pooled_at(Dialect::Hf, pad(), ModelInput::ids(padded.clone()));
    assert_eq!(positions[..4], [vec![2], vec![4], vec![3], vec![4]]);
    assert!(positions[4].contains(&0));
    // The mask is not consulted.
    let mask = AttentionMask::Padding(Array2::from_shape_fn((5, 5), |(_, t)| t < 2));
    let masked = ModelInput { attention_mask: Some(mask), ..ModelInput::ids(padded.clone()) };
    assert_eq!(pooled_at(Dialect::Hf, pad(), masked)[..4], [vec![2], vec![4], vec![3], vec![4]]);
    // DeepSeek's own code reads before the first padding.
    let positions = pooled_at(Dialect::Deepseek, pad(), ModelInput::ids(padded));
    assert_eq!(positions[..4], [vec![2], vec![4], vec![0], vec![4]]);
}

#[test]
fn embeddings_and_sequences_without_a_padding_token_are_read_at_the_end() {
    let table = weight("model.embed_tokens.weight", [50, 32]);
    let embeds = Array3::from_shape_fn((2, 4, 32), |(b, t, e)| table[[7 * t + b, e]]);
    let input = ModelInput { tokens: Tokens::InputsEmbeds(embeds), ..ModelInput::ids(Array2::zeros((0, 0))) };
    assert_eq!(pooled_at(Dialect::Hf, json!({"pad_token_id": 0}), input), [vec![3], vec![3]]);
    assert_eq!(pooled_at(Dialect::Hf, json!({}), ModelInput::ids(array![[5, 6, 0, 7]])), [vec![3]]);
    let refused = classify(&classifier(Dialect::Hf, json!({})), &ModelInput::ids(ids(2, 4)), None).unwrap_err();
    assert_eq!(refused, "config: pad_token_id: expected a token id, to find the ends of several sequences, found null");
}

#[test]
fn the_score_is_a_product_without_bias_for_each_label() {
    let output =
        classify(&classifier(Dialect::Hf, json!({"num_labels": 5})), &ModelInput::ids(ids(1, 4)), None).unwrap();
    let last = Stages::of_ids(&model::<f64>(json!({})), ids(1, 4)).d3("model.norm");
    let expected = weight("score.weight", [5, 32]).dot(&last.slice(s![0, 3, ..]));
    assert_abs_diff_eq!(output.pooled_logits.row(0), expected, epsilon = 1e-13);
    assert!(output.loss.is_none());
}

const PAD: i64 = 49;

/// Pooled logits and loss of two sequences.
fn classification(patch: Value, labels: ClassificationLabels<f64>) -> (Array2<f64>, f64) {
    let mut config = patch;
    config["pad_token_id"] = json!(PAD);
    let output = classify(&classifier(Dialect::Hf, config), &ModelInput::ids(ids(2, 4)), Some(labels)).unwrap();
    (output.pooled_logits, output.loss.unwrap())
}

#[test]
fn the_kind_of_loss_follows_from_the_labels() {
    let classes = || ClassificationLabels::Class(array![2, 0]);
    let (z, loss) = classification(json!({"num_labels": 3}), classes());
    assert_relative_eq!(loss, (nll(z.row(0), 2) + nll(z.row(1), 0)) / 2.0, max_relative = 1e-13);
    let (_, one) = classification(json!({"num_labels": 3}), ClassificationLabels::Class(array![2, -100]));
    assert_relative_eq!(one, nll(z.row(0), 2), max_relative = 1e-13);

    let y = array![[1.0, 0.0, 0.25], [0.0, 1.0, 1.0]];
    let values = || ClassificationLabels::Values(y.clone().into_dyn());
    let (z, loss) = classification(json!({"num_labels": 3}), values());
    let sigmoid = z.mapv(|z| 1.0 / (1.0 + (-z).exp()));
    let terms = ndarray::Zip::from(&sigmoid).and(&y).map_collect(|p, y| -y * p.ln() - (1.0 - y) * (1.0 - p).ln());
    assert_relative_eq!(loss, terms.mean().unwrap(), max_relative = 1e-12);

    let (z, loss) =
        classification(json!({"num_labels": 1}), ClassificationLabels::Values(array![1.5, -2.0].into_dyn()));
    let by_hand = ((z[[0, 0]] - 1.5).powi(2) + (z[[1, 0]] + 2.0).powi(2)) / 2.0;
    assert_relative_eq!(loss, by_hand, max_relative = 1e-13);
}

#[test]
fn problem_type_says_which_loss_it_is() {
    let y = array![[1.0, 0.0, 0.25], [0.0, 1.0, 1.0]];
    let regression = json!({"num_labels": 3, "problem_type": "regression"});
    let (z, loss) = classification(regression, ClassificationLabels::Values(y.clone().into_dyn()));
    assert_relative_eq!(loss, (&z - &y).mapv(|x| x * x).mean().unwrap(), max_relative = 1e-13);
    let expected = "config: problem_type: expected regression, single_label_classification or \
                    multi_label_classification, found \"ranking\"";
    assert_eq!(common::refusal(Dialect::Hf, json!({"problem_type": "ranking"})), expected);
}

#[test]
fn the_kind_of_loss_is_inferred_at_each_call_anew() {
    let model = classifier(Dialect::Hf, json!({"num_labels": 3}));
    let call = |labels| classify(&model, &ModelInput::ids(ids(1, 4)), Some(labels)).unwrap().loss.unwrap();
    let by_class = || call(ClassificationLabels::Class(array![1]));
    let first = by_class();
    call(ClassificationLabels::Values(array![[0.0, 1.0, 0.0]].into_dyn()));
    assert_eq!(by_class(), first);
}

#[test]
fn labels_that_do_not_fit_the_problem_are_refused() {
    let refusal = |patch, labels| {
        classify(&classifier(Dialect::Hf, patch), &ModelInput::ids(ids(1, 4)), Some(labels)).unwrap_err()
    };
    let classes = |class| ClassificationLabels::Class(Array1::from_elem(1, class));
    let values = |n| ClassificationLabels::Values(Array2::zeros((1, n)).into_dyn());
    let three = |problem_type: &str| json!({"num_labels": 3, "problem_type": problem_type});
    assert_eq!(
        refusal(json!({"num_labels": 3}), classes(3)),
        "input `labels`: expected 0 to 2, or -100 to ignore, found 3"
    );
    assert_eq!(
        refusal(json!({"num_labels": 3}), ClassificationLabels::Class(array![0, 1])),
        "input `labels`: expected shape [1], found shape [2]"
    );
    for problem in [json!({"num_labels": 3}), three("regression")] {
        assert_eq!(refusal(problem, values(2)), "input `labels`: expected shape [1, 3], found shape [1, 2]");
    }
    assert_eq!(
        refusal(three("multi_label_classification"), classes(1)),
        "input `labels`: expected floating-point numbers, found integers"
    );
    assert_eq!(
        refusal(three("single_label_classification"), values(3)),
        "input `labels`: expected class numbers (integers), found floating-point numbers"
    );
    assert_eq!(
        refusal(json!({"num_labels": 1}), classes(0)),
        "input `labels`: expected floating-point numbers, found integers"
    );
}
