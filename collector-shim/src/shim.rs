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
use crate::handle::ShimHandle;
use crate::intake::{Intake, Sink};
use crate::log::QueueDirError;
use crate::queue::{Level, Patience, Queue};
use crate::receiver::{Receiver, grpc, http};
use crate::report;
use crate::signal::Signal;
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
        let handle = ShimHandle::open(&config.destination, config.tail.clone()).await?;
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
        let intake = Intake {
            sink: handle.sink.clone(),
            outlets: handle.outlets.clone(),
            counters: Arc::clone(&handle.counters),
            signals: config.signals,
            max_request_bytes: config.max_request_bytes,
            patience: Patience::new(config.queue_wait),
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
            drain(queue, handle.outlets.len(), senders, deadline).await?;
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
                        endpoint = backend.way.endpoint(),
                        protocol = backend.way.protocol(),
                        queue_max_bytes,
                        ?waiting,
                        "forwarding"
                    );
                }
            }
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
    let outlets = handle.outlets.iter();
    for outlet in outlets.filter(|outlet| outlet.has_tls_files()) {
        following.spawn(Arc::clone(outlet).follow(interval));
    }
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
