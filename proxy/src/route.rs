//! A request's path → its `http.route`: a table of the routes that OpenAI-style servers have, and
//! before it those that were configured.
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

/// Routes beside those of the table: `/openai/deployments/{deployment}/chat/completions`. `{name}`
/// stands for one segment of a path, `{name*}` at the end for all that is left.
#[derive(Clone, Debug, Default)]
pub struct Routes(Vec<Configured>);

#[derive(Clone, Debug)]
struct Configured {
    route: &'static str,
    segments: Vec<Segment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Segment {
    Literal(&'static str),
    One,
    Rest,
}

impl Routes {
    /// What [`Routes::add`] takes.
    pub(crate) const ALLOWED: &str =
        "a path whose parameters are whole segments, /v1/things/{id} or /files/{path*}";

    /// One more; those that come first go first. `None` for what is no route.
    pub(crate) fn add(&mut self, route: &str) -> Option<()> {
        // Routes are few and live as long as the program.
        let route: &'static str = route.to_owned().leak();
        let segments: Vec<_> = route
            .strip_prefix('/')?
            .split('/')
            .map(Segment::parse)
            .collect::<Option<_>>()?;
        let rest = segments
            .iter()
            .position(|segment| *segment == Segment::Rest);
        if rest.is_some_and(|at| at + 1 < segments.len()) {
            return None;
        }
        self.0.push(Configured { route, segments });
        Some(())
    }

    /// The route of `path`, if there is one.
    pub(crate) fn find(&self, path: &str) -> Option<&'static str> {
        let configured = self.0.iter().find(|configured| configured.matches(path));
        configured
            .map(|configured| configured.route)
            .or_else(|| find(path))
    }
}

impl Segment {
    fn parse(text: &'static str) -> Option<Self> {
        if let Some(name) = text
            .strip_prefix('{')
            .and_then(|text| text.strip_suffix('}'))
        {
            let (name, segment) = match name.strip_suffix('*') {
                Some(name) => (name, Self::Rest),
                None => (name, Self::One),
            };
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            return (!name.is_empty() && name.bytes().all(is_name)).then_some(segment);
        }
        let is_literal = |byte: u8| byte.is_ascii_graphic() && !b"{}*?#".contains(&byte);
        text.bytes().all(is_literal).then_some(Self::Literal(text))
    }
}

impl Configured {
    fn matches(&self, path: &str) -> bool {
        let Some(path) = path.strip_prefix('/') else {
            return false;
        };
        let mut parts = path.split('/');
        for segment in &self.segments {
            let is_met = match (segment, parts.next()) {
                (Segment::Rest, Some(part)) => return !part.is_empty(),
                (Segment::One, Some(part)) => !part.is_empty(),
                (Segment::Literal(literal), Some(part)) => *literal == part,
                (_, None) => false,
            };
            if !is_met {
                return false;
            }
        }
        parts.next().is_none()
    }
}

/// The route of `path`, if the table has one.
fn find(path: &str) -> Option<&'static str> {
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
    fn a_configured_route_goes_before_the_table() {
        let mut routes = Routes::default();
        for route in ["/api/{tenant}/chat", "/v1/{any}", "/files/{path*}", "/own/"] {
            assert_eq!(routes.add(route), Some(()), "{route}");
        }
        for (path, route) in [
            ("/api/blue/chat", Some("/api/{tenant}/chat")),
            ("/api//chat", None),
            ("/api/blue/chat/", None),
            ("/api/blue", None),
            ("/v1/models", Some("/v1/{any}")),
            ("/v1/models/a", Some("/v1/models/{model}")),
            ("/files/a/b", Some("/files/{path*}")),
            ("/files/", None),
            ("/files", None),
            ("/own/", Some("/own/")),
            ("/own", None),
            ("*", None),
        ] {
            assert_eq!(routes.find(path), route, "{path}");
        }
    }

    #[test]
    fn what_is_no_route_is_refused() {
        for route in [
            "", "a", "/a{b}", "/{}", "/{a b}", "/{a*}/b", "/a?b", "/a b", "/{a",
        ] {
            assert_eq!(Routes::default().add(route), None, "{route}");
        }
    }

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
