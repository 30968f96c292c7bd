//! The question.

use dsv2_reference::model::cache::CacheFormat;

use crate::case::Case;
use crate::precision::Precision;
use crate::trace::Trace;

/// What to check.
pub struct Request {
    /// The model and its inputs.
    pub case: Case,
    /// The dump.
    pub candidate: Trace,
    /// What it should be, if that is not for the reference to say.
    pub expected: Option<Trace>,
    /// What the candidate computed in; by the types of its tensors, if nobody says.
    pub precision: Option<Precision>,
    /// How the candidate keeps its cache.
    pub cache: CacheFormat,
}

impl Request {
    /// A dump against the reference, in whatever type it was stored, with a cache that is not packed.
    pub fn new(case: Case, candidate: Trace) -> Self {
        Request { case, candidate, expected: None, precision: None, cache: CacheFormat::Plain }
    }

    /// The same question about a case that was found to be another one. The dump has been taken in before.
    pub(super) fn about(&self, case: Case) -> Self {
        let Request { expected, precision, cache, .. } = self;
        Request { case, candidate: Trace::default(), expected: expected.clone(), precision: *precision, cache: *cache }
    }
}
