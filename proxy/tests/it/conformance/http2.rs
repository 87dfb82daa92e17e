//! The same conventions for clients of HTTP/2, whose requests have streams and no connection of their own.

use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use opentelemetry::trace::Status;
use tokio::net::TcpStream;

use super::check_attributes;
use crate::support::{Client, RawUpstream, TestProxy, within};

struct Case {
    title: &'static str,
    method: &'static [u8],
    /// What the upstream writes before it closes its connection.
    answer: &'static str,
    name: &'static str,
    status: u16,
    error_type: Option<&'static str>,
    has: &'static [(&'static str, &'static str)],
}

const BASE: Case = Case {
    title: "",
    method: b"GET",
    answer: "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nanswered",
    name: "GET /v1/models",
    status: 200,
    error_type: None,
    has: &[],
};

const CASES: &[Case] = &[
    Case {
        title: "a length is that of the body",
        has: &[("http.response.body.size", "8")],
        ..BASE
    },
    Case {
        title: "HEAD has no body",
        method: b"HEAD",
        answer: "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n",
        name: "HEAD /v1/models",
        has: &[("http.response.body.size", "0")],
        ..BASE
    },
    Case {
        title: "QUERY is a known method",
        method: b"QUERY",
        name: "QUERY /v1/models",
        has: &[("http.request.method", "QUERY")],
        ..BASE
    },
    Case {
        title: "an unknown method is _OTHER",
        method: b"BREW",
        name: "HTTP /v1/models",
        has: &[
            ("http.request.method", "_OTHER"),
            ("http.request.method_original", "BREW"),
        ],
        ..BASE
    },
    Case {
        title: "chunks become frames",
        answer: "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        has: &[("http.response.body.size", "5")],
        ..BASE
    },
    Case {
        title: "a 103 is not the answer",
        answer: "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        has: &[("http.response.status_code", "200")],
        ..BASE
    },
    Case {
        title: "a 404 is no error of the server",
        answer: "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        status: 404,
        ..BASE
    },
    Case {
        title: "a 500 is",
        answer: "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n",
        status: 500,
        error_type: Some("500"),
        ..BASE
    },
    Case {
        title: "an upstream that hangs up is a 502",
        answer: "",
        status: 502,
        error_type: Some("upstream_closed"),
        ..BASE
    },
    Case {
        title: "an answer cut short has the status that was sent",
        answer: "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nanswered",
        error_type: Some("upstream_closed"),
        ..BASE
    },
    Case {
        title: "what is no HTTP is a 502",
        answer: "no http at all\r\n\r\n",
        status: 502,
        error_type: Some("upstream_invalid_response"),
        ..BASE
    },
];

fn request(method: &[u8]) -> Request<Full<hyper::body::Bytes>> {
    let request = Request::get("http://a/v1/models").body(Full::default());
    let mut request = request.expect("a request");
    *request.method_mut() = Method::from_bytes(method).expect("a token");
    request
}

#[tokio::test]
async fn spans_follow_the_conventions_for_streams_of_http2_too() {
    let upstream = RawUpstream::bind().await;
    let mut proxy = TestProxy::in_front_of(upstream.address()).await;
    let stream = TcpStream::connect(proxy.address).await;
    let client = Client::http2(stream.expect("it listens")).await;
    for case in CASES {
        let title = case.title;
        let answering = async {
            let mut server = upstream.accept().await;
            server.read_message().await;
            server.write(case.answer).await;
        };
        let (response, ()) = tokio::join!(client.send(request(case.method)), answering);
        assert_eq!(response.status(), case.status, "{title}");
        let body = within("the body's end", response.into_body().collect()).await;
        let is_cut = case.status == 200 && case.error_type.is_some();
        assert_eq!(body.is_err(), is_cut, "{title}");

        let span = proxy.spans.next().await;
        assert_eq!(span.name, case.name, "{title}");
        let status = case.status.to_string();
        let mut has = vec![
            ("network.protocol.version", "2"),
            ("http.response.status_code", &status),
        ];
        has.extend(case.has);
        let error_type = case.error_type.map(|error| ("error.type", error));
        has.extend(error_type);
        let lacks = if error_type.is_some() {
            &[][..]
        } else {
            &["error.type"]
        };
        check_attributes(title, &span, &has, lacks);
        let is_error = span.status == Status::error("");
        assert_eq!(is_error, error_type.is_some(), "{title}");
    }
    assert!(proxy.spans.is_empty(), "one span for each stream");
}

#[tokio::test]
async fn a_stream_that_its_client_resets_is_an_error_and_its_connection_goes_on() {
    let upstream = RawUpstream::bind().await;
    let mut proxy = TestProxy::in_front_of(upstream.address()).await;
    let stream = TcpStream::connect(proxy.address).await;
    let client = Client::http2(stream.expect("it listens")).await;
    let asked = async {
        let mut server = upstream.accept().await;
        server.read_message().await;
        server
    };
    let mut server = tokio::select! {
        _ = client.send(request(b"GET")) => panic!("nobody has answered"),
        server = asked => server,
    };
    assert_eq!(server.read_to_end().await, "", "the upstream learns of it");
    let span = proxy.spans.next().await;
    let has = [("error.type", "client_disconnected")];
    check_attributes("reset", &span, &has, &["http.response.status_code"]);
    assert_eq!(span.status, Status::error(""));

    let answering = async {
        let mut server = upstream.accept().await;
        server.read_message().await;
        server.write(BASE.answer).await;
    };
    let (response, ()) = tokio::join!(client.send(request(b"GET")), answering);
    assert_eq!(response.status(), 200);
}
