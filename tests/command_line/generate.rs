//! `dsv2 generate` and `dsv2 chat`: what Transformers says of the model in the program, and what is refused.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use dsv2::backend;
use dsv2::generate::decoder::{Decoder, OnDevice, OnHost};
use dsv2::generate::{ModelFolder, Rules, Session, Silent, generate};
use dsv2::precision::Precision;
use dsv2_optimized::model::Settings;
use dsv2_optimized::{Element, Variant};
use dsv2_reference::Dialect;
use dsv2_text::FinishReason;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::process::{Ran, dsv2, run as ran};

/// Runs by Transformers: golden/export/text_runs.py made them.
const RUNS: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/golden/text/runs.json"));

fn runs() -> Vec<Value> {
    let file: Value = serde_json::from_str(RUNS).unwrap();
    file["runs"].as_array().unwrap().clone()
}

fn ids(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
}

/// The prompts of a run, without padding.
fn prompts(run: &Value) -> Vec<Vec<i64>> {
    let rows = run["input_ids"].as_array().unwrap().iter().zip(run["attention_mask"].as_array().unwrap());
    let real =
        |(row, mask)| ids(row).into_iter().zip(ids(mask)).filter(|(_, real)| *real == 1).map(|(id, _)| id).collect();
    rows.map(real).collect()
}

/// The settings of a run, above those of the folder.
fn rules(run: &Value, folder: &ModelFolder) -> Rules {
    let mut arguments: Map<String, Value> = run["options"].as_object().unwrap().clone();
    arguments.insert("do_sample".into(), json!(false));
    Rules { config: folder.generation_config(&arguments).unwrap(), seed: 0, logprobs: true, first_sequence: 0 }
}

/// Whether what a decoder says is what Transformers says.
#[track_caller]
fn assert_said(run: &Value, folder: &ModelFolder, decoder: &mut dyn Decoder) {
    let rules = rules(run, folder);
    let completions = generate(folder, decoder, &prompts(run), &rules, &mut Silent).unwrap();
    let rows = run["new_tokens"].as_array().unwrap();
    assert_eq!(completions.len(), rows.len());
    for ((completion, row), text) in completions.iter().zip(rows).zip(run["new_texts"].as_array().unwrap()) {
        // behind its end, a row of Transformers has padding
        let row = ids(row);
        let end = row.iter().position(|id| rules.config.eos_token_id.contains(id)).map_or(row.len(), |end| end + 1);
        let said: Vec<i64> = completion.tokens.iter().map(|chosen| chosen.id).collect();
        assert_eq!(said, row[..end], "{}", run["name"]);
        assert_eq!(completion.text, text.as_str().unwrap(), "{}", run["name"]);
        assert_eq!(
            matches!(completion.finish, FinishReason::StopToken(_)),
            end < row.len() || rules.config.eos_token_id.contains(&row[end - 1])
        );
        assert!(completion.tokens.iter().all(|chosen| chosen.logprob.is_some_and(|logprob| logprob <= 0.0)));
    }
}

#[test]
fn the_reference_says_what_transformers_says() {
    let folder = ModelFolder::embedded(Dialect::Hf).unwrap();
    for run in runs() {
        assert_said(&run, &folder, &mut OnHost::<f32>::load(&folder, Precision::F32).unwrap());
        assert_said(&run, &folder, &mut OnHost::<f64>::load(&folder, Precision::F64).unwrap());
    }
}

#[test]
fn the_kernels_say_what_transformers_says() {
    let folder = ModelFolder::embedded(Dialect::Hf).unwrap();
    let device = backend::OnDevice::Emulator { races: false }.device().unwrap();
    let settings = Settings::new(Element::F32, Variant::Tuned);
    let mut decoder = OnDevice::load(&folder, &device, settings, &mut |_| ()).unwrap();
    let some = ["max-length", "batch-of-equal-prompts", "two-end-tokens"];
    let some: Vec<Value> = runs().into_iter().filter(|run| some.contains(&run["name"].as_str().unwrap())).collect();
    assert_eq!(some.len(), 3);
    some.iter().for_each(|run| assert_said(run, &folder, &mut decoder));
}

