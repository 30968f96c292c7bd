//! Which logprobs an engine tells: one convention for all of its transcripts.

use super::{Outcome, Part, PartVerdict};
use crate::transcripts::sampling::LogprobsOf;

/// Why logprobs are open that are neither the model's nor scaled.
const UNSHOWN: &str = "they may be wrong, or those after filters that are not certain to leave the same tokens";

/// The verdict on a transcript.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Part by part; of the logprobs, that by the first convention that was tried.
    pub parts: Vec<PartVerdict>,
    /// The verdict on the logprobs by each convention.
    pub(super) logprobs: Vec<(LogprobsOf, PartVerdict)>,
}

impl Judged {
    /// The first part that fails.
    pub fn first_failure(&self) -> Option<&PartVerdict> {
        self.parts.iter().find(|part| part.fails())
    }

    /// How bad it is for a convention.
    fn off_by(&self, of: LogprobsOf) -> usize {
        let verdict = self.logprobs.iter().find(|(tried, _)| *tried == of);
        verdict.map_or(0, |(_, verdict)| if verdict.fails() { 2 } else { usize::from(verdict.is_off()) })
    }

    /// By this convention, which some transcript has `shown` to be the engine's, or none.
    fn settle(&mut self, of: LogprobsOf, shown: bool) {
        let Some((_, settled)) = self.logprobs.iter().find(|(tried, _)| *tried == of) else { return };
        // logprobs that are off by the others, and open by this one, are not right
        let open = settled.is_not_judged() && !shown && self.logprobs.iter().any(|(_, verdict)| verdict.is_off());
        let unshown = || PartVerdict::of(Part::Logprobs, Outcome::Inconclusive(UNSHOWN.to_owned()), 0);
        let settled = if open { unshown() } else { settled.clone() };
        for part in self.parts.iter_mut().filter(|part| part.part == Part::Logprobs) {
            part.clone_from(&settled);
        }
    }

    fn passes_by(&self, of: LogprobsOf) -> bool {
        self.logprobs.iter().any(|(tried, verdict)| *tried == of && verdict.passes())
    }
}

/// Which probabilities the engine of these transcripts tells: the conventions that explain most of them. That of all is taken for
/// each, so that an engine is not right once by one and once by another. Nothing, if no logprobs are told.
pub fn settle(judged: &mut [Judged]) -> Vec<LogprobsOf> {
    let told = |judged: &Judged| judged.logprobs.iter().any(|(_, verdict)| !verdict.is_not_judged());
    if !judged.iter().any(told) {
        return Vec::new();
    }
    let tried = |of: &LogprobsOf| judged.iter().any(|judged| judged.logprobs.iter().any(|(tried, _)| tried == of));
    let off = |of: LogprobsOf| judged.iter().map(|judged| judged.off_by(of)).sum::<usize>();
    let tried: Vec<LogprobsOf> = LogprobsOf::ALL.into_iter().filter(tried).collect();
    let least = tried.iter().map(|&of| off(of)).min();
    let settled: Vec<LogprobsOf> = tried.into_iter().filter(|&of| Some(off(of)) == least).collect();
    if let Some(&of) = settled.first() {
        let shown = judged.iter().any(|judged| judged.passes_by(of));
        judged.iter_mut().for_each(|judged| judged.settle(of, shown));
    }
    settled
}
