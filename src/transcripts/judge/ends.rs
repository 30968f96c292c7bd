//! Where an answer ends, what of it is text, and how many tokens that was.

use dsv2_foreign::Foreign;
use dsv2_text::FinishReason;

use super::fed::differing;
use super::{Judge, Outcome, Part, PartVerdict};
use crate::error::Result;
use crate::transcripts::answer::Answer;
use crate::transcripts::ending::Stops;
use crate::transcripts::mutants::{self, Bug, Mutant};
use crate::transcripts::prompt::{Fed, prompt};
use crate::transcripts::record::Transcript;
use crate::transcripts::truth::Truth;

/// What a part expects, and what it finds, if that is something else.
type Differs = Option<(String, String)>;

/// Whether the answer ends where and as it should.
pub fn finish_reason(judge: &Judge<'_>, transcript: &Transcript, fed: &[i64], answer: &Answer) -> Result<PartVerdict> {
    let Some(reason) = transcript.answer().finish_reason.as_deref() else {
        return Ok(PartVerdict::not_judged(Part::FinishReason, "finish_reason"));
    };
    if ["tool_calls", "function_call", "content_filter"].contains(&reason) {
        return Ok(PartVerdict::not_judged(Part::FinishReason, "stop or length as finish_reason"));
    }
    if let Some(counted) = beyond(transcript, answer) {
        let needs = format!("the tokens of the stop string, too ({} of {counted} are told)", answer.ids.len());
        return Ok(PartVerdict::not_judged(Part::FinishReason, needs));
    }
    let ended = |stops: &Stops<'_>| ends_so(judge, transcript, stops, fed, answer, reason);
    let stops = judge.stops(transcript, fed.len(), None);
    let Some((expected, found)) = ended(&stops)? else {
        let outcome = match told_of_ending(transcript, &stops, answer)? {
            Some((expected, found)) => Outcome::Fail { expected, found },
            None => Outcome::Pass,
        };
        return Ok(PartVerdict::of(Part::FinishReason, outcome, 1 + answer.ids.len()));
    };
    let mut hints = Vec::new();
    for mutant in mutants::of(Part::FinishReason) {
        if mutant.bug == Bug::ReasonSwapped {
            let other = if reason == "stop" { "length" } else { "stop" };
            if ends_so(judge, transcript, &stops, fed, answer, other)?.is_none() {
                hints = vec![mutant];
                break;
            }
        } else if ended(&judge.stops(transcript, fed.len(), Some(mutant.bug)))?.is_none() {
            hints.push(mutant);
        }
    }
    Ok(PartVerdict::of(Part::FinishReason, Outcome::Fail { expected, found }, 1 + answer.ids.len()).explained(hints))
}

/// What differs, if an answer says that another token or string ended it. It may be silent about it.
fn told_of_ending(transcript: &Transcript, stops: &Stops<'_>, answer: &Answer) -> Result<Differs> {
    let Some(told) = transcript.answer().stop_reason.as_ref().filter(|told| !told.is_null()) else { return Ok(None) };
    let right = |token: &i64| told.as_i64() == Some(*token);
    let (same, expected) = match stops.end(&answer.ids)? {
        Some((_, FinishReason::StopToken(token))) => (right(&token), token.to_string()),
        Some((_, FinishReason::StopString(string))) => {
            (told.as_str() == Some(&string), format!("\"{}\"", Foreign(string)))
        }
        Some((_, FinishReason::Length)) => (false, "none".to_owned()),
        // an end token that is no part of it
        None => (stops.ends().iter().any(right), "an end token, or none".to_owned()),
    };
    Ok((!same).then(|| (format!("{expected} as stop_reason"), Foreign(told).to_string())))
}

/// How many tokens there are, if some are not told since a stop string made an end of their text, as llama.cpp does.
fn beyond(transcript: &Transcript, answer: &Answer) -> Option<u64> {
    let stopped = transcript.answer().finish_reason.as_deref() == Some("stop") && transcript.request.stop.is_some();
    let counted = transcript.response.usage.and_then(|usage| usage.completion_tokens).filter(|_| stopped)?;
    Some(counted).filter(|&counted| counted > answer.ids.len() as u64 + 1)
}

