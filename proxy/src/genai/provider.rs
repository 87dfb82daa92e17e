//! Who runs the model, where an answer's head tells. Most servers do not say, and a wrong
//! `gen_ai.provider.name` is worse than none: no guess is made from ids or bodies.

use http::HeaderMap;
use http::header::SERVER;

/// OpenAI's own; Azure, which has OpenAI's other headers too, has no organizations.
const OPENAI_ORGANIZATION: &str = "openai-organization";

pub(super) fn of(headers: &HeaderMap) -> Option<&'static str> {
    if headers.contains_key(OPENAI_ORGANIZATION) {
        return Some("openai");
    }
    let server = headers.get(SERVER)?;
    (server == "llama.cpp").then_some("llama.cpp")
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn a_provider_is_named_only_by_its_own_headers() {
        for (name, value, provider) in [
            ("server", "llama.cpp", Some("llama.cpp")),
            ("server", "uvicorn", None),
            ("openai-organization", "acme", Some("openai")),
            ("openai-version", "2020-10-01", None),
        ] {
            let name = HeaderName::from_static(name);
            let headers = HeaderMap::from_iter([(name, HeaderValue::from_static(value))]);
            assert_eq!(of(&headers), provider, "{value}");
        }
    }
}
