//! Where a setting's value comes from: a flag, else a variable, else the file, else the default. Each
//! value remembers where it was found, so that an error can name the place.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lantern_telemetry::config::ConfigError;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{Flags, KEYS, Key};

/// A file is read up to this size.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// A year: what is longer is a mistake.
const MAX_SECONDS: f64 = 365.0 * 86_400.0;

/// A value and the place where it was found, as the user would write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) place: String,
    pub(crate) value: String,
}

impl Setting {
    pub(crate) fn error(&self, allowed: impl Into<String>) -> ConfigError {
        ConfigError::new(&self.place, &self.value, allowed)
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(&self.value)
    }

    /// A time above 0.
    pub(crate) fn seconds(&self) -> Result<Duration, ConfigError> {
        let seconds = self.value.parse::<f64>().ok();
        seconds
            .filter(|&seconds| seconds > 0.0 && seconds <= MAX_SECONDS)
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .ok_or_else(|| self.error("a number of seconds above 0"))
    }

    /// `true` or `false`.
    pub(crate) fn switch(&self) -> Result<bool, ConfigError> {
        let is_on = self.value.parse();
        is_on.map_err(|_| self.error("true or false"))
    }

    /// A whole number from 1 to `most`.
    pub(crate) fn count(&self, most: usize) -> Result<usize, ConfigError> {
        let count = self.value.parse().ok();
        count
            .filter(|count| (1..=most).contains(count))
            .ok_or_else(|| self.error(format!("a whole number from 1 to {most}")))
    }
}

/// The values of all settings.
#[derive(Debug)]
pub(crate) struct Sources {
    /// One entry for each of [`KEYS`], in its order.
    found: Vec<Vec<Setting>>,
}

