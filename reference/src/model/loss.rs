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
