//! The server around the service: accepts connections on the caller's runtime, bounds them, and
//! drains them on shutdown.
//!
//! pingora's own server would take over the process: signals, runtimes, listening sockets. Its
//! HTTP engine alone can be handed connections, so several proxies fit into one process.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lantern_telemetry::{LimitedLog, Telemetry};
use pingora::apps::{HttpServerOptions, ServerApp};
use pingora::proxy::HttpProxy;
use pingora::server::configuration::ServerConf;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::connection::ClientConnection;
use crate::error::{Error, Failure};
use crate::metrics::{Endpoint, Metrics};
use crate::observer::Observer;
use crate::refusal::{Ends, Refusals};
use crate::reload::Reloaded;
use crate::service::{MAX_ATTEMPTS, Service};
use crate::transport::Transport;
use crate::upstream::{Upstreams, check_for_ever};

/// Idle connections to all upstreams that are kept. They last four seconds.
const POOLED_CONNECTIONS: usize = 1024;

/// How long a client's connection of HTTP/2 is kept for its next request.
const HTTP2_IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Connections over the bound that are told so at once; more are closed without a word.
const MAX_REFUSALS: usize = 64;
const REFUSAL_LIMIT: Duration = Duration::from_secs(1);

/// How long requests may take to end once their connections are gone.
const ABORT_LIMIT: Duration = Duration::from_secs(1);

/// The wait after a failed accept. Out of file descriptors, it would fail again at once.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// A proxy that is bound and not yet serving.
pub struct Proxy {
    listener: TcpListener,
    local_addr: SocketAddr,
    app: Arc<HttpProxy<Service>>,
    front: Arc<Front>,
    background: JoinSet<()>,
    /// Requests of HTTP/2 have tasks of their own.
    requests: TaskTracker,
    metrics: Option<Endpoint>,
    max_connections: usize,
    drain_timeout: Duration,
}

/// What a connection needs to know before its first request.
struct Front {
    tls: Option<Arc<Reloaded<ServerConfig>>>,
    header_timeout: Duration,
    refusals: Refusals,
}

impl Proxy {
    /// Binds the address of `config`. Spans go to `telemetry`, which must outlive the proxy.
    pub async fn bind(config: Config, telemetry: &Telemetry) -> Result<Self, Error> {
        if config.upstreams.is_empty() {
            return Err(Error::NoUpstream);
        }
        let failed = |source| Error::Bind {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        let (max_connections, drain_timeout) = (config.max_connections, config.drain_timeout);
        let conf = ServerConf {
            max_retries: MAX_ATTEMPTS,
            upstream_keepalive_pool_size: POOLED_CONNECTIONS,
            ..ServerConf::default()
        };
        let meter = telemetry.meter(env!("CARGO_PKG_NAME"));
        let is_measured = meter.is_some() || config.metrics.is_some();
        let measured = is_measured.then(|| Metrics::new(meter.as_ref()));
        let metrics = match (config.metrics, &measured) {
            (Some(address), Some(metrics)) => Some(Endpoint::bind(address, metrics.clone()).await?),
            _ => None,
        };
        let observer = Arc::new(Observer::new(&config, telemetry, measured));
        let interval = config.reload_interval;
        let mut background = JoinSet::new();
        let tls = match config.tls.clone() {
            None => None,
            Some(tls) => {
                let files = tls.files();
                let tls = Arc::new(Reloaded::new(files, move || tls.load())?);
                background.spawn(Arc::clone(&tls).watch(interval));
                Some(tls)
            }
        };
        let upstream_tls = config.upstream_tls.clone();
        let files = upstream_tls.files();
        let trust = Arc::new(Reloaded::new(files, move || upstream_tls.load())?);
        background.spawn(Arc::clone(&trust).watch(interval));
        let upstreams = Arc::new(Upstreams::new(&config, trust));
        background.spawn(check_for_ever(Arc::clone(&upstreams)));
        let front = Front {
            tls,
            header_timeout: config.header_timeout,
            refusals: Refusals::new(Arc::clone(&observer)),
        };
        let requests = TaskTracker::new();
        let service = Service::new(upstreams, requests.clone(), observer, config.ask_for_usage);
        let mut app = HttpProxy::new(service, Arc::new(conf));
        // The service refuses CONNECT itself, as it refuses everything else.
        let mut options = HttpServerOptions::default();
        options.allow_connect_method_proxying = true;
        options.h2c = true;
        options.h2_idle_timeout = Some(HTTP2_IDLE_TIMEOUT);
        app.server_options = Some(options);
        app.handle_init_modules();
        Ok(Self {
            listener,
            local_addr,
            app: Arc::new(app),
            front: Arc::new(front),
            background,
            requests,
            metrics,
            max_connections,
            drain_timeout,
        })
    }

    /// The bound address of the metrics, if they are served.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(Endpoint::local_addr)
    }

