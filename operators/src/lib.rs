//! Contracts of DeepSeek-V2's single operators: what a kernel is given, what it must return, what it may not touch, and what
//! that means in terms of the reference.
//!
//! A kernel engineer has one operator, not a model. A [`Contract`] says in data (`contracts/*.json`, in the terms of
//! FlashInfer-Bench's definitions: names, axes, inputs, outputs) what the operator is given and returns; a [`Workload`] binds
//! its axes and says what is nasty about the inputs, which are a function of its name; [`Operator::truth`] is what must come
//! out, in f64, and [`Operator::plain`] what plain implementations in the kernel's types make of the same inputs: the noise
//! that a budget is a multiple of.
//!
//! ```
//! use dsv2_operators::Operator;
//!
//! let operator = Operator::named("mla_paged_decode")?;
//! let workload = operator.workload("permuted pages")?;
//! let inputs = operator.inputs(workload)?;
//! let truth = operator.truth(&inputs)?;
//! assert_eq!(truth["output"].shape(), inputs["q_nope"].shape());
//! # Ok::<(), dsv2_operators::Error>(())
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`contract`] | the data, and FlashInfer-Bench's definitions and workloads |
//! | [`operators`] | the operators, one module for each part of the model: what they mean, how their inputs are made |
//! | [`tensor`] | what is given and returned |

#![deny(missing_docs)]

mod call;
pub mod contract;
mod error;
pub mod operators;
pub mod tensor;

pub use call::{Outputs, Plain};
pub use contract::{Contract, Workload};
pub use error::{Error, Result};
pub use operators::Operator;
pub use tensor::{ElementType, Tensor, Tensors};
