//! One choice as it grows: tokens to text, text to its end.

use std::{collections::VecDeque, mem};

use crate::{
    engine::{Event, Failure, Finish, Logprob},
    text::{Detok, Stops},
};

/// Turns a job's events into pieces of text.
///
/// - The pieces of a choice together are its text, cut at the first stop string.
/// - A token's score comes with, or after, the piece in which its text begins; never before, and not at all where the stop string
///   cut that text away: what is not shown is not scored.
#[derive(Debug)]
pub(super) struct Answer {
    detok: Detok,
    stops: Stops,
    /// Tokens before which no stop string counts.
    min_tokens: usize,
    /// Characters decoded, some of which may still be held back.
    decoded: usize,
    /// Characters given out.
    released: usize,
    /// Tokens generated, whether they are shown or not.
    tokens: usize,
    /// Tokens of the prompt that were not computed.
    cached: usize,
    /// Tokens that no piece has told.
    untold: Vec<u32>,
    /// Scores of tokens whose text is held back.
    held: VecDeque<Held>,
    prompt: Option<Vec<Logprob>>,
}

/// A score that waits for its text.
#[derive(Debug)]
struct Held {
    scored: Scored,
    /// Characters given out from which on the token has begun.
    due: usize,
}

/// A token of the answer and where its text begins in it, in characters.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scored {
    pub(super) logprob: Logprob,
    pub(super) offset: usize,
}

/// What is new.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Piece {
    /// The prompt's scores, once.
    pub(super) prompt: Option<Vec<Logprob>>,
    pub(super) text: String,
    /// The tokens since the piece before, whether or not they are shown.
    pub(super) ids: Vec<u32>,
    pub(super) scores: Vec<Scored>,
    /// There on the last piece.
    pub(super) end: Option<End>,
}

/// How a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) finish: Finish,
    /// The stop string that ended it, by its place in the terms.
    pub(super) stop: Option<usize>,
    /// Tokens generated, whether they are shown or not.
    pub(super) tokens: usize,
    /// Tokens of the prompt that were not computed.
    pub(super) cached: usize,
}

impl End {
    /// OpenAI's word for it.
    pub(super) fn reason(self) -> &'static str {
        match self.finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
        }
    }
}

impl Piece {
    /// Whether there is nothing to tell.
    pub(super) fn is_empty(&self) -> bool {
        let Self { prompt, text, ids: _, scores, end } = self;
        prompt.is_none() && text.is_empty() && scores.is_empty() && end.is_none()
    }

    /// Adds the piece that follows.
    pub(super) fn append(&mut self, next: Self) {
        let Self { prompt, text, ids, scores, end } = next;
        self.prompt = self.prompt.take().or(prompt);
        self.text.push_str(&text);
        self.ids.extend(ids);
        self.scores.extend(scores);
        self.end = self.end.or(end);
    }
}

impl Answer {
    /// An answer without text yet.
    pub(super) fn new(detok: Detok, stops: Stops, min_tokens: usize) -> Self {
        Self {
            detok,
            stops,
            min_tokens,
            decoded: 0,
            released: 0,
            tokens: 0,
            cached: 0,
            untold: Vec::new(),
            held: VecDeque::new(),
            prompt: None,
        }
    }

    /// What the event adds. After a piece with an end nothing more may come.
    pub(super) fn take(&mut self, event: Event) -> Result<Piece, Failure> {
        match event {
            Event::Begun { cached, .. } => {
                self.cached = cached;
                Ok(Piece::default())
            }
            Event::Prompt(scores) => {
                self.prompt = Some(scores);
                Ok(self.piece(String::new(), None, None))
            }
            Event::Pooled(_) => Ok(Piece::default()),
            Event::Token { id, logprob } => Ok(self.token(id, logprob)),
            Event::Finished(finish) => Ok(self.finish(finish)),
            Event::Failed(failure) => Err(failure),
        }
    }