    /// The bound address, with the port that was taken for port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until `shutdown`. Then it accepts no more, lets requests in flight finish for as long
    /// as the drain timeout, and aborts the others. When it returns, every span has ended.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self {
            listener,
            app,
            front,
            // Ends with this function.
            background: _background,
            requests,
            metrics,
            max_connections,
            drain_timeout,
            ..
        } = self;
        let scraped = CancellationToken::new();
        let scraping = metrics.map(|metrics| tokio::spawn(metrics.serve(scraped.clone())));
        // However this ends, the port is closed.
        let _scraped = scraped.clone().drop_guard();
        let (closing, closing_watch) = watch::channel(false);
        let permits = Arc::new(Semaphore::new(max_connections));
        let refusal_permits = Arc::new(Semaphore::new(MAX_REFUSALS));
        let mut connections = JoinSet::new();
        let (full_log, failed_log) = (LimitedLog::default(), LimitedLog::default());
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(joined) = connections.join_next() => {
                    report(joined);
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => match Arc::clone(&permits).try_acquire_owned() {
                    Ok(permit) => {
                        let client = Client { stream, peer };
                        let (app, front) = (Arc::clone(&app), Arc::clone(&front));
                        let serving = serve(app, front, client, closing_watch.clone());
                        connections.spawn(holding(permit, serving));
                    }
                    Err(_) => {
                        if let Some(refused) = full_log.due(1) {
                            tracing::warn!(max_connections, refused, "too many connections");
                        }
                        let ends = Ends {
                            peer,
                            local: stream.local_addr().ok(),
                            tls: false,
                        };
                        match Arc::clone(&refusal_permits).try_acquire_owned() {
                            Ok(permit) => {
                                let refusing = refuse(stream, ends, front.refusals.clone());
                                connections.spawn(holding(permit, refusing));
                            }
                            Err(_) => front
                                .refusals
                                .record(Failure::TooManyConnections, ends, &[]),
                        }
                    }
                },
                Err(error) => {
                    if let Some(failures) = failed_log.due(1) {
                        tracing::warn!(%error, failures, "could not accept connections");
                    }
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
        drop(listener);
        // New requests on kept connections are not taken; those that wait for one are closed.
        closing.send_replace(true);
        app.cleanup().await;
        drain(connections, drain_timeout).await;
        requests.close();
        if timeout(ABORT_LIMIT, requests.wait()).await.is_err() {
            tracing::warn!(requests = requests.len(), "aborted requests have not ended");
        }
        // Last, so that the last requests are measured.
        scraped.cancel();
        if let Some(scraping) = scraping {
            report(scraping.await);
        }
        Ok(())
    }
}

/// A connection that was accepted.
struct Client {
    stream: TcpStream,
    peer: SocketAddr,
}

async fn serve(
    app: Arc<HttpProxy<Service>>,
    front: Arc<Front>,
    client: Client,
    mut closing: watch::Receiver<bool>,
) {
    let Client { stream, peer } = client;
    let tls = front.tls.as_ref().map(|tls| tls.current());
    let ends = Ends {
        peer,
        local: stream.local_addr().ok(),
        tls: tls.is_some(),
    };
    let prepared = tokio::select! {
        biased;
        // It has sent no request yet.
        _ = closing.wait_for(|&closing| closing) => return,
        prepared = timeout(front.header_timeout, Transport::prepare(stream, tls)) => prepared,
    };
    match prepared {
        Ok(Ok(transport)) => {
            let connection = ClientConnection::new(transport, ends, front.refusals.clone());
            app.process_new(Box::new(connection), &closing).await;
        }
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "a connection ended before it began");
            // One that merely ends is a look at whether the port is open.
            if ends.tls && error.kind() == io::ErrorKind::InvalidData {
                front.refusals.record(Failure::TlsHandshake, ends, &[]);
            }
        }
        Err(_) => tracing::debug!(%peer, "a connection began with silence"),
    }
}

/// Runs `work` and gives `permit` back when it ends, however it ends.
async fn holding(permit: OwnedSemaphorePermit, work: impl Future<Output = ()>) {
    work.await;
    drop(permit);
}

async fn drain(mut connections: JoinSet<()>, limit: Duration) {
    let drained = timeout(limit, async {
        while let Some(joined) = connections.join_next().await {
            report(joined);
        }
    });
    if drained.await.is_err() {
        let connections_left = connections.len();
        tracing::warn!(
            connections_left,
            ?limit,
            "requests did not finish in time, aborting them"
        );
        // Waits for the tasks to be gone, and with them their requests: that ends the spans.
        connections.shutdown().await;
    }
}

fn report(joined: Result<(), JoinError>) {
    if let Err(error) = joined
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task panicked");
    }
}

/// Answers a connection over the bound without reading its request.
async fn refuse(mut stream: TcpStream, ends: Ends, refusals: Refusals) {
    let answer = refusals.answer(Failure::TooManyConnections, ends, &[]);
    let work = async {
        stream.write_all(&answer).await?;
        stream.shutdown().await?;
        // Closing with unread bytes would reset the connection before the answer is read.
        let mut ignored = [0; 1024];
        while stream.read(&mut ignored).await? > 0 {}
        std::io::Result::Ok(())
    };
    let _ = timeout(REFUSAL_LIMIT, work).await;
}
