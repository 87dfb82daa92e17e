//! The file of API keys:
//!
//! ```toml
//! [[key]]
//! name = "alice"                # what its requests' spans say
//! key = "sk-…"                  # or sha256 = "…", its SHA-256 in hexadecimal digits
//! requests_per_minute = 60      # may be left out, as may
//! tokens_per_minute = 100000
//! ```
//!
//! Only digests are kept, and all are compared with what a request shows, in a time that does not depend
//! on how much of it is right.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::{line_of, read_text};
use crate::error::FileError;

const DIGEST_BYTES: usize = 32;

/// One key.
#[derive(PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) name: Arc<str>,
    pub(super) digest: [u8; DIGEST_BYTES],
    pub(super) requests_per_minute: Option<u32>,
    pub(super) tokens_per_minute: Option<u32>,
}

impl fmt::Debug for Key {
    /// Without the digest: a short key can be guessed from it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Key").field(&self.name).finish()
    }
}

/// All keys.
#[derive(Debug)]
pub(crate) struct ApiKeys(Vec<Key>);

impl ApiKeys {
    /// The key that a request shows.
    pub(super) fn find(&self, presented: &[u8]) -> Option<&Key> {
        let presented = digest(&SHA256, presented);
        let mut found = None;
        for key in &self.0 {
            if key.digest[..].ct_eq(presented.as_ref()).into() {
                found = Some(key);
            }
        }
        found
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|key| &*key.name == name)
    }
}

pub(super) fn read(path: &Path) -> Result<ApiKeys, FileError> {
    let text = read_text(path).map_err(|error| FileError::new(path, error))?;
    parse(&text).map_err(|(at, what)| {
        let line = line_of(&text, at);
        FileError::new(path, format!("line {line}: {what}"))
    })
}

/// What is wrong, and at which byte. Values are not shown: they may be keys.
type Wrong = (usize, String);

fn parse(text: &str) -> Result<ApiKeys, Wrong> {
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        (at, error.message().to_owned())
    })?;
    let mut keys: Vec<Key> = Vec::new();
    for (name, value) in table.get_ref() {
        let DeValue::Array(entries) = value.get_ref() else {
            return Err((name.span().start, "only [[key]] is known".to_owned()));
        };
        if name.get_ref() != "key" {
            return Err((name.span().start, "only [[key]] is known".to_owned()));
        }
        for entry in entries {
            let key = key(entry)?;
            if keys.iter().any(|known| known.name == key.name) {
                let what = format!("the name {} is there twice", key.name);
                return Err((entry.span().start, what));
            }
            keys.push(key);
        }
    }
    if keys.is_empty() {
        return Err((0, "there is no [[key]]".to_owned()));
    }
    Ok(ApiKeys(keys))
}

fn key(entry: &Spanned<DeValue<'_>>) -> Result<Key, Wrong> {
    let start = entry.span().start;
    let DeValue::Table(members) = entry.get_ref() else {
        return Err((start, "key is no table".to_owned()));
    };
    let (mut name, mut secret) = (None, None);
    let (mut requests_per_minute, mut tokens_per_minute) = (None, None);
    for (member, value) in members {
        let wrong = |allowed: &str| {
            (
                member.span().start,
                format!("{} is {allowed}", member.get_ref()),
            )
        };
        match &**member.get_ref() {
            "name" => {
                let text = text(value).filter(|text| !text.is_empty());
                name = Some(Arc::from(text.ok_or_else(|| wrong("a text"))?));
            }
            "key" | "sha256" if secret.is_some() => {
                return Err(wrong("one of two: key or sha256"));
            }
            "key" => {
                let text = text(value).filter(|text| !text.is_empty());
                let text = text.ok_or_else(|| wrong("a text"))?;
                let digest = digest(&SHA256, text.as_bytes());
                secret = Some(digest.as_ref().try_into().expect("the length of SHA-256"));
            }
            "sha256" => {
                let digits = text(value).and_then(hex);
                secret = Some(digits.ok_or_else(|| wrong("64 hexadecimal digits"))?);
            }
            "requests_per_minute" => {
                requests_per_minute = Some(count(value).ok_or_else(|| wrong("a number above 0"))?);
            }
            "tokens_per_minute" => {
                tokens_per_minute = Some(count(value).ok_or_else(|| wrong("a number above 0"))?);
            }
            _ => {
                let known = "none of name, key, sha256, requests_per_minute, tokens_per_minute";
                return Err(wrong(known));
            }
        }
    }
    Ok(Key {
        name: name.ok_or_else(|| (start, "a key has no name".to_owned()))?,
        digest: secret.ok_or_else(|| (start, "a key has neither key nor sha256".to_owned()))?,
        requests_per_minute,
        tokens_per_minute,
    })
}

