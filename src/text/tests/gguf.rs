//! Byte-level tokenizers in GGUF files.

use super::*;

#[test]
fn gguf_control_and_user_defined_tokens_are_found_in_text() {
    let text = Gguf::byte_level("gpt-2", &[], &[]).read().unwrap();
    let prompt = "a<|end|><think> <|x|>";
    let tokens = text.encode(prompt, Framing::Bare).unwrap();
    assert_eq!(tokens, [ids("a"), vec![END, THINK], ids(" <|x|>")].concat());
    assert_eq!(text.decode(&tokens, Specials::Show), prompt);
    assert_eq!(text.decode(&tokens, Specials::Hide), "a<think> <|x|>");
    assert_eq!(text.vocab(), 259);
    assert_eq!(text.token_bytes(0xC3), Some(&b"\xC3"[..]));
    assert_eq!(text.token_bytes(END), Some(&b"<|end|>"[..]));
    assert_eq!(text.token_bytes(259), None);
}

#[test]
fn gguf_framing_is_what_the_metadata_asks_for() {
    let framed = |gguf: Gguf| gguf.read().unwrap().encode("a", Framing::Framed).unwrap();
    let a = u32::from(b'a');
    let gguf = |pre| {
        Gguf::byte_level(pre, &[], &[])
            .with("tokenizer.ggml.bos_token_id", Value::U32(BOS))
            .with("tokenizer.ggml.eos_token_id", Value::U32(END))
    };
    let add_bos = "tokenizer.ggml.add_bos_token";
    assert_eq!(framed(gguf("smollm")), [a]);
    assert_eq!(framed(gguf("llama-bpe")), [BOS, a]);
    assert_eq!(framed(gguf("llama-bpe").with(add_bos, Value::Bool(false))), [a]);
    assert_eq!(framed(gguf("smollm").with(add_bos, Value::Bool(true))), [BOS, a]);
    let add_eos = "tokenizer.ggml.add_eos_token";
    assert_eq!(framed(gguf("smollm").with(add_eos, Value::Bool(true))), [a, END]);
    let bare = gguf("llama-bpe").read().unwrap().encode("a", Framing::Bare).unwrap();
    assert_eq!(bare, [a]);
    let missing = Gguf::byte_level("gpt-2", &[], &[]).with(add_bos, Value::Bool(true)).read();
    assert!(problem(missing).contains("bos_token_id"));
}

#[test]
fn gguf_pre_types_split_words_as_their_models_do() {
    // With a token for every split that some pre type makes, the splits show in the tokens.
    let words = ["12", "123", "1234", "'S", "!\n", "!/", "Ab", "ab", "abC"];
    let merges = ["1 2", "12 3", "123 4", "' S", "! Ċ", "! /", "A b", "a b", "ab C"];
    let splits = |pre: &str, text: &str| -> Vec<String> {
        let words = words.map(|word| word.replace('\n', "Ċ"));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let model = Gguf::byte_level(pre, &words, &merges).read().unwrap();
        let tokens = model.encode(text, Framing::Bare).unwrap();
        tokens.iter().map(|&id| model.decode(&[id], Specials::Show)).collect()
    };
    for (pre, expected) in [
        ("gpt-2", vec!["1234"]),
        ("smollm", vec!["1", "2", "3", "4"]),
        ("starcoder", vec!["1", "2", "3", "4"]),
        ("llama-bpe", vec!["123", "4"]),
        ("llama3", vec!["123", "4"]),
        ("smaug-bpe", vec!["123", "4"]),
        ("qwen2", vec!["1", "2", "3", "4"]),
        ("tekken", vec!["1", "2", "3", "4"]),
    ] {
        assert_eq!(splits(pre, "1234"), expected, "{pre}");
    }
    assert_eq!(splits("gpt-2", "!\n"), ["!", "\n"]);
    assert_eq!(splits("llama-bpe", "!\n"), ["!\n"]);
    assert_eq!(splits("llama-bpe", "!/"), ["!/"]);
    assert_eq!(splits("qwen2", "x'S"), ["x", "'S"]);
    assert_eq!(splits("gpt-2", "abC"), ["abC"]);
    assert_eq!(splits("tekken", "abC"), ["ab", "C"]);
}

#[test]
fn gguf_qwen_composes_characters() {
    let tokens = |pre| {
        let model = Gguf::byte_level(pre, &[], &[]).read().unwrap();
        model.encode("e\u{301}", Framing::Bare).unwrap()
    };
    assert_eq!(tokens("qwen2"), ids("é"));
    assert_eq!(tokens("llama-bpe"), ids("e\u{301}"));
}

