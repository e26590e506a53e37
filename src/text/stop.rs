//! Stop strings: where a generated text ends, whatever the tokens' boundaries are.

/// Whether the stop string itself belongs to the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The answer ends before the stop string.
    Cut,
    /// The answer ends with the stop string.
    Include,
}

/// What a push set free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Text that belongs to the answer for certain.
    pub text: String,
    /// The stop string that is complete, by its place among those that are watched for: the answer ends with `text`.
    pub stopped: Option<usize>,
}

/// Searches a text that arrives in pieces for several stop strings at once.
///
/// - The answer does not depend on how the text is cut into pieces.
/// - The first stop string to become complete, in text order, ends the answer; of several that end
///   at the same place the longest counts, so that no part of it is left behind.
/// - Held back is never more than the longest end of the text that begins a stop string.
/// - Work is linear in the text, times the number of stop strings.
///
/// An empty stop string would end every answer before it begins: callers refuse it, here it never
/// matches.
#[derive(Clone, Debug)]
pub struct Stops {
    needles: Vec<Needle>,
    keep: Keep,
    /// The end of the text so far that may begin a stop string.
    held: String,
    stopped: Option<usize>,
}

impl Stops {
    /// Watches for `strings`.
    pub fn new(strings: Vec<String>, keep: Keep) -> Self {
        let needles = strings.into_iter().enumerate().filter(|(_, s)| !s.is_empty());
        let needles = needles.map(|(place, string)| Needle::new(place, string)).collect();
        Self { needles, keep, held: String::new(), stopped: None }
    }

    /// Takes the next piece of the text; after a stop nothing more is released.
    pub fn push(&mut self, text: &str) -> Released {
        if self.stopped.is_some() {
            return Released { text: String::new(), stopped: self.stopped };
        }
        let searched = self.held.len();
        self.held.push_str(text);
        for (at, &byte) in text.as_bytes().iter().enumerate() {
            // No short-circuit: every needle must see every byte.
            let found = self.needles.iter_mut().filter_map(|n| Some((n.advance(byte)?, n.place)));
            if let Some((length, place)) = found.max_by_key(|(length, _)| *length) {
                return self.stop(searched + at + 1, length, place);
            }
        }
        let keep = self.needles.iter().map(|needle| needle.matched).max().unwrap_or(0);
        let tail = self.held.split_off(self.held.len() - keep);
        Released { text: std::mem::replace(&mut self.held, tail), stopped: None }
    }

    /// Releases what was held back: the text ended without a stop string.
    pub fn finish(&mut self) -> String {
        for needle in &mut self.needles {
            needle.matched = 0;
        }
        std::mem::take(&mut self.held)
    }

    /// Ends the answer at the stop string in this place, of `length` bytes, that ends at byte `end` of the held text.
    fn stop(&mut self, end: usize, length: usize, place: usize) -> Released {
        self.stopped = Some(place);
        let mut text = std::mem::take(&mut self.held);
        text.truncate(match self.keep {
            Keep::Cut => end - length,
            Keep::Include => end,
        });
        Released { text, stopped: self.stopped }
    }
}

/// One stop string as a Knuth-Morris-Pratt automaton over bytes.
///
/// It walks whole characters, and a UTF-8 leading byte begins nothing but a character: so after
/// each piece `matched` bytes are whole characters too.
#[derive(Clone, Debug)]
struct Needle {
    /// Its place among the strings that are watched for.
    place: usize,
    bytes: Box<[u8]>,
    /// For each prefix length above 0, less one: the longest proper prefix that also ends it.
    fallback: Box<[usize]>,
    /// Bytes of the needle that the text ends with now.
    matched: usize,
}

impl Needle {
    fn new(place: usize, string: String) -> Self {
        let bytes = string.into_bytes().into_boxed_slice();
        let mut fallback = vec![0; bytes.len()].into_boxed_slice();
        let mut border = 0;
        for at in 1..bytes.len() {
            while border > 0 && bytes[border] != bytes[at] {
                border = fallback[border - 1];
            }
            border += usize::from(bytes[border] == bytes[at]);
            fallback[at] = border;
        }
        Self { place, bytes, fallback, matched: 0 }
    }

    /// Takes one byte of the text; the needle's length when that byte completes it.
    fn advance(&mut self, byte: u8) -> Option<usize> {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        (self.matched == self.bytes.len()).then_some(self.matched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|&s| s.to_owned()).collect()
    }

