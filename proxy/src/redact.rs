//! Secrets out of `url.query`: the values of keys known to carry a credential become `REDACTED`.
//!
//! The list is that of the specification, which matches keys with their case, and `api_key`.
//! <https://opentelemetry.io/docs/specs/semconv/registry/attributes/url/#url-query>

use std::borrow::Cow;

const SENSITIVE_KEYS: &[&str] = &[
    "AWSAccessKeyId",
    "Signature",
    "X-Amz-Credential",
    "X-Amz-Security-Token",
    "X-Amz-Signature",
    "X-Goog-Signature",
    "api_key",
    "sig",
];

const REDACTED: &str = "REDACTED";

/// `query` with the values of sensitive keys replaced; borrowed when there is none.
pub(crate) fn redact_query(query: &str) -> Cow<'_, str> {
    if !query.split('&').any(is_sensitive) {
        return Cow::Borrowed(query);
    }
    let mut redacted = String::with_capacity(query.len());
    for (index, pair) in query.split('&').enumerate() {
        if index > 0 {
            redacted.push('&');
        }
        match pair.split_once('=') {
            Some((key, _)) if is_sensitive(pair) => {
                redacted.push_str(key);
                redacted.push('=');
                redacted.push_str(REDACTED);
            }
            _ => redacted.push_str(pair),
        }
    }
    Cow::Owned(redacted)
}

fn is_sensitive(pair: &str) -> bool {
    pair.split_once('=')
        .is_some_and(|(key, _)| SENSITIVE_KEYS.contains(&key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_sensitive_keys_are_redacted_and_the_rest_kept() {
        for (query, expected) in [
            ("", ""),
            ("q=a&b", "q=a&b"),
            ("q=OpenTelemetry&sig=s3cret", "q=OpenTelemetry&sig=REDACTED"),
            (
                "api_key=sk-1&api_key=sk-2",
                "api_key=REDACTED&api_key=REDACTED",
            ),
            ("sig=a=b&x=1", "sig=REDACTED&x=1"),
            ("sig", "sig"),
            ("sig=", "sig=REDACTED"),
            (
                "X-Amz-Signature=1&X-Amz-Credential=2&X-Amz-Date=3",
                "X-Amz-Signature=REDACTED&X-Amz-Credential=REDACTED&X-Amz-Date=3",
            ),
            ("SIG=kept", "SIG=kept"),
        ] {
            assert_eq!(redact_query(query), expected);
        }
    }

    #[test]
    fn a_query_without_secrets_is_not_copied() {
        assert!(matches!(
            redact_query("model=a&stream=true"),
            Cow::Borrowed(_)
        ));
    }
}
