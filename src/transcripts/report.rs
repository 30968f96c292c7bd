//! Verdicts on transcripts, to be read, or for programs.

use dsv2_foreign::Foreign;
use serde::Serialize;

use super::files::{How, Named, Transcripts, Unjudged};
use super::judge::{Judged, Judgement, Outcome, Part, PartVerdict};
use crate::table::{align_right, mark, table};

/// What came of some transcripts.
#[derive(Debug, Serialize)]
pub struct TranscriptsReport {
    /// Of all together: the worst.
    pub verdict: Verdict,
    /// What the answers are held against.
    pub model: String,
    /// What the engine is taken to compute in.
    pub dtype: String,
    /// What is to be said of that, if anything is.
    pub dtype_note: Option<String>,
    /// Which logprobs the engine tells; several, if the transcripts do not tell them apart; none, if it tells none.
    pub logprobs: Vec<String>,
    /// One by one.
    pub transcripts: Vec<TranscriptReport>,
    /// Requests of whose answers nothing can be said, and why.
    pub unjudged: Vec<Unjudged>,
}

/// What came of one.
#[derive(Debug, Serialize)]
pub struct TranscriptReport {
    /// Where it comes from.
    pub name: String,
    /// What was asked for, in a few words.
    pub request: String,
    /// What came of it.
    pub verdict: Verdict,
    /// The first part that fails.
    pub first_failing_part: Option<String>,
    /// Part by part.
    pub parts: Vec<PartReport>,
}

/// What came of a part.
#[derive(Debug, Serialize)]
pub struct PartReport {
    /// The part.
    pub part: String,
    /// What came of it.
    pub disposition: Verdict,
    /// How many tokens, characters or numbers were compared.
    pub compared: usize,
    /// The error, in budgets, where it has a size.
    pub ratio: Option<f64>,
    /// Of a failure: what should be.
    pub expected: Option<String>,
    /// Of a failure: what is.
    pub found: Option<String>,
    /// Why it is open, or what would tell.
    pub reason: Option<String>,
    /// Known bugs that make what was found.
    pub hints: Vec<Hint>,
}

/// A known bug that makes what was found.
#[derive(Debug, Serialize)]
pub struct Hint {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
}

/// In a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All that is told is right, and it is more than what ends where it may and adds up.
    Pass,
    /// Nothing that is told says something of the model.
    NotJudged,
    /// It may be right or wrong.
    Inconclusive,
    /// A part is wrong.
    Fail,
}

impl Verdict {
    const ALL: [Verdict; 4] = [Verdict::Pass, Verdict::Fail, Verdict::Inconclusive, Verdict::NotJudged];

    fn of(judged: &Judged) -> Self {
        let any = |holds: &dyn Fn(&PartVerdict) -> bool| judged.parts.iter().any(holds);
        if any(&PartVerdict::fails) {
            Verdict::Fail
        } else if any(&|part| matches!(part.outcome, Outcome::Inconclusive(_))) {
            Verdict::Inconclusive
        } else if any(&|part| part.outcome == Outcome::Pass && part.part.tells()) {
            Verdict::Pass
        } else {
            Verdict::NotJudged
        }
    }

    fn word(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::NotJudged => "not judged",
            Verdict::Inconclusive => "inconclusive",
            Verdict::Fail => "FAIL",
        }
    }
}

impl TranscriptsReport {
    /// Of these, in order, as `by` judged them. A request that was not answered, or whose answer cannot be judged, is no pass.
    pub fn new(of: &Transcripts, by: Judgement, model: String) -> Self {
        let Judgement { judged, logprobs, precision, note } = by;
        let transcripts: Vec<TranscriptReport> =
            of.named.iter().zip(&judged).map(|(named, judged)| TranscriptReport::new(named, judged)).collect();
        let unjudged = of.unjudged.clone();
        let open = (transcripts.is_empty() || !unjudged.is_empty()).then_some(Verdict::NotJudged);
        let all = transcripts.iter().map(|transcript| transcript.verdict).chain(open);
        let verdict = all.max().unwrap_or(Verdict::NotJudged);
        let logprobs = logprobs.iter().map(ToString::to_string).collect();
        let dtype = precision.to_string();
        TranscriptsReport { verdict, model, dtype, dtype_note: note, logprobs, transcripts, unjudged }
    }

