//! Any files of a directory in Hugging Face layout are loaded or refused. The first byte says which file is foreign; the
//! others are a real base's.
#![no_main]

use std::{cell::RefCell, fs, path::Path};

use chorus::{
    kernels::{linear::Precision, simd::Tier},
    model::Llama,
    text::Text,
};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

const FILES: [&str; 6] = [
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
];

thread_local! {
    static FOLDER: RefCell<TempDir> = RefCell::new(TempDir::new().expect("there is room"));
}

fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let foreign = FILES[usize::from(*which) % FILES.len()];
    let real = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/models/tied");
    FOLDER.with_borrow(|folder| {
        for file in FILES {
            let path = folder.path().join(file);
            if file == foreign {
                fs::write(path, bytes).expect("there is room");
            } else if fs::copy(Path::new(real).join(file), &path).is_err() {
                // Only in a base of several shards.
                drop(fs::remove_file(path));
            }
        }
        drop(Llama::load(folder.path(), Tier::best(), 1, Precision::default()));
        drop(Text::from_dir(folder.path()));
    });
});
