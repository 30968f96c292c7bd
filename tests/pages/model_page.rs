//! The numbers of docs/model.md are those of the released configurations, and its links lead somewhere.

use dsv2::kv_cache::Attention;
use dsv2_reference::config::{Head, TopkMethod};
use dsv2_reference::model::rope::{softmax_scale, yarn_get_mscale};
use dsv2_reference::model::router::RoutingRule;
use dsv2_reference::{DeepseekV2Config, Dialect};
use ndarray::array;

const PAGE: &str = include_str!("../../docs/model.md");

#[track_caller]
fn says(text: &str) {
    assert!(PAGE.contains(text), "docs/model.md does not say: {text}");
}

fn presets<const N: usize>(names: [&str; N]) -> [DeepseekV2Config; N] {
    names.map(|name| DeepseekV2Config::preset(name).unwrap())
}

/// 1234567 -> 1,234,567
fn grouped(number: usize) -> String {
    let thousands = number / 1000;
    if thousands == 0 { number.to_string() } else { format!("{},{:03}", grouped(thousands), number % 1000) }
}

/// Four digits, or all that stand before the point.
fn four_digits(number: f64) -> String {
    format!("{number:.*}", (3 - number.log10().floor() as i32).max(0) as usize)
}

#[test]
fn the_configurations() {
    let [v2, lite] = presets(["v2", "v2-lite"]).map(|config| config.to_json());
    let rows = PAGE.lines().skip_while(|line| !line.starts_with("| letter")).skip(2);
    let fields: Vec<&str> = rows.take_while(|row| !row.is_empty()).filter_map(|row| row.split('`').nth(1)).collect();
    assert_eq!(fields.len(), 18);
    fields.iter().for_each(|field| says(&format!("| `{field}` | {} | {} |\n", v2[field], lite[field])));
}

#[test]
fn the_parameters() {
    let [v2, lite] = presets(["v2", "v2-lite"]);
    let row = |what: &str, count: &dyn Fn(&DeepseekV2Config) -> usize| {
        says(&format!("| {what} | {} | {} |", grouped(count(&v2)), grouped(count(&lite))));
    };
    let parts =
        ["embed_tokens", "lm_head", "self_attn", "mlp.experts", "mlp.shared_experts", "mlp.gate", "mlp", "norm"];
    let part = |name: &str| *parts.iter().find(|part| name.contains(&format!("{part}."))).unwrap();
    let of = |config: &DeepseekV2Config, wanted: &str| -> usize {
        let shapes = config.weight_shapes(Head::CausalLm, Dialect::Hf);
        shapes.iter().filter(|(name, _)| part(name) == wanted).map(|(_, shape)| shape.iter().product::<usize>()).sum()
    };
    parts.iter().for_each(|part| row(&format!("`{part}`"), &|config| of(config, part)));
    row("**total**", &|config| config.parameter_count() as usize);
    let active = |config: &DeepseekV2Config| config.active_parameter_count() as usize;
    row("**active for a token**", &active);
    row("active without the embedding", &|config| active(config) - of(config, "embed_tokens"));
}

#[test]
fn the_cache_and_the_cost_of_both_forms() {
    let [v2, lite] = presets(["v2", "v2-lite"]);
    for (kind, numbers) in Attention::ALL.into_iter().zip(["H(n+v)", "8(n+v)", "n+v", "c+r", "H(n+r+v)"]) {
        says(&format!("| {numbers} | {} | {} |", grouped(kind.numbers(&v2)), grouped(kind.numbers(&lite))));
    }
    let [bytes, of_lite] = [&v2, &lite].map(|config| grouped(2 * config.kv_cache_elements_per_token()));
    says(&format!("{bytes} bytes per token in V2 and {of_lite} in V2-Lite"));
    let (c, r, nv) = (v2.kv_lora_rank, v2.qk_rope_head_dim, v2.qk_nope_head_dim + v2.v_head_dim);
    let pairs = |s: usize, t: usize| s * t - s * (s - 1) / 2;
    for (name, heads) in [("V2", v2.num_attention_heads), ("V2-Lite", lite.num_attention_heads)] {
        for (s, t) in [(4096, 4096), (1, 4096), (1, 131072)] {
            let cost = |latents: usize, pair: usize| 2e-9 * (heads * (latents * c * nv + pairs(s, t) * pair)) as f64;
            let read = |numbers: usize| 2e-6 * (numbers * t) as f64;
            let costs = [cost(t, nv + r), cost(s, 2 * c + r), cost(s, nv + r), read(c + r), read(heads * (nv + r))];
            let phase = if s == t { "prefill" } else { "decode" };
            says(&format!("| {name}, {phase} | {s} | {t} | {} |", costs.map(four_digits).join(" | ")));
        }
    }
    let crossover = |t| (1..=t).find(|&s| c * nv * (t - s) <= pairs(s, t) * (2 * c - nv)).unwrap();
    says(&format!("\n{:?}\n", [256, 1024, 4096, 131072].map(|t| (t, crossover(t)))));
}

#[test]
fn yarn_and_the_example_of_routing() {
    let [v2, v2_5] = presets(["v2", "v2.5"]);
    let mscale = |config: &DeepseekV2Config| yarn_get_mscale(40.0, config.rope().unwrap().mscale_all_dim.unwrap());
    let scale = |config: &DeepseekV2Config| softmax_scale(config, Dialect::Hf).unwrap();
    let row = |what, a, b| says(&format!("| {what} | {a:.4} | {b:.4} |"));
    row("ms(mscale_all_dim)", mscale(&v2), mscale(&v2_5));
    row("in the softmax scale: ms(mscale_all_dim)²", mscale(&v2).powi(2), mscale(&v2_5).powi(2));
    row("softmax scale: (n+r)^(-1/2) · ms²", scale(&v2), scale(&v2_5));

    let logits = array![[0.30, 0.02, 0.16, 0.15, 0.05, 0.04, 0.20, 0.08_f64]].ln();
    let experts = |method| RoutingRule::new(8, method, 3).unwrap().route(logits.clone()).unwrap().topk_indices;
    assert_eq!(experts(TopkMethod::GroupLimitedGreedy { n_group: 4, topk_group: 2 }), array![[0, 6, 7]]);
    assert_eq!(experts(TopkMethod::Greedy), array![[0, 6, 2]]);
}

#[test]
fn links_lead_somewhere() {
    let links: Vec<&str> = PAGE.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    assert!(links.len() > 20);
    links.iter().for_each(|link| assert!(std::path::Path::new("docs").join(link).exists(), "docs/model.md: {link}"));
}