/// What differs, if the answer does not end by these rules.
fn ends_so(
    judge: &Judge<'_>,
    transcript: &Transcript,
    stops: &Stops<'_>,
    fed: &[i64],
    answer: &Answer,
    reason: &str,
) -> Result<Differs> {
    let ids = &answer.ids;
    let found = || format!("{reason} after {} tokens", ids.len());
    if stops.most() == Some(0) {
        // An echo alone. Some servers make one token all the same.
        return Ok((ids.len() > 1 || reason != "length").then(|| ("length, without a token".to_owned(), found())));
    }
    if let Some((length, ending)) = stops.end(ids)? {
        let says = reason == ending.name();
        let expected = || match &ending {
            FinishReason::StopToken(token) => format!("stop at token {token}, after {length} tokens"),
            FinishReason::StopString(string) => format!("stop at \"{}\", after {length} tokens", Foreign(string)),
            FinishReason::Length => format!("length after {length} tokens"),
        };
        return Ok((length < ids.len() || !says).then(|| (expected(), found())));
    }
    if reason == "length" && stops.most().is_none() {
        return Ok(None);
    }
    // It ends before it should, unless an end token comes next that is no part of it.
    let expected = match stops.most() {
        Some(most) => format!("an answer that goes on, up to {most} tokens"),
        None => "an answer that goes on".to_owned(),
    };
    if reason != "stop" || fed.is_empty() {
        return Ok(Some((expected, found())));
    }
    let row = [fed, ids].concat();
    let sampling = judge.sampling(transcript, fed.len(), None);
    let truth = Truth::of(judge.speech.model, &row, row.len(), judge.precision)?;
    let may_end = |truth: &Truth| {
        let adjusted = sampling.adjusted(&row, &truth.row(0));
        let may = |&end: &i64| {
            let tolerance = usize::try_from(end).map_or(0.0, |end| truth.tolerance(0, &row, &sampling, end));
            sampling.may_choose(&row, &adjusted, end, tolerance)
        };
        let known = |end: &&i64| usize::try_from(**end).is_ok_and(|end| end < adjusted.len());
        stops.ends().iter().filter(known).any(may)
    };
    if may_end(&truth) {
        return Ok(None);
    }
    let ends = truth.rerouted()?.is_some_and(|truth| may_end(&truth));
    Ok((!ends).then(|| (expected, found())))
}

/// Whether the text is that of the tokens.
pub fn text(
    judge: &Judge<'_>,
    transcript: &Transcript,
    fed: &[i64],
    answer: &Answer,
    prompt: &Fed,
) -> Result<PartVerdict> {
    let Some(found) = transcript.text() else { return Ok(PartVerdict::not_judged(Part::Text, "text")) };
    let echoed = match &prompt.text {
        _ if transcript.request.echo != Some(true) => String::new(),
        Some(text) => text.clone(),
        None => judge.speech.model.tokenizer.decode(&prompt.ids, true)?,
    };
    let made = |bug| -> Result<String> {
        let shown = judge.stops(transcript, fed.len(), bug).shown(&answer.ids)?;
        Ok(if bug == Some(Bug::EchoIgnored) { shown } else { echoed.clone() + &shown })
    };
    let right = made(None)?;
    let compared = right.chars().count();
    // A character that was begun and not ended is shown as �, or left out.
    if right == found || right.trim_end_matches('\u{fffd}') == found {
        return Ok(PartVerdict::of(Part::Text, Outcome::Pass, compared));
    }
    let mut hints = Vec::new();
    for mutant in mutants::of(Part::Text) {
        if made(Some(mutant.bug))? == found {
            hints.push(mutant);
        }
    }
    Ok(PartVerdict::of(Part::Text, differing(&right, found), compared).explained(hints))
}

