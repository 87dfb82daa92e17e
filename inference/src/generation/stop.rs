//! Finds stop strings in a stream of text, also across token boundaries.
//!
//! Text that could be the beginning of a stop string is held back until it is decided; nothing
//! else is (holding back a fixed number of characters would delay every stream by as much).

use std::sync::Arc;

/// Searches one sequence's text.
#[derive(Debug)]
pub(super) struct StopMatcher {
    stops: Arc<[String]>,
    include_stop: bool,
    /// Text not out yet: the beginning of at least one stop string.
    held: String,
}

/// What one piece of text led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scanned {
    /// Text that may go out.
    pub(super) text: String,
    /// The stop string found, as an index; the text ends before it (or after, when asked).
    pub(super) stop: Option<usize>,
}

impl StopMatcher {
    /// A matcher for `stops`, none of them empty.
    pub(super) fn new(stops: Arc<[String]>, include_stop: bool) -> Self {
        Self {
            stops,
            include_stop,
            held: String::new(),
        }
    }

    /// Takes the next piece of text.
    pub(super) fn push(&mut self, piece: &str) -> Scanned {
        if self.stops.is_empty() {
            return Scanned {
                text: piece.to_owned(),
                stop: None,
            };
        }
        self.held.push_str(piece);
        if let Some((at, stop)) = self.first_stop() {
            let end = if self.include_stop {
                at + self.stops[stop].len()
            } else {
                at
            };
            self.held.truncate(end);
            return Scanned {
                text: std::mem::take(&mut self.held),
                stop: Some(stop),
            };
        }
        let kept = self.undecided_bytes();
        let rest = self.held.split_off(self.held.len() - kept);
        Scanned {
            text: std::mem::replace(&mut self.held, rest),
            stop: None,
        }
    }

    /// What was held back, when the sequence has ended otherwise.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The earliest stop string in the held text; of several at one place the first listed.
    fn first_stop(&self) -> Option<(usize, usize)> {
        let found = self.stops.iter().enumerate();
        found
            .filter_map(|(stop, text)| Some((self.held.find(text.as_str())?, stop)))
            .min()
    }

    /// Length of the longest end of the held text that begins a stop string.
    fn undecided_bytes(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest.saturating_sub(1));
        (from..self.held.len())
            .filter(|&at| self.held.is_char_boundary(at))
            .find(|&at| {
                self.stops
                    .iter()
                    .any(|stop| stop.starts_with(&self.held[at..]))
            })
            .map_or(0, |at| self.held.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matcher(stops: &[&str], include_stop: bool) -> StopMatcher {
        StopMatcher::new(
            stops.iter().map(ToString::to_string).collect(),
            include_stop,
        )
    }

    fn feed(matcher: &mut StopMatcher, pieces: &[&str]) -> (String, Option<usize>) {
        let mut text = String::new();
        for piece in pieces {
            let scanned = matcher.push(piece);
            text.push_str(&scanned.text);
            if scanned.stop.is_some() {
                return (text, scanned.stop);
            }
        }
        text.push_str(&matcher.finish());
        (text, None)
    }

    #[test]
    fn stop_string_over_three_pieces_never_leaks() {
        let mut matcher = matcher(&["END"], false);
        assert_eq!(
            matcher.push("the E"),
            Scanned {
                text: "the ".into(),
                stop: None
            }
        );
        assert_eq!(
            matcher.push("N"),
            Scanned {
                text: String::new(),
                stop: None
            }
        );
        assert_eq!(
            matcher.push("D of"),
            Scanned {
                text: String::new(),
                stop: Some(0)
            }
        );
    }

    #[test]
    fn held_text_comes_out_when_it_was_no_stop_string() {
        let mut matcher = matcher(&["END"], false);
        assert_eq!(
            feed(&mut matcher, &["E", "N", "ough"]),
            ("ENough".into(), None)
        );
    }

    #[test]
    fn earliest_stop_string_wins_and_is_included_when_asked() {
        let mut matcher = matcher(&["cd", "bc"], true);
        assert_eq!(feed(&mut matcher, &["abcd"]), ("abc".into(), Some(1)));
    }

    proptest! {
        #[test]
        fn pieces_give_what_the_whole_text_gives(
            text in "[abc]{0,24}", stops in prop::collection::vec("[abc]{1,4}", 1..3), cut in 1usize..4,
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let pieces: Vec<String> =
                text.as_bytes().chunks(cut).map(|c| String::from_utf8_lossy(c).into()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (streamed, _) = feed(&mut matcher(&stops, false), &pieces);
            // The first match to be *completed* ends the stream; it may start after another's start.
            let ends = stops.iter().filter_map(|s| text.find(s).map(|at| at + s.len())).min();
            match ends {
                None => prop_assert_eq!(streamed, text),
                Some(_) => {
                    prop_assert!(text.starts_with(&streamed));
                    prop_assert!(stops.iter().all(|s| !streamed.contains(s)));
                }
            }
        }
    }
}
