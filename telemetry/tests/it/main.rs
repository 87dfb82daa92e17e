//! The crate as a program uses it: variables in, spans at a real OTLP receiver out.

mod children;
mod delivery;
mod failures;
mod guard;
mod log;
mod metrics;
mod receiver;
mod tls;

use lantern_telemetry::{Settings, Telemetry};
use opentelemetry::trace::{Span as _, Tracer as _};

/// Longer than anything here takes; a test that waits for it has failed.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// The protocols as the variable names them.
const PROTOCOLS: [&str; 3] = ["grpc", "http/protobuf", "http/json"];

fn settings(vars: &[(&str, &str)]) -> Settings {
    let get = |name: &str| {
        vars.iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| (*value).to_owned())
    };
    Settings::from_vars(get).expect("valid variables")
}

fn start(vars: &[(&str, &str)]) -> Telemetry {
    Telemetry::start(&settings(vars), "test-service").expect("telemetry starts")
}

fn end_spans(telemetry: &Telemetry, count: usize) {
    let tracer = telemetry.tracer("test");
    for _ in 0..count {
        tracer.start("work").end();
    }
}
