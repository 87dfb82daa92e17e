//! The servers behind the proxy: where a request goes first, and where it goes when nobody
//! answers there.
//!
//! Requests take turns over the upstreams. An attempt that could not connect sent nothing, so the
//! next address is tried: first those of the same name, then the other upstreams.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Uri;
use lantern_telemetry::config::ConfigError;

use crate::resolver::{Resolver, look_up};

const DEFAULT_HTTP_PORT: u16 = 80;

/// One server behind the proxy, `http://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    host: Arc<str>,
    port: u16,
}

impl Upstream {
    /// From the value of `--upstream`: `http://host:port`, without a path.
    pub fn parse(url: &str) -> Result<Self, ConfigError> {
        Self::from_url(url)
            .ok_or_else(|| ConfigError::new("--upstream", url, "http://host:port, with no path"))
    }

    fn from_url(url: &str) -> Option<Self> {
        let uri = Uri::from_str(url).ok()?;
        let authority = uri.authority()?;
        let only_an_authority = matches!(uri.path(), "" | "/") && uri.query().is_none();
        if uri.scheme_str() != Some("http")
            || !only_an_authority
            || authority.host().is_empty()
            || authority.as_str().contains('@')
        {
            return None;
        }
        // A port that is empty or no number is no port for `Authority`, and a mistake for us.
        let port = match authority.as_str().strip_prefix(authority.host())? {
            "" => DEFAULT_HTTP_PORT,
            port => port
                .strip_prefix(':')?
                .parse()
                .ok()
                .filter(|&port| port != 0)?,
        };
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        Some(Self {
            host: host.into(),
            port,
        })
    }

    /// The name or address, without brackets.
    pub(crate) fn host(&self) -> &Arc<str> {
        &self.host
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl From<SocketAddr> for Upstream {
    fn from(address: SocketAddr) -> Self {
        Self {
            host: address.ip().to_string().into(),
            port: address.port(),
        }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "http://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "http://{}:{}", self.host, self.port)
        }
    }
}

/// All upstreams, and whose turn it is.
pub(crate) struct Upstreams {
    upstreams: Vec<Upstream>,
    targets: Vec<Target>,
    next: AtomicUsize,
}

/// Where an upstream is.
enum Target {
    /// Its host is an address.
    Fixed(Arc<[SocketAddr]>),
    /// Its host is a name, looked up when needed.
    Named(Resolver),
}

/// Where a request stands in the list of upstreams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    /// The upstream whose turn it was.
    first: usize,
    upstream: usize,
    address: usize,
}

impl Upstreams {
    /// `upstreams` is not empty. A request waits for an address at most `limit`.
    pub(crate) fn new(upstreams: Vec<Upstream>, limit: Duration) -> Self {
        let target = |upstream: &Upstream| Target::new(upstream, limit);
        let targets = upstreams.iter().map(target).collect();
        Self {
            upstreams,
            targets,
            next: AtomicUsize::new(0),
        }
    }

    /// Where a new request goes first.
    pub(crate) fn take_turn(&self) -> Cursor {
        let first = self.next.fetch_add(1, Ordering::Relaxed) % self.targets.len();
        Cursor {
            first,
            upstream: first,
            address: 0,
        }
    }

    /// The upstream that `cursor` stands at.
    pub(crate) fn upstream(&self, cursor: &Cursor) -> &Upstream {
        &self.upstreams[cursor.upstream]
    }

    /// The address that `cursor` stands at. It moves on past upstreams whose name has no address;
    /// `None` when none is left.
    pub(crate) async fn address(&self, cursor: &mut Cursor) -> Option<SocketAddr> {
        loop {
            let addresses = self.targets[cursor.upstream].addresses().await;
            match addresses.get(cursor.address) {
                Some(&address) => return Some(address),
                None if self.move_to_next_upstream(cursor) => {}
                None => return None,
            }
        }
    }

    /// Moves `cursor` on after a failed connect; `false` when every address was tried.
    pub(crate) fn advance(&self, cursor: &mut Cursor) -> bool {
        cursor.address += 1;
        if cursor.address < self.targets[cursor.upstream].known_addresses() {
            return true;
        }
        self.move_to_next_upstream(cursor)
    }

    fn move_to_next_upstream(&self, cursor: &mut Cursor) -> bool {
        cursor.upstream = (cursor.upstream + 1) % self.targets.len();
        cursor.address = 0;
        cursor.upstream != cursor.first
    }
}

impl Target {
    fn new(upstream: &Upstream, limit: Duration) -> Self {
        match upstream.host.parse() {
            Ok(ip) => Self::Fixed(Arc::from([SocketAddr::new(ip, upstream.port)])),
            Err(_) => {
                let name = upstream.host.to_string();
                Self::Named(Resolver::new(name, upstream.port, limit, look_up))
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_a_plain_http_authority() {
        for (url, shown) in [
            ("http://127.0.0.1:8001", "http://127.0.0.1:8001"),
            ("http://127.0.0.1:8001/", "http://127.0.0.1:8001"),
            ("http://inference:8001", "http://inference:8001"),
            ("http://inference", "http://inference:80"),
            ("http://[::1]:8001", "http://[::1]:8001"),
        ] {
            assert_eq!(Upstream::parse(url).expect(url).to_string(), shown);
        }
    }

    #[test]
    fn anything_else_is_an_error_that_names_the_flag_and_the_value() {
        for url in [
            "",
            "127.0.0.1:8001",
            "localhost",
            "https://a:1",
            "http://",
            "http://a:b",
            "http://a:0",
            "http://a:99999",
            "http://a:1/v1",
            "http://a:1?x",
            "http://u:p@a:1",
            "grpc://a:1",
        ] {
            let error = Upstream::parse(url).expect_err(url).to_string();
            assert!(
                error.contains("--upstream") && error.contains(url),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn requests_take_turns_and_a_failed_connect_moves_on_to_each_once() {
        let addresses: Vec<SocketAddr> = (1..=3)
            .map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
            .collect();
        let upstreams = addresses.iter().copied().map(Upstream::from).collect();
        let upstreams = Upstreams::new(upstreams, Duration::from_secs(1));
        for first in [0, 1, 2, 0] {
            let mut cursor = upstreams.take_turn();
            let mut tried = Vec::new();
            loop {
                tried.push(upstreams.address(&mut cursor).await.expect("an address"));
                if !upstreams.advance(&mut cursor) {
                    break;
                }
            }
            let expected: Vec<_> = (0..3).map(|i| addresses[(first + i) % 3]).collect();
            assert_eq!(tried, expected);
        }
    }
}
