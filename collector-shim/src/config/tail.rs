//! Tail decisions as typed.

use std::collections::HashMap;
use std::time::Duration;

use clap::value_parser;
use lantern_telemetry::ConfigError;

use crate::tail::{RULES, Rules, TailPolicy};

const DEFAULT_WAIT_SECONDS: u64 = 10;
const DEFAULT_MAX_BYTES: usize = 128 * 1024 * 1024;

/// Which traces are sent on. All are, unless rules are given.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Tail decisions")]
pub struct TailArgs {
    /// Send only traces that a rule keeps: `errors`, `slow=500ms`, `ratio=0.1`, several with commas.
    /// Begun with `SERVICE:` for one service; may be repeated
    #[arg(long, value_name = "[SERVICE:]RULE,…")]
    pub tail_keep: Vec<String>,

    /// How long a trace's spans wait for one that keeps it, before they are dropped
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_WAIT_SECONDS,
        value_parser = value_parser!(u64).range(1..=3_600))]
    pub tail_wait_seconds: u64,

    /// What may wait for that in memory, for each backend; over it the oldest traces are dropped early
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_MAX_BYTES)]
    pub tail_max_bytes: usize,
}

impl TailArgs {
    /// None when no rule was given.
    pub(super) fn policy(&self) -> Result<Option<TailPolicy>, ConfigError> {
        if self.tail_keep.is_empty() {
            return Ok(None);
        }
        let mut rules: Option<Rules> = None;
        let mut services = HashMap::new();
        for named in &self.tail_keep {
            let error = |allowed: &str| ConfigError::new("--tail-keep", named, allowed);
            // A service's name may have a colon in it, and a rule has none.
            let (service, text) = match named.rsplit_once(':') {
                Some((service, text)) => (Some(service), text),
                None => (None, &named[..]),
            };
            let given = text.parse().map_err(error)?;
            let before = match service {
                Some(service) => services.insert(service.to_owned(), given),
                None => rules.replace(given),
            };
            if before.is_some() {
                return Err(error("rules for each service, and for all others, once"));
            }
        }
        let Some(rules) = rules else {
            let allowed = format!("rules for all services beside those for some: {RULES}");
            return Err(ConfigError::new("--tail-keep", &self.tail_keep[0], allowed));
        };
        Ok(Some(TailPolicy {
            rules,
            services,
            wait: Duration::from_secs(self.tail_wait_seconds),
            max_bytes: self.tail_max_bytes,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(keep: &[&str]) -> Result<Option<TailPolicy>, String> {
        let args = TailArgs {
            tail_keep: keep.iter().map(|text| (*text).to_owned()).collect(),
            tail_wait_seconds: 7,
            tail_max_bytes: 9,
        };
        args.policy().map_err(|error| error.to_string())
    }

    #[test]
    fn rules_are_for_all_services_or_for_one() {
        assert_eq!(policy(&[]), Ok(None));
        let both = policy(&["errors,ratio=0.1", "a:b:ratio=1"]);
        let both = both.expect("sound").expect("on");
        assert_eq!(both.wait, Duration::from_secs(7));
        assert_eq!(both.rules, "errors,ratio=0.1".parse().expect("sound"));
        assert_eq!(both.services["a:b"], "ratio=1".parse().expect("sound"));
    }

    #[test]
    fn rules_that_say_too_little_or_too_much_are_refused_by_name() {
        for keep in [
            &["fast"][..],
            &["errors", "errors"],
            &["web:errors"],
            &["errors", "a:x"],
        ] {
            let error = policy(keep).expect_err("refused");
            assert!(error.starts_with("--tail-keep='"), "{error}");
        }
    }
}
