//! A chat template that a customer has brought.
//!
//! What it can do is not bounded by fuel alone: an expression can be nested deeper than a stack, and comparing two lists that
//! hold themselves many times over is one instruction that never ends. So it is rendered in a process of its own, which may
//! have only so much time, memory and stack, and whose end ends nothing else.

use serde::{Deserialize, Serialize};

use super::{
    Chat, Ending, Error, Text,
    template::{BROUGHT, Template},
};

/// One rendering, to be done elsewhere.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rendering {
    source: String,
    /// What the template may name: `bos_token`, `<s>`.
    names: Vec<(String, String)>,
    chat: Chat,
    ending: Ending,
}

impl Text {
    /// The prompt for a chat by another template than the model's own, to be rendered in a process of its own.
    pub fn rendering(&self, source: &str, chat: &Chat, ending: Ending) -> Rendering {
        let names = self.shared.names.iter();
        let names = names.map(|(name, text)| ((*name).to_owned(), text.clone())).collect();
        Rendering { source: source.to_owned(), names, chat: chat.clone(), ending }
    }
}

impl Rendering {
    /// Most bytes that it may come to.
    pub const MOST_BYTES: usize = BROUGHT.output;

    /// Renders it here: only for a process that may be lost.
    pub fn run(self) -> Result<String, Error> {
        let Self { source, names, chat, ending } = self;
        let template = Template::compile(&source, names, BROUGHT)
            .map_err(|error| Error::Unrenderable(error.to_string()))?;
        template.render(&chat, ending)
    }
}
