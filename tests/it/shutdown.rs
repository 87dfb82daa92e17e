//! Told to stop under load, the path finishes what it has accepted and loses no span of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::backend::Backend;
use crate::support::path::{MODEL, ServingPath};
use crate::support::{http, wait_for};

const CLIENTS: u64 = 4;
/// Answered before the first signal, so that the signal arrives under load.
const WARM_UP: usize = 20;

#[test]
fn shutdown_under_load_loses_no_span_of_an_answered_request() {
    let backend = Backend::embedded();
    let path = ServingPath::start(&backend, "grpc", "http/protobuf");
    let answered: Arc<Mutex<Vec<String>>> = Arc::default();
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (url, answered, stop) = (path.completions_url(), answered.clone(), stop.clone());
            std::thread::spawn(move || client_loop(client, &url, &answered, &stop))
        })
        .collect();
    wait_for("load", || {
        (answered.lock().expect("no client panics").len() >= WARM_UP).then_some(())
    });

    // In the order of an orderly stop: nobody is asked to serve what is no longer there.
    let ServingPath {
        proxy,
        inference,
        shim,
        ..
    } = path;
    for process in [proxy, inference, shim] {
        let ended = process.terminate();
        assert_eq!(ended.code, Some(0), "{}", ended.output);
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("no client panics");
    }

    let answered = answered.lock().expect("no client panics");
    for trace_id in answered.iter() {
        let trace = backend.trace(trace_id, 6);
        for operation in [
            "POST /v1/completions",
            "POST",
            "llm_request",
            "queue",
            "prefill",
            "decode",
        ] {
            trace.span(operation);
        }
    }
}

/// Requests one after the other, each its own trace, until told to stop or refused.
fn client_loop(client: u64, url: &str, answered: &Mutex<Vec<String>>, stop: &AtomicBool) {
    let http = http();
    for request in 1.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let trace_id = format!("{:016x}{request:016x}", client + 1);
        let sent = http
            .post(url)
            .header("traceparent", format!("00-{trace_id}-00f067aa0ba902b7-01"))
            .send_json(serde_json::json!({"model": MODEL, "prompt": "The", "max_tokens": 8}));
        let Ok(mut response) = sent else { return };
        if response.status() != 200 || response.body_mut().read_to_string().is_err() {
            return;
        }
        answered.lock().expect("no client panics").push(trace_id);
    }
}
