//! Labels that no classifier has, and sequences whose end it cannot find.

use dsv2_optimized::model::head::SequenceClassifier;
use dsv2_reference::{AttentionForm, ClassificationLabels, Dialect};
use ndarray::array;
use serde_json::json;

use super::{SETTINGS, cache, device, input, refused, weights, with};

#[test]
fn impossible_classifications_are_refused_and_the_cache_is_as_it_was() {
    let device = device();
    let load = |fields| {
        let config = with(fields);
        SequenceClassifier::load(&config, Dialect::Hf, &weights(), &device, SETTINGS, &mut |_| ()).unwrap()
    };
    let refusal = |model: &SequenceClassifier, batch, labels: &ClassificationLabels<f32>| {
        let mut cache = cache(model.model(), batch, 8);
        let input = input(batch, 3).input;
        let refusal = refused(model.forward(&input, Some(labels), Some(&mut cache), AttentionForm::Expanded, None));
        assert_eq!(cache.lengths(), vec![0; batch]);
        refusal
    };
    let model = load(json!({"num_labels": 3}));
    assert_eq!(
        refusal(&model, 1, &ClassificationLabels::Class(array![3])),
        "loss: labels: expected classes 0 to 2, found 3"
    );
    assert_eq!(
        refusal(&model, 1, &ClassificationLabels::Class(array![-1])),
        "loss: labels: expected classes 0 to 2, found -1"
    );
    assert_eq!(
        refusal(&model, 1, &ClassificationLabels::Class(array![0, 1])),
        "loss: labels: expected labels of a SingleLabelClassification for 1 sequences and 3 labels, found 2 classes"
    );
    assert_eq!(
        refusal(&model, 1, &ClassificationLabels::Values(array![0.0, 1.0].into_dyn())),
        "loss: labels: expected labels of a MultiLabelClassification for 1 sequences and 3 labels, \
         found numbers of shape [2]"
    );
    assert_eq!(
        refusal(&model, 2, &ClassificationLabels::Class(array![0, 1])),
        "forward: pad_token_id: expected a token, to find the ends of several sequences, found null"
    );
}
