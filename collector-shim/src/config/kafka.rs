//! Kafka as a backend: what `kafka://HOST:PORT,…/TOPIC` and the variables of its name say.

use http::uri::Authority;
use lantern_telemetry::{ConfigError, ExporterSettings};

use super::backends::FLAG;
use super::ways::{Get, number, set};
use crate::counts::PerSignal;
use crate::signal::Signal;

/// What the URL of brokers begins with, and of brokers that are spoken to over TLS.
const SCHEME: &str = "kafka://";
const TLS_SCHEME: &str = "kafka+tls://";
/// The default of `…_MAX_RECORD_BYTES`: what brokers take unless told otherwise is 1 MiB, with what
/// stands around the records.
const DEFAULT_MAX_RECORD_BYTES: u64 = 1_000_000;
/// Brokers take no request over 100 MiB.
const MOST_RECORD_BYTES: u64 = 64 * 1024 * 1024;
/// What Kafka allows.
const MAX_TOPIC_CHARS: usize = 249;

/// Brokers, and the topic of each signal. [`KafkaSettings::read`] makes one.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KafkaSettings {
    /// As it was given.
    pub url: String,
    /// Each as `HOST:PORT`. One that answers is enough to find the others.
    pub brokers: Vec<String>,
    /// Whether they are spoken to over TLS.
    pub is_encrypted: bool,
    /// Records leave in batches of no more; a longer record is cut where it can be.
    pub max_record_bytes: usize,
    /// TLS files, compression, and how long one attempt may take; all else of it says nothing here.
    pub exporter: Box<ExporterSettings>,
    topics: PerSignal<Option<String>>,
}

impl KafkaSettings {
    /// Whether `url` is one of Kafka.
    pub(super) fn are_in(url: &str) -> bool {
        url.starts_with(SCHEME) || url.starts_with(TLS_SCHEME)
    }

    /// What `url` and the variables that begin with `prefix` say. Without the feature `kafka` nothing
    /// can be sent, and this is an error.
    pub fn read(url: &str, prefix: &str, get: Get<'_>) -> Result<KafkaSettings, ConfigError> {
        if cfg!(feature = "kafka") {
            return Self::parse(url, prefix, get);
        }
        let allowed = "it in a program that was built with the feature kafka";
        Err(ConfigError::new(FLAG, url, allowed))
    }

    fn parse(url: &str, prefix: &str, get: Get<'_>) -> Result<KafkaSettings, ConfigError> {
        let error = || {
            let allowed = "kafka://HOST:PORT,…/TOPIC, or the same with kafka+tls://";
            ConfigError::new(FLAG, url, allowed)
        };
        let (_, rest) = url.split_once("://").ok_or_else(error)?;
        let (brokers, topic) = rest.split_once('/').ok_or_else(error)?;
        let brokers: Option<Vec<_>> = brokers.split(',').map(broker).collect();
        let brokers = brokers.ok_or_else(error)?;
        if !is_topic(topic) {
            return Err(error());
        }
        let is_encrypted = url.starts_with(TLS_SCHEME);
        let scheme = if is_encrypted { "https" } else { "http" };
        let first = format!("{scheme}://{}", brokers[0]);
        let max_record_bytes = number(
            (prefix, "MAX_RECORD_BYTES"),
            DEFAULT_MAX_RECORD_BYTES,
            MOST_RECORD_BYTES,
            get,
        )?;
        Ok(KafkaSettings {
            url: url.to_owned(),
            brokers,
            is_encrypted,
            max_record_bytes: usize::try_from(max_record_bytes).unwrap_or(usize::MAX),
            exporter: Box::new(ExporterSettings::named(FLAG, &first, prefix, get)?),
            topics: topics(topic, prefix, get)?,
        })
    }

    /// Where `signal` goes. What reads a topic takes all of it for one signal, so that only those that
    /// were given a topic have one.
    pub fn topic(&self, signal: Signal) -> Option<&str> {
        self.topics.of(signal).as_deref()
    }

    pub(super) fn with_exporter(&self, exporter: Box<ExporterSettings>) -> KafkaSettings {
        KafkaSettings {
            exporter,
            ..self.clone()
        }
    }
}

fn broker(text: &str) -> Option<String> {
    let authority: Authority = text.parse().ok()?;
    let has_port = authority.port_u16().is_some_and(|port| port > 0);
    let is_plain = !text.contains('@') && !authority.host().is_empty();
    (has_port && is_plain).then(|| text.to_owned())
}

