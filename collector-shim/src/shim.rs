//! The shim as a whole: bound, run until told to stop, asked about through its handle.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use ::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Destination, Waiting};
use crate::counts::{Counters, Counts};
use crate::exporter::{Direct, Exporter, Outlet};
use crate::intake::{Intake, Sink};
use crate::log::{Log, QueueDirError};
use crate::queue::{Level, MemoryQueue, Queue};
use crate::receiver::{Receiver, grpc, http};
use crate::serve::{LIMITS, Lifetime, Version, serve};
use crate::signal::Signal;
use crate::store::{Store, Trace};
use crate::viewer;

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
    #[error("stopped with {items} acknowledged {what} that the backend has not taken")]
    Undelivered {
        /// How many are lost.
        items: u64,
        /// Spans, unless other signals were taken as well.
        what: &'static str,
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
    pub(crate) outlets: Vec<Arc<Outlet>>,
    pub(crate) counters: Arc<Counters>,
}

/// Connections may take this share of the time to drain; the rest is for the queue.
const CONNECTION_SHARE: u32 = 3;

impl Shim {
    /// Binds all ports. Nothing is accepted before [`Shim::run`].
    pub async fn bind(config: Config) -> Result<Shim> {
        let grpc = Port::bind(config.grpc, "--grpc").await?;
        let http = Port::bind(config.http, "--http").await?;
        let viewer = match config.viewer {
            Some(address) => Some(Port::bind(address, "--viewer").await?),
            None => None,
        };
        let handle = handle(&config.destination).await?;
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
        let senders = handle.start_senders();
        let receiver = Receiver::new(Intake {
            sink: handle.sink.clone(),
            outlets: handle.outlets.clone(),
            counters: Arc::clone(&handle.counters),
            signals: config.signals,
            max_request_bytes: config.max_request_bytes,
        });
        let grace = config.drain_timeout / CONNECTION_SHARE;
        // Each port has its own end: one that is through must not take another's requests with it.
        let lifetime = || Lifetime {
            shutdown: shutdown.clone(),
            abandoned: CancellationToken::new(),
            drain_grace: grace,
        };
        let viewing = viewer.map(|port| serve_viewer(port, handle.clone(), lifetime()));
        let receiving = serve_receivers((grpc, lifetime()), (http, lifetime()), receiver);
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
            drain(queue, handle.outlets.len(), senders, deadline).await?;
        }
        Ok(())
    }

    fn log_start(&self) {
        let (grpc, http) = (self.grpc_addr(), self.http_addr());
        match &self.config.destination {
            Destination::Store { max_bytes } => match self.viewer_addr() {
                Some(viewer) => tracing::info!(
                    %grpc, %http, max_bytes, "keeping traces, to be seen at http://{viewer}"
                ),
                None => tracing::info!(%grpc, %http, max_bytes, "keeping traces, without a viewer"),
            },
            Destination::Backends {
                backends,
                queue_max_bytes,
                waiting,
            } => {
                for backend in backends {
                    tracing::info!(
                        %grpc,
                        %http,
                        backend = backend.name,
                        endpoint = backend.exporter.endpoint,
                        protocol = %backend.exporter.protocol,
                        queue_max_bytes,
                        ?waiting,
                        "forwarding"
                    );
                }
            }
        }
    }
}

async fn handle(destination: &Destination) -> Result<ShimHandle> {
    let (backends, max_bytes, waiting) = match destination {
        Destination::Store { max_bytes } => {
            return Ok(ShimHandle {
                sink: Sink::Store(Arc::new(Store::new(*max_bytes))),
                outlets: Vec::new(),
                counters: Arc::default(),
            });
        }
        Destination::Backends {
            backends,
            queue_max_bytes,
            waiting,
        } => (backends, *queue_max_bytes, waiting.clone()),
    };
    let counters = Arc::new(Counters::new(backends.len()));
    let outlets: Vec<_> = backends.iter().map(Outlet::new).map(Arc::new).collect();
    let sink = match waiting {
        Waiting::AtSender => {
            let direct = Direct::new(outlets.clone(), max_bytes, Arc::clone(&counters));
            Sink::Direct(Arc::new(direct))
        }
        Waiting::InMemory => {
            let queue = MemoryQueue::new(max_bytes, backends.len());
            Sink::Queue(Arc::new(Queue::Memory(queue)))
        }
        Waiting::OnDisk(dir) => {
            let counters = Arc::clone(&counters);
            let names = backends.iter().map(|backend| backend.name.clone());
            let names = names.collect();
            // All that waits is read once.
            let opening =
                tokio::task::spawn_blocking(move || Log::open(dir, max_bytes, names, counters));
            let log = opening.await.expect("opening a log does not panic")?;
            Sink::Queue(Arc::new(Queue::Disk(log)))
        }
    };
    Ok(ShimHandle {
        sink,
        outlets,
        counters,
    })
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
}

