//! Losses: cross-entropy over next tokens, and the three of sequence classification.

use ndarray::{Array1, Array2, ArrayD, ArrayView1, ArrayView2, ArrayView3, Axis, s};

use crate::arithmetic::softmax::log_sum_exp;
use crate::{Error, Real, Result};

/// The label that does not count.
pub const IGNORE_INDEX: i64 = -100;

/// Labels of next-token prediction, with the options of Transformers' loss function.
#[derive(Debug, Clone)]
pub struct CausalLmLabels {
    /// \[B,kept\]: the tokens themselves; they are shifted here (position s is judged by label s + 1), or, if
    /// `shifted`, already are.
    pub labels: Array2<i64>,
    /// `shift_labels` was given instead of `labels`.
    pub shifted: bool,
    /// The label that does not count: [`IGNORE_INDEX`].
    pub ignore_index: i64,
    /// If given, the sum of the losses is divided by it; otherwise by the number of labels that count.
    pub num_items_in_batch: Option<f64>,
}

impl CausalLmLabels {
    /// Labels with the default options.
    pub fn new(labels: Array2<i64>) -> Self {
        CausalLmLabels { labels, shifted: false, ignore_index: IGNORE_INDEX, num_items_in_batch: None }
    }
}

/// Cross-entropy of the next token over logits \[B,S,V\].
///
/// ```text
/// L = 1/N sum_{b,s: y != ignore} ( log sum_v exp z_{b,s,v} - z_{b,s,y} ),   y = labels[b,s+1]
/// ```
///
/// The last position has no next token and does not count. **Trap:** padding and the attention mask do not take a
/// position out; only the ignored label does. If no label counts the mean is NaN (0/0), as in Transformers.
///
/// # Errors
/// If the labels are not as many as the logits, or one is not a token.
pub fn causal_lm_loss<T: Real>(logits: ArrayView3<T>, labels: &CausalLmLabels) -> Result<T> {
    let (batch, length, vocab) = logits.dim();
    if labels.labels.dim() != (batch, length) {
        let expected = format!("shape [{batch}, {length}] (a label for each position with logits)");
        return Err(Error::input("labels", expected, format!("shape {:?}", labels.labels.shape())));
    }
    let mut targets = Array2::from_elem((batch, length), labels.ignore_index);
    if labels.shifted {
        targets.assign(&labels.labels);
    } else if length > 1 {
        targets.slice_mut(s![.., ..-1]).assign(&labels.labels.slice(s![.., 1..]));
    }
    let rows = logits.to_shape((batch * length, vocab)).expect("a row for each position");
    let targets = Array1::from_iter(targets);
    cross_entropy(rows.view(), targets.view(), labels.ignore_index, labels.num_items_in_batch)
}

/// Cross-entropy of logits \[N,V\] against targets \[N\]: the mean over those that are not ignored, or the sum over
/// `divisor`.
fn cross_entropy<T: Real>(
    logits: ArrayView2<T>,
    targets: ArrayView1<i64>,
    ignore_index: i64,
    divisor: Option<f64>,
) -> Result<T> {
    let mut sum = T::zero();
    let mut counted = 0_usize;
    for (row, &target) in logits.rows().into_iter().zip(targets) {
        if target == ignore_index {
            continue;
        }
        let Some(logit) = usize::try_from(target).ok().and_then(|target| row.get(target)) else {
            let expected = format!("0 to {}, or {ignore_index} to ignore", row.len() - 1);
            return Err(Error::input("labels", expected, target));
        };
        sum += log_sum_exp(row) - *logit;
        counted += 1;
    }
    Ok(sum / T::from_f64(divisor.unwrap_or(counted as f64)))
}

/// Labels of sequence classification.
#[derive(Debug, Clone)]
pub enum ClassificationLabels<T> {
    /// \[B\]: the class of each sequence.
    Class(Array1<i64>),
    /// \[B\] or \[B,num_labels\]: a number, or one for each label.
    Values(ArrayD<T>),
}

/// Which loss sequence classification uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemType {
    /// Mean squared error.
    Regression,
    /// Cross-entropy over the classes.
    SingleLabelClassification,
    /// Binary cross-entropy on each label.
    MultiLabelClassification,
}

