//! Any grammar compiles or is refused, and is followed as far as it may be. The first byte says which way is gone.
#![no_main]

use std::{path::Path, sync::LazyLock};

use chorus::text::{Form, Text, Ways};
use libfuzzer_sys::fuzz_target;

static TEXT: LazyLock<Text> = LazyLock::new(|| {
    let tied = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/models/tied");
    Text::from_dir(Path::new(tied)).expect("the fixture loads")
});

fuzz_target!(|input: (u8, &str)| {
    let (which, grammar) = input;
    let Ok(mut walk) = TEXT.form(&Form::Grammar(grammar.to_owned())) else { return };
    let mut last = None;
    for step in 0..16 {
        let Ok(Ways::Some(words, _)) = walk.after(last) else { return };
        let allowed: Vec<u32> = (0..32 * words.len())
            .filter(|id| words[id / 32] >> (id % 32) & 1 == 1)
            .map(|id| id as u32)
            .collect();
        let Some(place) = (usize::from(which) + step).checked_rem(allowed.len()) else { return };
        last = Some(allowed[place]);
    }
});
