//! The connections of clients, from accept to end: bounds them, serves each on a task of its own, and lets
//! them end on shutdown.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lantern_telemetry::LimitedLog;
use pingora::apps::ServerApp as _;
use pingora::proxy::HttpProxy;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::connection::ClientConnection;
use crate::error::Failure;
use crate::refusal::{Ends, Refusals};
use crate::reload::Reloaded;
use crate::service::Service;
use crate::transport::Transport;

/// Connections over the bound that are told so at once; more are closed without a word.
const MAX_REFUSALS: usize = 64;
const REFUSAL_LIMIT: Duration = Duration::from_secs(1);

/// Connections that are taken from the system's queue on shutdown: as many as it has place for.
const MAX_QUEUED: usize = 1024;

/// How long a connection without a request may take for its first one once the proxy is leaving: it may
/// be on its way.
const FIRST_REQUEST_LIMIT: Duration = Duration::from_secs(1);

/// How long what clients have sent may take to be noticed.
const NOTICE_TIME: Duration = Duration::from_millis(20);

/// What a connection needs to know before its first request.
pub(crate) struct Front {
    pub(crate) tls: Option<Arc<Reloaded<ServerConfig>>>,
    pub(crate) header_timeout: Duration,
    pub(crate) refusals: Refusals,
}

/// All connections of a proxy.
pub(crate) struct Clients {
    app: Arc<HttpProxy<Service>>,
    front: Arc<Front>,
    /// Whether answers say that their connection ends with them.
    leaving: Arc<AtomicBool>,
    /// Whether connections that wait for a request end.
    closing: watch::Sender<bool>,
    /// The connections that have had no request.
    newcomers: TaskTracker,
    max_connections: usize,
    places: Arc<Semaphore>,
    refusal_places: Arc<Semaphore>,
    tasks: JoinSet<()>,
    full_log: LimitedLog,
}

impl Clients {
    /// At most `max_connections` at once. `leaving` is what the `app` looks at.
    pub(crate) fn new(
        app: Arc<HttpProxy<Service>>,
        front: Front,
        leaving: Arc<AtomicBool>,
        max_connections: usize,
    ) -> Self {
        Self {
            app,
            front: Arc::new(front),
            leaving,
            closing: watch::Sender::new(false),
            newcomers: TaskTracker::new(),
            max_connections,
            places: Arc::new(Semaphore::new(max_connections)),
            refusal_places: Arc::new(Semaphore::new(MAX_REFUSALS)),
            tasks: JoinSet::new(),
            full_log: LimitedLog::default(),
        }
    }

    /// Waits for the next connection to end; for ever if there is none.
    pub(crate) async fn one_ends(&mut self) {
        match self.tasks.join_next().await {
            Some(joined) => report(joined),
            None => std::future::pending().await,
        }
    }

    /// Serves a connection that was accepted, or refuses it.
    pub(crate) fn take(&mut self, stream: TcpStream, peer: SocketAddr) {
        let ends = Ends {
            peer,
            local: stream.local_addr().ok(),
            tls: self.front.tls.is_some(),
        };
        let front = Arc::clone(&self.front);
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            let accepted = Accepted {
                stream,
                ends,
                newcomer: self.newcomers.token(),
                place,
            };
            let (app, closing) = (Arc::clone(&self.app), self.closing.subscribe());
            self.tasks.spawn(serve(app, front, accepted, closing));
            return;
        }
        if let Some(refused) = self.full_log.due(1) {
            let max_connections = self.max_connections;
            tracing::warn!(max_connections, refused, "too many connections");
        }
        match Arc::clone(&self.refusal_places).try_acquire_owned() {
            Ok(place) => {
                self.tasks.spawn(refuse(stream, ends, front, place));
            }
            Err(_) => front
                .refusals
                .record(Failure::TooManyConnections, ends, &[]),
        }
    }

    /// Takes the connections that the system has accepted already, and closes the port. From now on
    /// answers say that their connection ends with them.
    pub(crate) fn take_last(&mut self, listener: TcpListener) {
        self.leaving.store(true, Ordering::Relaxed);
        // tokio's may not know yet of a connection that has just come.
        let Ok(listener) = listener.into_std() else {
            return;
        };
        for _ in 0..MAX_QUEUED {
            let Ok((stream, peer)) = listener.accept() else {
                return;
            };
            let stream = stream
                .set_nonblocking(true)
                .and_then(|()| TcpStream::from_std(stream));
            match stream {
                Ok(stream) => self.take(stream, peer),
                Err(error) => tracing::debug!(%peer, %error, "a connection could not be taken"),
            }
        }
    }

    /// Lets requests that are there, or are still on their way on a new connection, finish for as long as
    /// `limit`, and aborts the others.
    pub(crate) async fn drain(mut self, limit: Duration) {
        let began = Instant::now();
        self.newcomers.close();
        let noticed = async {
            tokio::time::sleep(NOTICE_TIME).await;
            self.newcomers.wait().await;
        };
        let _ = timeout(FIRST_REQUEST_LIMIT.min(limit), noticed).await;
        // Those that wait for a request end now.
        self.closing.send_replace(true);
        self.app.cleanup().await;
        let drained = timeout(limit.saturating_sub(began.elapsed()), async {
            while let Some(joined) = self.tasks.join_next().await {
                report(joined);
            }
        });
        if drained.await.is_err() {
            let connections_left = self.tasks.len();
            tracing::warn!(
                connections_left,
                ?limit,
                "requests did not finish in time, aborting them"
            );
            // Waits for the tasks to be gone, and with them their requests: that ends the spans.
            self.tasks.shutdown().await;
        }
    }
}

