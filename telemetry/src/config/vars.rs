//! Reading variables: the more specific name first, an empty value as unset, every bad value an error
//! that names the variable it came from.

use std::ops::RangeInclusive;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::{ConfigError, Signal};

/// A source of variables: the process environment, or a table in a test.
pub(super) struct Vars<'a> {
    get: &'a dyn Fn(&str) -> Option<String>,
    /// What the names of the exporter's variables begin with, unless they are OTLP's own.
    exporter_prefix: Option<&'a str>,
}

/// A variable that is set to something.
#[derive(Clone, Debug)]
pub(super) struct Var {
    pub(super) name: String,
    pub(super) value: String,
}

impl<'a> Vars<'a> {
    pub(super) fn new(get: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self {
            get,
            exporter_prefix: None,
        }
    }

    /// Those of an exporter whose variables have names of their own.
    pub(super) fn of_exporter(get: &'a dyn Fn(&str) -> Option<String>, prefix: &'a str) -> Self {
        Self {
            get,
            exporter_prefix: Some(prefix),
        }
    }

    /// The variable `name`, when it is set and not empty.
    pub(super) fn get(&self, name: &str) -> Option<Var> {
        let value = (self.get)(name)?.trim().to_owned();
        (!value.is_empty()).then(|| Var {
            name: name.to_owned(),
            value,
        })
    }

    /// The first of `names` that is set and not empty.
    pub(super) fn first(&self, names: &[&str]) -> Option<Var> {
        names.iter().find_map(|name| self.get(name))
    }

    /// A variable of the exporter: for OTLP's own the one for `signal`, else the one for all.
    pub(super) fn otlp(&self, signal: Signal, suffix: &str) -> Option<Var> {
        if self.exporter_prefix.is_some() {
            return self.get(&self.otlp_name(suffix));
        }
        self.get(&format!("OTEL_EXPORTER_OTLP_{}_{suffix}", signal.name()))
            .or_else(|| self.get(&self.otlp_name(suffix)))
    }

    /// The most general name of a variable of the exporter.
    pub(super) fn otlp_name(&self, suffix: &str) -> String {
        let prefix = self.exporter_prefix;
        format!("{}{suffix}", prefix.unwrap_or("OTEL_EXPORTER_OTLP_"))
    }

    /// A whole number within `range`, or `default` when unset.
    pub(super) fn number(
        &self,
        names: &[&str],
        range: RangeInclusive<u64>,
        default: u64,
    ) -> Result<u64, ConfigError> {
        self.first(names)
            .map_or(Ok(default), |var| var.number(range))
    }

    /// A switch that is off unless it is set to `true`.
    pub(super) fn switch(&self, name: &str) -> Result<bool, ConfigError> {
        self.get(name).map_or(Ok(false), |var| var.switch())
    }
}

impl Var {
    pub(super) fn error(&self, allowed: impl Into<String>) -> ConfigError {
        ConfigError::new(&self.name, &self.value, allowed)
    }

    /// The value for comparing with the names of an enumeration, whose case does not matter.
    pub(super) fn lowercase(&self) -> String {
        self.value.to_ascii_lowercase()
    }

    pub(super) fn number(&self, range: RangeInclusive<u64>) -> Result<u64, ConfigError> {
        self.value
            .parse()
            .ok()
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                self.error(format!(
                    "a whole number from {} to {}",
                    range.start(),
                    range.end()
                ))
            })
    }

    /// A time in milliseconds, at least one.
    pub(super) fn milliseconds(&self, most: Duration) -> Result<Duration, ConfigError> {
        let most_ms = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
        let number = self
            .value
            .parse()
            .ok()
            .filter(|ms| (1..=most_ms).contains(ms));
        number
            .map(Duration::from_millis)
            .ok_or_else(|| self.error(format!("a time from 1 to {most_ms} milliseconds")))
    }

    pub(super) fn switch(&self) -> Result<bool, ConfigError> {
        match self.lowercase().as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(self.error("true or false")),
        }
    }

    /// The pairs of `key=value,key2=value2`, percent-decoded. An error does not show any value, since
    /// headers carry credentials.
    pub(super) fn pairs(&self) -> Result<Vec<(String, String)>, ConfigError> {
        let entries = self.value.split(',').map(str::trim).enumerate();
        entries
            .filter(|(_, entry)| !entry.is_empty())
            .map(|(index, entry)| {
                decoded_pair(entry).ok_or_else(|| self.hidden_entry_error(index, entry))
            })
            .collect()
    }

    /// An error about the entry at `index` that shows its key but not its value.
    pub(super) fn hidden_entry_error(&self, index: usize, entry: &str) -> ConfigError {
        let shown = match entry.split_once('=') {
            Some((key, _)) => format!("{}=…", key.trim()),
            None => format!("(entry {})", index + 1),
        };
        ConfigError::new(
            &self.name,
            shown,
            "key=value pairs separated by commas, other characters percent-encoded",
        )
    }
}

fn decoded_pair(entry: &str) -> Option<(String, String)> {
    let (key, value) = entry.split_once('=')?;
    let decode = |text: &str| {
        Some(
            percent_decode_str(text.trim())
                .decode_utf8()
                .ok()?
                .into_owned(),
        )
    };
    let (key, value) = (decode(key)?, decode(value)?);
    (!key.is_empty()).then_some((key, value))
}
