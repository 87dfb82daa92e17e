//! The server around the service: made of the configuration, it accepts connections on the caller's
//! runtime until it is told to stop. What becomes of them is [`crate::clients`]'.
//!
//! pingora's own server would take over the process: signals, runtimes, listening sockets. Its
//! HTTP engine alone can be handed connections, so several proxies fit into one process.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use lantern_telemetry::{LimitedLog, Telemetry};
use pingora::apps::HttpServerOptions;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::proxy::HttpProxy;
use pingora::server::configuration::ServerConf;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Access;
use crate::clients::{Clients, Front, report};
use crate::config::Config;
use crate::error::Error;
use crate::metrics::{Endpoint, Metrics};
use crate::observer::Observer;
use crate::refusal::Refusals;
use crate::reload::Reloaded;
use crate::service::{MAX_ATTEMPTS, Service};
use crate::sockets::Sockets;
use crate::upgrade::Handover;
use crate::upstream::{Upstreams, check_for_ever};

/// Idle connections to all upstreams that are kept. They last four seconds.
const POOLED_CONNECTIONS: usize = 1024;

/// What HTTP/2 counts of a head beyond what it holds: 32 bytes for each header.
const HEADER_SLACK_BYTES: usize = 16 * 1024;

/// How long requests may take to end once their connections are gone.
const ABORT_LIMIT: Duration = Duration::from_secs(1);

/// The wait after a failed accept. Out of file descriptors, it would fail again at once.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// A proxy that is bound and not yet serving.
pub struct Proxy {
    listener: TcpListener,
    /// What it listens on once more, for a program that takes its place.
    handed: Arc<Vec<OwnedFd>>,
    local_addr: SocketAddr,
    clients: Clients,
    background: JoinSet<()>,
    /// Requests of HTTP/2 have tasks of their own.
    requests: TaskTracker,
    metrics: Option<Endpoint>,
    /// Ends the scraping of the metrics.
    scraping: CancellationToken,
    drain_timeout: Duration,
}

impl Proxy {
    /// Binds the address of `config`. Spans go to `telemetry`, which must outlive the proxy.
    pub async fn bind(config: Config, telemetry: &Telemetry) -> Result<Self, Error> {
        Self::bind_or_take(config, telemetry, &mut Sockets::default()).await
    }

    /// As [`Proxy::bind`], on those of the addresses that `sockets` have no listener for. It takes the others from there.
    pub async fn bind_or_take(
        config: Config,
        telemetry: &Telemetry,
        sockets: &mut Sockets,
    ) -> Result<Self, Error> {
        if config.upstreams.is_empty() {
            return Err(Error::NoUpstream);
        }
        let (listener, local_addr) = sockets.listen(config.listen).await?;
        let conf = ServerConf {
            max_retries: MAX_ATTEMPTS,
            upstream_keepalive_pool_size: POOLED_CONNECTIONS,
            ..ServerConf::default()
        };
        let meter = telemetry.meter(env!("CARGO_PKG_NAME"));
        let is_measured = meter.is_some() || config.metrics.is_some();
        let measured = is_measured.then(|| Metrics::new(meter.as_ref()));
        let metrics = match (config.metrics, &measured) {
            (Some(address), Some(metrics)) => {
                let (listener, local_addr) = sockets.listen(address).await?;
                Some(Endpoint::new(listener, local_addr, metrics.clone()))
            }
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
            header_timeout: config.client.header,
            refusals: Refusals::new(Arc::clone(&observer)),
        };
        let keys = config.api_keys.clone();
        let access = keys
            .map(|file| Access::new(file, config.routes.clone()))
            .transpose()?;
        if let Some(access) = &access {
            background.spawn(access.keys().watch(interval));
        }
        let requests = TaskTracker::new();
        let service = Service::new(&config, access, upstreams, requests.clone(), observer);
        let leaving = service.leaving();
        let mut app = HttpProxy::new(service, Arc::new(conf));
        // The service refuses CONNECT itself, as it refuses everything else.
        let mut options = HttpServerOptions::default();
        options.allow_connect_method_proxying = true;
        options.h2c = true;
        options.h2_idle_timeout = Some(config.client.idle);
        app.server_options = Some(options);
        app.h2_options = Some(http2_options(config.limits.header_bytes));
        app.handle_init_modules();
        Ok(Self {
            listener,
            handed: Arc::default(),
            local_addr,
            clients: Clients::new(Arc::new(app), front, leaving, config.max_connections),
            background,
            requests,
            metrics,
            scraping: CancellationToken::new(),
            drain_timeout: config.drain_timeout,
        })
    }

    /// What another program takes to go on in this one's place.
    pub(crate) fn handover(&mut self) -> io::Result<Handover> {
        let metrics = self.metrics.as_ref().map(Endpoint::listener);
        let listeners = [Some(self.listener.as_fd()), metrics];
        let listeners = listeners.into_iter().flatten();
        let listeners = listeners.map(|listener| listener.try_clone_to_owned());
        self.handed = Arc::new(listeners.collect::<io::Result<_>>()?);
        Ok(Handover {
            listeners: Arc::downgrade(&self.handed),
            scraping: self.scraping.clone(),
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
            handed,
            mut clients,
            // Ends with this function.
            background: _background,
            requests,
            metrics,
            scraping,
            drain_timeout,
            ..
        } = self;
        let scraped = metrics.map(|metrics| tokio::spawn(metrics.serve(scraping.clone())));
        // However this ends, the port is closed.
        let _scraping = scraping.clone().drop_guard();
        let failed_log = LimitedLog::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = clients.one_ends() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => clients.take(stream, peer),
                Err(error) => {
                    if let Some(failures) = failed_log.due(1) {
                        tracing::warn!(%error, failures, "could not accept connections");
                    }
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
        // From here on the port is closed with the listener.
        drop(handed);
        clients.take_last(listener);
        clients.drain(drain_timeout).await;
        requests.close();
        if timeout(ABORT_LIMIT, requests.wait()).await.is_err() {
            tracing::warn!(requests = requests.len(), "aborted requests have not ended");
        }
        // Last, so that the last requests are measured.
        scraping.cancel();
        if let Some(scraped) = scraped {
            report(scraped.await);
        }
        Ok(())
    }
}

/// How HTTP/2 is spoken with clients. What its library lets through of a head is more than [`crate::limits`] do, so
/// that a head that is too large gets our answer; what is larger by far gets the library's.
fn http2_options(header_bytes: usize) -> H2Options {
    let mut options = default_h2_options();
    let most = header_bytes
        .saturating_mul(2)
        .saturating_add(HEADER_SLACK_BYTES);
    options.max_header_list_size(u32::try_from(most).unwrap_or(u32::MAX));
    options
}
