//! The shim as a whole: bound, run until told to stop, asked about through its handle.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use ::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::service::TowerToHyperService;
use lantern_telemetry::serve::{Lifetime, Limits, Listener, Tls, Version, serve};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Destination};
use crate::counts::{Counters, Counts};
use crate::exporter::Exporter;
use crate::intake::{Intake, Sink};
use crate::log::{Log, QueueDirError};
use crate::queue::{MemoryQueue, Queue};
use crate::receiver::{Receiver, grpc, http};
use crate::report;
use crate::store::{Store, Trace};
use crate::viewer::{self, metrics::process};

/// Why a shim does not start, or does not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port is taken, or the address is not of this machine.
    #[error("cannot listen on {address} for {purpose}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// The flag's name.
        purpose: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The queue's directory is in use or cannot be used.
    #[error(transparent)]
    QueueDir(#[from] QueueDirError),
    /// Told to stop, it could not pass on in time what it had acknowledged.
    #[error("stopped with {spans} acknowledged spans that the backend has not taken")]
    Undelivered {
        /// How many are lost.
        spans: u64,
    },
}

type Result<T> = std::result::Result<T, Error>;

/// A shim that has its ports, so that its addresses are known before it runs.
pub struct Shim {
    grpc: Port,
    http: Port,
    viewer: Option<Port>,
    config: Config,
    handle: ShimHandle,
}

struct Port {
    listener: TcpListener,
    address: SocketAddr,
}

/// Asks a shim, while it runs and after, what it has done.
#[derive(Debug, Clone)]
pub struct ShimHandle {
    pub(crate) sink: Sink,
    pub(crate) counters: Arc<Counters>,
}

/// Connections may take this share of the time to drain; the rest is for the queue.
const CONNECTION_SHARE: u32 = 3;

impl Shim {
    /// Binds all ports. Nothing is accepted before [`Shim::run`].
    pub async fn bind(config: Config) -> Result<Shim> {
        process::begin();
        let grpc = Port::bind(config.grpc, "--grpc").await?;
        let http = Port::bind(config.http, "--http").await?;
        let viewer = match config.viewer {
            Some(address) => Some(Port::bind(address, "--viewer").await?),
            None => None,
        };
        let counters = Arc::default();
        let sink = sink(&config.destination, &counters).await?;
        let handle = ShimHandle { sink, counters };
        Ok(Shim {
            grpc,
            http,
            viewer,
            config,
            handle,
        })
    }

    /// Where OTLP/gRPC comes in.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc.address
    }

    /// Where OTLP/HTTP comes in.
    pub fn http_addr(&self) -> SocketAddr {
        self.http.address
    }

    /// Where the viewer is, unless it is switched off.
    pub fn viewer_addr(&self) -> Option<SocketAddr> {
        self.viewer.as_ref().map(|port| port.address)
    }

    /// To ask this shim what it has done.
    pub fn handle(&self) -> ShimHandle {
        self.handle.clone()
    }

    /// Serves until `shutdown`. Then it stops accepting, lets requests finish, and sends what
    /// waits, within the drain timeout; what is left then is an error and stays counted as queued.
    pub async fn run(self, shutdown: CancellationToken) -> Result<()> {
        self.log_start();
        let Shim {
            grpc,
            http,
            viewer,
            config,
            handle,
        } = self;
        let senders = match (&config.destination, &handle.sink) {
            (Destination::Backend { exporter, .. }, Sink::Queue(queue)) => {
                Exporter::new(exporter, Arc::clone(queue), Arc::clone(&handle.counters)).start()
            }
            _ => JoinSet::new(),
        };
        let intake = Intake {
            sink: handle.sink.clone(),
            counters: Arc::clone(&handle.counters),
            max_request_bytes: config.max_request_bytes,
        };
        let _following = follow(&config, &handle);
        let receiver = Receiver::new(intake, config.door, config.pace);
        let limits = config.limits;
        let grace = config.drain_timeout / CONNECTION_SHARE;
        // Each port has its own end: one that is through must not take another's requests with it.
        let lifetime = || Lifetime {
            shutdown: shutdown.clone(),
            abandoned: CancellationToken::new(),
            drain_grace: grace,
        };
        let viewing = viewer.map(|port| serve_viewer(port, handle.clone(), limits, lifetime()));
        let receiving = serve_receivers((grpc, lifetime()), (http, lifetime()), receiver, limits);
        let stopping = async {
            shutdown.cancelled().await;
            tokio::time::Instant::now() + config.drain_timeout
        };
        let (deadline, ()) = tokio::join!(stopping, async {
            match viewing {
                Some(viewing) => {
                    tokio::join!(receiving, viewing);
                }
                None => receiving.await,
            }
        });
        if let Sink::Queue(queue) = &handle.sink {
            drain(queue, senders, deadline).await?;
        }
        Ok(())
    }

    fn log_start(&self) {
        self.warn_of_open_tokens();
        let (grpc, http) = (self.grpc_addr(), self.http_addr());
        match &self.config.destination {
            Destination::Store { max_bytes } => match self.viewer_addr() {
                Some(viewer) => tracing::info!(
                    %grpc, %http, max_bytes, "keeping traces, to be seen at http://{viewer}"
                ),
                None => tracing::info!(%grpc, %http, max_bytes, "keeping traces, without a viewer"),
            },
            Destination::Backend {
                exporter,
                queue_max_bytes,
                queue_dir,
            } => tracing::info!(
                %grpc,
                %http,
                endpoint = exporter.endpoint,
                protocol = %exporter.protocol,
                queue_max_bytes,
                queue_dir = queue_dir.as_ref().map(|dir| dir.path.display().to_string()),
                "forwarding spans"
            ),
        }
    }
}

