//! Tokenizers of the kind of `SentencePiece`, in GGUF files.

use super::*;

/// The id of a word of [`sentence_piece`].
fn word(text: &str) -> u32 {
    let words = ["▁", "a", "b", "c", "ab", "bc", "▁a", "▁ab", "abc", "▁▁", "▁▁▁"];
    let at = words.iter().position(|&word| word == text).unwrap();
    259 + u32::try_from(at).unwrap()
}

#[test]
fn sentence_piece_merges_by_score() {
    let text = sentence_piece().read().unwrap();
    let tokens = |prompt: &str| text.encode(prompt, Framing::Bare).unwrap();
    // bc before ab: what is left of ▁abc is ▁a, then bc.
    assert_eq!(tokens("abc"), [word("▁a"), word("bc")]);
    assert_eq!(tokens("ab"), [word("▁ab")]);
    assert_eq!(tokens("ab ab"), [word("▁ab"), word("▁ab")]);
    assert_eq!(tokens("b  c"), [word("▁"), word("b"), word("▁▁"), word("c")]);
    assert_eq!(tokens("é"), [word("▁"), 3 + 0xC3, 3 + 0xA9]);
    assert_eq!(tokens("</s>a"), [2, word("▁a")]);
    assert_eq!(tokens(""), [0; 0]);
}

#[test]
fn sentence_piece_frames_with_bos_unless_told_not_to() {
    let framed = |gguf: Gguf| gguf.read().unwrap().encode("ab", Framing::Framed).unwrap();
    assert_eq!(framed(sentence_piece()), [1, word("▁ab")]);
    let add_bos = "tokenizer.ggml.add_bos_token";
    assert_eq!(framed(sentence_piece().with(add_bos, Value::Bool(false))), [word("▁ab")]);
}

#[test]
fn sentence_piece_decodes_what_it_encodes() {
    let spaced = sentence_piece().read().unwrap();
    let add_space = "tokenizer.ggml.add_space_prefix";
    let unspaced = sentence_piece().with(add_space, Value::Bool(false)).read().unwrap();
    assert_eq!(unspaced.encode("ab", Framing::Bare).unwrap(), [word("ab")]);
    for prompt in ["abc ab", "  a", "日本 é\n\nb ", " ", "", "🦀a"] {
        for text in [&spaced, &unspaced] {
            let tokens = text.encode(prompt, Framing::Bare).unwrap();
            assert_eq!(text.decode(&tokens, Specials::Hide), prompt);
            let reference = text.shared.tokenizer.decode(&tokens, true).unwrap();
            assert_eq!(reference, prompt);
        }
    }
    // One wrong byte does not spoil its neighbours.
    let crab = [3 + 0xF0, 3 + 0x9F, 3 + 0xA6, 3 + 0x80, 3 + 0xFF];
    assert_eq!(spaced.decode(&crab, Specials::Hide), "🦀\u{FFFD}");
}

#[test]
fn sentence_piece_continues_a_prompt_with_its_space() {
    let text = sentence_piece().read().unwrap();
    let prompt = text.encode("ab", Framing::Framed).unwrap();
    let begun = |prompt: &[u32]| text.detok(Specials::Hide).after(prompt).push(word("▁ab"));
    assert_eq!(begun(&prompt), " ab");
    assert_eq!(begun(&text.encode("", Framing::Framed).unwrap()), "ab");
}