impl ProblemType {
    /// By the name in `problem_type` of config.json.
    ///
    /// # Errors
    /// If it is none of the three.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "regression" => Ok(ProblemType::Regression),
            "single_label_classification" => Ok(ProblemType::SingleLabelClassification),
            "multi_label_classification" => Ok(ProblemType::MultiLabelClassification),
            _ => Err(Error::config(
                "problem_type",
                "regression, single_label_classification or multi_label_classification",
                name,
            )),
        }
    }

    /// Where the config does not say: one label means regression, class numbers mean one of several classes, other
    /// numbers any of several.
    ///
    /// Transformers infers it from the *first* call and keeps it in the config; here every call is by itself.
    pub fn infer<T>(num_labels: usize, labels: &ClassificationLabels<T>) -> Self {
        match labels {
            _ if num_labels == 1 => ProblemType::Regression,
            ClassificationLabels::Class(_) => ProblemType::SingleLabelClassification,
            ClassificationLabels::Values(_) => ProblemType::MultiLabelClassification,
        }
    }
}

/// The loss of pooled logits \[B,num_labels\].
///
/// ```text
/// regression     mean (z - y)^2
/// single label   mean_b ( log sum_c exp z_{b,c} - z_{b,y_b} ), -100 ignored
/// multi label    mean ( max(z,0) - z y + log(1 + exp(-|z|)) )
/// ```
///
/// # Errors
/// If the labels do not fit the logits or the problem.
pub fn classification_loss<T: Real>(
    problem_type: ProblemType,
    logits: ArrayView2<T>,
    labels: &ClassificationLabels<T>,
) -> Result<T> {
    match (problem_type, labels) {
        (ProblemType::SingleLabelClassification, ClassificationLabels::Class(classes)) => {
            if classes.len() != logits.nrows() {
                let expected = format!("shape [{}]", logits.nrows());
                return Err(Error::input("labels", expected, format!("shape [{}]", classes.len())));
            }
            cross_entropy(logits, classes.view(), IGNORE_INDEX, None)
        }
        (ProblemType::Regression, ClassificationLabels::Values(values)) => {
            mean_over(logits, values, |z, y| (z - y) * (z - y))
        }
        (ProblemType::MultiLabelClassification, ClassificationLabels::Values(values)) => {
            mean_over(logits, values, |z, y| z.max(T::zero()) - z * y + (T::one() + (-z.abs()).exp()).ln())
        }
        (ProblemType::SingleLabelClassification, ClassificationLabels::Values(_)) => {
            Err(Error::input("labels", "class numbers (integers)", "floating-point numbers"))
        }
        (_, ClassificationLabels::Class(_)) => Err(Error::input("labels", "floating-point numbers", "integers")),
    }
}

