//! Bad input never panics: broken modules are errors, and broken kernels run into faults.

use crate::common::{ARITHMETIC, BASICS, GEMM, Random};
use crate::outside::groups::PTX as OUTSIDE;
use ptx_emulator::{Arg, Emulator, Grid, Module, Options, Unwritten};

/// Removes, doubles, swaps or replaces one line, word or character.
fn mutate(text: &str, random: &mut Random) -> String {
    let pick = |random: &mut Random, count: usize| (random.bits() % count.max(1) as u64) as usize;
    let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
    let (at, other) = (pick(random, lines.len()), pick(random, lines.len()));
    match random.bits() % 6 {
        0 => drop(lines.remove(at)),
        1 => lines.swap(at, other),
        2 => lines[at] = lines[other].clone(),
        3 => {
            let mut words: Vec<&str> = lines[at].split_whitespace().collect();
            let word = pick(random, words.len());
            let from: Vec<&str> = lines[other].split_whitespace().collect();
            if !words.is_empty() && !from.is_empty() {
                words[word] = from[pick(random, from.len())];
            }
            lines[at] = words.join(" ");
        }
        4 => {
            let mut chars: Vec<char> = lines[at].chars().collect();
            let place = pick(random, chars.len());
            if !chars.is_empty() {
                let odd = b"0x9-.,;{}[]%rf&\"'@! ";
                chars[place] = char::from(odd[pick(random, odd.len())]);
            }
            lines[at] = chars.into_iter().collect();
        }
        _ => {
            let digit = |c: char| if c.is_ascii_digit() { char::from(b'0' + (random.bits() % 10) as u8) } else { c };
            lines[at] = lines[at].chars().map(digit).collect();
        }
    }
    lines.join("\n")
}

/// Cuts a module into modules of one kernel each, so that a mutation hits what runs.
fn kernels(text: &str) -> Vec<(String, String)> {
    let start = text.find(".visible .entry").unwrap();
    let module = Module::parse(text).unwrap();
    let names: Vec<&str> = module.kernels().collect();
    let bodies = text[start..].split(".visible .entry").skip(1);
    let head = text[..start].replace("	// .globl", "//");
    bodies.zip(names).map(|(body, name)| (name.to_string(), format!("{head}.visible .entry{body}"))).collect()
}

#[test]
fn mutated_kernels_never_panic() {
    let mut random = Random(2024);
    let mut outcomes = [0; 4];
    for (name, text) in [BASICS, ARITHMETIC, GEMM, OUTSIDE].iter().flat_map(|text| kernels(text)) {
        for _ in 0..60 {
            let mut broken = mutate(&text, &mut random);
            if random.bits().is_multiple_of(3) {
                broken = mutate(&broken, &mut random);
            }
            let Ok(module) = Module::parse(&broken) else {
                outcomes[0] += 1;
                continue;
            };
            if module.check().is_err() {
                outcomes[1] += 1;
                continue;
            }
            let mut gpu = Emulator::with_memory(1 << 20);
            let pointer = gpu.upload(&[0; 4096]).unwrap();
            let args = |count: usize| -> Vec<Arg> { (0..count).map(|_| Arg::from(pointer)).collect() };
            let mut list = args(text[..text.find(')').unwrap()].matches(".u64").count());
            if name != "with_struct" && text[..text.find(')').unwrap()].contains("u32") {
                list.push(Arg::from(100u32));
            }
            let options = Options {
                threads: 1,
                checked: random.bits().is_multiple_of(2),
                limit: 20_000,
                unwritten: if random.bits().is_multiple_of(2) { Unwritten::Follow } else { Unwritten::Stop },
                ..Options::default()
            };
            match gpu.launch(&module, &name, Grid::linear(2, 64).with_shared(64), &list, options) {
                Ok(_) => outcomes[2] += 1,
                Err(_) => outcomes[3] += 1,
            }
        }
    }
    assert!(outcomes.iter().all(|count| *count > 20), "{outcomes:?}");
}

#[test]
fn noise_is_not_a_module() {
    let mut random = Random(5);
    for length in 0..400 {
        let noise: String = (0..length).map(|_| char::from((random.bits() % 96 + 32) as u8)).collect();
        let _ = Module::parse(&noise);
        let _ = Module::parse(&format!(".version 8.4 .target sm_80 .visible .entry k() {{ {noise}"));
    }
}