    /// A table for each that is not right, one of all parts, and what came of all.
    pub fn text(&self, styled: bool) -> String {
        let mut text = String::new();
        for transcript in self.transcripts.iter().filter(|transcript| transcript.verdict != Verdict::Pass) {
            let TranscriptReport { name, request, verdict, .. } = transcript;
            text += &format!(
                "{} ({}): {}\n{}\n\n",
                Foreign(name),
                Foreign(request),
                verdict.word(),
                transcript.table(styled)
            );
        }
        for Unjudged { name, how, reason } in &self.unjudged {
            text += &format!("{}: {}: {}\n", Foreign(name), how.words(), Foreign(reason));
        }
        if !self.unjudged.is_empty() {
            text += "\n";
        }
        text += &format!("{}\n\n", self.summary(styled));
        if let Some(said) = self.convention() {
            text += &format!("{said}\n");
        }
        let note = self.dtype_note.as_ref().map_or(String::new(), |note| format!(" ({note})"));
        text += &format!("held against {}, as of an engine in {}{note}\n", Foreign(&self.model), self.dtype);
        let count = |verdict| self.transcripts.iter().filter(|transcript| transcript.verdict == verdict).count();
        let unjudged = |how| self.unjudged.iter().filter(|unjudged| unjudged.how == how).count();
        let transcripts =
            format!("{} transcript{}", self.transcripts.len(), if self.transcripts.len() == 1 { "" } else { "s" });
        let judged = Verdict::ALL.map(|verdict| (count(verdict), verdict.word()));
        let unjudged = How::ALL.map(|how| (unjudged(how), how.words()));
        let both = [(transcripts, judged.to_vec()), ("requests without a verdict".to_owned(), unjudged.to_vec())];
        text + &both.iter().filter_map(|(of, counts)| counted(of, counts)).collect::<Vec<_>>().join("; ") + "\n"
    }

    /// Which logprobs it tells.
    fn convention(&self) -> Option<String> {
        Some(match &self.logprobs[..] {
            [] => return None,
            [one] => format!("logprobs: {one}"),
            several => format!("logprobs (the requests do not tell these apart): {}", several.join(", or ")),
        })
    }

    /// How many transcripts have which verdict on which part.
    fn summary(&self, styled: bool) -> String {
        let mut rows = table(styled, &["part", "pass", "FAIL", "inconclusive", "not judged"]);
        for part in Part::ALL.map(|part| part.to_string()) {
            let of_all = || self.transcripts.iter().flat_map(|transcript| &transcript.parts);
            let count = |verdict| of_all().filter(|of| of.part == part && of.disposition == verdict).count();
            let cell = |verdict| match count(verdict) {
                0 => String::new().into(),
                some => mark(some, verdict == Verdict::Fail, verdict == Verdict::Pass),
            };
            rows.add_row([part.clone().into()].into_iter().chain(Verdict::ALL.map(cell)));
        }
        (1..=4).for_each(|column| align_right(&mut rows, column));
        rows.trim_fmt()
    }
}

/// `3 transcripts: 2 pass, 1 FAIL`; nothing, if there are none.
fn counted(of: &str, counts: &[(usize, &str)]) -> Option<String> {
    let some = counts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}"));
    let some = some.collect::<Vec<_>>().join(", ");
    (!some.is_empty()).then(|| format!("{of}: {some}"))
}

impl TranscriptReport {
    fn new(named: &Named, judged: &Judged) -> Self {
        TranscriptReport {
            name: named.name.clone(),
            request: named.transcript.request.words(),
            verdict: Verdict::of(judged),
            first_failing_part: judged.first_failure().map(|part| part.part.to_string()),
            parts: judged.parts.iter().map(PartReport::new).collect(),
        }
    }

    fn table(&self, styled: bool) -> String {
        let mut rows = table(styled, &["part", "", "compared", "of budget", ""]);
        for part in &self.parts {
            let (fails, ran) = (part.disposition == Verdict::Fail, part.disposition == Verdict::Pass);
            let ratio = part.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
            let compared = if part.compared == 0 { String::new() } else { part.compared.to_string() };
            let word = mark(part.disposition.word(), fails, ran);
            rows.add_row([part.part.clone().into(), word, compared.into(), ratio.into(), part.says().into()]);
        }
        align_right(&mut rows, 2);
        align_right(&mut rows, 3);
        rows.trim_fmt()
    }
}

impl PartReport {
    fn new(verdict: &PartVerdict) -> Self {
        let (disposition, expected, found, reason) = match &verdict.outcome {
            Outcome::Pass => (Verdict::Pass, None, None, None),
            Outcome::Fail { expected, found } => (Verdict::Fail, Some(expected.clone()), Some(found.clone()), None),
            Outcome::Inconclusive(why) => (Verdict::Inconclusive, None, None, Some(why.clone())),
            Outcome::NotJudged(needs) => (Verdict::NotJudged, None, None, Some(format!("needs {needs}"))),
        };
        PartReport {
            part: verdict.part.to_string(),
            disposition,
            compared: verdict.compared,
            ratio: verdict.ratio.filter(|ratio| ratio.is_finite()),
            expected,
            found,
            reason,
            hints: verdict.hints.iter().map(|mutant| Hint { name: mutant.name, about: mutant.about }).collect(),
        }
    }

    fn says(&self) -> String {
        let hints: Vec<String> = self.hints.iter().map(|hint| format!("{} ({})", hint.about, hint.name)).collect();
        let hints = if hints.is_empty() { String::new() } else { format!("; this makes it: {}", hints.join("; or: ")) };
        match (&self.expected, &self.found, &self.reason) {
            (Some(expected), Some(found), _) => {
                format!("expected {}, found {}{hints}", Foreign(expected), Foreign(found))
            }
            (_, _, Some(reason)) => Foreign(reason).to_string(),
            _ => String::new(),
        }
    }
}
