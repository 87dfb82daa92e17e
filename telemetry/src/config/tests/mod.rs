//! The environment and what it means, one line a case.

mod exporter;
mod sdk;

use super::*;

type Table<'a> = &'a [(&'a str, &'a str)];

fn parse(vars: Table<'_>) -> Result<Settings, ConfigError> {
    Settings::from_vars(|name| {
        vars.iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| (*value).to_owned())
    })
}

/// `vars` are accepted and `get` of the settings shows `expect`.
fn check(get: impl Fn(&Settings) -> String, cases: &[(Table<'_>, &str)]) {
    for (vars, expect) in cases {
        let settings = parse(vars).unwrap_or_else(|error| panic!("{vars:?}: {error}"));
        assert_eq!(&get(&settings), expect, "{vars:?}");
    }
}

/// `vars` are refused in exactly these words.
fn check_refused(cases: &[(Table<'_>, &str)]) {
    for (vars, expect) in cases {
        let error = parse(vars)
            .map(|_| ())
            .expect_err(&format!("{vars:?} is refused"));
        assert_eq!(&error.to_string(), expect);
    }
}

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
