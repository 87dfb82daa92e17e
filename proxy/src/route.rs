//! A request's path → its `http.route`: a table of the routes that OpenAI-style servers have.
//!
//! A span's name and `http.route` must have few distinct values, so a path that is not in the
//! table has no route at all; the raw path is never one.
//! <https://opentelemetry.io/docs/specs/semconv/http/http-spans/#name>

/// Routes without a parameter, sorted: looked up by binary search.
const EXACT: &[&str] = &[
    "/",
    "/apply-template",
    "/classify",
    "/completion",
    "/completions",
    "/detokenize",
    "/docs",
    "/embedding",
    "/embeddings",
    "/generate",
    "/generate_stream",
    "/health",
    "/infill",
    "/info",
    "/invocations",
    "/is_sleeping",
    "/load",
    "/metrics",
    "/models",
    "/openapi.json",
    "/ping",
    "/pooling",
    "/props",
    "/ready",
    "/redoc",
    "/rerank",
    "/reranking",
    "/reset_prefix_cache",
    "/score",
    "/server_info",
    "/sleep",
    "/slots",
    "/tokenize",
    "/v1/audio/speech",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/batches",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/files",
    "/v1/images/edits",
    "/v1/images/generations",
    "/v1/images/variations",
    "/v1/load_lora_adapter",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/models",
    "/v1/moderations",
    "/v1/rerank",
    "/v1/responses",
    "/v1/score",
    "/v1/unload_lora_adapter",
    "/v2/rerank",
    "/version",
    "/wake_up",
];

/// A route with one parameter between a prefix and a suffix.
struct Template {
    route: &'static str,
    prefix: &'static str,
    suffix: &'static str,
    /// Whether the parameter may hold slashes: models are named `owner/name`.
    spans_segments: bool,
}

const fn template(
    route: &'static str,
    prefix: &'static str,
    suffix: &'static str,
    spans_segments: bool,
) -> Template {
    Template {
        route,
        prefix,
        suffix,
        spans_segments,
    }
}

const TEMPLATES: &[Template] = &[
    template("/v1/models/{model}", "/v1/models/", "", true),
    template("/v1/responses/{response_id}", "/v1/responses/", "", false),
    template(
        "/v1/responses/{response_id}/cancel",
        "/v1/responses/",
        "/cancel",
        false,
    ),
    template(
        "/v1/responses/{response_id}/input_items",
        "/v1/responses/",
        "/input_items",
        false,
    ),
    template(
        "/v1/chat/completions/{completion_id}",
        "/v1/chat/completions/",
        "",
        false,
    ),
    template("/v1/files/{file_id}", "/v1/files/", "", false),
    template(
        "/v1/files/{file_id}/content",
        "/v1/files/",
        "/content",
        false,
    ),
    template("/v1/batches/{batch_id}", "/v1/batches/", "", false),
    template(
        "/v1/batches/{batch_id}/cancel",
        "/v1/batches/",
        "/cancel",
        false,
    ),
    template("/slots/{slot_id}", "/slots/", "", false),
];

/// The route of `path`, if the table has one.
pub(crate) fn find(path: &str) -> Option<&'static str> {
    if let Ok(index) = EXACT.binary_search(&path) {
        return Some(EXACT[index]);
    }
    TEMPLATES
        .iter()
        .find(|template| template.matches(path))
        .map(|template| template.route)
}

impl Template {
    fn matches(&self, path: &str) -> bool {
        path.strip_prefix(self.prefix)
            .and_then(|rest| rest.strip_suffix(self.suffix))
            .is_some_and(|parameter| {
                !parameter.is_empty() && (self.spans_segments || !parameter.contains('/'))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_routes_are_sorted_for_the_binary_search() {
        assert!(EXACT.is_sorted());
    }

    #[test]
    fn a_path_has_the_route_of_the_table_or_none() {
        for (path, route) in [
            ("/v1/completions", Some("/v1/completions")),
            ("/v1/chat/completions", Some("/v1/chat/completions")),
            ("/v1/models", Some("/v1/models")),
            ("/v1/models/gpt-2", Some("/v1/models/{model}")),
            ("/v1/models/facebook/opt-125m", Some("/v1/models/{model}")),
            ("/v1/models/", None),
            ("/v1/responses/resp_1", Some("/v1/responses/{response_id}")),
            (
                "/v1/responses/resp_1/cancel",
                Some("/v1/responses/{response_id}/cancel"),
            ),
            ("/v1/responses/resp_1/other", None),
            (
                "/v1/files/file-1/content",
                Some("/v1/files/{file_id}/content"),
            ),
            ("/health", Some("/health")),
            ("/health/", None),
            ("/HEALTH", None),
            ("/", Some("/")),
            ("", None),
            ("*", None),
            ("/wp-admin/setup.php", None),
        ] {
            assert_eq!(find(path), route, "{path}");
        }
    }
}
