//! Where the source of a template is, and what of it minijinja writes otherwise than Jinja.

use std::fs;
use std::path::Path;

use indexmap::IndexMap;
use serde_json::Value;

use super::LONGEST_TEMPLATE;
use crate::error::{Error, Result};
use crate::folder;

/// The most templates that a folder may have.
const MOST: usize = 100;

/// The templates that are files: by name, the source.
pub(super) fn of_files(folder: &Path) -> Result<IndexMap<String, String>> {
    let mut found = IndexMap::new();
    if let Some(source) = folder::text(&folder.join("chat_template.jinja"), LONGEST_TEMPLATE)? {
        found.insert("default".to_owned(), source);
    }
    let Ok(entries) = fs::read_dir(folder.join("additional_chat_templates")) else { return Ok(found) };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).take(MOST).collect();
    paths.sort();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|ending| ending == "jinja")) {
        let Some(name) = path.file_stem().and_then(|name| name.to_str()) else { continue };
        if let Some(source) = folder::text(path, LONGEST_TEMPLATE)? {
            found.insert(name.to_owned(), source);
        }
    }
    Ok(found)
}

/// The templates that a value of JSON holds: a text, a list of objects with a name and a template, or nothing.
pub(super) fn of_config(value: Option<&Value>) -> Result<IndexMap<String, String>> {
    let refused = |found: &Value| {
        Error::template(format!("expected a text, or a list of objects with `name` and `template`, found {found}"))
    };
    match value {
        None | Some(Value::Null) => Ok(IndexMap::new()),
        Some(Value::String(source)) => Ok(IndexMap::from([("default".to_owned(), source.clone())])),
        Some(Value::Array(list)) => list
            .iter()
            .map(|entry| {
                let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
                text("name").zip(text("template")).ok_or_else(|| refused(entry))
            })
            .collect(),
        Some(other) => Err(refused(other)),
    }
}

/// The same template for minijinja: ends of lines as Jinja takes them, and Transformers' own tag.
///
/// `{% generation %}` marks what an assistant said, for training. It makes a scope of its own and changes no text, as `with`
/// does.
pub(super) fn as_minijinja_reads_it(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        rest = tag;
        let inner = rest.trim_start_matches(['-', '+']).trim_start();
        for (name, instead) in [("generation", "with"), ("endgeneration", "endwith")] {
            let Some(after) = inner.strip_prefix(name) else { continue };
            if after.trim_start().trim_start_matches(['-', '+']).starts_with("%}") {
                out.push_str(&rest[..rest.len() - inner.len()]);
                out.push_str(instead);
                rest = after;
            }
        }
    }
    out + rest
}
