//! Sequences of different lengths in the device's cache: in pages of several sizes, and in one piece each.

use std::sync::Arc;

use dsv2_optimized::model::cache::LatentCache;
use dsv2_optimized::{Device, Element, Emulated, Library};
use dsv2_reference::config::DeepseekV2Config;
use dsv2_reference::weights::generator::splitmix64;

use super::mib;
use crate::bench::{Bench, Profile};

/// One layer is allocated on the emulated device; all have the same pages.
const LAYERS: u64 = 27;

const DEVICE_BYTES: u64 = 4 << 30;

/// Measures the cache of a batch of V2-Lite in bf16.
pub fn run(bench: &mut Bench) {
    let (batch, longest_possible): (u64, u64) = match bench.profile() {
        Profile::Full => (64, 4096),
        Profile::Quick => (16, 1024),
    };
    let lengths: Vec<usize> = (0..batch).map(|b| 1 + (splitmix64(b) % longest_possible) as usize).collect();
    let tokens: usize = lengths.iter().sum();
    let longest = lengths.iter().copied().max().unwrap_or(1);
    let used = tokens as u64 * LAYERS * 2 * 576;
    let in_one_piece = |room| (vec![room; lengths.len()], room);
    let mut ways = vec![
        ("contiguous-largest".to_owned(), in_one_piece(longest_possible as usize)),
        ("contiguous-longest".to_owned(), in_one_piece(longest)),
    ];
    ways.extend([128, 64, 32, 16].map(|page| (format!("page={page}"), (lengths.clone(), page))));
    let mut rows = Vec::new();
    for (name, (rooms, page)) in ways {
        let id = format!("cache/paged/batch={batch}/{name}");
        let Some(bytes) = bench.bytes(id, || LAYERS * layer(&rooms, page)) else { continue };
        let pages: usize = rooms.iter().map(|room| room.div_ceil(page)).sum();
        let unused = format!("{:.1} %", 100.0 * (1.0 - used as f64 / bytes as f64));
        rows.push(vec![name, pages.to_string(), mib(used), mib(bytes), unused]);
    }
    let title =
        format!("DeepSeek-V2-Lite in bf16: {batch} sequences of 1 to {longest_possible} tokens, {tokens} in all");
    let note = "Allocated is what the memory of the (emulated) device shrinks by when each sequence gets a cache with room \
                for its length: in one piece for the longest possible or the longest there is, or in pages; one layer is \
                allocated and counted 27 times. Unused is the share of it that holds no token: of pages, the end of each \
                sequence's last one.";
    bench.table(&title, "each sequence | pieces | used, MiB | allocated, MiB | unused", rows, &[note]);
}

/// The bytes of one layer's caches, one for each sequence, with room for so many tokens in pages of this size.
fn layer(rooms: &[usize], page: usize) -> u64 {
    let config =
        DeepseekV2Config { num_hidden_layers: 1, ..DeepseekV2Config::preset("v2-lite").expect("a published model") };
    let device: Arc<dyn Device> = Emulated::with_memory(Library::embedded(), DEVICE_BYTES);
    let free = || device.memory().expect("the emulator counts").0;
    let before = free();
    let cache = |&room: &usize| LatentCache::new(&config, &device, Element::Bf16, 1, room, page);
    let caches: Vec<_> = rooms.iter().map(|room| cache(room).expect("there is room")).collect();
    let taken = before - free();
    drop(caches);
    taken as u64
}
