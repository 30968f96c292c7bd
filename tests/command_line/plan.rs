//! `dsv2 plan` as a process: its table, its JSON, and what is refused.

use std::fs;

use serde_json::Value;

use crate::process::{Room, dsv2, run};

fn planned(line: &str) -> Value {
    let args = ["plan", "--json"].into_iter().chain(line.split(' '));
    serde_json::from_str(&run(&mut dsv2(args)).passes()).unwrap()
}

#[test]
fn every_split_has_a_column_and_a_split_that_is_asked_for_is_the_only_one() {
    let table = run(&mut dsv2("plan --preset v2 --devices 8 --device-memory 80GB".split(' '))).passes();
    let header: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["v2,", "GB", "on", "a", "device", "1x8", "2x4", "4x2", "8x1"]);
    assert!(table.contains("8 devices of 80 GB (10^9 bytes), 4 GB of which kept free."), "{table}");
    let plan = planned("--preset v2 --ranks 2x4 --device-memory 141GB");
    let splits = plan["splits"].as_array().unwrap();
    assert_eq!((splits.len(), &splits[0]["tensor"], &splits[0]["experts"]), (1, &2.into(), &4.into()));
    assert_eq!(plan["devices"], 8);
}

#[test]
fn a_unit_is_decimal_or_binary_as_it_says() {
    let memory = |text: &str| planned(&format!("--preset v2-lite --device-memory {text}"))["memory"].as_u64().unwrap();
    assert_eq!([memory("80GB"), memory("80GiB")], [80_000_000_000, 80 << 30]);
}

#[test]
fn a_folder_is_planned_by_its_config() {
    let room = Room::of("v2");
    let mut command = dsv2(["plan", "--device-memory", "1GB", "--reserve", "0", "--context", "8", "--model"]);
    let table = run(command.arg(room.path().join("model"))).passes();
    assert!(table.contains("routed experts") && table.contains("1 device of 1 GB"), "{table}");
}

#[test]
fn fp8_is_said_to_be_what_it_would_take() {
    let table = run(&mut dsv2("plan --preset v2 --devices 8 --weights fp8 --cache fp8".split(' '))).passes();
    assert!(table.contains("Weights in fp8, a cached token in fp8: 39360 bytes."), "{table}");
    assert!(table.contains("fp8 and packed are what they would take"), "{table}");
}

#[test]
fn what_cannot_be_planned_is_refused_in_one_line() {
    for (line, says) in [
        (
            "--preset v2 --device-memory 0GB",
            &["--device-memory <SIZE>': expected a size above 0, such as 8GB", "0GB"][..],
        ),
        ("--preset v2 --device-memory 80", &["--reserve", "less than a device has, 80 bytes", "4000000000"]),
        ("--preset v2 --device-memory 1e9TB", &["--device-memory", "expected a size", "1e9TB"]),
        ("--preset v2 --device-memory 1e9GB", &["--device-memory", "1 to 1000000000000000 bytes"]),
        ("--preset v2 --reserve 4XB", &["--reserve <SIZE>': expected a size above 0, such as 8GB", "4XB"]),
        ("--preset v2 --reserve 80GB", &["--reserve", "less than a device has", "80000000000"]),
        ("--preset v2 --devices 0", &["--devices", "1 to 1024", "found 0"]),
        (
            "--preset v2 --devices 7",
            &["--devices", "1x7: input `devices`: expected a divisor", "7x1: config: num_attention_heads"],
        ),
        ("--preset v2 --ranks 2x2 --devices 8", &["--ranks", "the number of ranks, 8, found 2 x 2 ranks"]),
        ("--preset v2 --ranks 1000000000x1000000000", &["--devices", "1 to 1024", "found 1000000000000000000"]),
        ("--preset v2 --ranks 18446744073709551615x2", &["--devices", "1 to 1024", "found 18446744073709551615"]),
        ("--preset v2 --ranks 2", &["--ranks", "PxQ, such as 2x4", "\"2\""]),
        ("--preset v2 --ranks 0x4", &["--devices", "1 to 1024", "found 0"]),
        ("--preset v2 --context 163841", &["--context", "1 to 163840 tokens (max_position_embeddings)", "163841"]),
        ("--preset v2 --context 0", &["--context", "1 to 163840", "found 0"]),
        ("--preset v2 --batch 0", &["--batch", "1 to 1048576", "found 0"]),
        ("--preset v2 --chunk 0", &["--chunk", "1 to 1048576", "found 0"]),
        ("--preset v2 --weights int4", &["--weights", "bf16, f32 or fp8", "int4"]),
        ("--preset v2 --cache fp4", &["--cache", "fp4"]),
        ("--preset v3", &["v3", "v2-lite"]),
        ("--devices 8", &["--model <DIR>", "--preset"]),
        ("--preset v2 --model .", &["--preset", "--model", "cannot be used with"]),
        ("--model no/such/folder", &["no/such/folder"]),
    ] {
        let refused = run(&mut dsv2(["plan"].into_iter().chain(line.split(' ')))).refused();
        assert!(says.iter().all(|word| refused.contains(word)), "{line}: {refused}");
    }
}

/// Whatever a number is, there is a plan or one line that names the key.
#[test]
fn no_number_of_a_config_is_too_hostile_to_be_planned_or_refused() {
    const NUMBERS: [&str; 9] =
        ["0", "-1", "1", "3", "1000000000", "1e18", "1000000000000000000", "18446744073709551615", "1e999"];
    let room = Room::of("v2");
    let config = room.file("config.json");
    let good: serde_json::Map<String, Value> = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    let numbers = good.iter().filter(|(_, value)| value.is_number()).map(|(key, _)| key);
    let (mut planned, mut refused) = (0, 0);
    for (key, number) in numbers.flat_map(|key| NUMBERS.map(|number| (key, number))) {
        let with = good.iter().map(|(name, value)| {
            format!("{name:?}: {}", if name == key { number.to_owned() } else { value.to_string() })
        });
        fs::write(&config, format!("{{{}}}", with.collect::<Vec<_>>().join(", "))).unwrap();
        let ran = run(dsv2(["plan", "--json", "--devices", "4", "--model"]).arg(room.path().join("model")));
        if ran.code == Some(0) {
            let plan: Value = serde_json::from_str(&ran.passes()).unwrap();
            let total = |split: &Value| split["total"].as_u64().unwrap() >= split["weights"].as_u64().unwrap();
            assert!(plan["splits"].as_array().unwrap().iter().all(total), "{key}: {number}: {plan}");
            planned += 1;
        } else {
            let line = ran.refused();
            assert!(
                line.contains("config") || line.contains("model: ") || line.contains("--"),
                "{key}: {number}: {line}"
            );
            assert!(line.chars().count() < 1000, "{key}: {number}: {line}");
            refused += 1;
        }
    }
    assert!(planned > 20 && refused > 40, "{planned} planned, {refused} refused");
}

#[test]
fn the_tables_of_the_page_are_what_is_printed() {
    const PAGE: &str = include_str!("../../docs/parallel.md");
    for memory in ["80GB", "141GB"] {
        let line = format!("plan --preset v2 --devices 8 --device-memory {memory}");
        let shown = PAGE.split_once(&format!("$ cargo run --release -- {line}\n")).expect("the page has it").1;
        let shown = shown.split("```").next().unwrap();
        assert_eq!(run(&mut dsv2(line.split(' '))).passes().trim_end(), shown.trim_end());
    }
}
