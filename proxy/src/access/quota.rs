//! What each key has left of its minute: buckets that fill as time passes. Pure, but for the clock that it
//! is handed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::keys::{ApiKeys, Key};

const SECONDS_PER_MINUTE: f64 = 60.0;

/// All keys' quotas, by the key's name: a key that changes keeps its own.
#[derive(Default)]
pub(super) struct Quotas(HashMap<Arc<str>, Quota>);

/// A bucket for each thing that is limited.
#[derive(Default)]
struct Quota {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

struct Bucket {
    /// What a minute fills it with, and all that it holds.
    capacity: f64,
    /// What may be taken; below 0, what was taken too much.
    level: f64,
    filled: Instant,
}

impl Quotas {
    /// Takes one request from the key's quota, or says how long to wait.
    pub(super) fn admit(&mut self, key: &Key, now: Instant) -> Result<(), Duration> {
        let quota = self.0.entry(Arc::clone(&key.name)).or_default();
        let mut requests = Bucket::of(&mut quota.requests, key.requests_per_minute, now);
        let mut tokens = Bucket::of(&mut quota.tokens, key.tokens_per_minute, now);
        // What it will take of tokens nobody knows; something must be there.
        let limited = [&mut requests, &mut tokens].into_iter().flatten();
        let wait = limited.filter_map(|bucket| bucket.wait(1.0, now)).max();
        if let Some(wait) = wait {
            return Err(wait);
        }
        if let Some(requests) = requests {
            requests.level -= 1.0;
        }
        Ok(())
    }

    /// The key's request has taken these tokens.
    pub(super) fn spend(&mut self, name: &str, tokens: u64) {
        let quota = self.0.get_mut(name);
        if let Some(bucket) = quota.and_then(|quota| quota.tokens.as_mut()) {
            bucket.level -= tokens as f64;
        }
    }

    /// Keys that are gone need no quota. Until the next file that can only be as many as there were.
    pub(super) fn forget_all_but(&mut self, keys: &ApiKeys) {
        if self.0.len() > keys.len() {
            self.0.retain(|name, _| keys.has(name));
        }
    }
}

impl Bucket {
    /// The bucket of what is limited to so much a minute, if it is: full where the limit is new.
    fn of(slot: &mut Option<Self>, per_minute: Option<u32>, now: Instant) -> Option<&mut Self> {
        let Some(per_minute) = per_minute else {
            *slot = None;
            return None;
        };
        let capacity = f64::from(per_minute);
        let bucket = slot.get_or_insert(Self {
            capacity,
            level: capacity,
            filled: now,
        });
        bucket.capacity = capacity;
        Some(bucket)
    }

    /// How long until `wanted` is there; `None` if it is.
    fn wait(&mut self, wanted: f64, now: Instant) -> Option<Duration> {
        let per_second = self.capacity / SECONDS_PER_MINUTE;
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.level = (self.level + passed * per_second).min(self.capacity);
        self.filled = now;
        let missing = wanted - self.level;
        (missing > 0.0).then(|| Duration::from_secs_f64(missing / per_second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(requests_per_minute: Option<u32>, tokens_per_minute: Option<u32>) -> Key {
        Key {
            name: "k".into(),
            digest: [0; 32],
            requests_per_minute,
            tokens_per_minute,
        }
    }

    #[test]
    fn a_minutes_requests_may_come_at_once_and_then_one_by_one() {
        let (mut quotas, key, start) = (Quotas::default(), key(Some(6), None), Instant::now());
        for _ in 0..6 {
            assert_eq!(quotas.admit(&key, start), Ok(()));
        }
        assert_eq!(quotas.admit(&key, start), Err(Duration::from_secs(10)));
        let later = start + Duration::from_secs(4);
        assert_eq!(quotas.admit(&key, later), Err(Duration::from_secs(6)));
        let later = start + Duration::from_secs(10);
        assert_eq!(quotas.admit(&key, later), Ok(()));
        assert!(quotas.admit(&key, later).is_err());
    }

    #[test]
    fn tokens_count_when_they_are_told_and_what_is_too_much_is_waited_for() {
        let (mut quotas, key, start) = (Quotas::default(), key(None, Some(60)), Instant::now());
        assert_eq!(quotas.admit(&key, start), Ok(()));
        quotas.spend("k", 50);
        assert_eq!(quotas.admit(&key, start), Ok(()));
        quotas.spend("k", 39);
        assert_eq!(quotas.admit(&key, start), Err(Duration::from_secs(30)));
        let later = start + Duration::from_secs(30);
        assert_eq!(quotas.admit(&key, later), Ok(()));
    }

    #[test]
    fn a_long_pause_fills_no_more_than_a_minute() {
        let (mut quotas, key, start) = (Quotas::default(), key(Some(1), None), Instant::now());
        let later = start + Duration::from_secs(3600);
        assert_eq!(quotas.admit(&key, later), Ok(()));
        assert!(quotas.admit(&key, later).is_err());
    }

    #[test]
    fn a_key_without_limits_is_never_told_to_wait() {
        let (mut quotas, key, now) = (Quotas::default(), key(None, None), Instant::now());
        for _ in 0..1000 {
            assert_eq!(quotas.admit(&key, now), Ok(()));
            quotas.spend("k", 1_000_000);
        }
    }

    #[test]
    fn a_limit_that_is_new_starts_full_however_busy_the_key_was() {
        let (mut quotas, start) = (Quotas::default(), Instant::now());
        for _ in 0..1000 {
            assert_eq!(quotas.admit(&key(None, None), start), Ok(()));
            quotas.spend("k", 1000);
        }
        let limited = key(Some(2), Some(10));
        assert_eq!(quotas.admit(&limited, start), Ok(()));
        assert_eq!(quotas.admit(&limited, start), Ok(()));
        assert!(quotas.admit(&limited, start).is_err());
        assert_eq!(quotas.admit(&key(None, None), start), Ok(()));
        assert_eq!(quotas.admit(&limited, start), Ok(()));
    }
}
