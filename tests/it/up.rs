//! `lantern up --once`: what a newcomer runs first.

use crate::support::backend::Backend;
use crate::support::free_addr;
use crate::support::process::{Ended, Process};

fn up_once(env: &[(&str, &str)]) -> Ended {
    let mut args = vec!["up".to_owned(), "--once".to_owned()];
    for flag in ["--listen", "--inference", "--grpc", "--http", "--viewer"] {
        args.extend([flag.to_owned(), free_addr().to_string()]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Process::lantern(&args, env).wait()
}

#[test]
fn up_once_shows_the_whole_trace_as_a_waterfall() {
    for protocol in ["grpc", "http/protobuf"] {
        let ended = up_once(&[("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol)]);
        assert_eq!(ended.code, Some(0), "{}", ended.output);
        for expected in [
            "7 spans, 3 services",
            "client-span",
            "└ POST /v1/completions",
            "└ POST ",
            "└ llm_request",
            "├ queue",
            "├ prefill",
            "└ decode",
            "/trace/",
        ] {
            assert!(
                ended.output.contains(expected),
                "no {expected:?} in {}",
                ended.output
            );
        }
    }
}

#[test]
fn up_once_with_a_backend_ends_when_the_backend_has_every_span() {
    let backend = Backend::embedded();
    for protocol in ["grpc", "http/protobuf"] {
        let ended = up_once(&[
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                &backend.endpoint(protocol),
            ),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol),
        ]);
        assert_eq!(ended.code, Some(0), "{}", ended.output);
        let line = ended
            .output
            .lines()
            .find_map(|line| line.strip_prefix("trace "));
        let (trace_id, _) = line
            .and_then(|line| line.split_once(':'))
            .expect("a trace id");
        // Accepted means there: no waiting here.
        let traces = backend
            .query(&format!("/api/traces/{trace_id}"))
            .expect("the trace");
        assert_eq!(
            traces[0]["spans"].as_array().map(Vec::len),
            Some(7),
            "{traces}"
        );
    }
}

#[test]
fn up_once_with_a_backend_that_refuses_the_spans_fails() {
    let ended = up_once(&[
        (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            &format!("http://{}/v1/traces", not_a_backend()),
        ),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
    ]);
    assert_eq!(ended.code, Some(1), "{}", ended.output);
    assert!(ended.output.contains("refused"), "{}", ended.output);
}

#[test]
fn up_once_says_at_once_that_a_request_was_not_sampled() {
    for variable in [
        ("OTEL_TRACES_SAMPLER", "always_off"),
        ("OTEL_SDK_DISABLED", "true"),
    ] {
        let ended = up_once(&[variable]);
        assert_eq!(ended.code, Some(1), "{}", ended.output);
        assert!(ended.output.contains("not sampled"), "{}", ended.output);
    }
}

/// An HTTP server that answers every request 400.
fn not_a_backend() -> std::net::SocketAddr {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            // One read is enough to answer: the client reads the status whatever it still sends.
            let _ = stream.read(&mut [0; 65536]);
            let answer =
                "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    addr
}
