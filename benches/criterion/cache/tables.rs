//! The tables and plots of the measured sizes.

use dsv2::kv_cache::Attention;
use dsv2_bench_report::Series;

use super::bytes::human;
use super::kinds::{Kind, Model, PIECE};
use super::{ONE_MORE, PER_TOKEN_AT, Sizes};
use crate::bench::Bench;

/// One way of giving tokens to a layer's cache of latents.
pub struct Growth {
    pub name: &'static str,
    pub tokens: usize,
    /// Bytes in the end.
    pub allocated: u64,
    /// The most bytes at a time.
    pub most: u64,
}

/// 34560 as `34,560`.
fn whole(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `part` of `whole`, which may not have been measured.
fn share(part: f64, whole: Option<f64>) -> String {
    whole.map_or("-".into(), |whole| format!("{:.2} %", 100.0 * part / whole))
}

/// By how much `size` is smaller, if it is.
fn smaller(size: f64, than: Option<f64>) -> String {
    than.filter(|than| size < *than).map_or("-".into(), |than| format!("{:.1} %", 100.0 * (1.0 - size / than)))
}

/// All models and kinds; against DeepSeek 67B, against a model's own MHA, and against what the expanded form would take.
pub fn per_token(bench: &mut Bench, sizes: &Sizes, models: &[Model; 3]) {
    let [v2, _, dense] = models;
    let dense = sizes.of_token(&dense.kind(Attention::Gqa));
    let row = |kind: Kind| {
        let bytes = sizes.of_token(&kind)?;
        let layers = kind.model.layers();
        let own = |other| sizes.of_token(&kind.model.kind(other));
        Some(vec![
            kind.full_name(),
            whole(kind.numbers() as f64),
            whole(bytes / layers as f64),
            whole(kind.formula() as f64),
            layers.to_string(),
            whole(bytes),
            format!("{:.2}", 8.0 * bytes / (kind.numbers() * layers) as f64),
            share(bytes, own(Attention::Mha)),
            smaller(bytes, dense),
            smaller(bytes, own(Attention::MlaExpanded)),
        ])
    };
    let columns = "cache | numbers per layer | bytes per layer | by formula | layers | bytes in all | bits per number | \
        of MHA in bf16 | less than 67B's | less than expanded in bf16";
    let bytes = format!(
        "Bytes are those that the program's allocator was asked for while a cache was filled with {PER_TOKEN_AT} tokens, divided \
         by their number. MLA keeps the latent and the rotary key (scales included); MLA, expanded, the keys and values \
         computed from it, as Transformers did before 5.15. GQA and MQA are imagined with the model's other sizes; of \
         DeepSeek 67B it is what it has."
    );
    let paper = "The paper's 93.3 % is DeepSeek-V2 in 6 bits against DeepSeek 67B in 16. Of the same number of bits, bf16, it is \
                 82.2 %: that is the architecture's share, the rest is quantisation.";
    let eight = sizes.of_token(&v2.kind(Attention::Mla)).zip(dense).map(|(latent, dense)| {
        format!(
            "fp8 is the 656-byte layout with scales and keys in bf16. Eight bits for every number and no scales would be {:.1} % \
             less than 67B's (half of what was measured for bf16).",
            100.0 * (1.0 - latent / 2.0 / dense)
        )
    });
    let notes: Vec<&str> = [bytes.as_str(), paper].into_iter().chain(eight.as_deref()).collect();
    let rows = models.iter().flat_map(Model::kinds).filter_map(row).collect();
    bench.table("What a token takes", columns, rows, &notes);
}

/// Tables 1 and 9.
pub fn of_paper(bench: &mut Bench, sizes: &Sizes, [v2, lite, _]: &[Model; 3], large: &Model) {
    // The model and the kind, and the model whose MHA it is compared with.
    let lines = [
        (v2, Attention::Mha, v2, "table 1, MHA: 2 n_h d_h l"),
        (v2, Attention::Gqa, v2, "table 1, GQA: 2 n_g d_h l, n_g = 8"),
        (v2, Attention::Mqa, v2, "table 1, MQA: 2 d_h l"),
        (v2, Attention::Mla, v2, "table 1, MLA: (d_c + d_h^R) l = 4.5 d_h l"),
        (lite, Attention::Mha, lite, "table 9, small MoE with MHA: 110.6K"),
        (lite, Attention::Mla, lite, "table 9, small MoE with MLA: 15.6K"),
        (large, Attention::Mha, large, "table 9, large MoE with MHA: 860.2K"),
        (v2, Attention::Mla, large, "table 9, large MoE with MLA: 34.6K"),
    ];
    let row = |(model, attention, other, line): (&Model, _, &Model, &str)| {
        let bytes = sizes.of_token(&model.kind(attention))?;
        let d_h_l = (128 * model.layers()) as f64;
        Some(vec![
            line.into(),
            model.name.into(),
            whole(bytes / 2.0),
            format!("{:.1}", bytes / 2.0 / d_h_l),
            share(bytes, sizes.of_token(&other.kind(Attention::Mha))),
        ])
    };
    let columns = "in the paper | measured with | numbers per token | in d_h l | of MHA";
    let note = "Numbers per token in all layers: the measured bytes in bf16, halved; d_h = 128. The small MoE models have the \
                shape of V2-Lite, the large one with MLA that of V2. The large one with MHA is imagined: 56 heads of 128 in 60 \
                layers give the paper's number.";
    bench.table("The paper's tables 1 and 9", columns, lines.into_iter().filter_map(row).collect(), &[note]);
}

/// All models and kinds again.
pub fn by_context(bench: &mut Bench, sizes: &Sizes, models: &[Model], contexts: &[usize]) {
    let row = |kind: Kind| {
        let bytes: Vec<Option<u64>> = contexts.iter().map(|&tokens| sizes.get(&kind, tokens)).collect();
        let cells = bytes.iter().map(|bytes| bytes.map_or("-".into(), |bytes| human(bytes as f64)));
        bytes.iter().any(Option::is_some).then(|| [kind.full_name()].into_iter().chain(cells).collect())
    };
    let context = |&tokens: &usize| match tokens {
        1024.. if tokens.is_multiple_of(1024) => format!("{}K", tokens / 1024),
        _ => tokens.to_string(),
    };
    let contexts: Vec<String> = contexts.iter().map(context).collect();
    let columns = format!("cache | {}", contexts.join(" | "));
    let note = format!(
        "Allocated while the cache was given one sequence in pieces of {PIECE} tokens. Where all layers would be too much, one or \
         some were filled (of keys and values, a part of their width) and the bytes multiplied. The contexts are powers of two, \
         where a cache that doubles its room is full."
    );
    let rows = models.iter().flat_map(Model::kinds).filter_map(row).collect();
    bench.table("All layers, by tokens in the cache", &columns, rows, &[&note]);
}

/// Room that is not used.
pub fn growth(bench: &mut Bench, sizes: &Sizes, v2: &Model, growths: &[Growth]) {
    let row = |name: String, used: f64, allocated: u64, most: String| {
        let unused = 100.0 * (1.0 - used / allocated as f64);
        vec![name, human(used), human(allocated as f64), format!("{unused:.1} %"), most]
    };
    let latent = v2.kind(Attention::Mla);
    let of_growth = |growth: &Growth| {
        let used = (growth.tokens * latent.formula()) as f64;
        row(format!("one layer's latents: {}", growth.name), used, growth.allocated, human(growth.most as f64))
    };
    let of_kind = |kind: Kind| {
        let used = (ONE_MORE * kind.formula() * v2.layers()) as f64;
        let name = format!("all layers: {}, {ONE_MORE} in pieces of {PIECE}", kind.name());
        Some(row(name, used, sizes.get(&kind, ONE_MORE)?, "-".into()))
    };
    let rows = growths.iter().map(of_growth).chain(v2.kinds().filter_map(of_kind)).collect();
    let columns = "DeepSeek-V2, what is given | used | allocated | unused | most at a time";
    let note = "A cache that is full moves to a room twice as large, or as large as the new tokens need if that is more. One \
                token after a power of two (or after a long prompt) almost half is unused. The most at a time is while old and \
                new room both exist. Vectors of keys and values grow by the same rule.";
    bench.table("Room that growing leaves unused", columns, rows, &[note]);
}

/// Size against context: all kinds of V2, and its latent in every format.
pub fn plots(bench: &mut Bench, sizes: &Sizes, [v2, _, dense]: &[Model; 3], contexts: &[usize]) {
    let series = |kind: Kind, name: String| {
        let point = |&tokens: &usize| Some((tokens as f64, sizes.get(&kind, tokens)? as f64));
        Series { name, points: contexts.iter().filter_map(point).collect() }
    };
    let of_v2 = |wanted: &dyn Fn(&Kind) -> bool| -> Vec<Series> {
        v2.kinds().filter(wanted).map(|kind| series(kind, kind.name())).collect()
    };
    let mut kinds = of_v2(&|kind| !["fp32", "int8", "fp8"].contains(&&*kind.format()));
    let dense = dense.kind(Attention::Gqa);
    kinds.push(series(dense, format!("{}, bf16", dense.model.name)));
    let title = "Size of the cache by kind of attention, 60 layers of DeepSeek-V2's dimensions";
    bench.plot(title, "cache-kinds", ("tokens in the cache", true), ("bytes", true), kinds);
    let formats = of_v2(&|kind| kind.attention == Attention::Mla);
    let title = "Size of DeepSeek-V2's latent cache by the bits of a number";
    bench.plot(title, "cache-formats", ("tokens in the cache", false), ("bytes", false), formats);
}