fn is_topic(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_TOPIC_CHARS).contains(&name.len())
        && name.bytes().all(is_allowed)
        && ![".", ".."].contains(&name)
}

fn topics(
    traces: &str,
    prefix: &str,
    get: Get<'_>,
) -> Result<PerSignal<Option<String>>, ConfigError> {
    let mut topics = PerSignal::default();
    *topics.of_mut(Signal::Traces) = Some(traces.to_owned());
    for signal in [Signal::Metrics, Signal::Logs, Signal::Profiles] {
        let variable = format!("{prefix}{}_TOPIC", signal.as_str().to_ascii_uppercase());
        let Some(topic) = set(&variable, get) else {
            continue;
        };
        let is_taken = Signal::ALL
            .iter()
            .any(|other| topics.of(*other).as_ref() == Some(&topic));
        if !is_topic(&topic) || is_taken {
            let allowed = "a topic that no other signal has, of letters, digits and . _ -";
            return Err(ConfigError::new(variable, topic, allowed));
        }
        *topics.of_mut(signal) = Some(topic);
    }
    Ok(topics)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str, variables: &[(&str, &str)]) -> Result<KafkaSettings, ConfigError> {
        let get = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        KafkaSettings::parse(url, "B_", &get)
    }

    #[test]
    fn a_url_names_brokers_and_the_topic_of_traces() {
        let kafka = parse("kafka://a:9092,[::1]:9093/jaeger-spans", &[]).expect("valid");
        assert_eq!(kafka.brokers, ["a:9092", "[::1]:9093"]);
        assert!(!kafka.is_encrypted);
        assert_eq!(kafka.max_record_bytes, 1_000_000);
        let topics = Signal::ALL.map(|signal| kafka.topic(signal));
        assert_eq!(topics, [Some("jaeger-spans"), None, None, None]);
    }

    #[test]
    fn variables_name_the_topics_of_other_signals_and_the_bounds() {
        let variables = [
            ("B_METRICS_TOPIC", "otlp_metrics"),
            ("B_LOGS_TOPIC", "otlp_logs"),
            ("B_MAX_RECORD_BYTES", "2000"),
            ("B_TIMEOUT", "2500"),
        ];
        let kafka = parse("kafka+tls://a:9093/otlp_spans", &variables).expect("valid");
        assert!(kafka.is_encrypted);
        assert_eq!(kafka.max_record_bytes, 2000);
        assert_eq!(kafka.exporter.timeout.as_millis(), 2500);
        let topics = Signal::ALL.map(|signal| kafka.topic(signal).unwrap_or("-"));
        assert_eq!(topics, ["otlp_spans", "otlp_metrics", "otlp_logs", "-"]);
    }

    #[test]
    fn what_names_no_broker_or_no_topic_is_refused() {
        for url in [
            "kafka://",
            "kafka://a:9092",
            "kafka://a:9092/",
            "kafka://a/t",
            "kafka://a:0/t",
            "kafka://:9092/t",
            "kafka://a:9092,/t",
            "kafka://user@a:9092/t",
            "kafka://a:9092/..",
            "kafka://a:9092/a/b",
            "kafka://a:9092/t?acks=1",
        ] {
            let error = parse(url, &[]).expect_err(url).to_string();
            let expect = format!("--backend='{url}'");
            assert!(error.starts_with(&expect), "{error}");
        }
        for (variable, value) in [
            ("B_LOGS_TOPIC", "t"),
            ("B_METRICS_TOPIC", "a b"),
            ("B_MAX_RECORD_BYTES", "0"),
        ] {
            let error = parse("kafka://a:9092/t", &[(variable, value)]);
            let error = error.expect_err(variable).to_string();
            let expect = format!("{variable}='{value}'");
            assert!(error.starts_with(&expect), "{error}");
        }
    }

    #[test]
    fn only_a_program_built_for_it_takes_brokers() {
        let read = KafkaSettings::read("kafka://a:9092/t", "B_", &|_| None);
        assert_eq!(read.is_ok(), cfg!(feature = "kafka"));
        if let Err(error) = read {
            let error = error.to_string();
            assert!(error.ends_with("built with the feature kafka"), "{error}");
        }
    }
}
