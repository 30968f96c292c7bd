//! The page docs/ptx.md says what is true: every instruction of the manual is on it, what it says runs is taken, and what
//! it says is refused is refused by name.

use ptx_emulator::{Emulator, Error, Grid, Module, Options, Unwritten};

const PAGE: &str = include_str!("../../docs/ptx.md");
const MANUAL: &str = include_str!("manual.txt");

/// A row of a table.
struct Row {
    name: String,
    status: String,
    runs: Vec<String>,
    refused: Vec<String>,
}

fn rows() -> Vec<Row> {
    let is_row = |line: &&str| line.starts_with("| ") && !line.starts_with("| instruction");
    // A bar within a cell is written `\|`.
    let forms = |cell: &str| -> Vec<String> {
        cell.split('`').skip(1).step_by(2).map(|form| form.replace('\u{1}', "|")).collect()
    };
    let row = |line: &'static str| {
        let line = line.replace("\\|", "\u{1}");
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        let [name, status, runs, refused] = cells[..] else { panic!("{line}") };
        Row { name: name.to_string(), status: status.to_string(), runs: forms(runs), refused: forms(refused) }
    };
    PAGE.lines().filter(is_row).map(row).collect()
}

/// Looks at a kernel that holds one instruction.
fn check(form: &str) -> Result<(), Error> {
    module(form)?.check()
}

fn module(form: &str) -> Result<Module, Error> {
    Module::parse(&format!(
        ".version 9.0\n.target sm_90\n.address_size 64\n.func nothing() {{ ret; }}\n.func recursive() {{ call.uni recursive; ret; }}
        .visible .entry k() {{ .reg .b32 %r<9>; .reg .b64 %d<9>; .reg .b16 %h<9>; .reg .f32 %f<9>; .reg .f64 %e<9>;
        .reg .pred %p<9>; LIST: .branchtargets HERE, HERE; PROTOTYPE: .callprototype () _ (); mov.u64 %d1, nothing;
        {form}; HERE: ret; }}"
    ))
}

#[test]
fn every_instruction_of_the_manual_is_on_the_page() {
    let sections = MANUAL.lines().filter_map(|line| Some(line.split_once(": ")?.1));
    let manual: Vec<&str> = sections.flat_map(str::split_whitespace).collect();
    assert!(manual.len() > 140);
    let page = rows();
    for name in &manual {
        assert_eq!(page.iter().filter(|row| row.name == **name).count(), 1, "{name} on the page");
    }
    for row in &page {
        assert!(manual.contains(&row.name.as_str()), "{} is not in the manual", row.name);
    }
}

#[test]
fn what_the_page_says_runs_is_taken() {
    for Row { name, status, runs, refused } in rows() {
        assert!(matches!(status.as_str(), "yes" | "in part" | "no"), "{name}: {status}");
        assert_eq!(runs.is_empty(), status == "no", "{name}: forms that run");
        assert!(!refused.is_empty() || status == "yes", "{name}: forms that are refused");
        for form in runs {
            assert!(form.starts_with(name.split('.').next().unwrap()), "{name}: {form}");
            check(&form).unwrap_or_else(|error| panic!("{form}: {error}"));
        }
    }
}

#[test]
fn what_the_page_says_is_refused_is_refused_by_name() {
    for Row { name, status, refused, .. } in rows() {
        for form in refused {
            let error = check(&form).expect_err(&form);
            let Error::Unsupported { text, reason, .. } = &error else { panic!("{form}: {error}") };
            let opcode = form.split_whitespace().next().unwrap();
            assert!(text.starts_with(opcode), "{form}: {error}");
            if status == "no" && name != "mma.sp" {
                assert!(reason.contains(&name) && reason.contains("not supported"), "{form}: {error}");
            }
        }
    }
}

/// With all registers zero, and with unwritten bytes in all of them, each form runs or ends with an error.
#[test]
fn no_form_panics() {
    const NUMBERS: [&str; 5] = ["0", "-1", "33", "0x7fffffff", "1"];
    let mut outcomes = [0; 2];
    for form in rows().into_iter().flat_map(|row| row.runs) {
        for number in NUMBERS {
            let prepared: String =
                (0..9).map(|i| format!("mov.u32 %r{i}, {number}; mov.u64 %d{i}, {number}; ")).collect();
            let spoiled = ".shared .align 16 .b8 s[64]; .reg .b32 %u; .reg .b64 %v; ld.shared.u32 %u, [s]; ld.shared.u64 %v, [s+8];
                and.b32 %u, %u, 0; and.b64 %v, %v, 0; setp.eq.u32 %p0, %u, 0; setp.eq.u32 %p1, %u, 0;
                add.u32 %r1, %r1, %u; add.u32 %r2, %r2, %u; add.u64 %d1, %d1, %v; mov.b32 %f1, %r1; mov.b64 %e1, %d1;";
            for (spoil, guard) in [("", ""), (spoiled, ""), (spoiled, "@%p1 ")] {
                let text = format!("{prepared} {spoil} {guard}{form}");
                let module = module(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
                let options = Options { unwritten: Unwritten::Follow, limit: 1000, threads: 1, ..Options::default() };
                let mut gpu = Emulator::with_memory(1 << 20);
                let ran = gpu.launch(&module, "k", Grid::linear(2, 64).with_shared(256), &[], options);
                outcomes[usize::from(ran.is_err())] += 1;
            }
        }
    }
    assert!(outcomes.iter().all(|count| *count > 100), "{outcomes:?}");
}