/// A connection that was accepted.
struct Accepted {
    stream: TcpStream,
    ends: Ends,
    newcomer: TaskTrackerToken,
    /// Given back with the connection, however it ends.
    place: OwnedSemaphorePermit,
}

async fn serve(
    app: Arc<HttpProxy<Service>>,
    front: Arc<Front>,
    accepted: Accepted,
    mut closing: watch::Receiver<bool>,
) {
    let Accepted {
        stream,
        ends,
        newcomer,
        place: _place,
    } = accepted;
    let peer = ends.peer;
    let tls = front.tls.as_ref().map(|tls| tls.current());
    let in_handshake = AtomicBool::new(false);
    // Boxed: a TLS handshake would need its room for as long as the connection lasts.
    let preparing = Box::pin(timeout(
        front.header_timeout,
        Transport::prepare(stream, tls, &in_handshake),
    ));
    let prepared = tokio::select! {
        biased;
        prepared = preparing => prepared,
        // It had its time to begin a request.
        _ = closing.wait_for(|&closing| closing) => return,
    };
    match prepared {
        Ok(Ok(transport)) => {
            let refusals = front.refusals.clone();
            let limit = front.header_timeout;
            let connection = ClientConnection::new(transport, ends, refusals, limit, newcomer);
            app.process_new(Box::new(connection), &closing).await;
        }
        Ok(Err(error)) => tracing::debug!(%peer, %error, "a connection ended before it began"),
        Err(_) => tracing::debug!(%peer, "a connection began with silence"),
    }
    if in_handshake.into_inner() {
        front.refusals.record(Failure::TlsHandshake, ends, &[]);
    }
}

/// Answers a connection over the bound, of whose request it reads no more than tells its version; `_place` is given
/// back when that is done.
async fn refuse(stream: TcpStream, ends: Ends, front: Arc<Front>, _place: OwnedSemaphorePermit) {
    let (failure, refusals) = (Failure::TooManyConnections, &front.refusals);
    let tls = front.tls.as_ref().map(|tls| tls.current());
    let reached = Transport::reach(stream, tls, REFUSAL_LIMIT).await.ok();
    // An answer of HTTP/1 would mean nothing to a client of HTTP/2.
    let Some(mut transport) = reached.filter(|transport| !transport.is_http2()) else {
        refusals.record(failure, ends, &[]);
        return;
    };
    let answer = refusals.answer(failure, ends, &[]);
    let work = async {
        transport.write_all(&answer).await?;
        transport.shutdown().await?;
        // Closing with unread bytes would reset the connection before the answer is read.
        let mut ignored = [0; 1024];
        while transport.read(&mut ignored).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = timeout(REFUSAL_LIMIT, work).await;
}

/// A panic of a task is told; its request has left a span as it went.
pub(crate) fn report(joined: Result<(), JoinError>) {
    if let Err(error) = joined
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task panicked");
    }
}
