//! All upstreams, and the way of one request through them.
//!
//! An attempt that could not connect sent nothing, so the next address is tried: first those of the same
//! name, then the other upstreams, each once. Those that are out come last, since a proxy that answers 502
//! on the word of its health checks alone would be worse than one without any.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pingora::protocols::{ALPN, Digest, SocketDigest};
use pingora::upstreams::peer::HttpPeer;

use super::balance::Balancer;
use super::ending::{Witness, left_bytes_unread};
use super::health::{Change, State};
use super::resolver::{Resolver, look_up};
use super::{Balance, Health, Scheme, Upstream};
use crate::attempt::Destination;
use crate::config::Config;
use crate::reload::Reloaded;
use crate::tls::UpstreamTrust;
use crate::usage::Stance;

/// Requests at once on one connection of HTTP/2, unless the upstream allows fewer.
const MAX_HTTP2_STREAMS: usize = 128;

/// All upstreams.
pub(crate) struct Upstreams {
    members: Vec<Member>,
    balancer: Mutex<Balancer>,
    balance: Balance,
    health: Health,
    trust: Arc<Reloaded<UpstreamTrust>>,
    connect_timeout: Duration,
    read_timeout: Duration,
    idle_timeout: Duration,
}

struct Member {
    upstream: Upstream,
    /// What its URLs begin with.
    origin: Arc<str>,
    target: Target,
    state: Mutex<State>,
    usage: Mutex<Stance>,
}

/// Where an upstream is.
enum Target {
    /// Its host is an address.
    Fixed(Arc<[SocketAddr]>),
    /// Its host is a name, looked up when needed.
    Named(Resolver),
}

impl Upstreams {
    /// Those of `config`, which names at least one.
    pub(crate) fn new(config: &Config, trust: Arc<Reloaded<UpstreamTrust>>) -> Self {
        let names: Vec<_> = config.upstreams.iter().map(Upstream::authority).collect();
        let weights = config.upstreams.iter().map(|upstream| upstream.weight);
        let member = |upstream: &Upstream| Member {
            upstream: upstream.clone(),
            origin: upstream.origin().into(),
            target: Target::new(upstream, config.connect_timeout),
            state: Mutex::default(),
            usage: Mutex::default(),
        };
        Self {
            members: config.upstreams.iter().map(member).collect(),
            balancer: Mutex::new(Balancer::new(names.iter().map(String::as_str).zip(weights))),
            balance: config.balance,
            health: config.health.clone(),
            trust,
            connect_timeout: config.connect_timeout,
            read_timeout: config.read_timeout,
            idle_timeout: config.upstream_idle_timeout,
        }
    }

    /// Whether the start of a prompt has a say in where its request goes.
    pub(crate) fn balances_by_prefix(&self) -> bool {
        self.balance == Balance::Prefix && self.members.len() > 1
    }

    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// All upstreams by index.
    pub(super) fn list(&self) -> impl Iterator<Item = (usize, &Upstream)> {
        self.members
            .iter()
            .map(|member| &member.upstream)
            .enumerate()
    }

    /// A health check of an upstream is over.
    pub(super) fn checked(&self, index: usize, is_good: bool) {
        let change = lock(&self.members[index].state).checked(&self.health, is_good);
        self.report(index, change);
    }

    /// Where an upstream is: its first address.
    pub(super) async fn first_peer(&self, index: usize) -> Option<HttpPeer> {
        let member = &self.members[index];
        let addresses = member.target.addresses().await;
        Some(self.peer(&member.upstream, *addresses.first()?))
    }

    fn peer(&self, upstream: &Upstream, address: SocketAddr) -> HttpPeer {
        let is_tls = upstream.scheme == Scheme::Https;
        // Never empty: without a name pingora believes everybody.
        let mut peer = HttpPeer::new(address, is_tls, upstream.host.to_string());
        peer.options.connection_timeout = Some(self.connect_timeout);
        peer.options.total_connection_timeout = Some(self.connect_timeout);
        peer.options.read_timeout = Some(self.read_timeout);
        peer.options.write_timeout = Some(self.read_timeout);
        peer.options.idle_timeout = Some(self.idle_timeout);
        peer.options.max_h2_streams = MAX_HTTP2_STREAMS;
        peer.options.alpn = match upstream.scheme {
            Scheme::Http => ALPN::H1,
            Scheme::Https => ALPN::H2H1,
            Scheme::H2c => ALPN::H2,
        };
        if is_tls {
            let trust = self.trust.current();
            peer.options.ca.clone_from(&trust.ca);
            peer.client_cert_key.clone_from(&trust.identity);
        }
        peer
    }

