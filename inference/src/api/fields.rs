//! The fields of a JSON body, read one by one with the conversions that vLLM's clients rely on.
//!
//! By hand and not by `serde`'s derive: each error must name the field and the value, numbers and
//! booleans may come as strings (as pydantic takes them), and unknown fields are left alone.

use serde_json::{Map, Value};

use super::error::ApiError;

/// Longest piece of a wrong value that an error repeats.
const SHOWN_BYTES: usize = 64;

/// The fields of one body. A field that is `null` counts as absent.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// Parses a body.
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body)? {
            Value::Object(fields) => Ok(Self(fields)),
            other => Err(wrong("body", "an object", &other)),
        }
    }

    /// An object inside the body.
    pub(super) fn object(&mut self, name: &'static str) -> Result<Option<Self>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Self(fields))),
            Some(other) => Err(wrong(name, "an object", &other)),
        }
    }

    /// Any value.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// The name of a field that has not been taken.
    pub(super) fn left_over(&self) -> Option<&str> {
        let left = self.0.iter().find(|(_, value)| !value.is_null());
        left.map(|(name, _)| name.as_str())
    }

    /// A string.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, "a string", &other)),
        }
    }

    /// A boolean; also 0, 1 and what pydantic takes for one: `"true"`, `"no"`, `"off"`, ...
    pub(super) fn boolean(&mut self, name: &'static str) -> Result<Option<bool>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let parsed = match &value {
            Value::Bool(flag) => Some(*flag),
            Value::Number(number) => match number.as_f64() {
                Some(0.0) => Some(false),
                Some(1.0) => Some(true),
                _ => None,
            },
            Value::String(text) => match text.to_ascii_lowercase().as_str() {
                "1" | "true" | "t" | "yes" | "y" | "on" => Some(true),
                "0" | "false" | "f" | "no" | "n" | "off" => Some(false),
                _ => None,
            },
            _ => None,
        };
        parsed
            .map(Some)
            .ok_or_else(|| wrong(name, "a boolean", &value))
    }

    /// A finite number; also one written as a string.
    pub(super) fn number(&mut self, name: &'static str) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let parsed = match &value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok(),
            Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
            _ => None,
        };
        let finite = parsed.filter(|number| number.is_finite());
        finite
            .map(Some)
            .ok_or_else(|| wrong(name, "a number", &value))
    }

    /// An integer; also a number without a fraction, or one written as a string.
    pub(super) fn integer(&mut self, name: &'static str) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        integer(&value)
            .map(Some)
            .ok_or_else(|| wrong(name, "an integer", &value))
    }

    /// A list of integers.
    pub(super) fn integers(&mut self, name: &'static str) -> Result<Vec<i64>, ApiError> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => {
                let parsed = values.iter().map(|value| {
                    integer(value).ok_or_else(|| wrong(name, "a list of integers", value))
                });
                parsed.collect()
            }
            Some(other) => Err(wrong(name, "a list of integers", &other)),
        }
    }
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| whole(number.as_f64()?)),
        Value::String(text) => {
            let text = text.trim();
            text.parse().ok().or_else(|| whole(text.parse().ok()?))
        }
        Value::Bool(flag) => Some(i64::from(*flag)),
        _ => None,
    }
}

/// The integer that `number` is, if it is one that a double holds exactly.
fn whole(number: f64) -> Option<i64> {
    const EXACT: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;
    (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
}

/// The error for a value of the wrong kind.
pub(super) fn wrong(param: &'static str, expected: &str, value: &Value) -> ApiError {
    let mut shown = value.to_string();
    if shown.len() > SHOWN_BYTES {
        shown.truncate(shown.floor_char_boundary(SHOWN_BYTES));
        shown.push('…');
    }
    ApiError::parameter(param, format!("{param} must be {expected}, got {shown}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        Fields::parse(json.as_bytes()).expect("the test's JSON is an object")
    }

    #[test]
    fn strings_become_booleans_and_numbers_as_in_pydantic() {
        let mut fields =
            fields(r#"{"a": "True", "b": "off", "c": "10", "d": 3.0, "e": "0.5", "f": 1}"#);
        assert_eq!(fields.boolean("a").unwrap(), Some(true));
        assert_eq!(fields.boolean("b").unwrap(), Some(false));
        assert_eq!(fields.integer("c").unwrap(), Some(10));
        assert_eq!(fields.integer("d").unwrap(), Some(3));
        assert_eq!(fields.number("e").unwrap(), Some(0.5));
        assert_eq!(fields.boolean("f").unwrap(), Some(true));
    }

    #[test]
    fn null_counts_as_absent() {
        assert_eq!(fields(r#"{"n": null}"#).integer("n").unwrap(), None);
    }

    #[test]
    fn wrong_values_are_refused_by_name() {
        let check = |json: &str, expect: &str| {
            let error = fields(json).integer("n").unwrap_err();
            assert_eq!(error.to_string(), expect);
        };
        check(r#"{"n": 1.5}"#, "n must be an integer, got 1.5");
        check(r#"{"n": "many"}"#, "n must be an integer, got \"many\"");
        check(r#"{"n": []}"#, "n must be an integer, got []");
        assert!(fields(r#"{"t": "inf"}"#).number("t").is_err());
        assert!(fields(r#"{"b": 2}"#).boolean("b").is_err());
    }
}