#[test]
fn texts_have_the_tokens_that_transformers_gives_them() {
    let folder = ModelFolder::embedded(Dialect::Hf).unwrap();
    for run in runs() {
        for (text, expected) in run["texts"].as_array().unwrap().iter().zip(prompts(&run)) {
            let tokens = folder.tokenizer.encode(text.as_str().unwrap(), run["kind"] == "completion").unwrap();
            assert_eq!(tokens, expected, "{text}");
        }
    }
}

#[test]
fn a_conversation_that_reuses_its_cache_says_what_it_would_say_anew() {
    let folder = ModelFolder::embedded(Dialect::Hf).unwrap();
    let load = || Box::new(OnHost::<f32>::load(&folder, Precision::F32).unwrap());
    let mut session = Session::new(&folder, load()).unwrap();
    let rules = Rules::greedy(12);
    let mut prompt = folder.tokenizer.encode("User: hello\n\nAssistant:", true).unwrap();
    for _ in 0..3 {
        let known = session.known(&prompt);
        let said = session.say(&prompt, &rules, &mut Silent).unwrap();
        let anew = generate(&folder, &mut *load(), &[prompt.clone()], &rules, &mut Silent).unwrap();
        assert_eq!(said, anew[0]);
        assert!(known > 0 || prompt.len() < 15, "{known} of {} tokens are cached", prompt.len());
        prompt.extend(said.tokens.iter().map(|chosen| chosen.id));
        prompt.extend(folder.tokenizer.encode("User: thanks\n\nAssistant:", false).unwrap());
    }
    // another conversation has nothing in common but its beginning
    let other = folder.tokenizer.encode("User: bye\n\nAssistant:", true).unwrap();
    let said = session.say(&other, &rules, &mut Silent).unwrap();
    assert_eq!(said, generate(&folder, &mut *load(), &[other], &rules, &mut Silent).unwrap()[0]);
}

#[test]
fn a_sequence_says_the_same_alone_and_beside_others_that_end_before_it() {
    let folder = ModelFolder::embedded(Dialect::Hf).unwrap();
    let mut decoder = OnHost::<f64>::load(&folder, Precision::F64).unwrap();
    let run = runs().into_iter().find(|run| run["name"] == "batch-end-tokens").unwrap();
    let together = generate(&folder, &mut decoder, &prompts(&run), &rules(&run, &folder), &mut Silent).unwrap();
    let lengths: Vec<usize> = together.iter().map(|completion| completion.tokens.len()).collect();
    assert!(lengths.iter().any(|length| *length != lengths[0]), "they end at different places: {lengths:?}");
    for (prompt, beside) in prompts(&run).into_iter().zip(together) {
        let alone = generate(&folder, &mut decoder, &[prompt], &rules(&run, &folder), &mut Silent).unwrap();
        assert_eq!(alone[0].text, beside.text);
    }
}