    fn connect_failed(&self, index: usize) {
        let mut state = lock(&self.members[index].state);
        let change = state.connect_failed(&self.health, Instant::now());
        drop(state);
        self.report(index, change);
    }

    fn report(&self, index: usize, change: Change) {
        let upstream = &self.members[index].upstream;
        match change {
            Change::None => {}
            Change::Down => tracing::warn!(%upstream, "health checks fail, the upstream is out"),
            Change::Up => {
                tracing::info!(%upstream, "health checks succeed, the upstream is in again");
            }
            Change::Ejected => {
                let seconds = self.health.eject_for.as_secs_f64();
                tracing::warn!(%upstream, seconds, "connects fail, the upstream is out for a while");
            }
        }
    }
}

/// The way of one request. Dropping it ends the request for the upstream that it was with.
pub(crate) struct Cursor {
    upstreams: Arc<Upstreams>,
    /// What the prompt starts with, if that has a say.
    key: Option<u64>,
    current: Option<usize>,
    /// Which address of the current upstream.
    address: usize,
    /// Those that could not be reached.
    tried: Vec<usize>,
    /// Of the connection that is made next, if one is made.
    witness: Witness,
    /// The connection of the current attempt.
    socket: Option<Arc<SocketDigest>>,
    /// The upstream that may have refused a request for being asked for usage.
    refused_usage: Option<usize>,
}

impl Cursor {
    pub(crate) fn new(upstreams: Arc<Upstreams>, key: Option<u64>) -> Self {
        Self {
            upstreams,
            key,
            current: None,
            address: 0,
            tried: Vec::new(),
            witness: Witness::default(),
            socket: None,
            refused_usage: None,
        }
    }

    /// Where the request goes now. It moves on past upstreams whose name has no address; `None` when
    /// none is left.
    pub(crate) async fn peer(&mut self) -> Option<(HttpPeer, Destination)> {
        loop {
            let index = match self.current {
                Some(index) => index,
                None => self.choose()?,
            };
            let member = &self.upstreams.members[index];
            let addresses = member.target.addresses().await;
            if let Some(&address) = addresses.get(self.address) {
                self.witness = Witness::default();
                let mut peer = self.upstreams.peer(&member.upstream, address);
                peer.options.tracer = Some(self.witness.tracer());
                let destination = Destination {
                    host: Arc::clone(&member.upstream.host),
                    port: member.upstream.port,
                    origin: Arc::clone(&member.origin),
                    address,
                };
                return Some((peer, destination));
            }
            self.give_up(index);
        }
    }

    /// There is a connection to the current upstream: this one, new or from the pool.
    pub(crate) fn connected(&mut self, connection: Option<&Digest>, is_reused: bool) {
        self.socket = connection.and_then(|digest| digest.socket_digest.clone());
        if let Some(socket) = self.socket.as_ref().filter(|_| !is_reused) {
            self.witness.watch(socket);
        }
        if let Some(index) = self.current {
            lock(&self.upstreams.members[index].state).connected();
        }
    }

    /// Whether the connection, gone just now, ended before the upstream had read the whole request.
    pub(crate) fn left_bytes_unread(&self) -> bool {
        self.socket.as_ref().is_some_and(left_bytes_unread)
    }

    /// What the current upstream makes of being asked for usage; `None` if it is not to be asked.
    pub(crate) fn usage(&self) -> Option<Stance> {
        let member = &self.upstreams.members[self.current?];
        let stance = *lock(&member.usage);
        let is_asked = self.refused_usage.is_none() && stance != Stance::Refuses;
        is_asked.then_some(stance)
    }

    /// The current upstream refused a request that asked, which is sent again as it came.
    pub(crate) fn usage_refused(&mut self) {
        self.refused_usage = self.current;
    }

    /// The current upstream answered with success. `asked`: it was asked for usage.
    pub(crate) fn succeeded(&self, asked: bool) {
        let Some(index) = self
            .current
            .filter(|_| asked || self.refused_usage.is_some())
        else {
            return;
        };
        let Member {
            upstream, usage, ..
        } = &self.upstreams.members[index];
        if asked {
            *lock(usage) = Stance::Takes;
        } else if self.refused_usage == Some(index) {
            *lock(usage) = Stance::Refuses;
            tracing::info!(%upstream, "the upstream refuses stream_options and is not asked for usage");
        }
    }

