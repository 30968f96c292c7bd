//! What README.md, docs/judge.md, docs/text.md and docs/check-text.md show is what the program prints.

use std::path::{Path, PathBuf};
use std::process::Command;

use dsv2::metrics::NAMES;
use dsv2::transcripts::mutants::MUTANTS;

const README: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"));
const TEXT: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/text.md"));
const CHECK_TEXT: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/check-text.md"));
const JUDGE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/judge.md"));

/// The lines that a document shows below `$ {command}`, to the end of the code block or the next command.
fn shown<'a>(document: &'a str, command: &str) -> Vec<&'a str> {
    let mut lines = document.lines().skip_while(|line| *line != format!("$ {command}"));
    assert!(lines.next().is_some(), "the document shows `{command}`");
    lines.take_while(|line| !line.starts_with("```") && !line.starts_with("$ ")).collect()
}

fn dsv2(arguments: &str, folder: &Path) -> String {
    let arguments: Vec<&str> = arguments.split_whitespace().map(|word| word.trim_matches('\'')).collect();
    let output = Command::new(env!("CARGO_BIN_EXE_dsv2")).args(arguments).current_dir(folder).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// A line without its measured numbers and by which measure they are worst, which differ from one mathematical library to the next. `None` for rules and empty lines.
fn stable(line: &str) -> Option<String> {
    let is_measured =
        |word: &&str| word.contains("e-") || NAMES.contains(word) || word.trim_end_matches(',').parse::<f64>().is_ok();
    let words: Vec<&str> =
        line.split_whitespace().filter(|word| !is_measured(word) && !word.starts_with('─')).collect();
    (!words.is_empty()).then(|| words.join(" "))
}

/// Whether a line that a document shows is one that was printed; it may end in `...`.
fn is(shown: &str, printed: &str) -> bool {
    shown.strip_suffix("...").map_or(shown == printed, |start| printed.starts_with(start.trim_end()))
}

/// Every line that a document shows below a command, `...` aside, is printed, and in this order.
#[track_caller]
fn assert_printed(shown: Vec<&str>, printed: &str, form: impl Fn(&str) -> Option<String>) {
    let mut printed_lines = printed.lines().filter_map(&form);
    for line in shown.into_iter().filter(|line| line.trim() != "...").filter_map(&form) {
        assert!(printed_lines.any(|printed| is(&line, &printed)), "not printed, or not in this order: {line}");
    }
}

/// Runs every `$ dsv2 ..` of a document in a folder of its own, one after the other, and holds what the document shows of each
/// against what it prints.
#[track_caller]
fn assert_session(document: &str, commands: usize) {
    assert_session_in(&tempfile::tempdir().unwrap(), document, commands);
}

#[track_caller]
fn assert_session_in(folder: &tempfile::TempDir, document: &str, commands: usize) {
    let session: Vec<&str> = document.lines().filter_map(|line| line.strip_prefix("$ dsv2 ")).collect();
    assert_eq!(session.len(), commands, "{session:?}");
    for command in session {
        if command.starts_with("materialize") {
            // the folder must not be there
            std::fs::remove_dir_all(folder.path().join("V")).ok();
        }
        let printed = dsv2(command, folder.path());
        assert!(!printed.is_empty(), "`{command}` prints something");
        assert_printed(shown(document, &format!("dsv2 {command}")), &printed, stable);
    }
}

#[test]
fn the_readme_shows_a_wrong_implementation() {
    assert_session(README, 3);
}

#[test]
fn the_checks_of_the_judge_are_real() {
    assert_session(JUDGE, 6);
}

#[test]
fn the_texts_of_the_small_model_are_real() {
    assert_session(TEXT, 1);
}

#[test]
fn the_excerpt_of_verify_is_real() {
    let printed = dsv2("verify --case v2*", Path::new("."));
    // Which stage comes nearest to its budget may change with the last bits, too.
    let without_stage = |line: String| line.split(" model.").next().unwrap_or_default().to_owned();
    // Where there is a GPU there are more runs, and so another number of them.
    let on_any_machine = |line: &&str| !line.contains(" cuda ");
    let real: Vec<_> = printed.lines().filter(on_any_machine).filter_map(stable).map(without_stage).collect();
    let excerpt = shown(JUDGE, "cargo run --release -- verify --case 'v2*'");
    let excerpt: Vec<_> = excerpt.into_iter().filter_map(stable).map(without_stage).collect();
    assert_eq!(excerpt, real);
}

#[test]
fn the_excerpt_of_the_cache_table_is_real() {
    let printed = dsv2("kv-cache --preset v2", Path::new("."));
    let as_it_is = |line: &str| Some(line.to_owned());
    assert_printed(shown(JUDGE, "cargo run --release -- kv-cache --preset v2"), &printed, as_it_is);
}

#[test]
fn every_link_between_the_documents_leads_somewhere() {
    let mut broken = Vec::new();
    for document in documents(Path::new(env!("CARGO_MANIFEST_DIR"))) {
        let text = std::fs::read_to_string(&document).unwrap();
        for link in [links(&text, "](", ")"), links(&text, "<img src=\"", "\"")].concat() {
            let target = link.split('#').next().unwrap();
            // a README that is also a crate's documentation names items: crate::race
            if !link.contains("::") && !link.contains("://") && !document.parent().unwrap().join(target).exists() {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert_eq!(broken, [""; 0]);
}

/// What a text has between two marks, wherever it has it.
fn links<'a>(text: &'a str, before: &str, after: &str) -> Vec<&'a str> {
    text.split(before).skip(1).filter_map(|rest| Some(rest.split_once(after)?.0)).collect()
}

/// The Markdown files of the repository.
fn documents(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // what is built, installed or not ours begins with a dot or is in one of these
        let ours = !name.starts_with('.') && !["target", "node_modules", "venv"].contains(&name.as_str());
        match path.is_dir() {
            true if ours => found.extend(documents(&path)),
            false if name.ends_with(".md") => found.push(path),
            _ => {}
        }
    }
    found
}

#[test]
fn the_transcript_of_the_page_is_judged_as_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let transcript = CHECK_TEXT.lines().find(|line| line.starts_with("{\"request\"")).unwrap();
    std::fs::write(folder.path().join("answers.jsonl"), transcript).unwrap();
    assert_session_in(&folder, CHECK_TEXT, 1);
}

#[test]
fn the_page_lists_every_bug_of_text() {
    for mutant in MUTANTS {
        let row = format!("| `{}` | {} | {} |", mutant.name, mutant.part, mutant.about);
        assert!(CHECK_TEXT.contains(&row), "{row}");
    }
}
