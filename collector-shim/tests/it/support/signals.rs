//! A request of every signal, and where it is sent.

use bytes::Bytes;
use lantern_shim::Signal;

use super::spans;

/// A field of wire type 2 around `inner`, which is short.
fn nest(field: u8, inner: &[u8]) -> Vec<u8> {
    [&[field << 3 | 2, inner.len() as u8], inner].concat()
}

/// A request with two items.
pub(crate) fn two_of(signal: Signal) -> Bytes {
    let entries = match signal {
        Signal::Traces => return spans::request("span", 2),
        // A gauge with two points.
        Signal::Metrics => {
            let point = nest(1, &[&[0x31][..], &7_u64.to_le_bytes()].concat());
            nest(2, &[nest(1, b"metric"), nest(5, &point.repeat(2))].concat())
        }
        Signal::Logs => nest(2, &nest(5, &nest(1, b"said"))).repeat(2),
        // Whatever a profile is.
        Signal::Profiles => nest(2, &[0xff, 0xff]).repeat(2),
    };
    nest(1, &nest(2, &entries)).into()
}

pub(crate) fn http_path(signal: Signal) -> &'static str {
    match signal {
        Signal::Traces => "/v1/traces",
        Signal::Metrics => "/v1/metrics",
        Signal::Logs => "/v1/logs",
        Signal::Profiles => "/v1development/profiles",
    }
}

pub(crate) fn grpc_path(signal: Signal) -> &'static str {
    match signal {
        Signal::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
        Signal::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        Signal::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        Signal::Profiles => {
            "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export"
        }
    }
}
