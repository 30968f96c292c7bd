//! An engine with known bugs, and whether the judge finds and names them.

mod engine;
mod listed;
mod odd;

use dsv2_reference::Dialect;
use dsv2_text::ChatTemplate;
use serde_json::{Value, json};

use super::judge::{Judge, Judged, Outcome, Part, settle};
use super::mutants::{Bug, MUTANTS};
use super::sampling::LogprobsOf;
use super::{Speech, record::Transcript};
use crate::generate::ModelFolder;
use crate::precision::Precision;
use engine::Engine;

/// A template with all that templates have: tools, and newlines of its own.
const TEMPLATE: &str = "{{ bos_token }}{% if tools %}Tools: {{ tools | tojson }}\n\n{% endif %}{% for message in messages %}\
    {% if message['role'] == 'user' %}User: {{ message['content'] }}\n\n\
    {% elif message['role'] == 'assistant' %}Assistant: {{ message['content'] }}{{ eos_token }}\
    {% else %}{{ message['content'] }}\n\n{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}";

/// The small model, and a template for it.
struct Model {
    folder: ModelFolder,
    template: ChatTemplate,
}

impl Model {
    fn new() -> Self {
        let folder = ModelFolder::embedded(Dialect::default()).unwrap();
        let template = ChatTemplate::from_source(TEMPLATE, folder.tokenizer.special_tokens()).unwrap();
        Model { folder, template }
    }

    fn judge(&self, precision: Precision, logprobs_of: Option<LogprobsOf>) -> Judge<'_> {
        let speech = Speech { template: Ok(&self.template), ..Speech::of(&self.folder).unwrap() };
        Judge { speech, ..Judge::new(&self.folder, precision, logprobs_of).unwrap() }
    }
}

/// One question.
fn ask(settings: Value) -> Value {
    with(json!({"messages": [{"role": "user", "content": "What is a token?"}], "max_tokens": 48}), settings)
}

fn complete(prompt: &str, settings: Value) -> Value {
    with(json!({"prompt": prompt, "max_tokens": 24}), settings)
}

/// A beginning after which much is possible, and much comes.
fn open(settings: Value) -> Value {
    with(json!({"prompt": "naïve ◇ text: 你好", "max_tokens": 64, "ignore_eos": true}), settings)
}

fn turns() -> Value {
    json!({"temperature": 0, "max_tokens": 8, "messages": [
        {"role": "system", "content": "You are a small model."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "Hello! Ask me about DeepSeek-V2."},
        {"role": "user", "content": "  What is MLA? "},
    ]})
}