fn text<'a>(value: &'a Spanned<DeValue<'_>>) -> Option<&'a str> {
    match value.get_ref() {
        DeValue::String(text) => Some(text),
        _ => None,
    }
}

fn count(value: &Spanned<DeValue<'_>>) -> Option<u32> {
    match value.get_ref() {
        DeValue::Integer(number) if number.radix() == 10 => {
            number.as_str().parse().ok().filter(|&count| count > 0)
        }
        _ => None,
    }
}

fn hex(digits: &str) -> Option<[u8; DIGEST_BYTES]> {
    let digits = digits.as_bytes();
    if digits.len() != 2 * DIGEST_BYTES {
        return None;
    }
    let mut bytes = [0; DIGEST_BYTES];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_itself_or_by_its_digest() {
        let text = "[[key]]\nname = \"a\"\nkey = \"abc\"\nrequests_per_minute = 5\n\
                    [[key]]\nname = \"b\"\ntokens_per_minute = 7\n\
                    sha256 = \"2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae\"";
        let keys = parse(text).expect("valid");
        let a = keys.find(b"abc").expect("a key");
        assert_eq!(
            (&*a.name, a.requests_per_minute, a.tokens_per_minute),
            ("a", Some(5), None)
        );
        let b = keys.find(b"foo").expect("a key");
        assert_eq!(
            (&*b.name, b.requests_per_minute, b.tokens_per_minute),
            ("b", None, Some(7))
        );
        for unknown in ["", "ab", "abcd", "ABC"] {
            assert_eq!(keys.find(unknown.as_bytes()), None);
        }
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_with_its_line_and_without_the_key() {
        let digest = "sha256 = \"2c26\"";
        for (text, line, part) in [
            ("", 1, "no [[key]]"),
            ("keys = 1", 1, "[[key]]"),
            ("[[keys]]\nname = \"a\"", 1, "[[key]]"),
            ("[[key]]\nkey = \"secret\"", 1, "no name"),
            ("[[key]]\nname = \"a\"", 1, "neither key nor sha256"),
            ("[[key]]\nname = \"a\"\nkey = 5", 3, "a text"),
            ("[[key]]\nname = \"a\"\nkey = \"\"", 3, "a text"),
            (
                &format!("[[key]]\nname = \"a\"\n{digest}"),
                3,
                "64 hexadecimal",
            ),
            (
                &format!("[[key]]\nname = \"a\"\nkey = \"secret\"\n{digest}"),
                4,
                "one of two",
            ),
            (
                "[[key]]\nname = \"a\"\nkey = \"secret\"\nrpm = 5",
                4,
                "none of name",
            ),
            (
                "[[key]]\nname = \"a\"\nkey = \"secret\"\ntokens_per_minute = 0",
                4,
                "above 0",
            ),
            (
                "[[key]]\nname = \"a\"\nkey = \"x\"\n[[key]]\nname = \"a\"\nkey = \"y\"",
                4,
                "twice",
            ),
            ("[[key]\nname = \"secret\"", 1, ""),
        ] {
            let (at, what) = parse(text).err().unwrap_or_else(|| panic!("{text}"));
            assert_eq!(line_of(text, at), line, "{text}: {what}");
            assert!(
                what.contains(part) && !what.contains("secret"),
                "{text}: {what}"
            );
        }
    }
}
