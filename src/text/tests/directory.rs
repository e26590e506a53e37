//! Model directories.

use super::*;

#[test]
fn dir_reads_tokenizer_and_template() {
    let template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let config = json!({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>",
        "chat_template": template});
    let text = Dir::new().write("tokenizer_config.json", &config.to_string()).read().unwrap();
    // Saved with truncation to three tokens; that is not the tokenizer's business.
    let prompt = "xab</s>  é🦀";
    let tokens = text.encode(prompt, Framing::Bare).unwrap();
    assert_eq!(tokens[..3], [u32::from(b'x'), 256, 258]);
    assert_eq!(text.decode(&tokens, Specials::Show), prompt);
    assert_eq!(text.encode("ab", Framing::Framed).unwrap(), [257, 256]);
    assert_eq!(text.render(&vec![message("hi")].into(), Ending::Prompt).unwrap(), "<s>hi");
    assert_eq!(**text.stop_tokens(), [258]);
    assert_eq!(text.vocab(), 259);

    let own = Dir::new()
        .write("tokenizer_config.json", &config.to_string())
        .write("chat_template.jinja", "own");
    assert_eq!(own.read().unwrap().render(&Chat::default(), Ending::Open).unwrap(), "own");
    let bare = Dir::new().read().unwrap();
    assert!(!bare.has_template());
    assert!(bare.stop_tokens().is_empty());
}

#[test]
fn dir_chooses_the_default_of_several_templates() {
    let named = |names: &[&str]| {
        let list: Vec<_> =
            names.iter().map(|name| json!({"name": name, "template": name})).collect();
        let config = json!({"chat_template": list}).to_string();
        Dir::new().write("tokenizer_config.json", &config).read()
    };
    let text = named(&["tool_use", "default"]).unwrap();
    assert_eq!(text.render(&Chat::default(), Ending::Open).unwrap(), "default");
    assert!(problem(named(&["tool_use", "rag"])).contains(r#"["tool_use", "rag"]"#));
}

#[test]
fn dir_llama_tokenizers_are_framed_by_their_configuration() {
    let framed = |config: serde_json::Value| {
        let dir = Dir::new().write("tokenizer_config.json", &config.to_string());
        dir.read().unwrap().encode("ab", Framing::Framed).unwrap()
    };
    let llama = |bos: bool, eos: bool| {
        json!({"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
            "add_bos_token": bos, "add_eos_token": eos})
    };
    assert_eq!(framed(llama(true, false)), [257, 256]);
    assert_eq!(framed(llama(false, false)), [256]);
    assert_eq!(framed(llama(true, true)), [257, 256, 258]);
    let other = json!({"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": false});
    assert_eq!(framed(other), [257, 256]);
}

#[test]
fn dir_stop_tokens_come_from_generation_config_first() {
    let config = r#"{"eos_token_id": 9}"#;
    let stops = |dir: Dir| dir.read().unwrap().stop_tokens().to_vec();
    assert_eq!(stops(Dir::new().write("config.json", config)), [9]);
    let both = |generation: &str| {
        Dir::new().write("config.json", config).write("generation_config.json", generation)
    };
    assert_eq!(stops(both(r#"{"eos_token_id": [8, 7]}"#)), [7, 8]);
    assert_eq!(stops(both(r#"{"eos_token_id": null}"#)), [9]);
    let named = both("{}").write("tokenizer_config.json", r#"{"eos_token": "</s>"}"#);
    assert_eq!(stops(named), [9, 258]);
    assert!(problem(both(r#"{"eos_token_id": 259}"#).read()).contains("names token 259"));
}

#[test]
fn dir_problems_are_named() {
    let empty = Dir(TempDir::new().unwrap());
    assert!(problem(empty.read()).contains("has no tokenizer.json"));
    let changed = |pointer: &str, value: serde_json::Value| {
        let mut tokenizer = Dir::tokenizer();
        *tokenizer.pointer_mut(pointer).unwrap() = value;
        Dir(TempDir::new().unwrap()).write("tokenizer.json", &tokenizer.to_string())
    };
    let word_piece = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    let cases = [
        (changed("/model/type", json!("Unigram")), "\"Unigram\"; supported: BPE"),
        (changed("/model/merges", json!([["ab", "ab"]])), "does not merge two tokens"),
        (changed("/model/merges", json!(["x y"])), "does not merge two tokens"),
        (changed("/model/vocab/Ā", json!(1_u32 << 31)), "is above"),
        (changed("/added_tokens/0/id", json!(300)), "has id 300"),
        (changed("/decoder", word_piece), "WordPiece"),
        (changed("/decoder", json!(null)), "decoder \"null\""),
        (Dir::new().write("tokenizer.json", "{"), "EOF"),
        (Dir::new().write("tokenizer_config.json", "[1]"), "tokenizer_config.json: "),
        (
            Dir::new().write("generation_config.json", r#"{"eos_token_id": -1}"#),
            "generation_config",
        ),
        (Dir::new().write("chat_template.jinja", "{{"), "does not compile"),
    ];
    for (dir, expected) in cases {
        let problem = problem(dir.read());
        assert!(problem.contains(expected), "{problem:?} does not tell {expected:?}");
        assert!(!problem.contains('\n'), "{problem:?}");
    }
}

#[test]
fn a_file_above_its_bound_is_not_read() {
    let dir = Dir::new();
    let file = File::create(dir.0.path().join("generation_config.json")).unwrap();
    file.set_len(1 << 40).unwrap();
    assert!(problem(dir.read()).contains("too many for a file of its kind"));
}
