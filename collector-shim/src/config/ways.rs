//! How a backend is reached: what its URL and the variables of its name say.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lantern_telemetry::{ConfigError, ExporterSettings};

use super::backends::FLAG;
use super::kafka::KafkaSettings;
use crate::exporter::{Resolve, SystemResolver};

/// How a backend is reached.
#[derive(Debug, Clone)]
pub enum Way {
    /// By OTLP, at one endpoint.
    Otlp(Box<ExporterSettings>),
    /// By OTLP, at every address that the endpoint's host has: each trace at one of them.
    Balanced(Box<ExporterSettings>, Balance),
    /// As records of Kafka, each of one trace.
    Kafka(KafkaSettings),
    /// In files of OTLP/JSON lines.
    Files(FileSettings),
}

/// How traces are shared out among the addresses of a name.
#[derive(Debug, Clone)]
pub struct Balance {
    /// What finds them.
    pub resolver: Arc<dyn Resolve>,
    /// How long they are taken for known.
    pub interval: Duration,
}

/// A directory of files of OTLP/JSON lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSettings {
    /// Where they are. It is made when there is none.
    pub dir: PathBuf,
    /// A file does not grow over this, but for a line that alone is longer.
    pub max_bytes: u64,
    /// How many full files of each signal are kept beside the one that is written.
    pub max_full_files: usize,
}

/// What a URL of files begins with.
const FILE_SCHEME: &str = "file:";
/// The default of `…_FILE_MAX_BYTES`.
const DEFAULT_FILE_MAX_BYTES: u64 = 100 * 1024 * 1024;
/// The default of `…_FILE_MAX_COUNT`.
const DEFAULT_MAX_FULL_FILES: u64 = 10;
/// Directories of more are slow to list.
const MOST_FULL_FILES: u64 = 10_000;
/// The default of `…_RESOLVE_SECONDS`.
const DEFAULT_RESOLVE_SECONDS: u64 = 5;
const MAX_RESOLVE_SECONDS: u64 = 3600;

/// Gives the value of a variable.
pub(super) type Get<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Way {
    /// What `url` and the variables that begin with `prefix` say.
    pub(super) fn read(url: &str, prefix: &str, get: Get<'_>) -> Result<Way, ConfigError> {
        if url.starts_with(FILE_SCHEME) {
            return FileSettings::read(url, prefix, get).map(Way::Files);
        }
        if KafkaSettings::are_in(url) {
            return KafkaSettings::read(url, prefix, get).map(Way::Kafka);
        }
        let exporter = Box::new(ExporterSettings::named(FLAG, url, prefix, get)?);
        Ok(match Balance::read(prefix, get)? {
            None => Way::Otlp(exporter),
            Some(balance) => Way::Balanced(exporter, balance),
        })
    }

    /// How connections are made, and what is said over them, if there are any.
    pub fn exporter(&self) -> Option<&ExporterSettings> {
        match self {
            Way::Otlp(exporter) | Way::Balanced(exporter, _) => Some(exporter),
            Way::Kafka(kafka) => Some(&kafka.exporter),
            Way::Files(_) => None,
        }
    }

    /// Its URL.
    pub(crate) fn endpoint(&self) -> String {
        match self {
            Way::Otlp(exporter) | Way::Balanced(exporter, _) => exporter.endpoint.clone(),
            Way::Kafka(kafka) => kafka.url.clone(),
            Way::Files(files) => format!("file://{}", files.dir.display()),
        }
    }

    /// For log lines.
    pub(crate) fn protocol(&self) -> String {
        match self {
            Way::Otlp(exporter) => exporter.protocol.to_string(),
            Way::Balanced(exporter, _) => format!("{} by trace id", exporter.protocol),
            Way::Kafka(_) => "records of Kafka".to_owned(),
            Way::Files(_) => "json lines".to_owned(),
        }
    }

    /// Reads the TLS files again. None when they hold what they held before.
    pub(crate) fn with_changed_tls_files(&self) -> Result<Option<Way>, ConfigError> {
        let Some(exporter) = self.exporter() else {
            return Ok(None);
        };
        let changed = exporter.with_changed_tls_files()?.map(Box::new);
        Ok(changed.map(|exporter| match self {
            Way::Balanced(_, balance) => Way::Balanced(exporter, balance.clone()),
            Way::Kafka(kafka) => Way::Kafka(kafka.with_exporter(exporter)),
            Way::Otlp(_) | Way::Files(_) => Way::Otlp(exporter),
        }))
    }
}

