//! What the tests share: a backend that records and answers by script, clients that send raw
//! bytes, a running shim, and requests to send.

pub(crate) mod backend;
pub(crate) mod client;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod signals;
pub(crate) mod spans;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use lantern_shim::{
    Backend, Config, Counts, Destination, Error, LogAck, QueueDir, QueueDirError, Shim, ShimHandle,
    Waiting,
};
use lantern_telemetry::{ExporterSettings, Settings};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Far beyond what any wait here takes on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, waiting).await.is_ok(),
        "never happened: {what}"
    );
}

/// Waits for `work`, which is to end by itself.
pub(crate) async fn within_patience<T>(work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.expect("it never ended")
}

/// A shim that serves until it is stopped.
pub(crate) struct Running {
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) viewer: SocketAddr,
    pub(crate) handle: ShimHandle,
    stop: CancellationToken,
    task: JoinHandle<Result<(), lantern_shim::Error>>,
}

impl Running {
    pub(crate) async fn start(config: Config) -> Running {
        // A program that another test is just starting has this one's files until it runs, a lock among them.
        let bound = async {
            loop {
                match Shim::bind(config.clone()).await {
                    Err(Error::QueueDir(QueueDirError::InUse { .. })) => {
                        tokio::time::sleep(POLL_INTERVAL).await;
                    }
                    bound => return bound,
                }
            }
        };
        let shim = within_patience(bound).await.expect("port 0 is free");
        let stop = CancellationToken::new();
        let (grpc, http) = (shim.grpc_addr(), shim.http_addr());
        let viewer = shim.viewer_addr().expect("the tests' shims have one");
        let handle = shim.handle();
        let until = stop.clone();
        let task = tokio::spawn(shim.run(until));
        Running {
            grpc,
            http,
            viewer,
            handle,
            stop,
            task,
        }
    }

    /// A shim that keeps traces itself.
    pub(crate) async fn embedded() -> Running {
        Running::start(Config::embedded()).await
    }

    /// Stops it and waits until it has stopped; how it ended and what it counted in the end.
    pub(crate) async fn stop(self) -> (Result<(), lantern_shim::Error>, Counts) {
        self.stop.cancel();
        let ended = tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("stops in time")
            .expect("no panic");
        (ended, self.handle.counts())
    }

    /// Waits until all that was received has been answered for.
    pub(crate) async fn settled(&self, received_spans: u64) -> Counts {
        eventually("all spans are answered for", || {
            let counts = self.handle.counts();
            counts.delivered_spans + counts.rejected_spans == received_spans
                && counts.queued_spans == 0
        })
        .await;
        self.handle.counts()
    }
}

/// The way out to `url`, with further variables of the environment.
pub(crate) fn exporter(url: &str, protocol: &str, more: &[(&str, &str)]) -> ExporterSettings {
    let settings = Settings::from_vars(|name| match name {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" => Some(url.to_owned()),
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL" => Some(protocol.to_owned()),
        _ => more
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| (*value).to_owned()),
    });
    settings.expect("valid settings").exporter().clone()
}

/// A forwarding configuration with its queue on disk.
pub(crate) fn durable(exporter: ExporterSettings, dir: &Path, queue_max_bytes: usize) -> Config {
    durable_for(vec![Backend::only(exporter)], dir, queue_max_bytes)
}

/// The same for several backends.
pub(crate) fn durable_for(backends: Vec<Backend>, dir: &Path, queue_max_bytes: usize) -> Config {
    let waiting = Waiting::OnDisk(QueueDir {
        path: dir.to_owned(),
        ack: LogAck::Disk,
    });
    let destination = Destination::Backends {
        backends,
        queue_max_bytes,
        waiting,
    };
    Config {
        destination,
        // Whatever is left is on disk: no need to wait for a backend that is away.
        drain_timeout: Duration::from_millis(300),
        queue_wait: Duration::ZERO,
        ..Config::embedded()
    }
}

/// A forwarding configuration that queues nothing.
pub(crate) fn direct(backends: Vec<Backend>, queue_max_bytes: usize) -> Config {
    let destination = Destination::Backends {
        backends,
        queue_max_bytes,
        waiting: Waiting::AtSender,
    };
    Config {
        destination,
        max_request_bytes: queue_max_bytes,
        ..Config::embedded()
    }
}

/// A backend called `name`.
pub(crate) fn backend(name: &str, exporter: ExporterSettings) -> Backend {
    let name = name.to_owned();
    Backend {
        name,
        ..Backend::only(exporter)
    }
}

/// A forwarding configuration with small bounds.
pub(crate) fn forwarding(
    exporter: ExporterSettings,
    max_request_bytes: usize,
    queue_max_bytes: usize,
) -> Config {
    let destination = Destination::Backends {
        backends: vec![Backend::only(exporter)],
        queue_max_bytes,
        waiting: Waiting::InMemory,
    };
    Config {
        destination,
        max_request_bytes,
        queue_wait: Duration::ZERO,
        ..Config::embedded()
    }
}