/// The objects that are printed, one in each line.
fn records(printed: &str) -> Vec<Value> {
    printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn on_a_fresh_machine_a_prompt_gets_a_text() {
    let record = &records(&ran(&mut dsv2(["generate", "--prompt", "DeepSeek-V2 is", "--greedy"])).passes())[0];
    assert!(record["text"].as_str().unwrap().starts_with(" a language model"), "{record}");
    assert_eq!((&record["finish_reason"], &record["stopped_by"]), (&json!("stop"), &json!(1)));
    let count = |key: &str| record[key].as_array().unwrap().len();
    assert_eq!(count("tokens"), count("logprobs"));
}

#[test]
fn the_same_seed_draws_the_same_text_whatever_is_beside_it() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("prompts.txt");
    fs::write(&file, "The router\n\nA tap is\nThe cache keeps\n").unwrap();
    let drawn = |seed: &str, batch: &str| {
        let args = ["generate", "--temperature", "1.5", "--max-new-tokens", "12", "--seed", seed, "--batch", batch];
        let printed = ran(dsv2(args).arg("--prompts").arg(&file)).passes();
        records(&printed).iter().map(|record| record["tokens"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(drawn("7", "3"), drawn("7", "1"));
    assert_ne!(drawn("7", "3"), drawn("8", "3"));
    assert_eq!(drawn("7", "2").len(), 3);
}

#[test]
fn a_stop_text_ends_the_answer_and_is_no_part_of_it() {
    let args = ["generate", "--prompt", "DeepSeek-V2 is", "--greedy", "--stop", "billion par", "--stop", "never"];
    let record = &records(&ran(&mut dsv2(args)).passes())[0];
    assert_eq!(record["text"], " a language model with 236 ");
    assert_eq!((&record["finish_reason"], &record["stopped_by"]), (&json!("stop"), &json!("billion par")));
}

#[test]
fn messages_are_answered_by_the_template() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("prompts.jsonl");
    let lines = [
        r#"{"messages": [{"role": "user", "content": "What is MLA?"}]}"#,
        r#"{"prompt": "The router"}"#,
        r#""Attention""#,
    ];
    fs::write(&file, lines.join("\n")).unwrap();
    let printed = ran(dsv2(["generate", "--greedy", "--prompts"]).arg(&file)).passes();
    let texts: Vec<String> =
        records(&printed).iter().map(|record| record["text"].as_str().unwrap().to_owned()).collect();
    assert!(texts[0].starts_with(" MLA is Multi-head Latent Attention."), "{texts:?}");
    assert!(texts[1].starts_with(" gives each expert a score"), "{texts:?}");
    assert_eq!(texts.len(), 3);
}

#[test]
fn the_id_of_a_prompt_is_said_again_as_it_was_read() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("prompts.jsonl");
    let longest = "\u{e9}".repeat(256);
    let ids = [json!(longest), json!(""), json!(u64::MAX), json!(-3), json!("a\u{1b}[2J\"\n"), json!("a")];
    let mut lines: Vec<String> = ids.iter().map(|id| json!({"id": id, "prompt": "The router"}).to_string()).collect();
    lines.insert(1, r#"{"prompt": "A prompt without one"}"#.to_owned());
    lines.push(r#"{"messages": [{"role": "user", "content": "hello"}], "id": "a"}"#.to_owned());
    fs::write(&file, lines.join("\n")).unwrap();
    let args = ["generate", "--greedy", "--max-new-tokens", "1", "--batch", "3", "--prompts"];
    let printed = ran(dsv2(args).arg(&file)).passes();
    assert!(!printed.contains('\u{1b}'), "{printed}");
    assert!(printed.lines().nth(3).unwrap().starts_with("{\"id\":18446744073709551615,\"prompt\":\"The router\","));
    let said: Vec<Option<Value>> = records(&printed).iter().map(|record| record.get("id").cloned()).collect();
    let mut expected: Vec<Option<Value>> = ids.into_iter().map(Some).collect();
    expected.insert(1, None);
    expected.push(Some(json!("a")));
    assert_eq!(said, expected);
}

/// It takes minutes in all; nobody waits longer than for the first word.
#[test]
fn many_prompts_that_are_quick_one_by_one_are_told_of() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("prompts.txt");
    fs::write(&file, "The router\n".repeat(50_000)).unwrap();
    let mut command = dsv2(["generate", "--greedy", "--max-new-tokens", "4", "--batch", "2", "--prompts"]);
    let mut child = command.arg(&file).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let said = lines.find(|line| !line.starts_with("prompts are made into tokens: ")).unwrap_or_default();
    child.kill().unwrap();
    child.wait().unwrap();
    let (at, which) = said.split_once(" for prompts ").unwrap_or_else(|| panic!("{said:?}"));
    assert!(at.starts_with('[') && at.contains('/') && which.ends_with(" of 50000"), "{said:?}");
}

#[test]
fn an_id_that_would_not_be_said_again_as_it_was_is_refused() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("prompts.jsonl");
    let long = format!("\"{}\"", "x".repeat(257));
    for (id, found) in [
        ("1.5", "1.5"),
        ("18446744073709551616", "1.8446744073709552e+19"),
        ("null", "null"),
        ("[1]", "[1]"),
        (&*long, "257 characters"),
    ] {
        fs::write(&file, format!("\"fine\"\n{{\"prompt\": \"a\", \"id\": {id}}}\n")).unwrap();
        let line = ran(dsv2(["generate", "--prompts"]).arg(&file)).refused();
        let says = "expected `id` as a text of at most 256 characters or as a whole number of 64 bits in line 2";
        assert!(line.contains(says) && line.contains(found) && line.chars().count() < 400, "{line}");
    }
}

/// `dsv2 chat` where nobody sits at a terminal.
fn chat(args: &[&str], lines: &[u8]) -> Ran {
    let mut command = dsv2(["chat"]);
    let mut child =
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn chat_answers_line_by_line() {
    let printed = chat(&["--greedy"], b"hello\n\nWhat is MLA?\n/reset\nthanks\n/exit\nnot heard\n").passes();
    let answers: Vec<&str> = printed.lines().collect();
    assert_eq!(answers.len(), 4, "an empty line has an empty answer: {printed}");
    assert!(
        answers[0].starts_with("Hello!")
            && answers[1].is_empty()
            && answers[2].starts_with("MLA is")
            && answers[3].starts_with("You are welcome")
    );
    assert_eq!(chat(&[], b"").passes(), "");
    let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/text.md"));
    assert!(
        page.contains(&format!("chat --greedy\n{}\n{}\n", answers[0], answers[2])),
        "docs/text.md shows these answers"
    );
    assert_eq!(chat(&[], b"/exit").passes(), "");
}

#[test]
fn a_question_that_has_no_room_ends_no_chat_and_is_said() {
    let long = "many words ".repeat(2000);
    let ran = chat(&["--greedy"], format!("hello\n{long}\nWhat is MLA?\n").as_bytes());
    assert!(ran.stderr.starts_with("line 2: ") && ran.stderr.lines().count() == 1, "{}", ran.stderr);
    assert_eq!(ran.code, Some(1));
    let answers: Vec<&str> = ran.stdout.lines().collect();
    assert!(answers[0].starts_with("Hello!") && answers[1].is_empty() && answers[2].starts_with("MLA is"));
    assert_eq!(answers.len(), 3);
}

/// A folder with the files of the model in the program, `changed` as it is told.
fn folder(change: impl FnOnce(&Path)) -> TempDir {
    let dir = TempDir::new().unwrap();
    for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/text/model")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    change(dir.path());
    dir
}

/// Puts another text in the place of one in a file.
fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{} has {from}", path.display());
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn folders_at_fault_are_refused_in_a_line() {
    let config = |from: &'static str, to: &'static str| move |dir: &Path| replace(&dir.join("config.json"), from, to);
    type Change = Box<dyn FnOnce(&Path)>;
    let refused: [(&str, Change); 6] = [
        ("tokenizer.json", Box::new(|dir| fs::remove_file(dir.join("tokenizer.json")).unwrap())),
        ("tokenizer.json", Box::new(|dir| fs::write(dir.join("tokenizer.json"), "{}").unwrap())),
        ("DeepseekV2ForSequenceClassification", Box::new(config("ForCausalLM", "ForSequenceClassification"))),
        ("model.layers.4", Box::new(config("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 5"))),
        ("temperature", Box::new(|dir| replace(&dir.join("generation_config.json"), "0.3", "-1"))),
        ("model.embed_tokens.weight", Box::new(config("\"vocab_size\": 1024", "\"vocab_size\": 300"))),
    ];
    for (named, change) in refused {
        let dir = folder(change);
        let line = ran(dsv2(["generate", "--prompt", "hello", "--model"]).arg(dir.path())).refused();
        assert!(line.contains(named), "{named}: {line}");
    }
}

#[test]
fn a_token_beyond_the_vocabulary_is_refused() {
    let added = r#""added_tokens_decoder": {"1024": {"content": "<new>", "special": true}}, "pad_token""#;
    let dir = folder(|dir| replace(&dir.join("tokenizer_config.json"), "\"pad_token\"", added));
    let line = ran(dsv2(["generate", "--prompt", "a <new> word", "--model"]).arg(dir.path())).refused();
    assert_eq!(
        line,
        "dsv2: prompt: expected tokens below 1024 (vocab_size in config.json), found 1024, from the tokenizer"
    );
}

#[test]
fn a_folder_without_a_template_completes_and_does_not_chat() {
    let dir = folder(|dir| fs::remove_file(dir.join("chat_template.jinja")).unwrap());
    let args = |command| [command, "--greedy", "--model", dir.path().to_str().unwrap()];
    ran(dsv2(args("generate")).args(["--prompt", "hello", "--max-new-tokens", "2"])).passes();
    let line = chat(&args("chat")[1..], b"hello\n").refused();
    assert!(line.contains("chat_template"), "{line}");
}

#[test]
fn prompts_at_fault_are_refused_in_a_line() {
    let dir = TempDir::new().unwrap();
    let refused = |name: &str, bytes: &[u8]| {
        let file = dir.path().join(name);
        fs::write(&file, bytes).unwrap();
        ran(dsv2(["generate", "--prompts"]).arg(&file)).refused()
    };
    let long = "word ".repeat(2000);
    let role = br#"{"messages": [{"role": "wizard", "content": "hello"}]}"#;
    let lines = [
        ("UTF-8", refused("a.txt", b"good\n\xff\xfe\n")),
        ("none", refused("b.txt", b"\n \n")),
        ("fewer than 1024 tokens (max_position_embeddings)", refused("c.txt", long.as_bytes())),
        ("line 3", refused("g.txt", format!("good\n\n{long}\n").as_bytes())),
        ("line 2", refused("d.jsonl", b"\"fine\"\n{\"prompt\": 3}\n")),
        ("not by wizard", refused("e.jsonl", role)),
        ("messages", refused("f.jsonl", br#"{"messages": "hello"}"#)),
        ("line 1, found max_tokens, too", refused("h.jsonl", br#"{"prompt": "a", "max_tokens": 3}"#)),
    ];
    for (named, line) in lines {
        assert!(line.contains(named), "{named}: {line}");
    }
    let option = |args: &[&str]| ran(dsv2(["generate"]).args(args)).refused();
    assert_eq!(option(&["--prompt", ""]), "dsv2: prompt: expected a text, found an empty one");
    for args in [
        &["--prompt", "a", "--top-p", "2"][..],
        &["--prompt", "a", "--temperature", "nan"],
        &["--prompt", "a", "--temperature", "-1"],
        &["--prompt", "a", "--top-p", "-0.5"],
        &["--prompt", "a", "--repetition-penalty", "inf"],
        &["--prompt", "a", "--max-length", "2"],
        &["--prompt", "a", "--max-length", "9", "--max-new-tokens", "9"],
        &["--prompt", "a", "--max-new-tokens", "0"],
        &["--prompt", "a", "--greedy", "--seed", "1"],
        &["--prompt", "a", "--dtype", "fp8"],
        &["--prompt", "a", "--stop", ""],
        &["--prompt", "a", "--memory-limit", "1kB"],
        &["--prompt", "a", "--batch", "0"],
        &[],
    ] {
        option(args);
    }
    assert!(chat(&[], b"hello \xff\n").refused().contains("UTF-8"));
}

#[test]
fn a_conversation_that_outgrows_its_memory_is_refused_before_it_is_computed() {
    let lines = format!("hello\n{}\n", "What is MLA? ".repeat(150));
    let answers = |limit: &str| chat(&["--greedy", "--memory-limit", limit], lines.as_bytes());
    assert_eq!(answers("100MB").passes().lines().count(), 2);
    let refused = answers("20MB");
    assert_eq!((refused.code, refused.stdout.lines().nth(1)), (Some(1), Some("")), "{}", refused.stderr);
    assert!(refused.stderr.contains("memory: expected about"), "{}", refused.stderr);
}

#[test]
fn max_length_counts_the_prompt() {
    let printed = ran(&mut dsv2(["generate", "--prompt", "hello", "--greedy", "--max-length", "6"])).passes();
    let record = &records(&printed)[0];
    assert_eq!(record["prompt_tokens"].as_u64().unwrap() + ids(&record["tokens"]).len() as u64, 6);
}

#[test]
fn what_a_terminal_would_obey_is_escaped_for_people_and_exact_in_json() {
    let args = ["generate", "--prompt", "red \u{1b}[31m text", "--greedy", "--max-new-tokens", "1"];
    let printed = ran(&mut dsv2(args)).passes();
    assert!(!printed.contains('\u{1b}'));
    assert_eq!(records(&printed)[0]["prompt"], "red \u{1b}[31m text");
}
