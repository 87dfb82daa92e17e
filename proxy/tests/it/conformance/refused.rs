//! Requests that never reach an upstream, nor pingora's phases.

use super::{BASE, Case, Upstream};

const REFUSED: Case = Case {
    upstream: Upstream::NotAsked,
    name: "GET",
    status: 400,
    error_type: Some("invalid_request"),
    ..BASE
};

pub(super) const CASES: &[Case] = &[
    Case {
        title: "what is no HTTP leaves a span that says so",
        lines: &["no http at all"],
        name: "HTTP",
        has: &[
            ("http.request.method", "_OTHER"),
            ("client.address", "127.0.0.1"),
            ("url.scheme", "http"),
        ],
        lacks: &["url.path", "http.route", "network.protocol.version"],
        ..REFUSED
    },
    Case {
        title: "TLS where none is spoken",
        lines: &["\x16\x03\x01\x02\x00\x01\x00\x01"],
        name: "HTTP",
        has: &[("http.request.method", "_OTHER")],
        lacks: &["http.request.method_original", "url.path"],
        ..REFUSED
    },
    Case {
        title: "a length that is no number",
        lines: &["GET /health HTTP/1.1", "Host: a:81", "Content-Length: x"],
        name: "GET /health",
        has: &[
            ("url.path", "/health"),
            ("server.address", "a"),
            ("server.port", "81"),
            ("network.protocol.version", "1.1"),
        ],
        ..REFUSED
    },
    Case {
        title: "two lengths that differ",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "Content-Length: 1",
            "Content-Length: 2",
        ],
        name: "GET /health",
        ..REFUSED
    },
    Case {
        title: "a request that names no server",
        lines: &["GET /health HTTP/1.1"],
        name: "GET /health",
        ..REFUSED
    },
    Case {
        title: "a request that names two",
        lines: &["GET /health HTTP/1.1", "Host: a", "Host: b"],
        name: "GET /health",
        ..REFUSED
    },
    Case {
        title: "a header over two lines",
        lines: &["GET /health HTTP/1.1", "Host: a", "Accept: a", " b"],
        name: "GET /health",
        ..REFUSED
    },
    Case {
        title: "chunks that are not the last of the codings",
        lines: &[
            "POST /health HTTP/1.1",
            "Host: a",
            "Transfer-Encoding: chunked, gzip",
        ],
        name: "POST /health",
        ..REFUSED
    },
    Case {
        title: "a space before a colon",
        lines: &["GET /health HTTP/1.1", "Host: a", "Accept : a"],
        name: "GET /health",
        ..REFUSED
    },
    Case {
        title: "a version from the future",
        lines: &["GET /health HTTP/9.9", "Host: a"],
        name: "GET /health",
        ..REFUSED
    },
    Case {
        title: "a header without a colon",
        lines: &["GET /health HTTP/1.1", "Host: a", "no colon"],
        name: "GET /health",
        ..REFUSED
    },
    Case {
        title: "a refused request continues its trace",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "Content-Length: x",
        ],
        name: "GET /health",
        continues: true,
        ..REFUSED
    },
    Case {
        title: "CONNECT is refused",
        lines: &["CONNECT a:1 HTTP/1.1", "Host: a:1"],
        name: "CONNECT",
        status: 405,
        error_type: Some("method_not_allowed"),
        has: &[("http.request.method", "CONNECT")],
        ..REFUSED
    },
    Case {
        title: "a chunk that has no size",
        lines: &[
            "POST /tokenize HTTP/1.1",
            "Host: a",
            "Transfer-Encoding: chunked",
        ],
        body: "not a size\r\n",
        upstream: Upstream::Asked,
        name: "POST /tokenize",
        ..REFUSED
    },
];
