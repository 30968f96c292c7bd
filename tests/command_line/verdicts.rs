//! What a verdict rests on: nothing compared is never a pass.

use dsv2::values::Values;
use ndarray::ArrayD;
use serde_json::{Value, json};

use crate::process::{O_PROJ, Room, read, run, write};

#[test]
fn what_was_compared_and_what_was_not_is_said() {
    let room = Room::of("v2");
    let mut stages = room.expected();
    let all = stages.len();
    stages.retain(|name, _| ["model.norm", O_PROJ].contains(&name.as_str()));
    let numbers: usize = stages.values().map(Values::len).sum();
    let dump = room.dump(&stages);
    let stdout = run(&mut room.check(&dump)).passes();
    let lines =
        [format!("compared: 2 stages ({numbers} numbers)"), format!("not judged: {} of {all} stages of the", all - 2)];
    assert!(lines.iter().all(|line| stdout.contains(line)), "{stdout}");
    let report: Value = serde_json::from_str(&run(room.check(&dump).arg("--json")).passes()).unwrap();
    assert_eq!(report["compared"], json!({ "stages": 2, "elements": numbers }));
    assert_eq!((&report["not_compared"], &report["inconclusive"]), (&(all - 2).into(), &Value::Null));
}

#[test]
fn expected_tensors_that_are_not_in_the_dump_are_refused() {
    let room = Room::of("one-token");
    let mut stages = room.expected();
    let others = stages.split_off(1);
    let dump = room.dump(&stages);
    let expected = room.out("expected.safetensors");
    write(&expected, &others);
    let line = run(room.check(&dump).arg("--expected").arg(&expected)).refused();
    assert!(line.contains("--expected: expected a stage that the candidate holds, too, found `"), "{line}");

    // what it does not speak of is not judged
    write(&expected, &stages);
    let report = run(room.check(&room.file("expected.safetensors")).args(["--json", "--expected"]).arg(&expected));
    let report: Value = serde_json::from_str(&report.passes()).unwrap();
    assert_eq!(
        (&report["compared"]["stages"], &report["stages"][1]["disposition"]),
        (&1.into(), &"not-compared".into())
    );
}

#[test]
fn where_all_tokens_are_masked_nothing_is_judged() {
    let room = Room::of("v2");
    let mut inputs = read(&room.file("inputs.safetensors"));
    let tokens = inputs["input_ids"].shape().to_vec();
    inputs.insert("attention_mask".into(), Values::Index(ArrayD::zeros(tokens)));
    write(&room.file("inputs.safetensors"), &inputs);
    let mut stages = room.expected();
    stages.retain(|name, _| !name.contains("rotary_emb"));
    let dump = room.dump(&stages);
    let report = room.out("report");
    let stdout = run(room.check(&dump).arg("--report").arg(&report)).fails();
    assert!(stdout.trim_end().ends_with("NOT JUDGED: nothing could be compared"), "{stdout}");
    let read = |name: &str| std::fs::read_to_string(report.join(name)).unwrap();
    let json: Value = serde_json::from_str(&read("report.json")).unwrap();
    assert_eq!((&json["verdict"], &json["compared"]["stages"]), (&"not-judged".into(), &0.into()));
    assert!(read("junit.xml").contains(r#"errors="1""#), "{}", read("junit.xml"));
    assert!(read("report.html").contains("<strong>NOT JUDGED</strong>"));
}
