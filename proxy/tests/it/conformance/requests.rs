//! What a request says of itself.

use super::{BASE, Case};

pub(super) const CASES: &[Case] = &[
    Case {
        title: "a known route is in the name",
        lines: &[
            "GET /v1/models HTTP/1.1",
            "Host: localhost:8000",
            "User-Agent: probe/1.0",
        ],
        name: "GET /v1/models",
        has: &[
            ("http.request.method", "GET"),
            ("http.route", "/v1/models"),
            ("url.path", "/v1/models"),
            ("url.scheme", "http"),
            ("server.address", "localhost"),
            ("server.port", "8000"),
            ("client.address", "127.0.0.1"),
            ("network.peer.address", "127.0.0.1"),
            ("network.protocol.version", "1.1"),
            ("user_agent.original", "probe/1.0"),
            ("http.response.status_code", "200"),
            ("http.response.body.size", "8"),
        ],
        lacks: &[
            "url.query",
            "error.type",
            "http.request.body.size",
            "http.request.method_original",
        ],
        ..BASE
    },
    Case {
        title: "a body's size is that of its payload",
        lines: &[
            "POST /v1/completions HTTP/1.1",
            "Host: a",
            "Content-Length: 13",
        ],
        body: r#"{"model":"m"}"#,
        name: "POST /v1/completions",
        has: &[("http.request.body.size", "13")],
        ..BASE
    },
    Case {
        title: "a chunked body's size is that of its payload, too",
        lines: &[
            "POST /v1/chat/completions HTTP/1.1",
            "Host: a",
            "Transfer-Encoding: chunked",
        ],
        body: "5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
        name: "POST /v1/chat/completions",
        has: &[("http.request.body.size", "6")],
        ..BASE
    },
    Case {
        title: "a length beside chunks does not count, and what it smuggles is not served",
        lines: &[
            "POST /tokenize HTTP/1.1",
            "Host: a",
            "Content-Length: 4",
            "Transfer-Encoding: chunked",
        ],
        body: "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        name: "POST /tokenize",
        sent: &[("content-length", None)],
        ..BASE
    },
    Case {
        title: "a client of HTTP/1.0 need not name the server",
        lines: &["GET /health HTTP/1.0"],
        name: "GET /health",
        has: &[("network.protocol.version", "1.0")],
        lacks: &["http.request.body.size"],
        ..BASE
    },
    Case {
        title: "a route with a parameter",
        lines: &["GET /v1/models/facebook/opt-125m HTTP/1.1", "Host: a"],
        name: "GET /v1/models/{model}",
        has: &[
            ("http.route", "/v1/models/{model}"),
            ("url.path", "/v1/models/facebook/opt-125m"),
        ],
        ..BASE
    },
    Case {
        title: "an unknown path is never in the name",
        lines: &["GET /users/42 HTTP/1.1", "Host: a"],
        name: "GET",
        has: &[("url.path", "/users/42")],
        lacks: &["http.route"],
        ..BASE
    },
    Case {
        title: "an unknown method is _OTHER, with the original beside it",
        lines: &["BREW /pot HTTP/1.1", "Host: a"],
        name: "HTTP",
        has: &[
            ("http.request.method", "_OTHER"),
            ("http.request.method_original", "BREW"),
        ],
        ..BASE
    },
    Case {
        title: "an unknown method on a known route keeps the route",
        lines: &["BREW /health HTTP/1.1", "Host: a"],
        name: "HTTP /health",
        has: &[("http.route", "/health")],
        ..BASE
    },
    Case {
        title: "methods are told apart by case",
        lines: &["get /health HTTP/1.1", "Host: a"],
        name: "HTTP /health",
        has: &[
            ("http.request.method", "_OTHER"),
            ("http.request.method_original", "get"),
        ],
        ..BASE
    },
    Case {
        title: "QUERY is a known method",
        lines: &["QUERY /v1/models HTTP/1.1", "Host: a"],
        name: "QUERY /v1/models",
        has: &[("http.request.method", "QUERY")],
        lacks: &["http.request.method_original"],
        ..BASE
    },
    Case {
        title: "OPTIONS of the server has no route",
        lines: &["OPTIONS * HTTP/1.1", "Host: a"],
        name: "OPTIONS",
        lacks: &["http.route"],
        ..BASE
    },
    Case {
        title: "DELETE is known",
        lines: &["DELETE /v1/responses/resp_1 HTTP/1.1", "Host: a"],
        name: "DELETE /v1/responses/{response_id}",
        ..BASE
    },
    Case {
        title: "a query is kept, and its secrets are not",
        lines: &[
            "GET /v1/models?limit=2&api_key=sk-1&sig=abc HTTP/1.1",
            "Host: a",
        ],
        name: "GET /v1/models",
        has: &[
            ("url.query", "limit=2&api_key=REDACTED&sig=REDACTED"),
            ("url.path", "/v1/models"),
        ],
        ..BASE
    },
    Case {
        title: "every known credential is redacted",
        lines: &[
            "GET /?X-Amz-Signature=1&X-Amz-Credential=2&X-Amz-Security-Token=3&AWSAccessKeyId=4&Signature=5&X-Goog-Signature=6 HTTP/1.1",
            "Host: a",
        ],
        name: "GET /",
        has: &[(
            "url.query",
            "X-Amz-Signature=REDACTED&X-Amz-Credential=REDACTED&X-Amz-Security-Token=REDACTED&AWSAccessKeyId=REDACTED&Signature=REDACTED&X-Goog-Signature=REDACTED",
        )],
        ..BASE
    },
    Case {
        title: "a host without a port has no server.port",
        lines: &["GET /health HTTP/1.1", "Host: llm.example"],
        name: "GET /health",
        has: &[("server.address", "llm.example")],
        lacks: &["server.port", "user_agent.original"],
        ..BASE
    },
    Case {
        title: "an IPv6 host has no brackets",
        lines: &["GET /health HTTP/1.1", "Host: [::1]:8000"],
        name: "GET /health",
        has: &[("server.address", "::1"), ("server.port", "8000")],
        ..BASE
    },
    Case {
        title: "the authority of an absolute target is the server",
        lines: &[
            "GET http://llm.example:81/health HTTP/1.1",
            "Host: llm.example:81",
        ],
        name: "GET /health",
        has: &[
            ("server.address", "llm.example"),
            ("server.port", "81"),
            ("url.path", "/health"),
        ],
        ..BASE
    },
    Case {
        title: "forwarding headers are believed from nobody, and extended",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "X-Forwarded-For: 6.6.6.6",
            "X-Forwarded-Proto: https",
            "X-Forwarded-Host: evil.example",
            "Forwarded: for=7.7.7.7;host=evil.example",
        ],
        name: "GET /health",
        has: &[
            ("client.address", "127.0.0.1"),
            ("server.address", "a"),
            ("url.scheme", "http"),
        ],
        sent: &[
            ("x-forwarded-for", Some("6.6.6.6, 127.0.0.1")),
            ("x-forwarded-proto", Some("http")),
            ("host", Some("a")),
        ],
        ..BASE
    },
    Case {
        title: "hop-by-hop headers end here",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "Connection: keep-alive, X-Hop",
            "X-Hop: 1",
            "Keep-Alive: timeout=5",
            "TE: trailers",
            "X-End: 2",
        ],
        name: "GET /health",
        sent: &[
            ("connection", None),
            ("x-hop", None),
            ("keep-alive", None),
            ("te", None),
            ("x-end", Some("2")),
        ],
        ..BASE
    },
    Case {
        title: "headers that are named are captured, sanitized where asked",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "X-Tenant: blue",
            "X-Tenant: green",
            "Authorization: Bearer sk-1",
            "Cookie: private",
        ],
        name: "GET /health",
        has: &[
            ("http.request.header.x-tenant", r#"["blue","green"]"#),
            ("http.request.header.authorization", r#"["[REDACTED]"]"#),
            ("http.response.header.x-served-by", r#"["echo"]"#),
        ],
        lacks: &["http.request.header.cookie"],
        ..BASE
    },
];
