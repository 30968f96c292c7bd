//! A case, asked about in each kind of dump.

use super::dumps::Cut;
use crate::case::Case;
use crate::check::{Checked, Request, check_without_hint};
use crate::error::Result;
use crate::golden::GoldenCase;
use crate::precision::Precision;
use crate::trace::Trace;

/// The questions about a case.
pub struct Asked {
    /// About dumps that hold all logits, if any.
    whole: Request,
    /// About those that hold a token's.
    chosen: Option<Request>,
}

impl Asked {
    /// About dumps that are cut so; `load` gives the case.
    ///
    /// # Errors
    /// If the case cannot be loaded.
    pub fn new(cuts: &[Cut], load: impl Fn() -> Result<GoldenCase>) -> Result<Self> {
        let request = || -> Result<Request> { Ok(Request::new(load()?.case, Trace::default())) };
        let chosen = match cuts.iter().find_map(Cut::logits_to_keep) {
            None => None,
            Some(chosen) => {
                let mut request = request()?;
                request.case.inputs.logits_to_keep = Some(chosen);
                (request.case.inputs.labels, request.case.inputs.num_items_in_batch) = (None, None);
                Some(request)
            }
        };
        Ok(Asked { whole: request()?, chosen })
    }

    /// The case, as a dump that is cut so is judged.
    pub fn case(&self, cut: &Cut) -> &Case {
        let chosen = self.chosen.as_ref().filter(|_| cut.logits_to_keep().is_some());
        &chosen.unwrap_or(&self.whole).case
    }

    /// What the judge says of such a dump of what a candidate has, in all stages.
    ///
    /// # Errors
    /// If the reference refuses the case.
    pub fn ask(&mut self, cut: &Cut, candidate: &Trace, precision: Precision) -> Result<Checked> {
        let chosen = self.chosen.as_mut().filter(|_| cut.logits_to_keep().is_some());
        let request = chosen.unwrap_or(&mut self.whole);
        request.candidate = cut.cut(candidate, &request.case.config);
        request.precision = Some(precision);
        check_without_hint(request)
    }
}
