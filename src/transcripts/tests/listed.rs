//! Logprobs that are right number by number, and yet not what was asked for, or not of the answer.

use serde_json::json;

use super::super::judge::{Outcome, Part};
use super::{Engine, Model, complete, judged, said};
use crate::precision::Precision;
use crate::transcripts::record::{AnswerRecord, LogprobsRecord, TokenRecord, Transcript};
use crate::transcripts::sampling::LogprobsOf;

/// The right answer of an engine to "The router", with five of the likeliest tokens at each of four.
fn right(model: &Model) -> Transcript {
    let judge = model.judge(Precision::F32, None);
    let asked = json!({"temperature": 0, "max_tokens": 4, "logprobs": 5});
    Engine::new(&judge, LogprobsOf::Model, Precision::F32, None).answer(&complete("The router", asked), true)
}

fn choice(transcript: &mut Transcript) -> &mut AnswerRecord {
    &mut transcript.response.choices[0]
}

fn content(transcript: &mut Transcript) -> &mut Vec<TokenRecord> {
    choice(transcript).logprobs.as_mut().and_then(|told| told.content.as_mut()).unwrap()
}

fn top(transcript: &mut Transcript, at: usize) -> &mut Vec<TokenRecord> {
    content(transcript)[at].top_logprobs.as_mut().unwrap()
}

/// The same as a completion has it, with each token's text.
fn as_completion(model: &Model, transcript: &mut Transcript) -> LogprobsRecord {
    let text = |token: &TokenRecord| model.folder.tokenizer.decode(&[token.id.unwrap()], false).unwrap();
    let content = content(transcript);
    let top =
        |token: &TokenRecord| token.top_logprobs.iter().flatten().map(|token| (text(token), token.logprob)).collect();
    let tokens: Vec<String> = content.iter().map(text).collect();
    let ends = tokens.iter().scan(0, |end, text| Some(std::mem::replace(end, *end + text.chars().count() as i64)));
    LogprobsRecord {
        text_offset: Some(ends.collect()),
        token_logprobs: Some(content.iter().map(|token| token.logprob).collect()),
        top_logprobs: Some(content.iter().map(|token| Some(top(token))).collect()),
        tokens: Some(tokens),
        content: None,
    }
}

type Change<'c> = &'c dyn Fn(&mut Transcript);

#[test]
fn logprobs_that_are_not_those_of_the_answer_fail() {
    let model = Model::new();
    let judge = model.judge(Precision::F32, None);
    let completion = |change: &dyn Fn(&mut LogprobsRecord)| {
        let mut transcript = right(&model);
        let mut logprobs = as_completion(&model, &mut transcript);
        change(&mut logprobs);
        choice(&mut transcript).logprobs = Some(logprobs);
        transcript
    };
    let chat = |change: Change<'_>| {
        let mut transcript = right(&model);
        change(&mut transcript);
        transcript
    };
    let passes = [
        ("as it is", chat(&|_| ())),
        ("by text", completion(&|_| ())),
        (
            "with texts and bytes",
            chat(&|t| {
                for token in content(t) {
                    let text = model.folder.tokenizer.decode(&[token.id.unwrap()], false).unwrap();
                    token.bytes = Some(text.bytes().map(i64::from).collect());
                    token.token = Some(text);
                }
            }),
        ),
        ("no likeliest at all", chat(&|t| content(t).iter_mut().for_each(|token| token.top_logprobs = None))),
    ];
    for (what, transcript) in passes {
        let judged = judged(&judge, &transcript);
        assert!(judged.first_failure().is_none(), "{what}: {}", said(&judged));
        assert!(judged.parts.iter().any(|part| part.part == Part::Logprobs && part.outcome == Outcome::Pass), "{what}");
    }
    let fails = [
        ("one too few", chat(&|t| drop(content(t).pop()))),
        (
            "many more",
            chat(&|t| {
                let again = content(t).clone();
                content(t).extend(again);
            }),
        ),
        ("no token ids", chat(&|t| choice(t).token_ids = Some(Vec::new()))),
        ("another token's", chat(&|t| content(t)[1].id = Some(7))),
        ("another text", chat(&|t| content(t)[1].token = Some(" takes".to_owned()))),
        ("other bytes", chat(&|t| content(t)[1].bytes = Some(vec![1, 2, 3]))),
        (
            "likeliest that are none",
            chat(&|t| {
                let last = top(t, 2).last_mut().unwrap();
                (last.id, last.token) = (None, Some(" banana0".to_owned()));
            }),
        ),
        ("likeliest beyond the vocabulary", chat(&|t| top(t, 2).last_mut().unwrap().id = Some(1 << 40))),
        ("a likely token left out", chat(&|t| drop(top(t, 2).remove(1)))),
        ("the least likely left out", chat(&|t| drop(top(t, 2).pop()))),
        (
            "one of the likeliest twice",
            chat(&|t| {
                let second = top(t, 2)[1].clone();
                *top(t, 2).last_mut().unwrap() = second;
            }),
        ),
        ("none of the likeliest at one token", chat(&|t| top(t, 2).clear())),
        (
            "the chosen token left out",
            chat(&|t| {
                t.request.logprobs = Some(json!(4));
                top(t, 2).remove(0);
            }),
        ),
        ("texts that are none", completion(&|told| told.tokens.as_mut().unwrap()[1] = " banana0".to_owned())),
        ("texts shifted", completion(&|told| told.tokens.as_mut().unwrap().rotate_left(1))),
        ("more logprobs than texts", completion(&|told| told.token_logprobs.as_mut().unwrap().push(Some(-1.0)))),
        ("fewer likeliest than texts", completion(&|told| drop(told.top_logprobs.as_mut().unwrap().pop()))),
        ("offsets that go back", completion(&|told| told.text_offset.as_mut().unwrap().reverse())),
    ];
    for (what, transcript) in fails {
        let judged = judged(&judge, &transcript);
        let first = judged.parts.iter().find(|part| part.part == Part::Logprobs).unwrap();
        assert!(matches!(first.outcome, Outcome::Fail { .. }), "{what}: {}", said(&judged));
        assert!(first.ratio.is_some() || first.hints.is_empty(), "{what}: {}", said(&judged));
    }
}
