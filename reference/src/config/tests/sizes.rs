use super::*;

#[test]
fn the_presets_have_the_released_sizes() {
    for name in PRESETS {
        let config = DeepseekV2Config::preset(name).unwrap();
        Dialect::ALL.iter().for_each(|dialect| config.validate(*dialect).unwrap());
        assert_eq!(DeepseekV2Config::from_value(config.to_json()).unwrap(), config, "{name}");
        // The paper's 236 billion, 21 of them active, and 15.7 billion, 2.4 of them active: both without the embedding.
        let (total, active, cached) = match name.contains("lite") {
            false => (235_741_434_880, 21_375_800_320, 34_560),
            true => (15_706_484_224, 2_661_150_208, 15_552),
        };
        assert_eq!(config.parameter_count(), total, "{name}");
        assert_eq!(config.active_parameter_count(), active, "{name}");
        let billions = (active - (config.vocab_size * config.hidden_size) as u64) as f64 / 1e9;
        assert_eq!(format!("{billions:.2}"), if name.contains("lite") { "2.45" } else { "20.85" });
        assert_eq!(config.kv_cache_elements_per_token(), cached, "{name}");
    }
    let mscale = |name| DeepseekV2Config::preset(name).unwrap().rope().unwrap().mscale_all_dim;
    assert_eq!([mscale("v2"), mscale("v2.5")], [Some(0.707), Some(1.0)]);
    let message = DeepseekV2Config::preset("v3").unwrap_err().to_string();
    assert_eq!(message, "config: preset: expected one of v2, v2-lite, coder-v2, coder-v2-lite, v2.5, found \"v3\"");
}

#[test]
fn moe_layers_by_dialect() {
    let config = accepted(small_with(json!({ "moe_layer_freq": 2 })), Dialect::Deepseek);
    let moe = |config: &DeepseekV2Config, dialect| [0, 1, 2, 3].map(|layer| config.is_moe_layer(layer, dialect));
    assert_eq!(moe(&config, Dialect::Hf), [false, true, true, true]);
    assert_eq!(moe(&config, Dialect::Deepseek), [false, false, true, false]);
    let negative = DeepseekV2Config { first_k_dense_replace: -5, ..config.clone() };
    assert_eq!(moe(&negative, Dialect::Hf), [true; 4]);
    assert_eq!(moe(&negative, Dialect::Deepseek), [true, false, true, false]);
    let dense = DeepseekV2Config { n_routed_experts: None, ..config };
    assert!(!dense.has_moe_layers(Dialect::Deepseek));
}

#[test]
fn weights_in_the_order_of_the_forward_pass() {
    let patch = json!({ "num_hidden_layers": 2, "n_routed_experts": 2, "num_experts_per_tok": 1, "topk_method": "greedy",
        "attention_bias": true, "mlp_bias": true });
    let config = accepted(small_with(patch), Dialect::Hf);
    let attention = [
        ("self_attn.q_a_proj.weight", vec![6, 16]),
        ("self_attn.q_a_proj.bias", vec![6]),
        ("self_attn.q_a_layernorm.weight", vec![6]),
        ("self_attn.q_b_proj.weight", vec![48, 6]),
        ("self_attn.kv_a_proj_with_mqa.weight", vec![14, 16]),
        ("self_attn.kv_a_proj_with_mqa.bias", vec![14]),
        ("self_attn.kv_a_layernorm.weight", vec![10]),
        ("self_attn.kv_b_proj.weight", vec![56, 10]),
        ("self_attn.o_proj.weight", vec![16, 24]),
        ("self_attn.o_proj.bias", vec![16]),
        ("post_attention_layernorm.weight", vec![16]),
    ];
    let dense = [
        ("mlp.gate_proj.weight", vec![24, 16]),
        ("mlp.gate_proj.bias", vec![24]),
        ("mlp.up_proj.weight", vec![24, 16]),
        ("mlp.up_proj.bias", vec![24]),
        ("mlp.down_proj.weight", vec![16, 24]),
        ("mlp.down_proj.bias", vec![16]),
    ];
    let moe = [
        ("mlp.gate.weight", vec![2, 16]),
        ("mlp.experts.0.gate_proj.weight", vec![12, 16]),
        ("mlp.experts.0.up_proj.weight", vec![12, 16]),
        ("mlp.experts.0.down_proj.weight", vec![16, 12]),
        ("mlp.experts.1.gate_proj.weight", vec![12, 16]),
        ("mlp.experts.1.up_proj.weight", vec![12, 16]),
        ("mlp.experts.1.down_proj.weight", vec![16, 12]),
        ("mlp.shared_experts.gate_proj.weight", vec![24, 16]),
        ("mlp.shared_experts.gate_proj.bias", vec![24]),
        ("mlp.shared_experts.up_proj.weight", vec![24, 16]),
        ("mlp.shared_experts.up_proj.bias", vec![24]),
        ("mlp.shared_experts.down_proj.weight", vec![16, 24]),
        ("mlp.shared_experts.down_proj.bias", vec![16]),
    ];
    let mut expected = vec![("model.embed_tokens.weight".to_owned(), vec![32, 16])];
    for (layer, mlp) in [(0, &dense[..]), (1, &moe[..])] {
        expected.push((format!("model.layers.{layer}.input_layernorm.weight"), vec![16]));
        let of_layer = attention.iter().chain(mlp);
        expected.extend(of_layer.map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape.clone())));
    }
    expected.push(("model.norm.weight".to_owned(), vec![16]));
    expected.push(("lm_head.weight".to_owned(), vec![32, 16]));
    assert_eq!(config.weight_shapes(Head::CausalLm, Dialect::Hf), expected);

    let last = |config: &DeepseekV2Config, head| config.weight_shapes(head, Dialect::Hf).pop().unwrap();
    let classifier = DeepseekV2Config { num_labels: Some(5), ..config.clone() };
    assert_eq!(last(&classifier, Head::SequenceClassification), ("score.weight".to_owned(), vec![5, 16]));
    let tied = DeepseekV2Config { tie_word_embeddings: true, ..config.clone() };
    assert_eq!(last(&tied, Head::CausalLm).0, "model.norm.weight");
    assert_eq!(config.parameter_count() - tied.parameter_count(), 32 * 16);
    let direct = DeepseekV2Config { q_lora_rank: None, ..config.clone() };
    assert_eq!(direct.weight_shapes(Head::CausalLm, Dialect::Hf)[2].1, [48, 16]);
}

#[test]
fn a_head_is_read_from_its_architecture() {
    for head in [Head::CausalLm, Head::SequenceClassification] {
        assert_eq!(head.to_string().parse::<Head>().unwrap(), head);
    }
    let message = "LlamaForCausalLM".parse::<Head>().unwrap_err().to_string();
    assert_eq!(
        message,
        "config: architectures: expected DeepseekV2ForCausalLM, DeepseekV2ForSequenceClassification, DeepseekV2Model, found \"LlamaForCausalLM\""
    );
}