    /// There is none: moves on, or says `false` when every address was tried.
    pub(crate) fn connect_failed(&mut self) -> bool {
        let Some(index) = self.current else {
            return false;
        };
        self.address += 1;
        if self.address < self.upstreams.members[index].target.known_addresses() {
            return true;
        }
        self.give_up(index);
        self.choose().is_some()
    }

    fn choose(&mut self) -> Option<usize> {
        let upstreams = &self.upstreams;
        let now = Instant::now();
        let untried = |index: usize| !self.tried.contains(&index);
        let is_in = |index: usize| lock(&upstreams.members[index].state).gets_requests(now);
        let mut balancer = lock(&upstreams.balancer);
        self.current = balancer
            .begin(self.key, |index| untried(index) && is_in(index))
            .or_else(|| balancer.begin(self.key, untried));
        self.address = 0;
        self.current
    }

    fn give_up(&mut self, index: usize) {
        self.upstreams.connect_failed(index);
        self.tried.push(index);
        self.leave();
    }

    fn leave(&mut self) {
        if let Some(index) = self.current.take() {
            lock(&self.upstreams.balancer).end(index);
        }
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Target {
    fn new(upstream: &Upstream, limit: Duration) -> Self {
        let (host, port) = (&upstream.host, upstream.port);
        match host.parse() {
            Ok(ip) => Self::Fixed(Arc::from([SocketAddr::new(ip, port)])),
            Err(_) => Self::Named(Resolver::new(host.to_string(), port, limit, look_up)),
        }
    }

    fn known_addresses(&self) -> usize {
        match self {
            Self::Fixed(addresses) => addresses.len(),
            Self::Named(resolver) => resolver.known_addresses(),
        }
    }

    async fn addresses(&self) -> Arc<[SocketAddr]> {
        match self {
            Self::Fixed(addresses) => Arc::clone(addresses),
            Self::Named(resolver) => resolver.addresses().await,
        }
    }
}

/// What is locked is whole between any two statements, so a panic elsewhere harms nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn upstreams(count: u16) -> Arc<Upstreams> {
        let mut config = Config::new(address(0), address(1));
        config.upstreams = (1..=count).map(|port| address(port).into()).collect();
        config.health.eject_after = 2;
        let trust = Reloaded::new(Vec::new(), || Ok(UpstreamTrust::default()));
        Arc::new(Upstreams::new(&config, Arc::new(trust.expect("no file"))))
    }

    /// The ports that a request tries when nobody answers.
    async fn ports_tried(upstreams: &Arc<Upstreams>) -> Vec<u16> {
        let mut cursor = Cursor::new(Arc::clone(upstreams), None);
        let mut tried = Vec::new();
        loop {
            let (_, destination) = cursor.peer().await.expect("an address");
            tried.push(destination.address.port());
            if !cursor.connect_failed() {
                return tried;
            }
        }
    }

    #[tokio::test]
    async fn a_failed_connect_moves_on_to_each_upstream_once() {
        let upstreams = upstreams(3);
        for _ in 0..3 {
            let mut tried = ports_tried(&upstreams).await;
            tried.sort_unstable();
            assert_eq!(tried, [1, 2, 3]);
        }
    }

    #[tokio::test]
    async fn an_upstream_that_is_out_comes_last() {
        let upstreams = upstreams(2);
        for _ in 0..2 {
            upstreams.connect_failed(0);
        }
        for _ in 0..3 {
            assert_eq!(ports_tried(&upstreams).await[0], 2);
            lock(&upstreams.members[1].state).connected();
        }
    }

    #[tokio::test]
    async fn a_request_that_is_over_is_in_flight_no_more() {
        let upstreams = upstreams(2);
        let mut first = Cursor::new(Arc::clone(&upstreams), None);
        first.peer().await.expect("an address");
        let ports: Vec<_> = {
            let mut ports = Vec::new();
            for _ in 0..3 {
                let mut cursor = Cursor::new(Arc::clone(&upstreams), None);
                let (_, destination) = cursor.peer().await.expect("an address");
                ports.push(destination.address.port());
            }
            ports
        };
        assert_eq!(ports, [2, 2, 2], "the first upstream is busy");
        drop(first);
        assert_eq!(ports_tried(&upstreams).await[0], 1);
    }
}
