//! When the chunks of a streamed answer came.

use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use opentelemetry_semantic_conventions::attribute::GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK;

/// Chunks of the answer (int).
const CHUNK_COUNT: &str = "lantern.gen_ai.response.chunk_count";
/// Mean seconds between chunks (double).
const TIME_BETWEEN_CHUNKS_MEAN: &str = "lantern.gen_ai.response.time_between_chunks.mean";
/// Longest seconds between chunks (double).
const TIME_BETWEEN_CHUNKS_MAX: &str = "lantern.gen_ai.response.time_between_chunks.max";

/// The chunks so far. Mean and longest time take no memory; the longest shows what a mean hides, a
/// stream that stood still while other requests had the engine.
#[derive(Default)]
pub(super) struct Pace {
    count: u32,
    /// First and last chunk.
    span: Option<(Instant, Instant)>,
    longest: Duration,
}

impl Pace {
    pub(super) fn chunk(&mut self, at: Instant) {
        self.count = self.count.saturating_add(1);
        let (first, last) = self.span.unwrap_or((at, at));
        self.longest = self.longest.max(at - last);
        self.span = Some((first, at));
    }

    /// When the first and the last chunk came.
    pub(super) fn first_and_last(&self) -> Option<(Instant, Instant)> {
        self.span
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    pub(super) fn attributes(&self, started: Instant, attributes: &mut Vec<KeyValue>) {
        let Some((first, last)) = self.span else {
            return;
        };
        let seconds = |key, time: Duration| KeyValue::new(key, time.as_secs_f64());
        attributes.push(KeyValue::new(CHUNK_COUNT, i64::from(self.count)));
        attributes.push(seconds(
            GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK,
            first - started,
        ));
        if self.count > 1 {
            let mean = (last - first) / (self.count - 1);
            attributes.push(seconds(TIME_BETWEEN_CHUNKS_MEAN, mean));
            attributes.push(seconds(TIME_BETWEEN_CHUNKS_MAX, self.longest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(chunks_at_ms: &[u64]) -> Vec<(String, String)> {
        let started = Instant::now();
        let mut pace = Pace::default();
        for &at in chunks_at_ms {
            pace.chunk(started + Duration::from_millis(at));
        }
        let mut attributes = Vec::new();
        pace.attributes(started, &mut attributes);
        let text = |kv: KeyValue| (kv.key.to_string(), kv.value.to_string());
        attributes.into_iter().map(text).collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(own).collect()
    }

    #[test]
    fn the_times_between_chunks_have_a_mean_and_a_longest() {
        let all = [
            ("lantern.gen_ai.response.chunk_count", "4"),
            ("gen_ai.response.time_to_first_chunk", "0.5"),
            ("lantern.gen_ai.response.time_between_chunks.mean", "0.25"),
            ("lantern.gen_ai.response.time_between_chunks.max", "0.5"),
        ];
        assert_eq!(attributes(&[500, 625, 1125, 1250]), pairs(&all));
    }

    #[test]
    fn one_chunk_has_nothing_between() {
        assert_eq!(
            attributes(&[250]),
            pairs(&[
                ("lantern.gen_ai.response.chunk_count", "1"),
                ("gen_ai.response.time_to_first_chunk", "0.25"),
            ])
        );
        assert_eq!(attributes(&[]), []);
    }
}
