//! How large caches are: bytes that are really allocated while tokens are put in, beside what the formulas say. The paper's
//! table 1, its table 9 and its 93.3 % come out of the same numbers.
//!
//! Caches on the CPU are counted by the program's allocator, those of the device by the device.

pub mod bytes;
mod count;
mod kinds;
mod paged;
mod tables;

use std::cell::Cell;
use std::collections::BTreeMap;

use dsv2_bench_report::{Better, Measurement};
use dsv2_reference::model::cache::{CacheFormat, PackedFormat};

use crate::bench::{Bench, Profile};
use kinds::{Kind, Limit, Model};
use tables::Growth;

/// The context from which bytes per token are taken.
const PER_TOKEN_AT: usize = 1024;

/// One token more than a cache that doubles its room had room for.
const ONE_MORE: usize = 4097;

/// Bytes of all layers, by the id of the kind and context.
#[derive(Default)]
struct Sizes(BTreeMap<(String, usize), u64>);

impl Sizes {
    fn measure(&mut self, bench: &mut Bench, kind: &Kind, tokens: usize, limit: Limit) {
        let (group, name) = (format!("cache/{}", kind.id()), format!("context={tokens}"));
        let measured = bench.bytes(&group, &name, tokens as u64, || kind.fill(tokens, limit));
        self.0.extend(measured.map(|bytes| ((kind.id(), tokens), bytes)));
    }

    fn get(&self, kind: &Kind, tokens: usize) -> Option<u64> {
        self.0.get(&(kind.id(), tokens)).copied()
    }

    /// Bytes of one token in all layers.
    fn of_token(&self, kind: &Kind) -> Option<f64> {
        self.get(kind, PER_TOKEN_AT).map(|bytes| bytes as f64 / PER_TOKEN_AT as f64)
    }
}

/// Measures the caches.
pub fn run(bench: &mut Bench) {
    let (contexts, limit): (&[usize], Limit) = match bench.profile() {
        Profile::Full => (&[1, PER_TOKEN_AT, 4096, 16384, 65536, 131_072], Limit { tokens: 1 << 16, bytes: 128 << 20 }),
        Profile::Quick => (&[1, PER_TOKEN_AT, 16384], Limit { tokens: 1 << 14, bytes: 32 << 20 }),
    };
    let (models, large) = (Model::all(), Model::large_with_mha());
    let mut sizes = Sizes::default();
    for kind in models.iter().flat_map(Model::kinds) {
        contexts.iter().for_each(|&tokens| sizes.measure(bench, &kind, tokens, limit));
    }
    large.kinds().for_each(|kind| sizes.measure(bench, &kind, PER_TOKEN_AT, limit));
    models[0].kinds().for_each(|kind| sizes.measure(bench, &kind, ONE_MORE, limit));
    let growths = measure_growth(bench, &models[0]);
    tables::per_token(bench, &sizes, &models);
    tables::of_paper(bench, &sizes, &models, &large);
    tables::by_context(bench, &sizes, &models, contexts);
    tables::growth(bench, &sizes, &models[0], &growths);
    paged::run(bench);
    tables::plots(bench, &sizes, &models, contexts);
}

/// One layer's latents in bf16, given in several ways.
fn measure_growth(bench: &mut Bench, v2: &Model) -> Vec<Growth> {
    let ways: [(&str, &'static str, Vec<usize>); 5] = [
        ("prompt=3000", "a prompt of 3000", vec![3000]),
        ("prompt=3000-then-1", "the same and one token more", vec![3000, 1]),
        ("pieces=512", "a prompt of 3000 in pieces of 512", vec![512, 512, 512, 512, 512, 440]),
        ("token-by-token=3000", "3000, one by one", vec![1; 3000]),
        ("token-by-token=4097", "4097, one by one", vec![1; ONE_MORE]),
    ];
    let format = CacheFormat::Packed(PackedFormat::Bf16);
    let mut growths = Vec::new();
    for (id, name, pieces) in ways {
        let most = Cell::new(0);
        let tokens: usize = pieces.iter().sum();
        let allocated = bench.bytes("cache/growth", id, tokens as u64, || {
            let taken = kinds::fill_latent(&v2.config, format, 1, &pieces);
            most.set(taken.most);
            taken.kept
        });
        if let Some(allocated) = allocated {
            let most = most.get();
            bench.keep(Measurement::exact(format!("cache/growth/{id}/most"), "B", Better::Less, most as f64));
            growths.push(Growth { name, tokens, allocated, most });
        }
    }
    growths
}
