//! `quantization_config`: in what form config.json says that the weights are.
//!
//! fp8 is read: DeepSeek's own form (`quant_method` fp8, blocks of 128 x 128), that of AutoFP8 (the same name, a scale for each
//! matrix), and what llm-compressor writes (compressed-tensors, format float-quantized: a scale for each matrix, row or
//! block). All other forms are refused by their own names.

use serde_json::Value;

use crate::{DeepseekV2Config, Error, Result};

/// What to do with weights in a form that is not read.
pub(crate) const INSTEAD: &str =
    "give a dequantized copy of it in safetensors (BF16, F16 or F32), or the checkpoint that it was made from";

/// Names of `quant_method` and what people call them.
const NOT_READ: &[(&str, &str)] = &[
    ("awq", "AWQ"),
    ("gptq", "GPTQ"),
    ("bitsandbytes", "bitsandbytes"),
    ("gguf", "GGUF"),
    ("compressed-tensors", "compressed-tensors"),
    ("hqq", "HQQ"),
    ("quanto", "Quanto"),
    ("torchao", "torchao"),
    ("mxfp4", "MXFP4"),
    ("fbgemm_fp8", "FBGEMM fp8"),
    ("modelopt", "ModelOpt"),
];

/// fp8 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fp8 {
    /// How many rows and columns of a matrix share a scale, if there is not one for all or for each row.
    pub block: Option<[usize; 2]>,
}

impl Fp8 {
    /// What config.json says, if it says that the weights are quantized.
    ///
    /// # Errors
    /// If they are in another form than fp8.
    pub fn of(config: &DeepseekV2Config) -> Result<Option<Self>> {
        let Some(stated) = config.extra.get("quantization_config").or_else(|| config.extra.get("compression_config"))
        else {
            return Ok(None);
        };
        if stated.is_null() {
            return Ok(None);
        }
        let method = match stated.get("quant_method") {
            Some(Value::String(method)) => method.as_str(),
            // what bitsandbytes wrote before there was a name for it
            None if ["load_in_8bit", "load_in_4bit"].iter().any(|key| stated[key] == true) => "bitsandbytes",
            other => return Err(refused("quant_method", other.unwrap_or(&Value::Null).to_string())),
        };
        match method {
            "fp8" => {
                if let Some(fmt) = stated.get("fmt").and_then(Value::as_str).filter(|fmt| *fmt != "e4m3") {
                    return Err(Error::config("quantization_config.fmt", "e4m3", format!("{fmt:?}")));
                }
                Ok(Some(Fp8 { block: block(stated.get("weight_block_size"))? }))
            }
            "compressed-tensors" if stated["format"] == "float-quantized" => {
                let groups = stated["config_groups"].as_object().into_iter().flat_map(|groups| groups.values());
                let weights: Vec<&Value> = groups.map(|group| &group["weights"]).collect();
                let is_fp8 = |weights: &&Value| weights["num_bits"] == 8 && weights["type"] == "float";
                match weights.iter().all(is_fp8) && !weights.is_empty() {
                    true => Ok(Some(Fp8 {
                        block: weights.iter().find_map(|w| block(w.get("block_structure")).transpose()).transpose()?,
                    })),
                    false => {
                        Err(refused("config_groups", "compressed-tensors of other weights than float of 8 bits".into()))
                    }
                }
            }
            "compressed-tensors" => {
                Err(refused("format", format!("compressed-tensors of format {}", stated["format"])))
            }
            other => match NOT_READ.iter().find(|(name, _)| *name == other) {
                Some((_, called)) => Err(refused("quant_method", (*called).into())),
                None => Err(refused("quant_method", format!("{other:?}"))),
            },
        }
    }
}

fn refused(key: &str, found: String) -> Error {
    let expected = "fp8 weights (quant_method fp8, or compressed-tensors of format float-quantized)";
    Error::Config {
        field: format!("quantization_config.{key}"),
        expected: expected.into(),
        found: format!("{}: {INSTEAD}", crate::error::one_line(&found)),
    }
}

fn block(stated: Option<&Value>) -> Result<Option<[usize; 2]>> {
    let Some(stated) = stated.filter(|stated| !stated.is_null()) else { return Ok(None) };
    let side = |i: usize| stated.get(i).and_then(Value::as_u64).filter(|side| (1..=1 << 32).contains(side));
    match (stated.as_array().map(Vec::len), side(0), side(1)) {
        (Some(2), Some(rows), Some(columns)) => Ok(Some([rows as usize, columns as usize])),
        _ => Err(Error::config("quantization_config.weight_block_size", "two sides, as [128, 128]", stated)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(quantization: Value) -> Result<Option<Fp8>, String> {
        let config = json!({"model_type": "deepseek_v2", "quantization_config": quantization});
        let config = DeepseekV2Config::from_value(config).unwrap();
        Fp8::of(&config).map_err(|error| error.to_string())
    }

    #[test]
    fn fp8_is_read_in_the_forms_that_deepseek_autofp8_and_llm_compressor_write() {
        let block = Ok(Some(Fp8 { block: Some([128, 128]) }));
        let whole = Ok(Some(Fp8 { block: None }));
        let compressed = |weights: Value| {
            json!({"quant_method": "compressed-tensors", "format": "float-quantized",
                "config_groups": {"group_0": {"weights": weights}}})
        };
        assert_eq!(read(json!(null)), Ok(None));
        let of_deepseek = json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]});
        assert_eq!(read(of_deepseek), block);
        assert_eq!(read(json!({"quant_method": "fp8", "activation_scheme": "static"})), whole);
        assert_eq!(read(compressed(json!({"num_bits": 8, "type": "float", "strategy": "channel"}))), whole);
        let blocks = json!({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]});
        assert_eq!(read(compressed(blocks)), block);
    }

    #[test]
    fn other_forms_are_refused_by_their_own_names_with_what_to_do_instead() {
        let method = |method: &str| json!({"quant_method": method});
        for (stated, named) in [
            (
                method("awq"),
                "quant_method: expected fp8 weights (quant_method fp8, or compressed-tensors of format float-quantized), found AWQ",
            ),
            (method("gptq"), "found GPTQ"),
            (method("bitsandbytes"), "found bitsandbytes"),
            (json!({"load_in_4bit": true}), "found bitsandbytes"),
            (method("hqq"), "found HQQ"),
            (method("new\n"), "found \"new\\n\""),
            (json!({}), "quant_method: "),
            (json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}), "format: "),
            (
                json!({"quant_method": "compressed-tensors", "format": "float-quantized",
                    "config_groups": {"a": {"weights": {"num_bits": 4, "type": "float"}}}}),
                "other weights than float of 8 bits",
            ),
        ] {
            let refused = read(stated).unwrap_err();
            assert!(refused.starts_with("config: quantization_config.") && refused.contains(named), "{refused}");
            assert!(refused.ends_with(INSTEAD) && !refused.contains('\n'), "{refused}");
        }
        let refused = read(json!({"quant_method": "fp8", "weight_block_size": [128]})).unwrap_err();
        assert!(refused.ends_with("weight_block_size: expected two sides, as [128, 128], found [128]"), "{refused}");
        let refused = read(json!({"quant_method": "fp8", "fmt": "e5m2"})).unwrap_err();
        assert!(refused.ends_with("fmt: expected e4m3, found \"e5m2\""), "{refused}");
    }
}
