//! The one error of configuration: which variable or flag, its value, what is allowed.

/// Values longer than this are cut in the message: it is one line for a person.
const MAX_SHOWN_CHARS: usize = 200;

/// A variable or flag whose value cannot be used. Its message is one line that names all three parts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable}='{value}' is not supported: use {allowed}")]
pub struct ConfigError {
    /// The environment variable or the flag, as the user writes it.
    pub variable: String,
    /// The value it has; secrets are left out.
    pub value: String,
    /// What may be used instead, to be read after the word "use".
    pub allowed: String,
}

impl ConfigError {
    /// An error about `variable` (or a flag such as `--listen`) having `value` where `allowed` is meant.
    pub fn new(
        variable: impl Into<String>,
        value: impl AsRef<str>,
        allowed: impl Into<String>,
    ) -> Self {
        Self {
            variable: variable.into(),
            value: one_line(value.as_ref()),
            allowed: allowed.into(),
        }
    }
}

/// The value on one line of bounded length.
fn one_line(value: &str) -> String {
    let mut shown: String = value
        .chars()
        .take(MAX_SHOWN_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if value.chars().nth(MAX_SHOWN_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_variable_value_and_what_is_allowed() {
        let error = ConfigError::new("OTEL_X", "foo", "bar or baz");
        assert_eq!(
            error.to_string(),
            "OTEL_X='foo' is not supported: use bar or baz"
        );
    }

    #[test]
    fn message_stays_on_one_bounded_line() {
        let error = ConfigError::new("OTEL_X", format!("a\nb{}", "c".repeat(1_000)), "less");
        assert!(!error.to_string().contains('\n'));
        assert!(error.to_string().len() < 300);
    }
}