async fn serve_receivers(grpc: (Port, Lifetime), http: (Port, Lifetime), receiver: Receiver) {
    let router = TowerToHyperService::new(http::router(receiver.clone()));
    let grpc_service =
        service_fn(move |request: Request<Incoming>| grpc::serve(receiver.clone(), request));
    let (grpc, http) = (
        serve(
            grpc.0.listener,
            Version::Http2,
            grpc_service,
            LIMITS,
            grpc.1,
        ),
        serve(http.0.listener, Version::Any, router, LIMITS, http.1),
    );
    tokio::join!(grpc, http);
}

fn serve_viewer(
    port: Port,
    handle: ShimHandle,
    lifetime: Lifetime,
) -> impl Future<Output = ()> + use<> {
    let router = TowerToHyperService::new(viewer::router(handle));
    serve(port.listener, Version::Any, router, LIMITS, lifetime)
}

/// Lets the senders empty the queue until `deadline`.
async fn drain(
    queue: &Queue,
    backends: usize,
    mut senders: JoinSet<()>,
    deadline: tokio::time::Instant,
) -> Result<()> {
    queue.close();
    let emptied = async { while senders.join_next().await.is_some() {} };
    if tokio::time::timeout_at(deadline, emptied).await.is_err() {
        senders.shutdown().await;
    }
    queue.finish().await;
    let left: Vec<_> = (0..backends).map(|backend| queue.level(backend)).collect();
    let items: u64 = left.iter().map(Level::total_items).sum();
    let spans: u64 = left
        .iter()
        .map(|level| level.items.of(Signal::Traces))
        .sum();
    match queue {
        _ if items == 0 => Ok(()),
        Queue::Memory(_) => {
            let what = if items == spans { "spans" } else { "items" };
            Err(Error::Undelivered { items, what })
        }
        Queue::Disk(_) => {
            let bytes = queue.held_bytes();
            tracing::info!(
                items,
                bytes,
                "stopped; what waits is sent after the next start"
            );
            Ok(())
        }
    }
}

impl ShimHandle {
    /// What spans came in and what became of them.
    pub fn counts(&self) -> Counts {
        self.counts_of(Signal::Traces)
    }

    /// The same of another signal: data points, log records, profiles.
    pub fn counts_of(&self, signal: Signal) -> Counts {
        let counters = &self.counters;
        // What became of items is read before what came in, so that the sums never run ahead.
        let mut counts = Counts::default();
        for backend in &counters.backends {
            counts.delivered_spans += backend.delivered.of(signal).get();
            counts.rejected_spans += backend.rejected.of(signal).get();
            counts.unsent_spans += backend.unsent.of(signal).get();
            counts.retries += backend.retries.get();
        }
        if signal == Signal::Traces {
            counts.delivered_spans += counters.stored_spans.get();
        }
        counts.received_spans = counters.accepted.of(signal).total();
        counts.refused_spans = counters.refused.of(signal).total();
        counts.recovered_spans = counters.recovered.of(signal).get();
        counts.damaged_records = counters.damaged_records.get();
        counts.torn_bytes = counters.torn_bytes.get();
        counts.dead_letters = counters.dead_letters.get();
        match &self.sink {
            Sink::Queue(queue) => {
                let backends = 0..self.outlets.len();
                let levels = backends.map(|backend| queue.level(backend));
                for level in levels {
                    counts.queued_spans += level.items.of(signal);
                    counts.queued_bytes += level.bytes as u64;
                }
            }
            Sink::Direct(_) => {}
            Sink::Store(store) => {
                let holdings = store.holdings();
                counts.evicted_spans = holdings.evicted_spans;
                counts.evicted_traces = holdings.evicted_traces;
            }
        }
        counts
    }

    fn start_senders(&self) -> JoinSet<()> {
        let mut senders = JoinSet::new();
        if let Sink::Queue(queue) = &self.sink {
            for (backend, outlet) in self.outlets.iter().enumerate() {
                let (outlet, queue) = (Arc::clone(outlet), Arc::clone(queue));
                let counters = Arc::clone(&self.counters);
                Exporter::new(outlet, backend, queue, counters).start(&mut senders);
            }
        }
        senders
    }

    /// A trace by its id: hex of any case, leading zeros optional. None when it is not known, or
    /// when spans are forwarded and not kept.
    pub fn trace(&self, trace_id: &str) -> Option<Trace> {
        match &self.sink {
            Sink::Queue(_) | Sink::Direct(_) => None,
            Sink::Store(store) => store.trace(trace_id).map(Trace::from),
        }
    }
}
