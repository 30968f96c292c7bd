//! Weights for many runs of one case: each is widened once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use ndarray::{Array1, Array2};

use crate::case::Case;

/// The weights of a case in `f64`.
pub struct Wide<'a> {
    case: &'a Case,
    shapes: HashMap<String, Vec<usize>>,
    matrices: RefCell<HashMap<String, Rc<Array2<f64>>>>,
}

impl<'a> Wide<'a> {
    /// Those of `case`, none of them read yet.
    pub fn new(case: &'a Case) -> Self {
        let shapes = case.weight_shapes().into_iter().collect();
        Wide { case, shapes, matrices: RefCell::default() }
    }

    /// The case.
    pub fn case(&self) -> &'a Case {
        self.case
    }

    /// A matrix, if the model has it. The output head may be the embedding.
    pub fn matrix(&self, name: &str) -> Option<Rc<Array2<f64>>> {
        let name = match name {
            "lm_head.weight" if self.case.config.tie_word_embeddings => "model.embed_tokens.weight",
            name => name,
        };
        if let Some(matrix) = self.matrices.borrow().get(name) {
            return Some(matrix.clone());
        }
        let shape = self.shapes.get(name).filter(|shape| shape.len() == 2)?;
        let matrix: Rc<Array2<f64>> = Rc::new(self.case.weights.tensor(name, shape).ok()?.to_array());
        self.matrices.borrow_mut().insert(name.to_owned(), matrix.clone());
        Some(matrix)
    }

    /// A vector, if the model has it.
    pub fn vector(&self, name: &str) -> Option<Array1<f64>> {
        let shape = self.shapes.get(name).filter(|shape| shape.len() == 1)?;
        Some(self.case.weights.tensor(name, shape).ok()?.to_array())
    }
}
