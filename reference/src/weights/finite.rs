//! Weights that are no numbers, found when they are first read.
//!
//! A model of many gigabytes reads the experts that its tokens go to, and the rows of the embedding that these have. So
//! nothing is tested when a checkpoint is opened. A tensor that is read is tested once, on the way, and what is found is
//! kept in a [`Watch`], which whoever reads asks after each layer: a NaN then never leaves the layer it is in.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use crate::error::one_line;
use crate::{Dtype, Error, Result, Tensor};

/// What was found in the weights of one source.
#[derive(Debug, Default)]
pub struct Watch(Mutex<BTreeMap<String, String>>);

impl Watch {
    /// Nothing was found so far.
    ///
    /// # Errors
    /// Names the first weight (of the alphabet), and the first of its elements (of the row-major order) that is no finite
    /// number.
    pub fn check(&self) -> Result<()> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).first_key_value() {
            None => Ok(()),
            Some((name, found)) => Err(Error::weight(one_line(name), "finite numbers only", found)),
        }
    }

    /// The same of a weight that is about to be read from this source for the first time.
    pub(crate) fn over(self: &Arc<Self>, name: &str) -> Arc<Unread> {
        Arc::new(Unread { name: name.to_owned(), watch: self.clone(), seen: AtomicBool::new(false) })
    }
}

/// A weight that has perhaps not been read yet.
pub(crate) struct Unread {
    name: String,
    watch: Arc<Watch>,
    seen: AtomicBool,
}

impl Unread {
    /// Tests all of `tensor`, if that was not done yet.
    pub(crate) fn look_at(&self, tensor: &Tensor) {
        if self.seen.load(Ordering::Acquire) {
            return;
        }
        // Two threads that come at once both look: neither goes on before something is found.
        if let Err(Error::Weight { name, found, .. }) = check_finite(&self.name, tensor) {
            self.watch.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, found);
        }
        self.seen.store(true, Ordering::Release);
    }

    /// For some of its rows. If all are tested these are.
    pub(crate) fn of_a_part(&self) -> Arc<Unread> {
        let seen = self.seen.load(Ordering::Acquire).into();
        Arc::new(Unread { name: self.name.clone(), watch: self.watch.clone(), seen })
    }
}

/// Checks that no element of a weight is NaN or infinite.
///
/// # Errors
/// Names the first such element (of the row-major order), its indices and its value.
pub fn check_finite(name: &str, tensor: &Tensor) -> Result<()> {
    let Some((mut rest, value)) = tensor.first_not_finite() else { return Ok(()) };
    let mut indices = tensor.shape().to_vec();
    for index in indices.iter_mut().rev() {
        (rest, *index) = (rest / *index, rest % *index);
    }
    Err(Error::weight(one_line(name), "finite numbers only", format!("{value} at {indices:?}")))
}

/// The place of the first element that is no finite number.
///
/// It looks at nothing but exponents: an IEEE number is not finite if, and only if, all its exponent bits are set. So
/// it runs as fast as memory delivers, on all cores.
pub(super) fn first_not_finite(bytes: &[u8], dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::Bf16 => first_that(bytes, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
        Dtype::F16 => first_that(bytes, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
        Dtype::F32 => first_that(bytes, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
        Dtype::F64 => first_that(bytes, |b| u64::from_le_bytes(b) & 0x7ff0_0000_0000_0000 == 0x7ff0_0000_0000_0000),
    }
}

fn first_that<const N: usize>(bytes: &[u8], is: impl Fn([u8; N]) -> bool + Sync) -> Option<usize> {
    const BLOCK: usize = 1 << 14;
    let (elements, _) = bytes.as_chunks();
    // Within a block there is no early exit, so that the compiler can test many elements with one instruction.
    let block = elements.par_chunks(BLOCK).position_first(|block| block.iter().fold(false, |any, &b| any | is(b)))?;
    elements.iter().skip(block * BLOCK).position(|&b| is(b)).map(|i| block * BLOCK + i)
}