    fn token(&mut self, id: u32, logprob: Option<Logprob>) -> Piece {
        self.tokens += 1;
        self.untold.push(id);
        let offset = self.decoded + self.detok.before(id);
        let text = self.detok.push(id);
        self.decoded += text.chars().count();
        if let Some(logprob) = logprob {
            // A token without text of its own is due when all text before it is out.
            let due = if self.decoded > offset { offset + 1 } else { offset };
            self.held.push_back(Held { scored: Scored { logprob, offset }, due });
        }
        if self.tokens <= self.min_tokens {
            return self.piece(text, None, None);
        }
        let released = self.stops.push(&text);
        let finish = released.stopped.map(|_| Finish::Stop);
        self.piece(released.text, finish, released.stopped)
    }

    fn finish(&mut self, finish: Finish) -> Piece {
        let rest = self.detok.finish();
        let released = self.stops.push(&rest);
        if released.stopped.is_some() {
            return self.piece(released.text, Some(Finish::Stop), released.stopped);
        }
        let text = released.text + &self.stops.finish();
        self.piece(text, Some(finish), None)
    }

    fn piece(&mut self, text: String, finish: Option<Finish>, stop: Option<usize>) -> Piece {
        self.released += text.chars().count();
        let due = self.held.partition_point(|held| held.due <= self.released);
        let scores = self.held.drain(..due).map(|held| held.scored).collect();
        let (tokens, cached) = (self.tokens, self.cached);
        let end = finish.map(|finish| End { finish, stop, tokens, cached });
        let ids = Vec::new();
        let piece = Piece { prompt: self.prompt.take(), text, ids, scores, end };
        if piece.is_empty() {
            return piece;
        }
        Piece { ids: mem::take(&mut self.untold), ..piece }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        http::double,
        text::{Keep, Specials},
    };

    fn answer(stops: &[&str], keep: Keep) -> Answer {
        let stops = stops.iter().map(|&stop| stop.to_owned()).collect();
        Answer::new(double::text().detok(Specials::Hide), Stops::new(stops, keep), 0)
    }

    fn token(id: u32) -> Event {
        let logprob = Some(Logprob { token: id, logprob: -0.5, top: vec![] });
        Event::Token { id, logprob }
    }

    /// The pieces for these tokens, the last of them the end.
    fn pieces(answer: &mut Answer, ids: impl IntoIterator<Item = u32>) -> Vec<Piece> {
        let events = ids.into_iter().map(token).chain([Event::Finished(Finish::Length)]);
        let mut pieces = Vec::new();
        for event in events {
            pieces.push(answer.take(event).unwrap());
            if pieces.last().is_some_and(|piece| piece.end.is_some()) {
                break;
            }
        }
        pieces
    }

    fn whole(pieces: Vec<Piece>) -> Piece {
        let mut whole = Piece::default();
        for piece in pieces {
            whole.append(piece);
        }
        whole
    }

    fn offsets(piece: &Piece) -> Vec<usize> {
        piece.scores.iter().map(|scored| scored.offset).collect()
    }

    #[test]
    fn text_comes_with_its_scores() {
        let pieces = pieces(&mut answer(&[], Keep::Cut), double::ids("hi!"));
        assert_eq!(
            pieces.iter().map(|piece| &*piece.text).collect::<Vec<_>>(),
            ["h", "i", "!", ""]
        );
        assert_eq!(pieces.iter().map(|piece| piece.scores.len()).collect::<Vec<_>>(), [1, 1, 1, 0]);
        let whole = whole(pieces);
        assert_eq!(offsets(&whole), [0, 1, 2]);
        assert_eq!(
            whole.end,
            Some(End { finish: Finish::Length, stop: None, tokens: 3, cached: 0 })
        );
    }

    #[test]
    fn a_character_of_several_tokens_comes_whole() {
        let pieces = pieces(&mut answer(&[], Keep::Cut), double::ids("a\u{20ac}b"));
        assert!(pieces.iter().all(|piece| !piece.text.contains('\u{fffd}')));
        let whole = whole(pieces);
        assert_eq!(whole.text, "a\u{20ac}b");
        assert_eq!(offsets(&whole), [0, 1, 1, 1, 2]);
    }

