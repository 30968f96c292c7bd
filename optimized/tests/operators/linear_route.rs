//! The router in one launch: to the bit what the operators make one after the other, with few tokens and many, with sums that
//! blocks share and without, with groups of experts and without.

use std::sync::Arc;

use dsv2_optimized::operators::dispatch::{linear_route_and_sort, route_and_sort};
use dsv2_optimized::operators::gemm::linear;
use dsv2_optimized::operators::router::RoutingRule;
use dsv2_optimized::operators::scratch::Scratch;
use dsv2_optimized::{Device, Element, Error, Result, Tensor, Variant};

use crate::harness::{Case, Output, output, random, upload};
use crate::router::refused;

pub fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for element in [Element::F32, Element::Bf16] {
        let usual = Input { element, tokens: 3, experts: 6, width: 8, groups: (1, 1), k: 2, normalised: false };
        for input in [
            Input { tokens: 1, experts: 1, k: 1, ..usual },
            usual,
            Input { tokens: 0, ..usual },
            // More groups than a warp has lanes, and more selected.
            Input { tokens: 4, experts: 132, groups: (66, 40), k: 35, normalised: true, ..usual },
            Input { tokens: 4, experts: 64, k: 6, width: 1100, ..usual },
            // As many as one block goes on with, and one more.
            Input { tokens: 5, experts: 64, k: 6, width: 1100, ..usual },
            Input { tokens: 2, experts: 160, groups: (8, 3), k: 6, width: 1100, ..usual },
            Input { tokens: 2, experts: 256, groups: (8, 4), k: 8, ..usual },
            // More experts than a lane keeps in registers.
            Input { tokens: 2, experts: 300, k: 7, ..usual },
        ] {
            let Input { tokens, experts, width, groups, k, .. } = input;
            let shape = format!("{tokens}x{experts},width={width},groups={}of{},k={k}", groups.1, groups.0);
            cases.push(Case {
                name: format!("linear_route_and_sort/tuned/{element}/{shape}"),
                module: "linear_route",
                watched: tokens * experts * width <= 6000,
                run: Box::new(move |device| input.run(device)),
            });
        }
    }
    let misfits = Box::new(misfits);
    let name = "linear_route_and_sort/misfits".into();
    cases.push(Case { name, module: "linear_route", watched: false, run: misfits });
    cases
}

#[derive(Clone, Copy)]
struct Input {
    element: Element,
    tokens: usize,
    experts: usize,
    width: usize,
    /// `n_group` and `topk_group`
    groups: (usize, usize),
    k: usize,
    normalised: bool,
}

/// What the operators make.
struct Routed {
    logits: Tensor,
    weights: Tensor,
    /// Indices, offsets, order, places.
    integers: [Tensor; 4],
}

impl Input {
    fn room(&self, device: &Arc<dyn Device>) -> Result<Routed> {
        let &Input { tokens, experts, k, .. } = self;
        let integers = |shape: &[usize]| output(device, Element::I32, shape);
        Ok(Routed {
            logits: output(device, Element::F32, &[tokens, experts])?,
            weights: output(device, Element::F32, &[tokens, k])?,
            integers: [
                integers(&[tokens, k])?,
                integers(&[experts + 1])?,
                integers(&[tokens * k])?,
                integers(&[tokens * k])?,
            ],
        })
    }

    fn run(&self, device: &Arc<dyn Device>) -> Result<Vec<Output>> {
        let &Input { element, tokens, experts, width, groups, k, normalised } = self;
        let rule = RoutingRule::group_limited(experts, groups.0, groups.1, k)?.scaled_by(2.5);
        let rule = if normalised { rule.normalised() } else { rule };
        let x = upload(device, element, &random("x", [tokens, width], 1.0))?;
        // Two experts have the same logits: the first of them goes before the other.
        let mut weight = random("weight", [experts, width], 0.3);
        let first = weight.row(0).to_owned();
        weight.row_mut(experts - 1).assign(&first);
        let weight = upload(device, element, &weight)?;

        let apart = self.room(device)?;
        linear(Variant::Tuned, &x, &weight, None, &apart.logits)?;
        let [indices, offsets, order, places] = &apart.integers;
        route_and_sort(&apart.logits, &rule, indices, &apart.weights, offsets, order, places)?;

        let mut outputs = vec![];
        let at_once = |scratch: &Scratch, weight: &Tensor| -> Result<Routed> {
            let room = self.room(device)?;
            let Routed { logits, weights, integers: [indices, offsets, order, places] } = &room;
            linear_route_and_sort(scratch, &x, weight, &rule, logits, indices, weights, offsets, order, places)?;
            Ok(room)
        };
        let mut compare = |found: Routed| -> Result<()> {
            outputs.push(Output::same("logits", &found.logits, &apart.logits)?);
            outputs.push(Output::same("weights", &found.weights, &apart.weights)?);
            let names = ["indices", "offsets", "order", "places"];
            for (name, (got, want)) in names.into_iter().zip(found.integers.iter().zip(&apart.integers)) {
                outputs.push(Output::exactly(name, got, want.to_i32()?)?);
            }
            Ok(())
        };
        let (scratch, small) = (Scratch::new(device, 1 << 20)?, Scratch::new(device, 0)?);
        compare(at_once(&scratch, &weight)?)?;
        compare(at_once(&scratch, &weight)?)?;
        compare(at_once(&small, &weight)?)?;
        // At the end, since a GPU does not have it: a launch that fails between others, when some tiles have been stored.
        if device.name() == "emulator" && tokens > 0 {
            let half = Tensor::empty(device, element, &[experts, width])?;
            half.narrow(0, 0..experts / 2)?.write_f32(&vec![1.0; experts / 2 * width])?;
            if at_once(&scratch, &half).is_ok() {
                return Err(Error::operand("linear_route", "weight", "a refusal of what was never written", "none"));
            }
            compare(at_once(&scratch, &weight)?)?;
        }
        Ok(outputs)
    }
}

/// Operands that do not fit.
fn misfits(device: &Arc<dyn Device>) -> Result<Vec<Output>> {
    let real = |shape: &[usize]| Tensor::empty(device, Element::F32, shape);
    let table = |shape: &[usize]| Tensor::empty(device, Element::I32, shape);
    let scratch = Scratch::new(device, 0)?;
    let (x, weight, rule) = (real(&[2, 8])?, real(&[4, 8])?, RoutingRule::greedy(4, 3)?);
    let (indices, weights, offsets, pairs) = (table(&[2, 3])?, real(&[2, 3])?, table(&[5])?, table(&[6])?);
    let run = |logits: &Tensor, indices: &Tensor, offsets: &Tensor| {
        linear_route_and_sort(&scratch, &x, &weight, &rule, logits, indices, &weights, offsets, &pairs, &pairs)
    };
    let logits = real(&[2, 4])?;
    refused(
        run(&real(&[2, 5])?, &indices, &offsets),
        "linear_route_and_sort: out: expected the shape [2, 4], found [2, 5]",
    )?;
    refused(run(&logits, &weights, &offsets), "linear_route_and_sort: indices: expected i32, found f32")?;
    refused(run(&logits, &indices, &pairs), "linear_route_and_sort: offsets: expected the shape [5], found [6]")?;
    let narrow = Tensor::empty(device, Element::Bf16, &[2, 4])?;
    refused(run(&narrow, &indices, &offsets), "linear_route_and_sort: logits: expected f32, found bf16")?;
    Ok(vec![])
}