impl Shim {
    /// A token that others can read is none.
    fn warn_of_open_tokens(&self) {
        let door = &self.config.door;
        let ports = [self.grpc_addr(), self.http_addr()];
        let is_open = door.tls.is_none() && ports.iter().any(|port| !port.ip().is_loopback());
        if door.tokens.is_some() && is_open {
            tracing::warn!(
                "bearer tokens come in unencrypted: --tls-cert and --tls-key change that"
            );
        }
    }
}

async fn sink(destination: &Destination, counters: &Arc<Counters>) -> Result<Sink> {
    let (max_bytes, dir) = match destination {
        Destination::Store { max_bytes } => {
            return Ok(Sink::Store(Arc::new(Store::new(*max_bytes))));
        }
        Destination::Backend {
            queue_max_bytes,
            queue_dir,
            ..
        } => (*queue_max_bytes, queue_dir.clone()),
    };
    let queue = match dir {
        None => Queue::Memory(MemoryQueue::new(max_bytes)),
        Some(dir) => {
            let counters = Arc::clone(counters);
            // All that waits is read once.
            let opening = tokio::task::spawn_blocking(move || {
                Log::open(dir.path, max_bytes, dir.ack, counters)
            });
            Queue::Disk(opening.await.expect("opening a log does not panic")?)
        }
    };
    Ok(Sink::Queue(Arc::new(queue)))
}

impl Port {
    async fn bind(address: SocketAddr, purpose: &'static str) -> Result<Port> {
        let failed = |source| Error::Bind {
            address,
            purpose,
            source,
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Port { listener, address })
    }

    fn speaking(self, tls: Option<Arc<Tls>>) -> Listener {
        Listener::new(self.listener, tls)
    }
}

/// What is done now and then, for as long as the answer lives: files are looked at, counts are told.
fn follow(config: &Config, handle: &ShimHandle) -> JoinSet<()> {
    let mut following = JoinSet::new();
    if let Some(interval) = config.report_interval {
        following.spawn(report::follow(handle.clone(), interval));
    }
    let door = &config.door;
    let interval = door.reload_interval;
    if let Some(tls) = &door.tls {
        following.spawn(Arc::clone(tls).follow(interval));
    }
    if let Some(tokens) = &door.tokens {
        following.spawn(Arc::clone(tokens).follow(interval));
    }
    following
}

async fn serve_receivers(
    grpc: (Port, Lifetime),
    http: (Port, Lifetime),
    receiver: Receiver,
    limits: Limits,
) {
    let tls = receiver.door.tls.clone();
    let router = TowerToHyperService::new(http::router(receiver.clone()));
    let grpc_service =
        service_fn(move |request: Request<Incoming>| grpc::serve(receiver.clone(), request));
    let (grpc, http) = (
        serve(
            grpc.0.speaking(tls.clone()),
            Version::Http2,
            grpc_service,
            limits,
            grpc.1,
        ),
        serve(http.0.speaking(tls), Version::Any, router, limits, http.1),
    );
    tokio::join!(grpc, http);
}

fn serve_viewer(
    port: Port,
    handle: ShimHandle,
    limits: Limits,
    lifetime: Lifetime,
) -> impl Future<Output = ()> + use<> {
    let router = TowerToHyperService::new(viewer::router(handle));
    serve(port.listener, Version::Any, router, limits, lifetime)
}

/// Lets the senders empty the queue until `deadline`.
async fn drain(
    queue: &Queue,
    mut senders: JoinSet<()>,
    deadline: tokio::time::Instant,
) -> Result<()> {
    queue.close();
    let emptied = async { while senders.join_next().await.is_some() {} };
    if tokio::time::timeout_at(deadline, emptied).await.is_err() {
        senders.shutdown().await;
    }
    queue.finish().await;
    let left = queue.level();
    match queue {
        _ if left.spans == 0 => Ok(()),
        Queue::Memory(_) => Err(Error::Undelivered { spans: left.spans }),
        Queue::Disk(_) => {
            tracing::info!(
                spans = left.spans,
                bytes = left.bytes,
                "stopped; what waits is sent after the next start"
            );
            Ok(())
        }
    }
}

impl ShimHandle {
    /// What came in and what became of it.
    pub fn counts(&self) -> Counts {
        let counters = &self.counters;
        // What became of spans is read before what came in, so that the sums never run ahead.
        let mut counts = Counts {
            delivered_spans: counters.delivered_spans.get(),
            rejected_spans: counters.rejected_spans.get(),
            received_spans: counters.accepted_spans.total(),
            refused_spans: counters.refused_spans.total(),
            retries: counters.retries.get(),
            recovered_spans: counters.recovered_spans.get(),
            damaged_records: counters.damaged_records.get(),
            torn_bytes: counters.torn_bytes.get(),
            dead_letters: counters.dead_letters.get(),
            ..Counts::default()
        };
        match &self.sink {
            Sink::Queue(queue) => {
                let level = queue.level();
                counts.queued_spans = level.spans;
                counts.queued_bytes = level.bytes as u64;
            }
            Sink::Store(store) => {
                let holdings = store.holdings();
                counts.evicted_spans = holdings.evicted_spans;
                counts.evicted_traces = holdings.evicted_traces;
            }
        }
        counts
    }

    /// A trace by its id: hex of any case, leading zeros optional. None when it is not known, or
    /// when spans are forwarded and not kept.
    pub fn trace(&self, trace_id: &str) -> Option<Trace> {
        match &self.sink {
            Sink::Queue(_) => None,
            Sink::Store(store) => store.trace(trace_id).map(Trace::from),
        }
    }
}