    #[test]
    fn offsets_agree_with_the_text_after_an_unfinished_character() {
        let whole =
            whole(pieces(&mut answer(&[], Keep::Cut), [0x61, 0xe2, 0x82, 0x62, 0xf0, 0xc3]));
        assert_eq!(whole.text, "a\u{fffd}b\u{fffd}\u{fffd}");
        assert_eq!(offsets(&whole), [0, 1, 1, 2, 3, 4]);
    }

    #[test]
    fn an_unfinished_character_is_replaced_at_the_end() {
        let whole = whole(pieces(&mut answer(&[], Keep::Cut), [0x61, 0xe2, 0x82]));
        assert_eq!(whole.text, "a\u{fffd}");
        assert_eq!(whole.scores.len(), 3);
    }

    #[test]
    fn a_stop_string_cuts_text_and_scores() {
        let cut = whole(pieces(&mut answer(&["END"], Keep::Cut), double::ids("abEND more")));
        assert_eq!((&*cut.text, offsets(&cut)), ("ab", vec![0, 1]));
        assert_eq!(
            cut.end,
            Some(End { finish: Finish::Stop, stop: Some(0), tokens: 5, cached: 0 })
        );
        let kept = whole(pieces(&mut answer(&["END"], Keep::Include), double::ids("abEND more")));
        assert_eq!((&*kept.text, offsets(&kept)), ("abEND", vec![0, 1, 2, 3, 4]));
    }

    #[test]
    fn a_false_start_of_a_stop_string_is_held_back_and_then_given() {
        let pieces = pieces(&mut answer(&["END"], Keep::Cut), double::ids("aENx"));
        assert_eq!(
            pieces.iter().map(|piece| (&*piece.text, piece.scores.len())).collect::<Vec<_>>(),
            [("a", 1), ("", 0), ("", 0), ("ENx", 3), ("", 0)]
        );
        let whole = whole(self::pieces(&mut answer(&["END"], Keep::Cut), double::ids("aEN")));
        assert_eq!((&*whole.text, offsets(&whole)), ("aEN", vec![0, 1, 2]));
    }

    #[test]
    fn all_tokens_are_told_with_the_next_piece_that_says_something() {
        let ids = [0x61, 0xe2, 0x82, 0xac, double::SPECIAL, 0x45, 0x4e, 0x44, 0x62];
        let answer = || {
            let stops = Stops::new(vec!["END".to_owned()], Keep::Cut);
            Answer::new(double::text().detok(Specials::Hide), stops, 0)
        };
        let event = |id: u32| Event::Token { id, logprob: None };
        let mut growing = answer();
        let pieces: Vec<_> = ids.iter().map(|id| growing.take(event(*id)).unwrap()).collect();
        let told: Vec<_> = pieces.iter().map(|piece| (&*piece.text, piece.ids.len())).collect();
        let none = ("", 0);
        assert_eq!(told[..7], [("a", 1), none, none, ("\u{20ac}", 3), none, none, none]);
        // The special token and the stop string are not shown.
        assert_eq!((told[7], pieces[7].end.is_some()), (("", 4), true));
        assert_eq!(pieces[3].ids, [0xe2, 0x82, 0xac]);
    }

    #[test]
    fn a_hidden_token_is_scored_in_its_place() {
        let ids = [u32::from(b'a'), double::SPECIAL, u32::from(b'b')];
        let whole = whole(pieces(&mut answer(&[], Keep::Cut), ids));
        assert_eq!((&*whole.text, offsets(&whole)), ("ab", vec![0, 1, 1]));
    }

    #[test]
    fn a_failure_is_passed_on() {
        let failed = answer(&[], Keep::Cut).take(Event::Failed(Failure::Step));
        assert_eq!(failed, Err(Failure::Step));
    }
}
