//! What is asked of every run.

use std::path::Path;
use std::{fs, io};

use dsv2_foreign::{LONGEST_LINE, is_harmful};
use serde_json::Value;

use crate::place::{Place, Target};

/// What came of a run.
pub struct Ran {
    /// How it ended.
    pub status: u8,
    /// What it said: on stdout, or on stderr if it refused.
    pub said: String,
}

/// What is wrong with a run of `command` on a damaged file, if something is.
pub fn wrong(place: &Place, target: &Target, command: &str, ran: &Ran) -> io::Result<Option<String>> {
    let is_json = ran.status < 2 && command.contains("--json");
    let said = ran.said.trim_end_matches('\n');
    let longest = said.lines().map(|line| line.chars().count()).max().unwrap_or_default();
    let quoted = || said.chars().take(300).collect::<String>().escape_debug().to_string();
    Ok(if ran.status > 2 {
        Some(format!("status {}", ran.status))
    } else if said.chars().any(|c| c != '\n' && is_harmful(c)) {
        Some(format!("a harmful character: {}", quoted()))
    } else if !is_json && longest > LONGEST_LINE {
        Some(format!("a line of {longest} characters: {}", quoted()))
    } else if is_json && serde_json::Deserializer::from_str(said).into_iter::<Value>().any(|value| value.is_err()) {
        Some(format!("no JSON: {}", quoted()))
    } else if ran.status == 2 && (said.is_empty() || said.contains('\n') || !names_what_is_wrong(target, said)) {
        Some(format!("no line that names what is wrong: {}", quoted()))
    } else {
        left_behind(&place.file("out"), ran.status)?
    })
}

/// The file, or a part of it by the words that every refusal of such a part begins with.
fn names_what_is_wrong(target: &Target, line: &str) -> bool {
    let path = Path::new(target.file);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // An index may name a file beside it that is not there.
    if name.ends_with(".index.json") && path.parent().is_some_and(|folder| line.contains(&*folder.to_string_lossy())) {
        return true;
    }
    let part = [
        "config: ",
        "weight `",
        "input `",
        "golden case `",
        "plot \"",
        "tokenizer: ",
        "chat template: ",
        "prompt: ",
        "model: ",
    ];
    line.contains(&*name)
        || part.iter().any(|begin| line.contains(begin))
        || line.trim_start_matches("dsv2: ").starts_with("--")
}

/// What lies in the folder for output should be whole, or not be there.
fn left_behind(out: &Path, status: u8) -> io::Result<Option<String>> {
    for entry in fs::read_dir(out)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let inside: Vec<String> = match entry.file_type()?.is_dir() {
            true => fs::read_dir(entry.path())?
                .map(|file| Ok(file?.file_name().to_string_lossy().into_owned()))
                .collect::<io::Result<_>>()?,
            false => Vec::new(),
        };
        let unfinished = |name: &String| name.starts_with('.') || name.contains(".partial");
        if unfinished(&name) || inside.iter().any(unfinished) {
            return Ok(Some(format!("unfinished: {name} {inside:?}")));
        }
        if status == 2 {
            return Ok(Some(format!("refused, and yet written: {name} {inside:?}")));
        }
        if name == "report" {
            let json: Value = serde_json::from_str(&fs::read_to_string(entry.path().join("report.json"))?)?;
            let passes = json["verdict"] == "pass";
            let page = fs::read_to_string(entry.path().join("report.html"))?;
            if inside.len() != 3 || passes != (status == 0) || passes != page.contains("banner pass") {
                return Ok(Some(format!(
                    "a report that contradicts itself or the status {status}: {}",
                    json["verdict"]
                )));
            }
        }
    }
    Ok(None)
}
