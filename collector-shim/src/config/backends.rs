//! The backends, each with a name, and where requests wait for them.

use std::path::PathBuf;

use clap::ValueEnum as _;
use lantern_telemetry::{ConfigError, ExporterSettings};

use super::ways::Way;

use crate::signal::{Signal, Signals};

/// Where requests wait for the backends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waiting {
    /// With their senders: a request is acknowledged once every backend has accepted it.
    AtSender,
    /// In memory.
    InMemory,
    /// On disk.
    OnDisk(QueueDir),
}

/// A queue that survives the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueDir {
    /// Where it is. One shim at a time has it.
    pub path: PathBuf,
    /// When a request is acknowledged.
    pub ack: LogAck,
}

/// When a request that goes to a queue on disk is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogAck {
    /// Once it is written and synced.
    Disk,
    /// Once it is in memory, on its way to the disk.
    Memory,
}

/// Where to send to.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Its name: for log lines, metrics, and its place in a queue on disk.
    pub name: String,
    /// How it is reached.
    pub way: Way,
    /// What it is sent of what is taken.
    pub signals: Signals,
}

impl Backend {
    /// The name of the backend that the `OTEL_EXPORTER_OTLP_…` variables name.
    pub const DEFAULT_NAME: &str = "default";

    /// The one backend, as the environment names it.
    pub fn only(exporter: ExporterSettings) -> Backend {
        Backend {
            name: Backend::DEFAULT_NAME.to_owned(),
            way: Way::Otlp(Box::new(exporter)),
            signals: Signals::ALL,
        }
    }
}

/// What names a backend.
pub(super) const FLAG: &str = "--backend";
/// What the names of the variables of a backend begin with, before its own.
const PREFIX: &str = "LANTERN_BACKEND";
/// What tells `…_CLIENT_CERTIFICATE` from `…_CERTIFICATE`, as it would stand in a name.
const CLIENT_SUFFIX: &str = "-client";
/// Longer than any sensible name.
const MAX_NAME_CHARS: usize = 64;

/// The backends that `flags` name, each as `NAME=URL`.
pub(super) fn read(
    flags: &[String],
    get: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<Backend>, ConfigError> {
    let mut backends: Vec<Backend> = Vec::new();
    for flag in flags {
        let backend = backend(flag, get)?;
        if backends.iter().any(|other| other.name == backend.name) {
            let allowed = "a name that no other backend has";
            return Err(ConfigError::new(FLAG, flag, allowed));
        }
        if let Some(other) = backends
            .iter()
            .find(|other| share_variables(other, &backend))
        {
            let allowed = format!(
                "another name beside {:?}: a variable such as …_CLIENT_CERTIFICATE would be for both",
                other.name
            );
            return Err(ConfigError::new(FLAG, flag, allowed));
        }
        backends.push(backend);
    }
    Ok(backends)
}

fn backend(flag: &str, get: &dyn Fn(&str) -> Option<String>) -> Result<Backend, ConfigError> {
    let named = flag.split_once('=').filter(|(name, _)| is_name(name));
    let Some((name, url)) = named else {
        let allowed = "NAME=URL, the name of lowercase letters, digits and hyphens";
        return Err(ConfigError::new(FLAG, flag, allowed));
    };
    let variables = name.to_ascii_uppercase().replace('-', "_");
    let prefix = format!("{PREFIX}_{variables}_");
    Ok(Backend {
        name: name.to_owned(),
        way: Way::read(url, &prefix, get)?,
        signals: signals(&format!("{prefix}SIGNALS"), get)?,
    })
}

/// Whether the certificate of one of them is called what the client certificate of the other is.
fn share_variables(one: &Backend, other: &Backend) -> bool {
    let is_client_of = |one: &Backend, other: &Backend| {
        let rest = one.name.strip_prefix(&*other.name);
        rest == Some(CLIENT_SUFFIX)
    };
    is_client_of(one, other) || is_client_of(other, one)
}

/// A name stands in the queue's cursors, in metrics and, in capitals, in variables.
fn is_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_NAME_CHARS).contains(&name.len()) && name.bytes().all(is_allowed)
}

