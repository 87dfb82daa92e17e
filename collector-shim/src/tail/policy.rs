//! Which traces are worth keeping, by what one of their spans says.

use std::collections::HashMap;
use std::str::FromStr;
use std::time::Duration;

use crate::wire::RawSpan;

/// Rules for all services, and others for some.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TailPolicy {
    /// For every service that has none of its own.
    pub rules: Rules,
    /// By `service.name`.
    pub services: HashMap<String, Rules>,
    /// How long a trace's spans wait for one that keeps it.
    pub wait: Duration,
    /// What may wait for one backend, with what is needed to keep it. Over it the oldest traces are
    /// dropped early.
    pub max_bytes: usize,
}

/// What keeps a trace. A trace is kept when any of it holds for any of its spans.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rules {
    /// The span's status is an error.
    pub errors: bool,
    /// The span took as long or longer.
    pub slow: Option<Duration>,
    /// This share of traces, from 0 to 1, whatever is in them.
    pub ratio: f64,
}

impl TailPolicy {
    pub(super) fn keeps(&self, service: &str, span: &RawSpan) -> bool {
        let rules = self.services.get(service).unwrap_or(&self.rules);
        let is_slow = rules.slow.is_some_and(|slow| span.duration >= slow);
        (rules.errors && span.is_error) || is_slow || share(&span.trace_id) < rules.ratio
    }
}

/// Where a trace stands between 0 and 1: the same on every machine and after every restart. By a
/// checksum over all of the id, so that it says nothing of samplers before us, which look at its end.
fn share(trace_id: &[u8; 16]) -> f64 {
    f64::from(crc32fast::hash(trace_id)) / (f64::from(u32::MAX) + 1.0)
}

/// How rules are written.
pub(crate) const RULES: &str = "[SERVICE:]RULE,… of errors, slow=DURATION (such as 500ms or 2s) and \
                                ratio=0…1";

impl FromStr for Rules {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Rules, &'static str> {
        let mut rules = Rules::default();
        for rule in text.split(',') {
            match rule.split_once('=') {
                None if rule == "errors" => rules.errors = true,
                Some(("slow", text)) => rules.slow = Some(duration(text).ok_or(RULES)?),
                Some(("ratio", text)) => rules.ratio = ratio(text).ok_or(RULES)?,
                _ => return Err(RULES),
            }
        }
        Ok(rules)
    }
}

fn ratio(text: &str) -> Option<f64> {
    let ratio: f64 = text.parse().ok()?;
    (0.0..=1.0).contains(&ratio).then_some(ratio)
}

fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, Duration::from_millis(1)),
        None => (text.strip_suffix('s')?, Duration::from_secs(1)),
    };
    let number: f64 = number.parse().ok()?;
    Duration::try_from_secs_f64(unit.as_secs_f64() * number).ok()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn span(trace: u128, is_error: bool, duration_ms: u64) -> RawSpan {
        RawSpan {
            bytes: Bytes::new(),
            trace_id: trace.to_be_bytes(),
            is_error,
            duration: Duration::from_millis(duration_ms),
        }
    }

    #[test]
    fn rules_are_read_and_bad_ones_are_not() {
        let all = "errors,slow=1.5s,ratio=0.25".parse::<Rules>();
        let expect = Rules {
            errors: true,
            slow: Some(Duration::from_millis(1_500)),
            ratio: 0.25,
        };
        assert_eq!(all, Ok(expect));
        let slow = "slow=20ms".parse::<Rules>().expect("sound").slow;
        assert_eq!(slow, Some(Duration::from_millis(20)));
        for bad in [
            "",
            "error",
            "slow",
            "slow=5",
            "slow=-1s",
            "ratio=1.1",
            "ratio=NaN",
            "errors,",
        ] {
            assert!(bad.parse::<Rules>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_service_of_its_own_has_its_own_rules() {
        let policy = TailPolicy {
            rules: "errors,slow=500ms".parse().expect("sound"),
            services: HashMap::from([("batch".to_owned(), "slow=10s".parse().expect("sound"))]),
            ..TailPolicy::default()
        };
        let check = |service: &str, is_error, duration_ms, expect| {
            let span = span(1, is_error, duration_ms);
            assert_eq!(policy.keeps(service, &span), expect, "{service} {span:?}");
        };
        check("web", false, 499, false);
        check("web", false, 500, true);
        check("web", true, 0, true);
        check("batch", true, 9_999, false);
        check("batch", false, 10_000, true);
    }

    #[test]
    fn the_ratio_takes_its_share_of_traces_and_more_takes_the_same_ones_too() {
        let kept = |ratio| {
            let rules = Rules {
                ratio,
                ..Rules::default()
            };
            let policy = TailPolicy {
                rules,
                ..TailPolicy::default()
            };
            let traces = (0..10_000_u128).map(|trace| span(trace, false, 0));
            let kept = traces.filter(|span| policy.keeps("", span));
            kept.map(|span| span.trace_id).collect::<Vec<_>>()
        };
        assert!(kept(0.0).is_empty());
        assert_eq!(kept(1.0).len(), 10_000);
        let (tenth, half) = (kept(0.1), kept(0.5));
        assert!((900..1_100).contains(&tenth.len()), "{}", tenth.len());
        assert!((4_800..5_200).contains(&half.len()), "{}", half.len());
        assert!(tenth.iter().all(|trace| half.contains(trace)));
    }
}
