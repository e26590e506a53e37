//! Any tokens, any text, and files with any damage.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn decoding_is_that_of_tokenizers(
        ids in prop::collection::vec(0u32..262, 0..30),
        show: bool,
    ) {
        let specials = if show { Specials::Show } else { Specials::Hide };
        let byte_level = &*BYTE_LEVEL;
        let reference = byte_level.shared.tokenizer.decode(&ids, !show).unwrap();
        prop_assert_eq!(byte_level.decode(&ids, specials), reference);
        // Without bytes: there, tokenizers gives up whole runs.
        let pieces: Vec<u32> = ids.iter().map(|id| id % 14).collect();
        let pieces: Vec<u32> =
            pieces.iter().map(|&id| if id < 3 { id } else { id + 256 }).collect();
        let reference = SENTENCE_PIECE.shared.tokenizer.decode(&pieces, !show).unwrap();
        prop_assert_eq!(SENTENCE_PIECE.decode(&pieces, specials), reference);
    }

    #[test]
    fn encoding_loses_nothing_and_takes_the_least_tokens_at_least(prompt in "(\\PC|ab|\\s){0,20}") {
        for text in [&*BYTE_LEVEL, &*SENTENCE_PIECE] {
            let tokens = text.encode(&prompt, Framing::Bare).unwrap();
            prop_assert_eq!(text.decode(&tokens, Specials::Show), prompt.as_str());
            prop_assert!(tokens.len() >= text.least_tokens(&prompt));
        }
    }

    #[test]
    fn a_damaged_file_is_an_error_or_a_tokenizer_never_a_panic(
        at in 0usize..6000,
        byte: u8,
        kept in 0usize..8000,
    ) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("model.gguf");
        let mut bytes = GGUF_FILE.clone();
        let at = at.min(bytes.len() - 1);
        bytes[at] = byte;
        bytes.truncate(kept.max(at));
        fs::write(&path, bytes).unwrap();
        if let Ok(text) = Text::from_gguf(&path) {
            drop(text.encode("a b", Framing::Framed));
        }
    }
}

static GGUF_FILE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.gguf");
    let template = Value::String("{{ messages }}".to_owned());
    let gguf = Gguf::byte_level("llama-bpe", &["ab"], &["a b"]);
    gguf.with("tokenizer.chat_template", template).write(&path);
    fs::read(path).unwrap()
});