impl Balance {
    fn read(prefix: &str, get: Get<'_>) -> Result<Option<Balance>, ConfigError> {
        let variable = format!("{prefix}BALANCE");
        let seconds = number(
            (prefix, "RESOLVE_SECONDS"),
            DEFAULT_RESOLVE_SECONDS,
            MAX_RESOLVE_SECONDS,
            get,
        )?;
        match set(&variable, get).as_deref() {
            None | Some("none") => Ok(None),
            Some("trace-id") => Ok(Some(Balance {
                resolver: Arc::new(SystemResolver),
                interval: Duration::from_secs(seconds),
            })),
            Some(other) => Err(ConfigError::new(variable, other, "trace-id or none")),
        }
    }
}

impl FileSettings {
    fn read(url: &str, prefix: &str, get: Get<'_>) -> Result<FileSettings, ConfigError> {
        let error = |allowed| ConfigError::new(FLAG, url, allowed);
        let path = url.strip_prefix(FILE_SCHEME).expect("it begins so");
        let path = path.strip_prefix("//").unwrap_or(path);
        let decoded = percent_encoding::percent_decode_str(path).decode_utf8();
        let dir = decoded.ok().map(|path| PathBuf::from(&*path));
        let dir = dir.filter(|dir| dir.is_absolute());
        let dir = dir.ok_or_else(|| error("file:///DIR, the whole path of a directory"))?;
        let is_makeable = !dir.exists() && dir.parent().is_some_and(Path::is_dir);
        if !dir.is_dir() && !is_makeable {
            return Err(error("a directory that is there, or one inside such"));
        }
        let max_bytes = (prefix, "FILE_MAX_BYTES");
        let max_count = (prefix, "FILE_MAX_COUNT");
        let count = number(max_count, DEFAULT_MAX_FULL_FILES, MOST_FULL_FILES, get)?;
        Ok(FileSettings {
            dir,
            max_bytes: number(max_bytes, DEFAULT_FILE_MAX_BYTES, u64::MAX, get)?,
            max_full_files: usize::try_from(count).unwrap_or(usize::MAX),
        })
    }
}

/// The value of a variable that is set and not empty.
pub(super) fn set(variable: &str, get: Get<'_>) -> Option<String> {
    let value = get(variable)?.trim().to_owned();
    (!value.is_empty()).then_some(value)
}

/// The whole number, from 1 to `most`, of a variable by its prefix and its own name.
pub(super) fn number(
    (prefix, name): (&str, &str),
    default: u64,
    most: u64,
    get: Get<'_>,
) -> Result<u64, ConfigError> {
    let variable = format!("{prefix}{name}");
    let Some(value) = set(&variable, get) else {
        return Ok(default);
    };
    let number = value.parse().ok();
    let number = number.filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| {
        let allowed = format!("a whole number from 1 to {most}");
        ConfigError::new(variable, &value, allowed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str, variables: &[(&str, &str)]) -> Result<Way, ConfigError> {
        let get = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Way::read(url, "B_", &get)
    }

    fn check_refused(url: &str, variables: &[(&str, &str)], expect: &str) {
        let error = read(url, variables).expect_err(expect).to_string();
        assert!(error.starts_with(expect), "{error}");
    }

    #[test]
    fn a_file_url_names_a_directory_with_its_bounds() {
        let dir = tempfile::tempdir().expect("a directory");
        let url = format!("file://{}/a%20b", dir.path().display());
        let bounds = [("B_FILE_MAX_BYTES", "1000"), ("B_FILE_MAX_COUNT", "2")];
        let Ok(Way::Files(files)) = read(&url, &bounds) else {
            panic!("files");
        };
        let expect = FileSettings {
            dir: dir.path().join("a b"),
            max_bytes: 1000,
            max_full_files: 2,
        };
        assert_eq!(files, expect);

        check_refused("file://relative", &[], "--backend='file://relative'");
        let absent = format!("file://{}/a/b", dir.path().display());
        check_refused(&absent, &[], "--backend='file:///");
        let none = [("B_FILE_MAX_COUNT", "0")];
        check_refused(&url, &none, "B_FILE_MAX_COUNT='0'");
    }

    #[test]
    fn a_backend_is_balanced_if_its_variable_says_so() {
        let url = "http://jaeger:4317";
        let balanced = [("B_BALANCE", "trace-id"), ("B_RESOLVE_SECONDS", "30")];
        let Ok(Way::Balanced(exporter, balance)) = read(url, &balanced) else {
            panic!("balanced");
        };
        assert_eq!(exporter.endpoint, url);
        assert_eq!(balance.interval, Duration::from_secs(30));
        assert!(matches!(read(url, &[]), Ok(Way::Otlp(_))));
        check_refused(url, &[("B_BALANCE", "luck")], "B_BALANCE='luck'");
        let never = [("B_RESOLVE_SECONDS", "never")];
        check_refused(url, &never, "B_RESOLVE_SECONDS='never'");
    }
}
