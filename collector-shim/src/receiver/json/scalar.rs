//! The leaves of OTLP/JSON: numbers that may be in quotes, ids, enums, bytes.

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::{JsonError, Result};

pub(super) const TRACE_ID_BYTES: usize = 16;
pub(super) const SPAN_ID_BYTES: usize = 8;

/// A number, or one in quotes.
#[derive(Deserialize, Debug)]
#[serde(untagged)]
pub(super) enum Scalar {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
}

/// The hex of exactly `length_bytes`, or nothing for absent, null and empty.
pub(super) fn id(
    field: &'static str,
    text: Option<String>,
    length_bytes: usize,
) -> Result<Vec<u8>> {
    let text = text.unwrap_or_default();
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|digit| digit.to_digit(16).map(|digit| digit as u8))
        .collect();
    match digits {
        Some(digits) if digits.is_empty() || digits.len() == 2 * length_bytes => Ok(digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect()),
        _ => {
            let expected = match length_bytes {
                TRACE_ID_BYTES => "32 hex digits",
                _ => "16 hex digits",
            };
            Err(JsonError::Value {
                field,
                value: format!("{text:?}"),
                expected,
            })
        }
    }
}

/// An integer that fits `T`; 0 for absent and null. `1e3` and `5.0` are integers too.
pub(super) fn integer<T>(field: &'static str, scalar: Option<Scalar>) -> Result<T>
where
    T: TryFrom<i128> + Default,
{
    let Some(scalar) = scalar else {
        return Ok(T::default());
    };
    let wide = match &scalar {
        Scalar::Unsigned(number) => Some(i128::from(*number)),
        Scalar::Signed(number) => Some(i128::from(*number)),
        Scalar::Float(number) => (number.fract() == 0.0).then_some(*number as i128),
        Scalar::Text(text) => text.trim().parse().ok(),
    };
    wide.and_then(|wide| T::try_from(wide).ok()).ok_or_else(|| {
        let expected = "an integer of its field's size";
        JsonError::Value {
            field,
            value: scalar.shown(),
            expected,
        }
    })
}

/// An integer, known or not, or one of the names that `number_of` knows.
pub(super) fn enumeration(
    field: &'static str,
    scalar: Option<Scalar>,
    number_of: impl Fn(&str) -> Option<i32>,
) -> Result<i32> {
    match &scalar {
        Some(Scalar::Text(name)) if number_of(name).is_some() => {
            Ok(number_of(name).unwrap_or_default())
        }
        _ => integer(field, scalar),
    }
}

pub(super) fn double(scalar: &Scalar) -> Result<f64> {
    match scalar {
        Scalar::Unsigned(number) => Ok(*number as f64),
        Scalar::Signed(number) => Ok(*number as f64),
        Scalar::Float(number) => Ok(*number),
        // Rust reads NaN, Infinity and -Infinity as proto3's JSON writes them.
        Scalar::Text(text) => text.trim().parse().map_err(|_| JsonError::Value {
            field: "doubleValue",
            value: scalar.shown(),
            expected: "a number",
        }),
    }
}

/// Standard or URL-safe, padded or not, as proto3's JSON allows.
pub(super) fn base64_bytes(text: &str) -> Result<Vec<u8>> {
    const CONFIG: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const ENGINE: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, CONFIG);
    let standard = text.replace('-', "+").replace('_', "/");
    ENGINE.decode(standard).map_err(|_| JsonError::Value {
        field: "bytesValue",
        value: format!("{text:?}"),
        expected: "base64",
    })
}

impl Scalar {
    fn shown(&self) -> String {
        match self {
            Scalar::Unsigned(number) => number.to_string(),
            Scalar::Signed(number) => number.to_string(),
            Scalar::Float(number) => number.to_string(),
            Scalar::Text(text) => format!("{text:?}"),
        }
    }
}
