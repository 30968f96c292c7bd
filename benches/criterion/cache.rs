//! How large caches are: bytes that are really allocated while tokens are put in, beside what the formulas of
//! `dsv2 kv-cache` say.
//!
//! Caches on the CPU are counted by the program's allocator, those of the device by the device.

mod count;
mod kinds;
mod paged;

use dsv2_bench_report::{Better, Measurement};
use dsv2_reference::model::cache::{CacheFormat, PackedFormat};

use crate::bench::{Bench, Profile};
use kinds::{Limit, Model, PIECE};

/// One token more than a cache that doubles its room had room for.
const ONE_MORE: usize = 4097;

/// Measures the caches.
pub fn run(bench: &mut Bench) {
    let (contexts, limit): (&[usize], Limit) = match bench.profile() {
        Profile::Full => {
            (&[1, 1024, 4096, ONE_MORE, 16384, 65536, 131_072], Limit { tokens: 1 << 16, bytes: 128 << 20 })
        }
        Profile::Quick => (&[1, 1024, ONE_MORE, 16384], Limit { tokens: 1 << 14, bytes: 32 << 20 }),
    };
    let models = Model::all();
    let mut rows = Vec::new();
    for kind in models.iter().flat_map(Model::kinds) {
        let mut cell = |&tokens: &usize| {
            let of_model = match kind.model.id {
                "v2" => true,
                "paper-large-moe" => tokens == 1024,
                _ => tokens != ONE_MORE,
            };
            let id = format!("cache/{}/context={tokens}", kind.id());
            let bytes = of_model.then(|| bench.bytes(id, || kind.fill(tokens, limit))).flatten();
            bytes.map_or("-".into(), mib)
        };
        let cells: Vec<String> = contexts.iter().map(&mut cell).collect();
        if cells.iter().any(|cell| cell != "-") {
            let by_formula = kind.formula() * kind.model.config.num_hidden_layers;
            rows.push([kind.name(), by_formula.to_string()].into_iter().chain(cells).collect());
        }
    }
    let contexts: Vec<String> = contexts.iter().map(usize::to_string).collect();
    let columns = format!("cache | bytes of a token by formula | {}", contexts.join(" | "));
    let note = format!(
        "Bytes that the program's allocator was asked for while a cache was given one sequence of so many tokens in pieces \
         of {PIECE}. Where all layers would be too much, one or some were filled (of keys and values, a part of their width) \
         and the bytes multiplied. MLA keeps the latent and the rotary key (scales included); MLA, expanded, the keys and \
         values computed from it, as Transformers did before 5.15. GQA and MQA are imagined with the model's other sizes; \
         of DeepSeek 67B it is what it has. A cache that doubles its room is full at a power of two, and almost half empty \
         at one token more."
    );
    bench.table("MiB of all layers, by tokens in the cache", &columns, rows, &[&note]);
    growth(bench, &models[0]);
    paged::run(bench);
}

/// One layer's latents of V2 in bf16, given in several ways.
fn growth(bench: &mut Bench, v2: &Model) {
    let ways: [(&str, Vec<usize>); 5] = [
        ("prompt=3000", vec![3000]),
        ("prompt=3000-then-1", vec![3000, 1]),
        ("pieces=512", vec![512, 512, 512, 512, 512, 440]),
        ("token-by-token=3000", vec![1; 3000]),
        ("token-by-token=4097", vec![1; ONE_MORE]),
    ];
    let format = CacheFormat::Packed(PackedFormat::Bf16);
    let mut rows = Vec::new();
    for (name, pieces) in ways {
        let mut most = 0;
        let allocated = bench.bytes(format!("cache/growth/{name}"), || {
            let taken = kinds::fill_latent(&v2.config, format, 1, &pieces);
            most = taken.most;
            taken.kept
        });
        if let Some(allocated) = allocated {
            bench.keep(Measurement::exact(format!("cache/growth/{name}/most"), "B", Better::Less, most as f64));
            rows.push(vec![name.into(), pieces.iter().sum::<usize>().to_string(), mib(allocated), mib(most)]);
        }
    }
    let note = "A cache that is full moves to a room twice as large, or as large as the new tokens need if that is more. The \
                most at a time is while old and new room both exist. A token is 1152 bytes.";
    bench.table(
        "One layer of DeepSeek-V2 as it grows",
        "given | tokens | allocated, MiB | most at a time, MiB",
        rows,
        &[note],
    );
}

/// For tables.
fn mib(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / (1 << 20) as f64)
}
