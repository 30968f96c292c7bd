//! Template and tokenization: what the engine fed.

use dsv2_foreign::Foreign;

use super::{Judge, Outcome, Part, PartVerdict};
use crate::error::Result;
use crate::transcripts::mutants::{self, Mutant};
use crate::transcripts::prompt::{Fed, prompt};
use crate::transcripts::record::Request;

/// Both parts, if it is known what was fed.
pub fn judge(judge: &Judge<'_>, request: &Request, right: &Fed, given: Option<&[i64]>) -> Result<Vec<PartVerdict>> {
    let is_chat = request.messages.is_some();
    let verdict = PartVerdict::of;
    let Some(given) = given else {
        let not_judged = |part| PartVerdict::not_judged(part, "prompt_token_ids");
        let template = is_chat.then(|| not_judged(Part::Template));
        let tokenization = right.text.is_some().then(|| not_judged(Part::Tokenization));
        return Ok(template.into_iter().chain(tokenization).collect());
    };
    let compared = given.len().max(right.ids.len());
    if given == right.ids {
        let characters = right.text.as_ref().map_or(0, |text| text.chars().count());
        let template = is_chat.then(|| verdict(Part::Template, Outcome::Pass, characters));
        return Ok(template.into_iter().chain([verdict(Part::Tokenization, Outcome::Pass, compared)]).collect());
    }
    let made = |part: Part| -> Result<Vec<&'static Mutant>> {
        let makes =
            |mutant: &&Mutant| prompt(&judge.speech, request, Some(mutant.bug)).is_ok_and(|fed| fed.ids == given);
        Ok(mutants::of(part).filter(makes).collect())
    };
    let by_tokenizer = made(Part::Tokenization)?;
    let by_template = if is_chat { made(Part::Template)? } else { Vec::new() };
    let shown = |ids: &[i64]| judge.speech.model.tokenizer.decode(ids, false);
    let same_text = shown(given).ok() == shown(&right.ids).ok();
    let in_template = is_chat && by_tokenizer.is_empty() && (!by_template.is_empty() || !same_text);
    if in_template {
        let outcome = differing(&shown(&right.ids)?, &shown(given).unwrap_or_else(|error| error.to_string()));
        return Ok(vec![
            verdict(Part::Template, outcome, compared).explained(by_template),
            PartVerdict::not_judged(Part::Tokenization, "a prompt of the right text"),
        ]);
    }
    let at = given.iter().zip(&right.ids).take_while(|(a, b)| a == b).count();
    let token =
        |ids: &[i64]| ids.get(at).map_or("the end".to_owned(), |id| format!("{id} at token {at} of {}", ids.len()));
    let outcome = Outcome::Fail { expected: token(&right.ids), found: token(given) };
    let template =
        is_chat.then(|| verdict(Part::Template, Outcome::Pass, right.text.as_ref().map_or(0, |t| t.chars().count())));
    let tokenization = verdict(Part::Tokenization, outcome, compared).explained(by_tokenizer);
    Ok(template.into_iter().chain([tokenization]).collect())
}

/// That what was not told must have been this.
pub fn tell(parts: &mut [PartVerdict], mutant: &'static Mutant, right: &Fed, other: &Fed) {
    for part in parts.iter_mut().filter(|part| part.part == mutant.part) {
        part.outcome = match (&right.text, &other.text) {
            (Some(right), Some(other)) if right != other => differing(right, other),
            _ => Outcome::Fail {
                expected: format!("{} tokens", right.ids.len()),
                found: format!("tokens and logprobs of a prompt of {}", other.ids.len()),
            },
        };
        part.compared = right.ids.len();
        part.hints = vec![mutant];
    }
}

/// Where two texts part.
pub fn differing(right: &str, found: &str) -> Outcome {
    /// How many characters are shown on either side.
    const AROUND: usize = 16;
    let same = right.chars().zip(found.chars()).take_while(|(a, b)| a == b).count();
    let around = |text: &str| {
        let shown: String = text.chars().skip(same.saturating_sub(AROUND)).take(2 * AROUND).collect();
        format!("\"{}\" at character {same} of {}", Foreign(shown), text.chars().count())
    };
    Outcome::Fail { expected: around(right), found: around(found) }
}
