//! A base's chat template, whatever it is, compiles or is refused, and renders any message within its limits or not at all.
#![no_main]

use std::{cell::RefCell, fs, path::Path};

use chorus::text::{Chat, Ending, Message, Text};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

thread_local! {
    static FOLDER: RefCell<TempDir> = RefCell::new({
        let folder = TempDir::new().expect("there is room");
        let real = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/models/tied");
        for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            fs::copy(Path::new(real).join(file), folder.path().join(file)).expect("a fixture");
        }
        folder
    });
}

fuzz_target!(|input: (&str, &str, &str)| {
    let (template, role, content) = input;
    FOLDER.with_borrow(|folder| {
        fs::write(folder.path().join("chat_template.jinja"), template).expect("there is room");
        let Ok(text) = Text::from_dir(folder.path()) else { return };
        let messages = [role, "user"].map(|role| Message::new(role, content)).into();
        let chat = Chat { messages, tools: Vec::new() };
        for ending in [Ending::Prompt, Ending::Open, Ending::Continue] {
            drop(text.render(&chat, ending));
        }
    });
});