#[test]
fn gguf_whole_words_beat_merges_only_where_the_model_says_so() {
    // No merge makes "xyz": only ignoring the merges finds it.
    let tokens = |pre| {
        let model = Gguf::byte_level(pre, &["xyz"], &[]).read().unwrap();
        model.encode("xyz", Framing::Bare).unwrap()
    };
    assert_eq!(tokens("llama-bpe"), [256]);
    assert_eq!(tokens("qwen2"), ids("xyz"));
}

#[test]
fn a_gguf_that_names_no_pre_tokenizer_has_the_default_one() {
    let gguf = |pre| Gguf::byte_level(pre, &["!a"], &["! a"]);
    let missing = gguf("gpt-2").without("tokenizer.ggml.pre").read().unwrap();
    let default = gguf("default").read().unwrap();
    for text in ["!a", "it's 12345"] {
        let encode = |model: &Text| model.encode(text, Framing::Framed).unwrap();
        assert_eq!(encode(&missing), encode(&default));
    }
    assert_eq!(default.encode("!a", Framing::Framed).unwrap(), ids("!a"), "two words");
}

#[test]
fn gguf_problems_are_named() {
    let gguf = || Gguf::byte_level("gpt-2", &["ab"], &["a b"]);
    let string = |text: &str| Value::String(text.to_owned());
    let strings = |text: &str| Value::Array(vec![Value::String(text.to_owned())]);
    let cases = [
        (gguf().with("tokenizer.ggml.pre", string("hexagon")), "\"hexagon\"; supported: default, "),
        (gguf().with("tokenizer.ggml.model", string("bert")), "\"bert\"; supported: gpt2"),
        (gguf().without("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens: is missing"),
        (gguf().with("tokenizer.ggml.tokens", Value::U32(1)), "must be an array, is of type U32"),
        (gguf().with("tokenizer.ggml.token_type", Value::Array(vec![])), "0 entries for 260"),
        (gguf().with("tokenizer.ggml.merges", strings("ab")), "\"ab\" does not merge"),
        // In the vocabulary, but not together: the tokenizers crate would panic.
        (gguf().with("tokenizer.ggml.merges", strings("<|end|> <|end|>")), "does not merge"),
        (gguf().with("tokenizer.ggml.eos_token_id", Value::U32(260)), "names token 260"),
        (gguf().with("tokenizer.ggml.eos_token_id", Value::I32(-1)), "must be a token id"),
        (gguf().with("tokenizer.ggml.add_bos_token", Value::U8(1)), "must be a boolean"),
        (gguf().with("tokenizer.chat_template", string("{% if %}")), "does not compile"),
    ];
    for (gguf, expected) in cases {
        let problem = problem(gguf.read());
        assert!(problem.contains(expected), "{problem:?} does not tell {expected:?}");
        assert!(!problem.contains('\n'), "{problem:?}");
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.gguf");
    assert!(problem(Text::from_gguf(&path)).contains("cannot read"));
    fs::write(&path, b"GGUF\x03\0\0\0\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF").unwrap();
    let damaged = problem(Text::from_gguf(&path));
    assert!(damaged.contains("is not a readable GGUF file"), "{damaged}");
    assert!(!damaged.contains('\n'), "{damaged:?}");
}

#[test]
fn gguf_stop_tokens_are_those_of_metadata_and_template() {
    let gguf =
        || Gguf::byte_level("gpt-2", &[], &[]).with("tokenizer.ggml.eos_token_id", Value::U32(BOS));
    let stops = |gguf: Gguf| gguf.read().unwrap().stop_tokens().to_vec();
    assert_eq!(stops(gguf()), [BOS]);
    assert_eq!(stops(gguf().with("tokenizer.ggml.eot_token_id", Value::U32(7))), [7, BOS]);
    let template = |source: &str| Value::String(source.to_owned());
    let key = "tokenizer.chat_template";
    assert_eq!(stops(gguf().with(key, template("{{ '<|end|>' }}"))), [END, BOS]);
    assert_eq!(stops(gguf().with(key, template("{{ '<think>' }}"))), [BOS]);
    assert!(stops(gguf().without("tokenizer.ggml.eos_token_id")).is_empty());
}

#[test]
fn gguf_templates_know_the_special_tokens() {
    let source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}";
    let gguf = Gguf::byte_level("gpt-2", &[], &[])
        .with("tokenizer.ggml.bos_token_id", Value::U32(BOS))
        .with("tokenizer.ggml.eos_token_id", Value::U32(END));
    let bare = gguf.read().unwrap();
    assert!(!bare.has_template());
    assert_eq!(bare.render(&vec![message("x")].into(), Ending::Prompt), Err(Error::NoTemplate));
    let gguf = gguf.with("tokenizer.chat_template", Value::String(source.to_owned()));
    let text = gguf.read().unwrap();
    assert_eq!(text.render(&vec![message("x")].into(), Ending::Prompt).unwrap(), "<|bos|>x<|end|>");
}
