//! Where an answer ends does not depend on how its text is cut into pieces.
#![no_main]

use chorus::text::{Keep, Stops};
use libfuzzer_sys::fuzz_target;

/// The answer, and whether a stop string ended it.
fn answer<'a>(stops: &[String], pieces: impl Iterator<Item = &'a str>) -> (String, bool) {
    let mut watch = Stops::new(stops.to_vec(), Keep::Cut);
    let mut text = String::new();
    for piece in pieces {
        let released = watch.push(piece);
        text.push_str(&released.text);
        if released.stopped.is_some() {
            return (text, true);
        }
    }
    text.push_str(&watch.finish());
    (text, false)
}

fuzz_target!(|input: (Vec<String>, &str)| {
    let (stops, text) = input;
    let whole = answer(&stops, std::iter::once(text));
    let letters = answer(&stops, text.split_inclusive(|_| true));
    assert_eq!(whole, letters);
    let inside = stops.iter().any(|stop| !stop.is_empty() && whole.0.contains(stop.as_str()));
    assert!(!inside, "an answer holds no stop string");
});
