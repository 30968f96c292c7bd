//! BEHAVIOUR.md is true: every item is there, and every test and golden case that it names exists.

use std::fs;
use std::path::{Path, PathBuf};

const STATUS: [&str; 4] = ["reproduced", "refused", "different", "later"];
const ITEMS: usize = 86;

/// A row of the table.
struct Item {
    number: usize,
    status: String,
    /// What stands between backticks in the last column.
    places: Vec<String>,
}

fn crate_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The document's parts: the table's rows, and the section on differences.
fn document() -> (Vec<Item>, String) {
    let text = fs::read_to_string(crate_dir().join("BEHAVIOUR.md")).expect("BEHAVIOUR.md");
    let (table, differences) = text.split_once("\n## Documented differences\n").expect("a section on differences");
    (table.lines().filter_map(item).collect(), differences.to_owned())
}

fn item(line: &str) -> Option<Item> {
    let cells: Vec<&str> = line.trim().strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
    let number = cells[0].parse().ok()?;
    let [_, _, status, places] = cells[..] else { panic!("four columns: {line}") };
    let places = places.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    Some(Item { number, status: status.to_owned(), places })
}

/// Does `file` have a test of this name?
fn has_test(file: &Path, name: &str) -> bool {
    let source = fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    lines.windows(2).any(|pair| pair[0] == "#[test]" && pair[1].starts_with(&format!("fn {name}(")))
}

/// What is wrong with a place, if anything.
fn fault(place: &str) -> Option<String> {
    if let Some(case) = place.strip_prefix("golden/cases/") {
        let file = crate_dir().join("../golden/cases").join(case).join("case.json");
        return (!file.is_file()).then(|| format!("no golden case {case}"));
    }
    let Some((file, name)) = place.split_once("::") else { return Some(format!("neither test nor case: {place}")) };
    let folder = match file {
        _ if file.starts_with("src/") => "",
        _ if file.starts_with("properties/") => "../tests",
        _ => "tests",
    };
    let path = crate_dir().join(folder).join(file);
    (!has_test(&path, name)).then(|| format!("no test {name} in {file}"))
}

#[test]
fn every_item_of_the_checklist_is_in_the_table_once_and_in_order() {
    let numbers: Vec<usize> = document().0.iter().map(|item| item.number).collect();
    assert_eq!(numbers, (1..=ITEMS).collect::<Vec<_>>());
}

#[test]
fn every_item_has_a_status_and_unless_it_comes_later_a_test() {
    for item in document().0 {
        assert!(STATUS.contains(&item.status.as_str()), "item {}: status {}", item.number, item.status);
        let is_later = item.status == "later";
        assert_eq!(item.places.is_empty(), is_later, "item {} is {}", item.number, item.status);
        assert!(!is_later || item.number >= 80, "item {} must be there by now", item.number);
    }
}

#[test]
fn every_named_test_and_golden_case_exists() {
    let faults = |item: &Item| -> Vec<String> {
        let faults = item.places.iter().filter_map(|place| fault(place));
        faults.map(|fault| format!("item {}: {fault}", item.number)).collect()
    };
    let faults: Vec<String> = document().0.iter().flat_map(faults).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_refusal_and_difference_is_explained() {
    let (items, differences) = document();
    let explained: Vec<usize> = differences
        .split("(item")
        .skip(1)
        .filter_map(|rest| rest.trim_start_matches('s').split_once(')'))
        .flat_map(|(numbers, _)| numbers.split(',').filter_map(|number| number.trim().parse().ok()).collect::<Vec<_>>())
        .collect();
    for item in items.iter().filter(|item| ["refused", "different"].contains(&item.status.as_str())) {
        assert!(explained.contains(&item.number), "item {} is {} without a reason", item.number, item.status);
    }
}

#[test]
fn a_wrong_name_would_be_noticed() {
    assert!(fault("moe.rs::no_such_test").is_some());
    assert!(fault("no_such_file.rs::x").is_some());
    assert!(fault("golden/cases/no-such-case").is_some());
    assert!(fault("behaviour_list.rs::fault").is_some(), "a function, but no test");
    assert!(fault("behaviour_list.rs::a_wrong_name_would_be_noticed").is_none());
    assert!(fault("a name without a file").is_some());
}