fn with(mut request: Value, settings: Value) -> Value {
    for (name, value) in settings.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

/// What is asked to show a bug.
fn shows(bug: Bug) -> Value {
    let greedy = || json!({"temperature": 0});
    match bug {
        Bug::NoGenerationPrompt | Bug::NewlinesHalved | Bug::NewlineAtEnd | Bug::SpaceAtEnd => ask(greedy()),
        Bug::ContentStripped | Bug::SystemDropped | Bug::SystemAsUser | Bug::OnlyLastTurn | Bug::EndTokensDropped => {
            turns()
        }
        Bug::ToolsDropped => {
            let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": {}}}]);
            ask(json!({"temperature": 0, "tools": tools}))
        }
        Bug::BosTwice | Bug::BosMissing | Bug::EosAppended | Bug::LeadingSpace | Bug::FirstTokenCut => {
            complete("The model reads", greedy())
        }
        Bug::SpecialTokensAsText => turns(),
        Bug::PenaltyIgnored | Bug::PenaltyWithoutPrompt => ask(json!({"temperature": 0, "repetition_penalty": 1.44})),
        Bug::PenaltyAlwaysDivides => open(json!({"temperature": 3.0, "repetition_penalty": 3.0})),
        Bug::PenaltyByCount => {
            complete("a token is a token is a token is a", json!({"temperature": 0, "repetition_penalty": 1.2}))
        }
        Bug::TopKOffByOne | Bug::TopKIgnored => open(json!({"temperature": 20.0, "top_k": 3})),
        Bug::TopPIgnored => open(json!({"temperature": 3.0, "top_p": 0.3})),
        Bug::TemperatureLast => open(json!({"temperature": 0.5, "top_p": 0.6})),
        Bug::MinPAbsolute => open(json!({"temperature": 1.5, "min_p": 0.02})),
        Bug::MinPIgnored => open(json!({"temperature": 3.0, "min_p": 0.4})),
        Bug::BiasIgnored => ask(json!({"temperature": 0, "logit_bias": {"300": 30.0}, "max_tokens": 8})),
        Bug::MinTokensIgnored => ask(json!({"temperature": 0, "min_tokens": 44})),
        Bug::TemperatureIgnored => complete("The router", json!({"temperature": 3.0})),
        Bug::LogprobsBeforePenalty => {
            complete("the the the the", json!({"temperature": 2.0, "repetition_penalty": 2.0}))
        }
        Bug::LogprobsBase2
        | Bug::LogprobsBase10
        | Bug::LogprobsUnnormalised
        | Bug::Probabilities
        | Bug::LogprobsShifted => ask(greedy()),
        Bug::LogprobsAmongTop => complete("The router", json!({"temperature": 3.0})),
        Bug::EndTokenIgnored | Bug::ReasonSwapped | Bug::EndTokenShown => ask(greedy()),
        Bug::StopTokensIgnored => ask(json!({"temperature": 0, "stop_token_ids": [300, 403]})),
        Bug::StopStringIgnored | Bug::StopStringAtTokensOnly | Bug::StopStringShown | Bug::TextAfterStopString => {
            ask(json!({"temperature": 0, "stop": ["t of a w"]}))
        }
        Bug::OneTokenMore | Bug::OneTokenLess => complete("The router", json!({"temperature": 0, "max_tokens": 12})),
        Bug::LengthWithPrompt => ask(json!({"temperature": 0, "max_tokens": 24})),
        Bug::SpecialTokensShown | Bug::EndTokenForbidden => ask(json!({"temperature": 0, "ignore_eos": true})),
        // the two bytes of é, over and over
        Bug::CharactersSplit => open(json!({"temperature": 20.0, "logit_bias": {"129": 1000, "104": 1000}})),
        Bug::TextStripped => ask(greedy()),
        // " ." and " a", over and over
        Bug::SpacesCleaned => open(json!({"temperature": 20.0, "logit_bias": {"949": 1000, "260": 1000}})),
        Bug::EchoIgnored => complete("A shared expert", json!({"temperature": 0, "max_tokens": 4, "echo": true})),
        Bug::BosNotCounted | Bug::CharactersCounted => complete("A shared expert", greedy()),
    }
}

fn said(judged: &Judged) -> String {
    let parts = judged.parts.iter().filter(|part| !matches!(part.outcome, Outcome::Pass | Outcome::NotJudged(_)));
    parts.map(|part| format!("{} {:?} {:?}", part.part, part.outcome, part.hints)).collect::<Vec<_>>().join("; ")
}

/// The verdict on one transcript, with its logprobs settled.
fn judged(judge: &Judge<'_>, transcript: &Transcript) -> Judged {
    let mut judged = [judge.judge(transcript).unwrap()];
    settle(&mut judged);
    let [judged] = judged;
    judged
}

#[test]
fn every_mutant_is_caught_and_named() {
    let model = Model::new();
    let mut wrong = Vec::new();
    for mutant in MUTANTS {
        let of = match mutant.bug {
            Bug::LogprobsBeforePenalty => LogprobsOf::Scaled,
            Bug::TemperatureIgnored | Bug::MinPAbsolute | Bug::PenaltyAlwaysDivides => LogprobsOf::Processed,
            _ => LogprobsOf::Model,
        };
        let judge = model.judge(Precision::F32, Some(of));
        let transcript = Engine::new(&judge, of, Precision::F32, Some(mutant.bug)).answer(&shows(mutant.bug), true);
        let judged = judged(&judge, &transcript);
        let named = |first: &super::judge::PartVerdict| first.part == mutant.part && first.hints.contains(&mutant);
        if !judged.first_failure().is_some_and(named) {
            wrong.push(format!("{}: {}", mutant.name, said(&judged)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn right_answers_pass_in_every_type_whatever_they_tell() {
    let model = Model::new();
    let mut requests: Vec<Value> = Vec::new();
    for request in MUTANTS.iter().map(|mutant| shows(mutant.bug)) {
        if !requests.contains(&request) {
            requests.push(request);
        }
    }
    for (number, request) in requests.iter().enumerate() {
        let precision = [Precision::F32, Precision::Bf16][number % 2];
        let of = LogprobsOf::ALL[number % 3];
        let judge = model.judge(precision, None);
        let transcript = Engine::new(&judge, of, precision, None).answer(request, number % 4 < 2);
        let judged = judged(&judge, &transcript);
        let off = judged.parts.iter().find(|part| part.fails() || matches!(part.outcome, Outcome::Inconclusive(_)));
        assert!(off.is_none(), "{request} in {precision}: {}", said(&judged));
    }
}

#[test]
fn a_prompt_that_is_not_told_is_found_by_what_the_model_says_of_the_answer() {
    let model = Model::new();
    let judge = model.judge(Precision::F32, None);
    for bug in [Bug::BosTwice, Bug::BosMissing, Bug::NewlinesHalved, Bug::NoGenerationPrompt, Bug::NewlineAtEnd] {
        let transcript = Engine::new(&judge, LogprobsOf::Model, Precision::F32, Some(bug))
            .answer(&ask(json!({"temperature": 0})), false);
        let judged = judged(&judge, &transcript);
        let first = judged.first_failure().map(|first| first.hints.iter().map(|hint| hint.bug).collect::<Vec<_>>());
        assert_eq!(first, Some(vec![bug]), "{}", said(&judged));
    }
}

#[test]
fn the_end_token_may_be_ignored_by_going_on_or_by_forbidding_it() {
    let model = Model::new();
    let judge = model.judge(Precision::F32, None);
    for bug in [None, Some(Bug::EndTokenForbidden)] {
        let engine = Engine::new(&judge, LogprobsOf::Model, Precision::F32, bug);
        let judged = judged(&judge, &engine.answer(&shows(Bug::EndTokenForbidden), true));
        assert!(judged.first_failure().is_none(), "{}", said(&judged));
    }
}

#[test]
fn an_engine_has_one_convention_of_logprobs() {
    let model = Model::new();
    let judge = model.judge(Precision::F32, None);
    let request = complete("The router", json!({"temperature": 3.0, "top_k": 3}));
    let told = |conventions: &[LogprobsOf]| {
        let of = conventions
            .iter()
            .map(|&of| judge.judge(&Engine::new(&judge, of, Precision::F32, None).answer(&request, true)).unwrap());
        let mut all: Vec<Judged> = of.collect();
        let settled = settle(&mut all);
        (settled, all.iter().filter(|judged| judged.first_failure().is_some()).count())
    };
    for of in LogprobsOf::ALL {
        assert_eq!(told(&[of, of]), (vec![of], 0));
    }
    assert_eq!(told(&[LogprobsOf::Scaled, LogprobsOf::Scaled, LogprobsOf::Model]), (vec![LogprobsOf::Scaled], 1));
    let greedy = complete("The router", json!({"temperature": 0}));
    let mut all =
        [judge.judge(&Engine::new(&judge, LogprobsOf::Model, Precision::F32, None).answer(&greedy, true)).unwrap()];
    assert_eq!(settle(&mut all), LogprobsOf::ALL);
}

#[test]
fn experts_that_were_chosen_otherwise_are_no_fault_where_filters_leave_one_convention_open() {
    let model = Model::new();
    let judge = model.judge(Precision::F16, None);
    // after these the router's logits are nearly equal, and f16 goes elsewhere
    let prompt =
        [0, 300, 27, 422, 507, 264, 705, 436, 553, 370, 32, 200, 200, 299, 27, 345, 305, 281, 705, 436, 553, 738];
    let request = json!({"prompt": prompt, "max_tokens": 1, "temperature": 0.4, "top_k": 10});
    let judged = judged(&judge, &Engine::new(&judge, LogprobsOf::Model, Precision::F16, None).answer(&request, true));
    let logprobs = judged.parts.iter().find(|part| part.part == Part::Logprobs).unwrap();
    assert!(matches!(logprobs.outcome, Outcome::Inconclusive(_)), "{:?}", logprobs.outcome);
}
