//! What upstreams answer, well and badly.

use super::{BASE, Case, Upstream};

pub(super) const CASES: &[Case] = &[
    Case {
        title: "a 4xx leaves the status unset, and is an error of the attempt",
        lines: &["GET /health HTTP/1.1", "Host: a"],
        upstream: Upstream::Answers("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"),
        name: "GET /health",
        status: 404,
        ..BASE
    },
    Case {
        title: "a 429 leaves the status unset",
        lines: &["GET /health HTTP/1.1", "Host: a"],
        upstream: Upstream::Answers("HTTP/1.1 429 Slow Down\r\ncontent-length: 0\r\n\r\n"),
        name: "GET /health",
        status: 429,
        ..BASE
    },
    Case {
        title: "a 500 is an error",
        lines: &["GET /health HTTP/1.1", "Host: a"],
        upstream: Upstream::Answers("HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n"),
        name: "GET /health",
        status: 500,
        error_type: Some("500"),
        ..BASE
    },
    Case {
        title: "a 503 is an error",
        lines: &["GET /health HTTP/1.1", "Host: a"],
        upstream: Upstream::Answers("HTTP/1.1 503 Later\r\ncontent-length: 0\r\n\r\n"),
        name: "GET /health",
        status: 503,
        error_type: Some("503"),
        ..BASE
    },
    Case {
        title: "a redirect is passed on, not followed",
        lines: &["GET /docs HTTP/1.1", "Host: a"],
        upstream: Upstream::Answers(
            "HTTP/1.1 307 Elsewhere\r\nlocation: /docs/\r\ncontent-length: 0\r\n\r\n",
        ),
        name: "GET /docs",
        status: 307,
        ..BASE
    },
    Case {
        title: "a 204 has a body of size 0",
        lines: &["GET /health HTTP/1.1", "Host: a"],
        upstream: Upstream::Answers("HTTP/1.1 204 No Content\r\n\r\n"),
        name: "GET /health",
        status: 204,
        has: &[("http.response.body.size", "0")],
        ..BASE
    },
    Case {
        title: "a 304 has no body, whatever its length says",
        lines: &["GET /health HTTP/1.1", "Host: a"],
        upstream: Upstream::Answers("HTTP/1.1 304 Not Modified\r\ncontent-length: 8\r\n\r\n"),
        name: "GET /health",
        status: 304,
        has: &[("http.response.body.size", "0")],
        ..BASE
    },
    Case {
        title: "the answer to HEAD has no body, whatever its length says",
        lines: &["HEAD /health HTTP/1.1", "Host: a"],
        upstream: Upstream::Answers("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n"),
        name: "HEAD /health",
        has: &[
            ("http.request.method", "HEAD"),
            ("http.response.body.size", "0"),
        ],
        ..BASE
    },
    Case {
        title: "a HEAD that fails is an error like any other",
        lines: &["HEAD /health HTTP/1.1", "Host: a"],
        upstream: Upstream::Answers("HTTP/1.1 500 Oh\r\ncontent-length: 8\r\n\r\n"),
        name: "HEAD /health",
        status: 500,
        error_type: Some("500"),
        ..BASE
    },
    Case {
        title: "a 100 is not the answer",
        lines: &[
            "POST /tokenize HTTP/1.1",
            "Host: a",
            "Expect: 100-continue",
            "Content-Length: 2",
        ],
        body: "{}",
        upstream: Upstream::Answers(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        ),
        name: "POST /tokenize",
        ..BASE
    },
    Case {
        title: "several 1xx are not the answer, nor is an error behind them hidden",
        lines: &["GET /health HTTP/1.1", "Host: a"],
        upstream: Upstream::Answers(
            "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n\
             HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n",
        ),
        name: "GET /health",
        status: 500,
        error_type: Some("500"),
        ..BASE
    },
    Case {
        title: "a chunked answer's size is that of its payload",
        lines: &["GET /health HTTP/1.1", "Host: a"],
        upstream: Upstream::Answers(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\n",
        ),
        name: "GET /health",
        has: &[("http.response.body.size", "6")],
        attempt_has: &[
            ("http.response.body.size", "6"),
            ("network.protocol.version", "1.1"),
        ],
        ..BASE
    },
    Case {
        title: "chunks in both directions",
        lines: &[
            "POST /tokenize HTTP/1.1",
            "Host: a",
            "Transfer-Encoding: chunked",
        ],
        body: "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        upstream: Upstream::Answers(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfghi\r\n0\r\n\r\n",
        ),
        name: "POST /tokenize",
        has: &[
            ("http.request.body.size", "5"),
            ("http.response.body.size", "4"),
        ],
        ..BASE
    },
    Case {
        title: "trailers do not count",
        lines: &["GET /health HTTP/1.1", "Host: a"],
        upstream: Upstream::Answers(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n",
        ),
        name: "GET /health",
        has: &[("http.response.body.size", "2")],
        ..BASE
    },
    Case {
        title: "an answer may end with its connection",
        lines: &["GET /health HTTP/1.1", "Host: a"],
        upstream: Upstream::Answers("HTTP/1.1 200 OK\r\n\r\nuntil the end"),
        name: "GET /health",
        has: &[("http.response.body.size", "13")],
        ..BASE
    },
    Case {
        title: "an answer of HTTP/1.0 is one",
        lines: &["GET /health HTTP/1.1", "Host: a"],
        upstream: Upstream::Answers("HTTP/1.0 200 OK\r\n\r\nold"),
        name: "GET /health",
        has: &[("http.response.body.size", "3")],
        ..BASE
    },
    Case {
        title: "a client of HTTP/1.0 is served",
        lines: &["GET /health HTTP/1.0"],
        name: "GET /health",
        has: &[
            ("network.protocol.version", "1.0"),
            ("server.address", "127.0.0.1"),
        ],
        ..BASE
    },
    Case {
        title: "an upstream that hangs up is a 502 and an error of both",
        lines: &["GET /health HTTP/1.1", "Host: a"],
        upstream: Upstream::Answers(""),
        name: "GET /health",
        status: 502,
        error_type: Some("upstream_closed"),
        attempt_lacks: &["http.response.status_code"],
        ..BASE
    },
    Case {
        title: "one that hangs up within its head is, too",
        lines: &["GET /health HTTP/1.1", "Host: a"],
        upstream: Upstream::Answers("HTTP/1.1 200 OK\r\ncontent-le"),
        name: "GET /health",
        status: 502,
        error_type: Some("upstream_closed"),
        attempt_lacks: &["http.response.status_code"],
        ..BASE
    },
    Case {
        title: "one that hangs up after a 1xx is, too",
        lines: &["GET /health HTTP/1.1", "Host: a"],
        upstream: Upstream::Answers("HTTP/1.1 103 Early Hints\r\n\r\n"),
        name: "GET /health",
        status: 502,
        error_type: Some("upstream_closed"),
        attempt_lacks: &["http.response.status_code"],
        ..BASE
    },
    Case {
        title: "an answer cut short of its length is an error of both",
        lines: &["GET /health HTTP/1.1", "Host: a"],
        upstream: Upstream::Answers("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"),
        name: "GET /health",
        error_type: Some("upstream_closed"),
        attempt_has: &[("http.response.status_code", "200")],
        ..BASE
    },
    Case {
        title: "chunks without an end are an error of both",
        lines: &["GET /health HTTP/1.1", "Host: a"],
        upstream: Upstream::Answers(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        ),
        name: "GET /health",
        error_type: Some("upstream_closed"),
        attempt_has: &[("http.response.body.size", "4")],
        ..BASE
    },
    Case {
        title: "an answer that is no HTTP is a 502",
        lines: &["GET /health HTTP/1.1", "Host: a"],
        upstream: Upstream::Answers("SSH-2.0-OpenSSH_9.9\r\n\r\n"),
        name: "GET /health",
        status: 502,
        error_type: Some("upstream_invalid_response"),
        ..BASE
    },
    Case {
        title: "the upstream's own id of the request is kept on the attempt",
        lines: &["GET /health HTTP/1.1", "Host: a"],
        upstream: Upstream::Answers(
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-request-id: theirs\r\n\r\n",
        ),
        name: "GET /health",
        attempt_has: &[("lantern.upstream.request.id", "theirs")],
        ..BASE
    },
    Case {
        title: "the client's own id of the request goes on and is on the span",
        lines: &["GET /health HTTP/1.1", "Host: a", "X-Request-ID: req_1"],
        name: "GET /health",
        has: &[("lantern.request.id", "req_1")],
        sent: &[("x-request-id", Some("req_1"))],
        ..BASE
    },
];
