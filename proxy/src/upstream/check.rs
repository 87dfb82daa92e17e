//! Asks every upstream from time to time how it is. One that answers 2xx in time is well.

use std::sync::Arc;

use http::header::{CONNECTION, HOST, USER_AGENT};
use http::uri::PathAndQuery;
use pingora::Result;
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::upstreams::peer::HttpPeer;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::pool::Upstreams;

const AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// Checks until it is dropped; returns at once if the configuration asks for no checks.
pub(crate) async fn check_for_ever(upstreams: Arc<Upstreams>) {
    let Some(path) = upstreams.health().path.clone() else {
        return;
    };
    let connector = Arc::new(Connector::new(None));
    let mut checks = JoinSet::new();
    for (index, upstream) in upstreams.list() {
        let probe = Probe {
            connector: Arc::clone(&connector),
            authority: upstream.authority(),
            path: path.clone(),
        };
        checks.spawn(check(Arc::clone(&upstreams), index, probe));
    }
    while checks.join_next().await.is_some() {}
}

async fn check(upstreams: Arc<Upstreams>, index: usize, probe: Probe) {
    let limit = upstreams.health().interval;
    let mut ticks = interval(limit);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let answer = async {
            match upstreams.first_peer(index).await {
                Some(peer) => probe.is_answered(&peer).await,
                None => Ok(false),
            }
        };
        let is_good = match timeout(limit, answer).await {
            Ok(Ok(is_good)) => is_good,
            Ok(Err(error)) => {
                tracing::debug!(upstream = probe.authority, %error, "a health check failed");
                false
            }
            Err(_) => false,
        };
        upstreams.checked(index, is_good);
    }
}

/// How one upstream is asked.
struct Probe {
    connector: Arc<Connector>,
    authority: String,
    path: PathAndQuery,
}

impl Probe {
    /// Whether the upstream says 2xx. Each check has a connection of its own: that it can be connected to
    /// is half of what is asked.
    async fn is_answered(&self, peer: &HttpPeer) -> Result<bool> {
        let (mut session, _) = self.connector.get_http_session(peer).await?;
        let mut request = RequestHeader::build("GET", self.path.as_str().as_bytes(), Some(3))?;
        request.insert_header(HOST, &self.authority)?;
        request.insert_header(USER_AGENT, AGENT)?;
        request.insert_header(CONNECTION, "close")?;
        session.write_request_header(Box::new(request)).await?;
        session.finish_request_body().await?;
        session.read_response_header().await?;
        let head = session.response_header();
        Ok(head.is_some_and(|head| head.status.is_success()))
    }
}
