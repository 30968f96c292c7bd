//! The tables and plots of the measured sizes.

use dsv2_bench_report::{Axis, Plot, Series, Table};

use super::bytes::human;
use super::kinds::{Kind, Model, PIECE};
use super::{ONE_MORE, PER_TOKEN_AT, Sizes};

/// One way of giving tokens to a layer's cache of latents.
pub struct Growth {
    pub name: &'static str,
    pub tokens: usize,
    /// Bytes in the end.
    pub allocated: u64,
    /// The most bytes at a time.
    pub most: u64,
}

const SECTION: &str = "cache";

/// A table, if there is something in it.
fn table(title: String, columns: &[&str], rows: Vec<Vec<String>>, notes: &[String]) -> Option<Table> {
    let columns = columns.iter().copied().map(String::from).collect();
    (!rows.is_empty()).then(|| Table { section: SECTION.into(), title, columns, rows, notes: notes.to_vec() })
}

/// `MLA, bf16`
fn name(kind: &Kind) -> String {
    format!("{}, {}", kind.name, kind.format)
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

/// By how much `size` is smaller.
fn smaller(size: f64, than: Option<f64>) -> String {
    than.map_or("-".into(), |than| format!("{:.1} %", 100.0 * (1.0 - size / than)))
}

/// All models and kinds.
pub fn per_token(sizes: &Sizes, models: &[Model]) -> Option<Table> {
    let mut rows = Vec::new();
    for (model, kind) in models.iter().flat_map(|model| model.kinds.iter().map(move |kind| (model, kind))) {
        let Some(bytes) = sizes.of_token(model, kind) else { continue };
        let mha = model.kinds.iter().find(|kind| kind.id == "mha-bf16").and_then(|mha| sizes.of_token(model, mha));
        rows.push(vec![
            format!("{}: {}", model.name, name(kind)),
            whole(kind.numbers() as f64),
            whole(bytes / model.layers as f64),
            whole(kind.formula() as f64),
            model.layers.to_string(),
            whole(bytes),
            mha.map_or("-".into(), |mha| format!("{:.2} %", 100.0 * bytes / mha)),
        ]);
    }
    let columns =
        ["cache", "numbers per layer", "bytes per layer", "by formula", "layers", "bytes in all", "of MHA in bf16"];
    table(
        "What a token takes".into(),
        &columns,
        rows,
        &[format!(
            "Bytes are those that the program's allocator was asked for while a cache was filled with {PER_TOKEN_AT} tokens, divided \
         by their number. MLA keeps the latent and the rotary key (scales included); MLA, expanded, the keys and values \
         computed from it, as Transformers did before 5.15. GQA and MQA are imagined with the model's other sizes; of \
         DeepSeek 67B it is what it has."
        )],
    )
}

/// Against DeepSeek 67B.
pub fn saved(sizes: &Sizes, [v2, lite, dense]: &[Model; 3]) -> Option<Table> {
    let dense_bytes = sizes.of_token(dense, &dense.kinds[0]);
    let mut rows = Vec::new();
    if let Some(bytes) = dense_bytes {
        rows.push([format!("{}: {}", dense.name, name(&dense.kinds[0])), whole(bytes), "16.00".into()].to_vec());
        rows[0].extend(["-".into(), "-".into(), "-".into()]);
    }
    for (model, kind) in [v2, lite].into_iter().flat_map(|model| model.kinds.iter().map(move |kind| (model, kind))) {
        let Some(bytes) = sizes.of_token(model, kind).filter(|_| kind.name == "MLA") else { continue };
        rows.push(vec![
            format!("{}: {}", model.name, name(kind)),
            whole(bytes),
            format!("{:.2}", 8.0 * bytes / (kind.numbers() * model.layers) as f64),
            smaller(bytes, dense_bytes),
            smaller(bytes, sizes.of_token(model, model.kind("mha-bf16"))),
            smaller(bytes, sizes.of_token(model, model.kind("mla-expanded-bf16"))),
        ]);
    }
    let columns = [
        "cache",
        "bytes per token",
        "bits per number",
        "less than 67B's",
        "less than its own MHA in bf16",
        "less than expanded in bf16",
    ];
    let mut notes = vec![
        "The paper's 93.3 % is DeepSeek-V2 in 6 bits against DeepSeek 67B in 16. Of the same number of bits, bf16, it is 82.2 %: \
         that is the architecture's share, the rest is quantisation."
            .to_owned(),
    ];
    if let (Some(latent), Some(dense)) = (sizes.of_token(v2, v2.kind("mla-bf16")), dense_bytes) {
        notes.push(format!(
            "fp8 is the 656-byte layout with scales and keys in bf16. Eight bits for every number and no scales would be {:.1} % \
             less than 67B's (half of what was measured for bf16).",
            100.0 * (1.0 - latent / 2.0 / dense)
        ));
    }
    table("Against DeepSeek 67B".into(), &columns, rows, &notes)
}

/// Tables 1 and 9.
pub fn of_paper(sizes: &Sizes, [v2, lite, _]: &[Model; 3], large: &Model) -> Option<Table> {
    // The model and the kind, and the model whose MHA it is compared with.
    let lines = [
        (v2, "mha-bf16", v2, "table 1, MHA: 2 n_h d_h l"),
        (v2, "gqa-bf16", v2, "table 1, GQA: 2 n_g d_h l, n_g = 8"),
        (v2, "mqa-bf16", v2, "table 1, MQA: 2 d_h l"),
        (v2, "mla-bf16", v2, "table 1, MLA: (d_c + d_h^R) l = 4.5 d_h l"),
        (lite, "mha-bf16", lite, "table 9, small MoE with MHA: 110.6K"),
        (lite, "mla-bf16", lite, "table 9, small MoE with MLA: 15.6K"),
        (large, "mha-bf16", large, "table 9, large MoE with MHA: 860.2K"),
        (v2, "mla-bf16", large, "table 9, large MoE with MLA: 34.6K"),
    ];
    let mut rows = Vec::new();
    for (model, kind, other, line) in lines {
        let Some(bytes) = sizes.of_token(model, model.kind(kind)) else { continue };
        let d_h_l = (128 * model.layers) as f64;
        rows.push(vec![
            line.into(),
            model.name.into(),
            whole(bytes / 2.0),
            format!("{:.1}", bytes / 2.0 / d_h_l),
            sizes
                .of_token(other, other.kind("mha-bf16"))
                .map_or("-".into(), |mha| format!("{:.2} %", 100.0 * bytes / mha)),
        ]);
    }
    let columns = ["in the paper", "measured with", "numbers per token", "in d_h l", "of MHA"];
    table("The paper's tables 1 and 9".into(), &columns, rows, &[
        "Numbers per token in all layers: the measured bytes in bf16, halved; d_h = 128. The small MoE models have the shape of \
         V2-Lite, the large one with MLA that of V2. The large one with MHA is imagined: 56 heads of 128 in 60 layers give the \
         paper's number."
            .into(),
    ])
}

/// All models and kinds again.
pub fn by_context(sizes: &Sizes, models: &[Model], contexts: &[usize]) -> Option<Table> {
    let mut rows = Vec::new();
    for (model, kind) in models.iter().flat_map(|model| model.kinds.iter().map(move |kind| (model, kind))) {
        let bytes = contexts.iter().map(|&tokens| sizes.get(model, kind, tokens));
        let cells: Vec<String> = bytes.map(|bytes| bytes.map_or("-".into(), |bytes| human(bytes as f64))).collect();
        if cells.iter().any(|cell| cell != "-") {
            rows.push([vec![format!("{}: {}", model.name, name(kind))], cells].concat());
        }
    }
    let heads: Vec<String> = contexts.iter().map(|&tokens| context(tokens)).collect();
    let columns: Vec<&str> = ["cache"].into_iter().chain(heads.iter().map(String::as_str)).collect();
    let note = format!(
        "Allocated while the cache was given one sequence in pieces of {PIECE} tokens. Where all layers would be too much, one or \
         some were filled (of keys and values, some heads of one) and the bytes multiplied. The contexts are powers of two, \
         where a cache that doubles its room is full."
    );
    table("All layers, by tokens in the cache".into(), &columns, rows, &[note])
}

fn context(tokens: usize) -> String {
    if tokens >= 1024 && tokens.is_multiple_of(1024) { format!("{}K", tokens / 1024) } else { tokens.to_string() }
}

/// Room that is not used.
pub fn growth(sizes: &Sizes, v2: &Model, growths: &[Growth]) -> Option<Table> {
    let row = |name: String, used: f64, allocated: u64, most: String| {
        let unused = 100.0 * (1.0 - used / allocated as f64);
        vec![name, human(used), human(allocated as f64), format!("{unused:.1} %"), most]
    };
    let latent = v2.kind("mla-bf16");
    let of_growth = |growth: &Growth| {
        let used = (growth.tokens * latent.formula()) as f64;
        row(format!("one layer's latents: {}", growth.name), used, growth.allocated, human(growth.most as f64))
    };
    let of_kind = |kind: &Kind| {
        let used = (ONE_MORE * kind.formula() * v2.layers) as f64;
        let allocated = sizes.get(v2, kind, ONE_MORE)?;
        Some(row(format!("all layers: {}, {ONE_MORE} in pieces of {PIECE}", name(kind)), used, allocated, "-".into()))
    };
    let rows = growths.iter().map(of_growth).chain(v2.kinds.iter().filter_map(of_kind)).collect();
    let columns = ["DeepSeek-V2, what is given", "used", "allocated", "unused", "most at a time"];
    table("Room that growing leaves unused".into(), &columns, rows, &[
        "A cache that is full moves to a room twice as large, or as large as the new tokens need if that is more. One token \
         after a power of two (or after a long prompt) almost half is unused. The most at a time is while old and new room both \
         exist. Vectors of keys and values grow by the same rule."
            .into(),
    ])
}

/// Size against context: all kinds of V2, and its latent in every format.
pub fn plots(sizes: &Sizes, [v2, _, dense]: &[Model; 3], contexts: &[usize]) -> [Plot; 2] {
    let series = |model: &Model, kind: &Kind, name: String| {
        let point = |&tokens: &usize| Some((tokens as f64, sizes.get(model, kind, tokens)? as f64));
        Series { name, points: contexts.iter().filter_map(point).collect() }
    };
    let of_dense = || series(dense, &dense.kinds[0], format!("{}, bf16", dense.name));
    let some = v2.kinds.iter().filter(|kind| !["mla-fp32", "mla-int8", "mla-fp8"].contains(&kind.id.as_str()));
    let latents = v2.kinds.iter().filter(|kind| kind.name == "MLA");
    let plot = |title: &str, file: &str, log: bool, series: Vec<Series>| Plot {
        section: SECTION.into(),
        title: title.into(),
        file: file.into(),
        x: Axis { label: "tokens in the cache".into(), log },
        y: Axis { label: "bytes".into(), log },
        series: series.into_iter().filter(|series| !series.points.is_empty()).collect(),
    };
    [
        plot(
            "Size of the cache by kind of attention, 60 layers of DeepSeek-V2's dimensions",
            "cache-kinds",
            true,
            some.map(|kind| series(v2, kind, name(kind))).chain([of_dense()]).collect(),
        ),
        plot(
            "Size of DeepSeek-V2's latent cache by the bits of a number",
            "cache-formats",
            false,
            latents.map(|kind| series(v2, kind, name(kind))).collect(),
        ),
    ]
}
