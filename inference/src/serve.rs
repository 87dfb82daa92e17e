//! The accept loop: hyper's connections, bounded in number and time, and a drain at the end.
//!
//! Our own and not `axum::serve`, which bounds neither connections nor the drain.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Most connections at once; further ones wait in the system's queue.
const MAX_CONNECTIONS: usize = 4096;
/// Most requests at once on one HTTP/2 connection.
const MAX_STREAMS_PER_CONNECTION: u32 = 256;
/// How long a client may take for a request's head.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a failed accept: the usual reason, no free file descriptor, passes with time.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// When and how serving ends.
#[derive(Debug, Clone)]
pub struct Lifetime {
    /// Told to stop: no new connections or requests, those in flight go on.
    pub shutdown: CancellationToken,
    /// Cancelled here when the grace is over: what is in flight then is dropped.
    pub abandoned: CancellationToken,
    /// How long requests in flight may go on.
    pub drain_grace: Duration,
}

/// Serves until told to stop. When this returns, every request has ended or been dropped.
pub async fn serve(listener: TcpListener, router: Router, lifetime: Lifetime) {
    let tracker = TaskTracker::new();
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let executor = Tracked {
        tracker: tracker.clone(),
        abandoned: lifetime.abandoned.clone(),
    };
    while let Some((socket, permit)) = lifetime
        .shutdown
        .run_until_cancelled(accept(&listener, &permits))
        .await
    {
        let connection = connection(socket, router.clone(), executor.clone(), lifetime.clone());
        tracker.spawn(async move {
            connection.await;
            drop(permit);
        });
    }
    drop(listener);
    tracker.close();
    if tokio::time::timeout(lifetime.drain_grace, tracker.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = tracker.len(),
            "requests are dropped: the grace is over"
        );
    }
    lifetime.abandoned.cancel();
    tracker.wait().await;
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> (TcpStream, tokio::sync::OwnedSemaphorePermit) {
    let permit = Arc::clone(permits)
        .acquire_owned()
        .await
        .expect("it is never closed");
    loop {
        match listener.accept().await {
            Ok((socket, _)) => return (socket, permit),
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn connection(socket: TcpStream, router: Router, executor: Tracked, lifetime: Lifetime) {
    // Each token is one small write: waiting for more to send would only delay it.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let mut builder = Builder::new(executor);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION);
    let service = TowerToHyperService::new(router);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(socket), service));
    let ended = tokio::select! {
        biased;
        () = lifetime.abandoned.cancelled() => return,
        () = lifetime.shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            lifetime.abandoned.run_until_cancelled(connection).await
        }
        ended = connection.as_mut() => Some(ended),
    };
    if let Some(Err(error)) = ended {
        tracing::debug!(error, "a connection ended early");
    }
}

/// Runs the tasks of HTTP/2 connections so that the drain waits for them and can end them.
#[derive(Clone)]
struct Tracked {
    tracker: TaskTracker,
    abandoned: CancellationToken,
}

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        let abandoned = self.abandoned.clone();
        self.tracker
            .spawn(abandoned.run_until_cancelled_owned(task));
    }
}