fn mean_over<T: Real>(logits: ArrayView2<T>, values: &ArrayD<T>, loss: impl Fn(T, T) -> T) -> Result<T> {
    let one_each = logits.ncols() == 1 && values.shape() == [logits.nrows()];
    if values.shape() != logits.shape() && !one_each {
        let expected = format!("shape {:?}", logits.shape());
        return Err(Error::input("labels", expected, format!("shape {:?}", values.shape())));
    }
    if let Some(bad) = values.iter().find(|y| !y.is_finite()) {
        return Err(Error::input("labels", "finite numbers", bad));
    }
    let values = values.to_shape(logits.dim()).expect("as many numbers");
    let losses = Array2::from_shape_fn(logits.dim(), |at| loss(logits[at], values[at]));
    Ok(losses.sum_axis(Axis(1)).sum() / T::from_f64(losses.len() as f64))
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;
    use ndarray::{Array3, array};

    use super::*;

    fn logits() -> Array3<f64> {
        array![[[0.0, 1.0, 2.0], [3.0, 0.0, 0.0], [9.0, 9.0, 9.0]]]
    }

    /// -log softmax(z)[y], written out.
    fn nll(z: [f64; 3], y: usize) -> f64 {
        -(z[y].exp() / (z[0].exp() + z[1].exp() + z[2].exp())).ln()
    }

    #[test]
    fn each_position_is_judged_by_the_next_label_and_the_last_by_none() {
        let loss = causal_lm_loss(logits().view(), &CausalLmLabels::new(array![[0, 2, 1]])).unwrap();
        assert_abs_diff_eq!(loss, (nll([0.0, 1.0, 2.0], 2) + nll([3.0, 0.0, 0.0], 1)) / 2.0, epsilon = 1e-14);
    }

    #[test]
    fn ignored_labels_leave_the_mean() {
        let loss = causal_lm_loss(logits().view(), &CausalLmLabels::new(array![[0, -100, 1]])).unwrap();
        assert_abs_diff_eq!(loss, nll([3.0, 0.0, 0.0], 1), epsilon = 1e-14);
    }

    #[test]
    fn num_items_in_batch_replaces_the_count() {
        let labels = CausalLmLabels { num_items_in_batch: Some(8.0), ..CausalLmLabels::new(array![[0, -100, 1]]) };
        let loss = causal_lm_loss(logits().view(), &labels).unwrap();
        assert_abs_diff_eq!(loss, nll([3.0, 0.0, 0.0], 1) / 8.0, epsilon = 1e-14);
    }

    #[test]
    fn shifted_labels_and_another_ignore_index() {
        let labels = CausalLmLabels { shifted: true, ignore_index: -1, ..CausalLmLabels::new(array![[2, -1, 0]]) };
        let loss = causal_lm_loss(logits().view(), &labels).unwrap();
        assert_abs_diff_eq!(loss, (nll([0.0, 1.0, 2.0], 2) + 3.0_f64.ln()) / 2.0, epsilon = 1e-14);
    }

    #[test]
    fn without_a_label_that_counts_the_mean_is_nan_and_the_sum_zero() {
        let none = CausalLmLabels::new(array![[-100, -100, -100]]);
        assert!(causal_lm_loss(logits().view(), &none).unwrap().is_nan());
        let sum = CausalLmLabels { num_items_in_batch: Some(2.0), ..none };
        assert_eq!(causal_lm_loss(logits().view(), &sum).unwrap(), 0.0);
        let one_token = CausalLmLabels::new(array![[1]]);
        assert!(causal_lm_loss(logits().slice(s![.., ..1, ..]), &one_token).unwrap().is_nan());
        let zero_items = CausalLmLabels { num_items_in_batch: Some(0.0), ..CausalLmLabels::new(array![[0, 2, 1]]) };
        assert_eq!(causal_lm_loss(logits().view(), &zero_items).unwrap(), f64::INFINITY);
    }

    #[test]
    fn labels_out_of_range_or_of_another_length_are_refused() {
        for label in [3, -1] {
            let error = causal_lm_loss(logits().view(), &CausalLmLabels::new(array![[0, label, 1]])).unwrap_err();
            let expected = format!("input `labels`: expected 0 to 2, or -100 to ignore, found {label}");
            assert_eq!(error.to_string(), expected);
        }
        assert!(causal_lm_loss(logits().view(), &CausalLmLabels::new(array![[0, 1]])).is_err());
    }

    #[test]
    fn the_three_classification_losses() {
        let z = array![[1.0, -2.0], [0.5, 0.0]];
        let classes = ClassificationLabels::Class(array![1, 0]);
        let single = classification_loss(ProblemType::SingleLabelClassification, z.view(), &classes).unwrap();
        let by_hand = ((1.0_f64 + 3.0_f64.exp()).ln() + (1.0 + (-0.5_f64).exp()).ln()) / 2.0;
        assert_abs_diff_eq!(single, by_hand, epsilon = 1e-14);

        let values = ClassificationLabels::Values(array![[1.0, 0.0], [0.0, 1.0]].into_dyn());
        let multi = classification_loss(ProblemType::MultiLabelClassification, z.view(), &values).unwrap();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let by_hand = -(sigmoid(1.0).ln() + sigmoid(2.0).ln() + sigmoid(-0.5).ln() + 0.5_f64.ln()) / 4.0;
        assert_abs_diff_eq!(multi, by_hand, epsilon = 1e-14);

        let regression = classification_loss(ProblemType::Regression, z.view(), &values).unwrap();
        assert_abs_diff_eq!(regression, (0.0 + 4.0 + 0.25 + 1.0) / 4.0, epsilon = 1e-14);
        let one = ClassificationLabels::Values(array![3.0, 0.5].into_dyn());
        let squeezed = classification_loss(ProblemType::Regression, array![[1.0], [0.5]].view(), &one).unwrap();
        assert_abs_diff_eq!(squeezed, 2.0, epsilon = 1e-14);
    }

    #[test]
    fn labels_of_the_wrong_kind_are_refused() {
        let z = array![[1.0, -2.0]];
        let classes = ClassificationLabels::Class(array![1]);
        let values = ClassificationLabels::Values(array![1.0].into_dyn());
        assert!(classification_loss(ProblemType::MultiLabelClassification, z.view(), &classes).is_err());
        assert!(classification_loss(ProblemType::SingleLabelClassification, z.view(), &values).is_err());
        assert!(classification_loss(ProblemType::Regression, z.view(), &values).is_err());
        let out_of_range = ClassificationLabels::Class(array![2]);
        assert!(classification_loss(ProblemType::SingleLabelClassification, z.view(), &out_of_range).is_err());
    }
}