impl Sources {
    pub(crate) fn new(
        flags: &Flags,
        variable: &dyn Fn(&str) -> Option<String>,
        file: &[(&'static str, Setting)],
    ) -> Self {
        let find = |key: &Key| {
            let typed = flags.values(key.name);
            if !typed.is_empty() {
                return settings(&key.flag(), typed.iter().cloned());
            }
            let set = variable(&key.variable()).filter(|value| !value.trim().is_empty());
            if let Some(value) = set {
                let values = if key.is_list() {
                    value.split_whitespace().map(str::to_owned).collect()
                } else {
                    vec![value.trim().to_owned()]
                };
                return settings(&key.variable(), values);
            }
            let in_file: Vec<_> = file
                .iter()
                .filter(|(name, _)| *name == key.name)
                .map(|(_, setting)| setting.clone())
                .collect();
            if !in_file.is_empty() || key.default.is_empty() {
                return in_file;
            }
            settings(&key.flag(), [key.default.to_owned()])
        };
        Self {
            found: KEYS.iter().map(find).collect(),
        }
    }

    /// All values of a setting.
    pub(crate) fn all(&self, name: &str) -> &[Setting] {
        let known = KEYS.iter().position(|key| key.name == name);
        &self.found[known.expect("the name is in the table")]
    }

    /// The value of a setting that may be left unset.
    pub(crate) fn get(&self, name: &str) -> Option<&Setting> {
        self.all(name).first()
    }

    /// The value of a setting that has a default.
    pub(crate) fn required(&self, name: &str) -> &Setting {
        self.get(name).expect("the table has its default")
    }

    /// Every setting as the file would have it, and behind it the place of one that is not the default.
    pub(crate) fn describe(&self) -> String {
        let mut text = String::new();
        for (key, found) in KEYS.iter().zip(&self.found) {
            let values: Vec<_> = found.iter().map(|setting| quoted(&setting.value)).collect();
            let value = match values.as_slice() {
                [] => {
                    let _ = writeln!(text, "# {} is not set", key.in_file());
                    continue;
                }
                values if key.is_list() => format!("[{}]", values.join(", ")),
                values => values[0].clone(),
            };
            let is_default = found[0].value == key.default && found[0].place == key.flag();
            let _ = if is_default {
                writeln!(text, "{} = {value}", key.in_file())
            } else {
                writeln!(text, "{} = {value}  # {}", key.in_file(), found[0].place)
            };
        }
        text
    }
}

fn settings(place: &str, values: impl IntoIterator<Item = String>) -> Vec<Setting> {
    let values = values.into_iter();
    values
        .map(|value| Setting {
            place: place.to_owned(),
            value,
        })
        .collect()
}

/// A value as TOML has it.
fn quoted(value: &str) -> String {
    if value.parse::<f64>().is_ok() || value == "true" || value == "false" {
        value.to_owned()
    } else {
        format!("{value:?}")
    }
}

/// Reads a file of settings.
pub(crate) fn read_file(path: &Path) -> Result<Vec<(&'static str, Setting)>, ConfigError> {
    let shown = path.display().to_string();
    let text = read_text(path).map_err(|error| {
        let allowed = format!("the path of a TOML file that can be read ({error})");
        ConfigError::new("--config", &shown, allowed)
    })?;
    parse_file(&shown, &text)
}

/// A file's text, as long as it may be.
pub(crate) fn read_text(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;

    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// The settings in a file's text; `file` is its name in errors.
fn parse_file(file: &str, text: &str) -> Result<Vec<(&'static str, Setting)>, ConfigError> {
    let line = |at: usize| format!("{file}:{}", line_of(text, at));
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let wrong = text.lines().nth(line_of(text, at) - 1).unwrap_or_default();
        ConfigError::new(line(at), wrong, format!("TOML ({})", error.message()))
    })?;
    let mut settings = Vec::new();
    for (name, value) in table.get_ref() {
        let place = format!("{}: {}", line(name.span().start), name.get_ref());
        let known = KEYS.iter().find(|key| key.in_file() == **name.get_ref());
        let Some(key) = known else {
            let known: Vec<_> = KEYS.iter().map(Key::in_file).collect();
            let allowed = format!("one of the keys {}", known.join(", "));
            return Err(ConfigError::new(place, source(text, value), allowed));
        };
        let bad =
            |value, allowed: &str| Err(ConfigError::new(&place, source(text, value), allowed));
        let values = match value.get_ref() {
            DeValue::Array(items) if key.is_list() => items.iter().collect(),
            DeValue::Array(_) => return bad(value, "one value, not a list"),
            _ => vec![value],
        };
        for value in values {
            let Some(scalar) = scalar(value.get_ref()) else {
                return bad(value, "a string, a number, true or false");
            };
            // An item of a list stands on a line of its own, perhaps.
            let place = format!("{}: {}", line(value.span().start), key.in_file());
            let setting = Setting {
                place,
                value: scalar,
            };
            settings.push((key.name, setting));
        }
    }
    Ok(settings)
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.clone().into_owned()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// A value as the file spells it.
fn source<'a>(text: &'a str, value: &Spanned<DeValue<'_>>) -> &'a str {
    text.get(value.span()).unwrap_or_default()
}

/// The line that holds the byte `at`, counted from 1.
pub(crate) fn line_of(text: &str, at: usize) -> usize {
    let before = &text.as_bytes()[..at.min(text.len())];
    before.iter().filter(|&&byte| byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_variable(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn a_flag_beats_a_variable_beats_the_file_beats_the_default() {
        let file = parse_file("p.toml", "max_connections = 3").expect("valid");
        let variable =
            |name: &str| (name == "LANTERN_PROXY_MAX_CONNECTIONS").then(|| " 2 ".to_owned());
        let mut typed = Flags::default();
        typed.push("max-connections", "1".to_owned());
        let found = |flags: &Flags, variable: &dyn Fn(&str) -> Option<String>, file: &[_]| {
            let sources = Sources::new(flags, variable, file);
            let setting = sources.required("max-connections");
            (setting.value.clone(), setting.place.clone())
        };
        let pair = |value: &str, place: &str| (value.to_owned(), place.to_owned());
        assert_eq!(
            found(&typed, &variable, &file),
            pair("1", "--max-connections")
        );
        let none = Flags::default();
        assert_eq!(
            found(&none, &variable, &file),
            pair("2", "LANTERN_PROXY_MAX_CONNECTIONS")
        );
        assert_eq!(
            found(&none, &no_variable, &file),
            pair("3", "p.toml:1: max_connections")
        );
        assert_eq!(
            found(&none, &no_variable, &[]),
            pair("16384", "--max-connections")
        );
    }

    #[test]
    fn what_is_wrong_with_a_file_is_named_with_its_line_key_value_and_what_is_allowed() {
        for (text, parts) in [
            (
                "\n\nlisen = \"a\"",
                &["p.toml:3: lisen", "'\"a\"'", "listen, upstream"][..],
            ),
            (
                "listen = [\"a\"]",
                &["p.toml:1: listen", "[\"a\"]", "one value"],
            ),
            (
                "listen = 2020-01-01",
                &["p.toml:1: listen", "2020-01-01", "a string"],
            ),
            ("a = 1\nlisten =", &["p.toml:2", "'listen ='", "TOML"]),
            ("[upstream]\nurl = 1", &["p.toml:1: upstream", "a string"]),
        ] {
            let error = parse_file("p.toml", text).expect_err(text).to_string();
            for part in parts {
                assert!(error.contains(part), "{part} is missing in {error}");
            }
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_list_is_a_list_in_the_file_words_in_a_variable_and_flags_on_the_command_line() {
        let expect = ["http://a:1", "http://b:2,weight=3"];
        let values = |sources: &Sources| -> Vec<String> {
            let all = sources.all("upstream").iter();
            all.map(|setting| setting.value.clone()).collect()
        };
        let text = "upstream = [\n  \"http://a:1\",\n  \"http://b:2,weight=3\",\n]";
        let file = parse_file("p.toml", text).expect("valid");
        assert_eq!(
            values(&Sources::new(&Flags::default(), &no_variable, &file)),
            expect
        );
        let variable = |name: &str| (name == "LANTERN_PROXY_UPSTREAM").then(|| expect.join(" "));
        assert_eq!(
            values(&Sources::new(&Flags::default(), &variable, &[])),
            expect
        );
        let mut flags = Flags::default();
        for url in expect {
            flags.push("upstream", url.to_owned());
        }
        assert_eq!(values(&Sources::new(&flags, &no_variable, &[])), expect);
    }

    #[test]
    fn a_description_is_a_file_that_means_the_same() {
        let mut flags = Flags::default();
        flags.push("upstream", "http://a:1".to_owned());
        flags.push("read-timeout-seconds", "7.5".to_owned());
        let first = Sources::new(&flags, &no_variable, &[]);
        let file = parse_file("p.toml", &first.describe()).expect("valid");
        let second = Sources::new(&Flags::default(), &no_variable, &file);
        for key in KEYS {
            let values = |sources: &Sources| -> Vec<String> {
                let all = sources.all(key.name).iter();
                all.map(|setting| setting.value.clone()).collect()
            };
            assert_eq!(values(&first), values(&second), "{}", key.name);
        }
        assert!(
            first
                .describe()
                .contains("read_timeout_seconds = 7.5  # --read-timeout-seconds")
        );
    }
}