fn signals(variable: &str, get: &dyn Fn(&str) -> Option<String>) -> Result<Signals, ConfigError> {
    let Some(value) = get(variable).filter(|value| !value.trim().is_empty()) else {
        return Ok(Signals::ALL);
    };
    let signals = value
        .split(',')
        .map(|name| Signal::from_str(name.trim(), true));
    signals.collect::<Result<_, _>>().map_err(|_| {
        ConfigError::new(
            variable,
            &value,
            "traces, metrics, logs or profiles, or several",
        )
    })
}

#[cfg(test)]
mod tests {
    use lantern_telemetry::Protocol;

    use super::*;

    fn read_with(flags: &[&str], variables: &[(&str, &str)]) -> Result<Vec<Backend>, ConfigError> {
        let flags: Vec<_> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let get = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        read(&flags, &get)
    }

    #[test]
    fn each_backend_has_its_own_settings_and_no_others() {
        let variables = [
            ("LANTERN_BACKEND_EU_WEST_PROTOCOL", "http/protobuf"),
            (
                "LANTERN_BACKEND_EU_WEST_HEADERS",
                "authorization=Bearer%20a",
            ),
            ("LANTERN_BACKEND_EU_WEST_SIGNALS", "traces, Logs"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20b"),
        ];
        let flags = [
            "eu-west=https://otlp.example.com",
            "jaeger=grpc://jaeger:4317",
        ];
        let backends = read_with(&flags, &variables).expect("valid");
        let [west, jaeger] = &backends[..] else {
            panic!("two, not {}", backends.len());
        };
        assert_eq!((&*west.name, &*jaeger.name), ("eu-west", "jaeger"));
        let exporter = |one: &Backend| one.way.exporter().expect("OTLP").clone();
        let (west_out, jaeger_out) = (exporter(west), exporter(jaeger));
        assert_eq!(west_out.endpoint, "https://otlp.example.com/v1/traces");
        assert_eq!(west_out.headers["authorization"], "Bearer a");
        let taken = Signal::ALL.map(|signal| west.signals.has(signal));
        assert_eq!(taken, [true, false, true, false]);
        assert_eq!(jaeger_out.protocol, Protocol::Grpc);
        assert!(jaeger_out.headers.is_empty());
        assert_eq!(jaeger.signals, Signals::ALL);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let check = |flags: &[&str], variables: &[(&str, &str)], expect: &str| {
            let error = read_with(flags, variables).expect_err(expect).to_string();
            assert!(error.starts_with(expect), "{error}");
        };
        for flag in [
            "http://jaeger:4317",
            "=http://a",
            "Eu=http://a",
            "a b=http://a",
        ] {
            check(&[flag], &[], &format!("--backend='{flag}'"));
        }
        check(&["a=http://a", "a=http://b"], &[], "--backend='a=http://b'");
        let (one, other) = ("a=http://a", "a-client=http://b");
        check(&[one, other], &[], "--backend='a-client=http://b'");
        check(&[other, one], &[], "--backend='a=http://a'");
        check(&["a=ftp://a"], &[], "--backend='ftp://a'");
        let protocol = ("LANTERN_BACKEND_A_PROTOCOL", "smtp");
        check(
            &["a=http://a"],
            &[protocol],
            "LANTERN_BACKEND_A_PROTOCOL='smtp'",
        );
        let signals = ("LANTERN_BACKEND_A_SIGNALS", "smoke");
        check(
            &["a=http://a"],
            &[signals],
            "LANTERN_BACKEND_A_SIGNALS='smoke'",
        );
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().to_str().expect("text");
        let key = ("LANTERN_BACKEND_A_CLIENT_KEY", path);
        let error = read_with(&["a=http://a"], &[key]).expect_err("half an identity");
        assert!(
            error
                .to_string()
                .ends_with("with LANTERN_BACKEND_A_CLIENT_CERTIFICATE"),
            "{error}"
        );
    }
}
