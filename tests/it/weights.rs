//! Weights as files have them.

use std::{collections::HashMap, fs::File, sync::Arc};

use candle_core::{Device, Tensor, quantized::gguf_file::Content};
use chorus::{
    kernels::panels::{Encoding, Panels},
    lora::Matrices,
};
use safetensors::SafeTensors;
use serde_json::json;

use crate::world::{Solo, adapter, base_gguf, fixtures, greedy, json, load, shipped_adapters};

#[test]
fn every_encoding_means_what_the_gguf_package_says() {
    let bytes = std::fs::read(fixtures().join("gguf/dequant.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let encodings = [
        ("F32", Encoding::F32),
        ("F16", Encoding::F16),
        ("BF16", Encoding::BF16),
        ("Q4_0", Encoding::Q4_0),
        ("Q4_1", Encoding::Q4_1),
        ("Q5_0", Encoding::Q5_0),
        ("Q5_1", Encoding::Q5_1),
        ("Q8_0", Encoding::Q8_0),
        ("Q4_K", Encoding::Q4_K),
        ("Q5_K", Encoding::Q5_K),
        ("Q6_K", Encoding::Q6_K),
    ];
    for (name, encoding) in encodings {
        let values = tensors.tensor(&format!("{name}.values")).unwrap();
        let (rows, columns) = (values.shape()[0], values.shape()[1]);
        let stored = tensors.tensor(&format!("{name}.bytes")).unwrap();
        let row_bytes = encoding.row_bytes(columns).unwrap();
        let stored = &stored.data()[..rows * row_bytes];
        let panels = Panels::pack(encoding, (rows, columns), stored, |row| row).unwrap();
        let mut got = vec![0.0; columns];
        for (row, want) in values.data().chunks(columns * 4).enumerate() {
            panels.row(row, &mut got);
            for (got, want) in got.iter().zip(want.as_chunks::<4>().0) {
                let want = f32::from_le_bytes(*want);
                assert!(
                    got.to_bits() == want.to_bits() || (*got == 0.0 && want == 0.0),
                    "{name}: {got} is not {want}"
                );
            }
        }
    }
}

/// The default base as transformers would save it: dequantized by candle, rows of q and k put back in order.
fn as_safetensors(folder: &std::path::Path) {
    let mut file = File::open(base_gguf()).unwrap();
    let content = Content::read(&mut file).unwrap();
    let number = |key: &str| content.metadata[key].to_u32().unwrap() as usize;
    let heads = number("llama.attention.head_count");
    let kv_heads = number("llama.attention.head_count_kv");
    let mut tensors = HashMap::new();
    for name in content.tensor_infos.keys() {
        let tensor = content.tensor(&mut file, name, &Device::Cpu).unwrap();
        let tensor = tensor.dequantize(&Device::Cpu).unwrap();
        let parts: Vec<&str> = name.split('.').collect();
        let (path, heads) = match parts[..] {
            ["token_embd", _] => ("model.embed_tokens".to_owned(), None),
            ["output_norm", _] => ("model.norm".to_owned(), None),
            ["blk", layer, part, _] => {
                let (part, heads) = match part {
                    "attn_q" => ("self_attn.q_proj", Some(heads)),
                    "attn_k" => ("self_attn.k_proj", Some(kv_heads)),
                    "attn_v" => ("self_attn.v_proj", None),
                    "attn_output" => ("self_attn.o_proj", None),
                    "ffn_gate" => ("mlp.gate_proj", None),
                    "ffn_up" => ("mlp.up_proj", None),
                    "ffn_down" => ("mlp.down_proj", None),
                    "attn_norm" => ("input_layernorm", None),
                    "ffn_norm" => ("post_attention_layernorm", None),
                    other => panic!("unknown part {other}"),
                };
                (format!("model.layers.{layer}.{part}"), heads)
            }
            _ => panic!("unknown tensor {name}"),
        };
        let tensor = match heads {
            None => tensor,
            Some(heads) => {
                let (rows, columns) = tensor.dims2().unwrap();
                let split = tensor.reshape((heads, rows / heads / 2, 2, columns)).unwrap();
                let ordered = split.transpose(1, 2).unwrap().contiguous().unwrap();
                ordered.reshape((rows, columns)).unwrap()
            }
        };
        tensors.insert(format!("{path}.weight"), tensor);
    }
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": number("llama.embedding_length"),
        "intermediate_size": number("llama.feed_forward_length"),
        "num_hidden_layers": number("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": tensors["model.embed_tokens.weight"].dim(0).unwrap(),
        "max_position_embeddings": number("llama.context_length"),
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": true,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn a_safetensors_copy_of_the_base_answers_as_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    as_safetensors(folder.path());
    let llama = load(folder.path());
    let pirate = adapter(&shipped_adapters().join("pirate"), &llama, Matrices::Native).unwrap();
    for (file, adapter) in [("base", None), ("pirate", Some(pirate))] {
        let reference = json(&fixtures().join(format!("smollm2/reference/{file}.json")));
        for prompt in reference["prompts"].as_array().unwrap() {
            let ids =
                |key: &str| -> Vec<u32> { serde_json::from_value(prompt[key].clone()).unwrap() };
            let (given, want) = (ids("prompt_ids"), ids("greedy_ids"));
            let margins: Vec<f64> = serde_json::from_value(prompt["margin"].clone()).unwrap();
            let mut solo = Solo::new(&llama, adapter.clone(), given.len() + want.len());
            let mut last = solo.feed(&given).pop().unwrap();
            for (at, want) in want.iter().enumerate().take(16) {
                if margins[at] <= 0.01 {
                    break;
                }
                assert_eq!(greedy(&last), *want, "{file} {}, token {at}", prompt["id"]);
                last = solo.feed(&[*want]).pop().unwrap();
            }
        }
    }
}

/// candle-transformers' own Llama on the same weights: an oracle that shares no code with ours.
#[test]
fn candle_transformers_agrees() {
    use candle_transformers::models::llama::{Cache, Config, Llama as Oracle, LlamaConfig};

    let model = fixtures().join("models/tied");
    let config: LlamaConfig =
        serde_json::from_slice(&std::fs::read(model.join("config.json")).unwrap()).unwrap();
    let config: Config = config.into_config(false);
    let tensors =
        candle_core::safetensors::load(model.join("model.safetensors"), &Device::Cpu).unwrap();
    let tensors = tensors
        .into_iter()
        .map(|(name, tensor)| (name, tensor.to_dtype(candle_core::DType::F32).unwrap()))
        .collect();
    let builder =
        candle_nn::VarBuilder::from_tensors(tensors, candle_core::DType::F32, &Device::Cpu);
    let oracle = Oracle::load(builder, &config).unwrap();
    let llama = Arc::new(load(&model));
    let tokens: Vec<u32> = (3..43).collect();
    for length in [1, 17, 40] {
        let mut cache = Cache::new(true, candle_core::DType::F32, &config, &Device::Cpu).unwrap();
        let input = Tensor::new(&tokens[..length], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let want: Vec<f32> = oracle
            .forward(&input, 0, &mut cache)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        let got = Solo::new(&llama, None, length).feed(&tokens[..length]).pop().unwrap();
        for (got, want) in got.iter().zip(&want) {
            assert!((got - want).abs() < 2e-4, "{length} tokens: {got} is not {want}");
        }
    }
}