    /// Everything released for these pieces, and whether a stop string ended them.
    fn answer(stops: &[&str], keep: Keep, pieces: &[&str]) -> (String, bool) {
        let mut stops = Stops::new(strings(stops), keep);
        let mut text = String::new();
        for piece in pieces {
            let released = stops.push(piece);
            text.push_str(&released.text);
            if released.stopped.is_some() {
                return (text, true);
            }
        }
        (text + &stops.finish(), false)
    }

    /// The slow answer: every end of the whole text in turn, every stop string at each.
    fn searched(stops: &[String], keep: Keep, text: &str) -> (String, bool) {
        for end in 0..=text.len() {
            let Some(before) = text.get(..end) else { continue };
            let longest =
                stops.iter().filter(|s| before.ends_with(s.as_str())).map(String::len).max();
            if let Some(length) = longest {
                let kept = if keep == Keep::Cut { end - length } else { end };
                return (text[..kept].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    #[test]
    fn a_stop_string_is_found_across_pieces() {
        assert_eq!(answer(&["<end>"], Keep::Cut, &["a<e", "n", "d>b"]), ("a".into(), true));
        assert_eq!(
            answer(&["<end>"], Keep::Include, &["a<e", "n", "d>b"]),
            ("a<end>".into(), true)
        );
        assert_eq!(answer(&["<end>"], Keep::Cut, &["a<e", "n"]), ("a<en".into(), false));
    }

    #[test]
    fn only_a_possible_beginning_is_held_back() {
        let mut stops = Stops::new(strings(&["abac"]), Keep::Cut);
        assert_eq!(stops.push("xxaba").text, "xx");
        // The second `a` of `aba` may begin anew: only `ab` is free.
        assert_eq!(stops.push("b").text, "ab");
        assert_eq!(stops.push("z").text, "abz");
        assert_eq!(stops.finish(), "");
    }

    #[test]
    fn the_first_complete_stop_string_wins_and_takes_the_longest_that_ends_there() {
        assert_eq!(answer(&["abcd", "bc"], Keep::Cut, &["xabcd"]), ("xa".into(), true));
        assert_eq!(answer(&["bc", "abc"], Keep::Cut, &["xabcd"]), ("x".into(), true));
        assert_eq!(answer(&["bc", "abc"], Keep::Include, &["xabcd"]), ("xabc".into(), true));
    }

    #[test]
    fn a_stop_says_which_string_it_was() {
        for (text, place) in [("xabc", Some(2)), ("xbc", Some(0)), ("xd", Some(3)), ("x", None)] {
            let mut stops = Stops::new(strings(&["bc", "", "abc", "d"]), Keep::Cut);
            assert_eq!(stops.push(text).stopped, place, "{text}");
        }
    }

    #[test]
    fn characters_are_never_cut() {
        // é and è share their first byte.
        assert_eq!(answer(&["é"], Keep::Cut, &["è", "aé"]), ("èa".into(), true));
        let mut stops = Stops::new(strings(&["éé"]), Keep::Cut);
        assert_eq!(stops.push("xé").text, "x");
        assert_eq!(stops.push("è").text, "éè");
    }

    #[test]
    fn nothing_follows_a_stop_and_without_stop_strings_everything_passes() {
        let mut stops = Stops::new(strings(&["."]), Keep::Cut);
        assert_eq!(stops.push("a.b").stopped, Some(0));
        assert_eq!(stops.push("c"), Released { text: String::new(), stopped: Some(0) });
        assert_eq!(stops.finish(), "");
        assert_eq!(answer(&[], Keep::Cut, &["a", "b"]), ("ab".into(), false));
        assert_eq!(answer(&[""], Keep::Cut, &["a", "b"]), ("ab".into(), false));
    }

    proptest! {
        #[test]
        fn any_chunking_answers_as_a_search_of_the_whole(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{1,5}", 0..4),
            include: bool,
        ) {
            let keep = if include { Keep::Include } else { Keep::Cut };
            let borrowed: Vec<&str> = stops.iter().map(String::as_str).collect();
            let chunks: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(
                answer(&borrowed, keep, &chunks),
                searched(&stops, keep, &pieces.concat())
            );
        }
    }
}
