//! PAPER.md is true: its modules and files of laws exist, with as many laws as it says, and none is left out.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn crate_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn properties() -> PathBuf {
    crate_dir().join("../tests/properties")
}

/// What stands between backticks in a column of the tables (0: component), and the text after each up to the next.
fn column(index: usize) -> Vec<(String, String)> {
    let text = fs::read_to_string(crate_dir().join("PAPER.md")).expect("PAPER.md");
    let rows = text.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    let cells = rows.filter_map(|row| row.trim_matches('|').split('|').nth(index).map(str::to_owned));
    let quoted = |cell: String| {
        let parts: Vec<&str> = cell.split('`').collect();
        parts[1..].chunks(2).map(|pair| (pair[0].to_owned(), pair[1].trim().to_owned())).collect::<Vec<_>>()
    };
    cells.flat_map(quoted).collect()
}

/// The tests of a file that state a law, and not an example.
fn stated(source: &str) -> impl Iterator<Item = &str> {
    source.split("#[test]").skip(1).filter(|test| test.contains("for_all("))
}

/// Laws in each file of laws, by its path below `tests/properties`.
fn laws(folder: &Path) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(laws(&path));
            continue;
        }
        let source = fs::read_to_string(&path).unwrap_or_default();
        let name = path.strip_prefix(properties()).expect("below").to_string_lossy().replace('\\', "/");
        let number = stated(&source).count();
        if number > 0 {
            found.insert(name, number);
        }
    }
    found
}

#[test]
fn every_file_of_laws_is_named_with_its_number_of_laws() {
    let named: BTreeMap<String, usize> = column(3)
        .into_iter()
        .map(|(file, after)| {
            let number = after.trim_start_matches('(').split(')').next().and_then(|number| number.parse().ok());
            (file, number.unwrap_or_else(|| panic!("a number in brackets: {after}")))
        })
        .collect();
    assert_eq!(named, laws(&properties()));
}

#[test]
fn every_module_exists() {
    let modules = column(2);
    assert!(modules.len() > 10);
    for (module, _) in modules.into_iter().filter(|(_, after)| !after.contains("in the crate")) {
        let path = crate_dir().join("src").join(module.replace("::", "/"));
        assert!(path.with_extension("rs").is_file(), "{module}");
    }
}

#[test]
fn every_law_names_a_mutant() {
    for file in laws(&properties()).into_keys() {
        let source = fs::read_to_string(properties().join(&file)).expect("a file of laws");
        for law in stated(&source) {
            let name = law.trim_start().lines().next().unwrap_or_default();
            assert!(law.contains(".fails_for("), "{file}: {name}");
        }
    }
}
