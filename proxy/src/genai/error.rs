//! The error that a model's answer may have in it though its status says that all is well: by then the head was sent.

use std::borrow::Cow;

/// What an error is called that calls itself nothing of use.
const OTHER: &str = "_OTHER";

/// Longest name of an error. What is longer is a sentence.
const MAX_NAME_BYTES: usize = 64;

/// What has been said of an error.
#[derive(Default)]
pub(super) struct ModelError {
    /// Whether there is one.
    pub(super) is_there: bool,
    code: Option<String>,
    number: Option<i64>,
    kind: Option<String>,
}

impl ModelError {
    /// Its code, as a name.
    pub(super) fn code(&mut self, code: &str) {
        keep_name(&mut self.code, code);
    }

    /// Its code, where that is a number: vLLM's and llama.cpp's are statuses.
    pub(super) fn number(&mut self, number: i64) {
        self.number.get_or_insert(number);
    }

    /// The kind of error that it is.
    pub(super) fn kind(&mut self, kind: &str) {
        keep_name(&mut self.kind, kind);
    }

    /// The value of `error.type`, which must have few values: a name, or a status.
    pub(super) fn error_type(&self) -> Option<Cow<'static, str>> {
        if !self.is_there {
            return None;
        }
        let status = || {
            let status = self.number.filter(|number| (400..600).contains(number));
            status.map(|status| status.to_string())
        };
        let name = self.code.clone().or_else(|| self.kind.clone());
        Some(name.or_else(status).map_or(OTHER.into(), Cow::from))
    }
}

fn keep_name(slot: &mut Option<String>, text: &str) {
    let is_name = text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.len() <= MAX_NAME_BYTES
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    if slot.is_none() && is_name {
        *slot = Some(text.to_owned());
    }
}