/// Whether the tokens were counted.
pub fn usage(judge: &Judge<'_>, transcript: &Transcript, fed: &[i64], answer: Option<&Answer>) -> Result<PartVerdict> {
    let Some(usage) = transcript.response.usage else {
        return Ok(PartVerdict::not_judged(Part::Usage, "usage of this answer alone"));
    };
    let all_told = answer.filter(|answer| beyond(transcript, answer).is_none());
    let counted = all_told.map(|answer| completion(judge, transcript, fed, answer)).transpose()?;
    let off = |found: Option<u64>, right: &[usize]| found.filter(|found| !right.iter().any(|&n| n as u64 == *found));
    let sum = usage.prompt_tokens.zip(usage.completion_tokens).map(|(a, b)| a.saturating_add(b));
    let wrong = [
        ("prompt_tokens", off(usage.prompt_tokens, &[fed.len()]), fed.len() as u64),
        (
            "completion_tokens",
            counted.as_ref().and_then(|counted| off(usage.completion_tokens, counted)),
            counted.as_ref().map_or(0, |counted| counted[0] as u64),
        ),
        ("total_tokens", usage.total_tokens.filter(|all| sum.is_some_and(|sum| sum != *all)), sum.unwrap_or(0)),
    ];
    let compared = [usage.prompt_tokens, usage.completion_tokens.filter(|_| counted.is_some()), usage.total_tokens];
    let compared = compared.iter().flatten().count();
    let Some((name, Some(found), expected)) = wrong.into_iter().find(|(_, found, _)| found.is_some()) else {
        return Ok(match compared {
            0 => PartVerdict::not_judged(Part::Usage, "numbers in usage"),
            _ => PartVerdict::of(Part::Usage, Outcome::Pass, compared),
        });
    };
    let bos = judge.speech.model.tokenizer.bos_token_id();
    let without_bos = fed.iter().filter(|&&id| Some(id) != bos).count() as u64;
    let characters = transcript.text().map_or(0, |text| text.chars().count() as u64);
    // A prompt that nobody told of has as many tokens as one that is made with this bug.
    let fed_so =
        |bug| prompt(&judge.speech, &transcript.request, Some(bug)).is_ok_and(|fed| fed.ids.len() as u64 == found);
    let makes = |mutant: &&'static Mutant| match mutant.part {
        Part::Usage if mutant.bug == Bug::BosNotCounted => name == "prompt_tokens" && found == without_bos,
        Part::Usage => name == "completion_tokens" && found == characters,
        Part::Template | Part::Tokenization => name == "prompt_tokens" && fed_so(mutant.bug),
        _ => false,
    };
    let is_chat = transcript.request.messages.is_some();
    let prompts = mutants::of(Part::Template).filter(|_| is_chat).chain(mutants::of(Part::Tokenization));
    let hints = mutants::of(Part::Usage).chain(prompts).filter(makes).collect();
    let outcome = Outcome::Fail { expected: format!("{name} {expected}"), found: found.to_string() };
    Ok(PartVerdict::of(Part::Usage, outcome, compared).explained(hints))
}

/// How many tokens an answer may be said to have: with its end token or without, if one ended it.
fn completion(judge: &Judge<'_>, transcript: &Transcript, fed: &[i64], answer: &Answer) -> Result<Vec<usize>> {
    let (ids, tokenizer) = (&answer.ids, &judge.speech.model.tokenizer);
    if ids.iter().any(|&id| tokenizer.token_of(id).is_none()) {
        return Ok(vec![ids.len()]);
    }
    let stops = judge.stops(transcript, fed.len(), None);
    Ok(match stops.end(ids)? {
        Some((_, FinishReason::StopToken(_))) => vec![ids.len(), ids.len() - 1],
        None if transcript.answer().finish_reason.as_deref() == Some("stop") => vec![ids.len(), ids.len() + 1],
        _ => vec![ids.len()],
    })
}
