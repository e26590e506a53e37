//! Any GGUF is loaded or refused, both as a network and as a tokenizer.
#![no_main]

use std::{cell::RefCell, fs};

use chorus::{
    kernels::{linear::Precision, simd::Tier},
    model::Llama,
    text::Text,
};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

thread_local! {
    static FOLDER: RefCell<TempDir> = RefCell::new(TempDir::new().expect("there is room"));
}

fuzz_target!(|bytes: &[u8]| {
    FOLDER.with_borrow(|folder| {
        let path = folder.path().join("base.gguf");
        fs::write(&path, bytes).expect("there is room");
        drop(Llama::load(&path, Tier::best(), 1, Precision::default()));
        drop(Text::from_gguf(&path));
    });
});
