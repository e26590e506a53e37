//! The tokens that end an answer.

use super::pieces::Token;

/// Special tokens that end a turn wherever a chat template writes them.
const TURN_ENDS: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|eot|>",
    "<|eom|>",
    "<end_of_turn>",
    "</s>",
];

/// The ids that the model's files name, and the well-known turn ends that its chat template writes:
/// a base model's eos is often not what ends its turns. Sorted, each once.
///
/// A name alone is not enough: `<|endoftext|>` is padding or unknown in many vocabularies.
pub(super) fn collect(
    named: impl IntoIterator<Item = u32>,
    tokens: &[Option<Token>],
    template: &str,
) -> Vec<u32> {
    let written = tokens.iter().zip(0u32..).filter_map(|(token, id)| {
        let token = token.as_ref().filter(|token| token.special)?;
        let text = token.text.as_str();
        (TURN_ENDS.contains(&text) && template.contains(text)).then_some(id)
    });
    let mut ends: Vec<u32> = named.into_iter().chain(written).collect();
    ends.sort_unstable();
    ends.dedup();
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turn_ends_count_only_as_special_tokens_that_the_template_writes() {
        let special = |text: &str| Some(Token { text: text.into(), added: true, special: true });
        let tokens = [
            special("<|endoftext|>"),
            special("<|im_end|>"),
            None,
            Some(Token::normal("<|eot_id|>".into())),
            special("<|eom_id|>"),
        ];
        let template = "{{ '<|im_end|><|eot_id|><|endoftext|>' }}";
        assert_eq!(collect([1, 4], &tokens, template), [1, 4]);
        assert_eq!(collect([0], &tokens, template), [0, 1]);
        assert!(collect([], &tokens, "").is_empty());
    }
}
