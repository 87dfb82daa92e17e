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
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::connection::ClientConnection;
use crate::error::{Error, Failure};
use crate::observer::Observer;
use crate::refusal::{Ends, Refusals};
use crate::service::{MAX_ATTEMPTS, Service};
use crate::upstream::{Upstreams, check_for_ever};

/// Idle connections to all upstreams that are kept. They last four seconds.
const POOLED_CONNECTIONS: usize = 1024;

/// Connections over the bound that are told so at once; more are closed without a word.
const MAX_REFUSALS: usize = 64;
const REFUSAL_LIMIT: Duration = Duration::from_secs(1);

/// The wait after a failed accept. Out of file descriptors, it would fail again at once.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// A proxy that is bound and not yet serving.
pub struct Proxy {
    listener: TcpListener,
    local_addr: SocketAddr,
    app: Arc<HttpProxy<Service>>,
    refusals: Refusals,
    upstreams: Arc<Upstreams>,
    max_connections: usize,
    drain_timeout: Duration,
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
        let observer = Arc::new(Observer::new(&config, telemetry));
        let refusals = Refusals::new(Arc::clone(&observer));
        let upstreams = Arc::new(Upstreams::new(&config));
        let service = Service::new(Arc::clone(&upstreams), observer);
        let mut app = HttpProxy::new(service, Arc::new(conf));
        // The service refuses CONNECT itself, as it refuses everything else.
        let mut options = HttpServerOptions::default();
        options.allow_connect_method_proxying = true;
        app.server_options = Some(options);
        app.handle_init_modules();
        Ok(Self {
            listener,
            local_addr,
            app: Arc::new(app),
            refusals,
            upstreams,
            max_connections,
            drain_timeout,
        })
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
            refusals,
            upstreams,
            max_connections,
            drain_timeout,
            ..
        } = self;
        let mut checks = JoinSet::new();
        checks.spawn(check_for_ever(upstreams));
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
                        let connection = ClientConnection::new(stream, peer, refusals.clone());
                        let serving = serve(Arc::clone(&app), connection, closing_watch.clone());
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
                                let refusing = refuse(stream, ends, refusals.clone());
                                connections.spawn(holding(permit, refusing));
                            }
                            Err(_) => refusals.record(Failure::TooManyConnections, ends, &[]),
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
        Ok(())
    }
}

async fn serve(
    app: Arc<HttpProxy<Service>>,
    connection: io::Result<ClientConnection>,
    closing: watch::Receiver<bool>,
) {
    match connection {
        Ok(connection) => {
            app.process_new(Box::new(connection), &closing).await;
        }
        Err(error) => tracing::debug!(%error, "a connection ended before it began"),
    }
}

/// Runs `work` and gives `permit` back when it ends, however it ends.
async fn holding(permit: OwnedSemaphorePermit, work: impl Future<Output = ()>) {
    work.await;
    drop(permit);
}

async fn drain(mut connections: JoinSet<()>, limit: Duration) {
    let drained = tokio::time::timeout(limit, async {
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
    let _ = tokio::time::timeout(REFUSAL_LIMIT, work).await;
}
