//! The servers behind the proxy: which of them a request goes to, and where it goes when nobody
//! answers there.
//!
//! [`Upstream`] is what the configuration says of one; `pool` has all of them; `balance` chooses by load
//! or by the prompt's `prefix`; `health` knows who is out; `check` asks them how they are; `ending`
//! knows whether one can have read a request; `resolver` is where a name is.

mod balance;
mod check;
mod ending;
mod health;
mod pool;
mod prefix;
mod resolver;

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::uri::PathAndQuery;
use tokio::net::TcpStream;
use tokio::time::timeout;

pub(crate) use check::check_for_ever;
pub(crate) use pool::{Cursor, Upstreams};
pub(crate) use prefix::PrefixKey;

const DEFAULT_WEIGHT: u32 = 1;
/// Larger weights are a mistake: with a hundred times the requests the other is not worth having.
const MAX_WEIGHT: u32 = 100;

/// Which upstream a request goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// The one with the fewest requests in flight for its weight.
    LeastLoaded,
    /// The one that gets all prompts that start alike, as long as it is not much busier than the others.
    Prefix,
}

/// What takes an upstream out, and in again. While all are out, requests go to them all the same.
#[derive(Clone, Debug)]
pub struct Health {
    /// What every upstream is asked for from time to time; `None`: nothing.
    pub path: Option<PathAndQuery>,
    /// Time from one check to the next, and the longest wait for its answer.
    pub interval: Duration,
    /// Failed checks in a row that take an upstream out.
    pub unhealthy_after: usize,
    /// Good checks in a row that take it in again.
    pub healthy_after: usize,
    /// Failed connects of requests in a row that take it out.
    pub eject_after: usize,
    /// How long it stays out after those.
    pub eject_for: Duration,
}

/// What an upstream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    /// HTTP/1.1.
    Http,
    /// TLS, and in it HTTP/2 or HTTP/1.1, as the upstream likes.
    Https,
    /// HTTP/2 without TLS, known to be spoken: nothing is negotiated.
    H2c,
}

/// One server behind the proxy, `http://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    scheme: Scheme,
    host: Arc<str>,
    port: u16,
    /// How many times the requests of an upstream of weight 1 it gets.
    weight: u32,
}

impl Upstream {
    pub(crate) const ALLOWED: &str = "http://host:port, https:// or h2c://, with no path, and perhaps ,weight=N with N from 1 to 100";

    /// From the value of `--upstream`: `http://host:port`, `https://` or `h2c://`, without a path, and
    /// perhaps `,weight=N`.
    pub fn parse(text: &str) -> Option<Self> {
        let (url, weight) = match text.split_once(',') {
            None => (text, DEFAULT_WEIGHT),
            Some((url, option)) => (url, option.strip_prefix("weight=")?.parse().ok()?),
        };
        let (scheme, host, port) = parts(url)?;
        (1..=MAX_WEIGHT).contains(&weight).then(|| Self {
            scheme,
            host: host.into(),
            port,
            weight,
        })
    }

    /// Whether it takes a connection, within `limit`.
    pub async fn accepts(&self, limit: Duration) -> bool {
        let connecting = TcpStream::connect((&*self.host, self.port));
        matches!(timeout(limit, connecting).await, Ok(Ok(_)))
    }

    /// `scheme://host:port`, by the scheme that URLs have for it.
    fn origin(&self) -> String {
        let scheme = match self.scheme {
            Scheme::Http | Scheme::H2c => Scheme::Http,
            Scheme::Https => Scheme::Https,
        };
        format!("{}://{}", scheme.as_str(), self.authority())
    }

    /// `host:port`
    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl Scheme {
    const ALL: [Self; 3] = [Self::Http, Self::Https, Self::H2c];

    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::H2c => "h2c",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Http | Self::H2c => 80,
            Self::Https => 443,
        }
    }
}

fn parts(url: &str) -> Option<(Scheme, String, u16)> {
    let uri = Uri::from_str(url).ok()?;
    let authority = uri.authority()?;
    let only_an_authority = matches!(uri.path(), "" | "/") && uri.query().is_none();
    let scheme = Scheme::ALL
        .into_iter()
        .find(|scheme| uri.scheme_str() == Some(scheme.as_str()))?;
    if !only_an_authority || authority.host().is_empty() || authority.as_str().contains('@') {
        return None;
    }
    // A port that is empty or no number is no port for `Authority`, and a mistake for us.
    let port = match authority.as_str().strip_prefix(authority.host())? {
        "" => scheme.default_port(),
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
    Some((scheme, host.to_owned(), port))
}

impl From<SocketAddr> for Upstream {
    fn from(address: SocketAddr) -> Self {
        Self {
            scheme: Scheme::Http,
            host: address.ip().to_string().into(),
            port: address.port(),
            weight: DEFAULT_WEIGHT,
        }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority())?;
        match self.weight {
            DEFAULT_WEIGHT => Ok(()),
            weight => write!(f, ",weight={weight}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_a_scheme_an_authority_and_perhaps_a_weight() {
        for (text, shown) in [
            ("http://127.0.0.1:8001", "http://127.0.0.1:8001"),
            ("http://127.0.0.1:8001/", "http://127.0.0.1:8001"),
            ("http://inference:8001", "http://inference:8001"),
            ("http://inference", "http://inference:80"),
            ("http://[::1]:8001", "http://[::1]:8001"),
            ("https://a", "https://a:443"),
            ("https://a:8443", "https://a:8443"),
            ("h2c://a:1,weight=2", "h2c://a:1,weight=2"),
            ("http://a:1,weight=1", "http://a:1"),
            ("http://a:1,weight=3", "http://a:1,weight=3"),
        ] {
            assert_eq!(Upstream::parse(text).expect(text).to_string(), shown);
        }
    }

    #[test]
    fn anything_else_is_none() {
        for text in [
            "",
            "127.0.0.1:8001",
            "localhost",
            "https://",
            "http://",
            "http://a:b",
            "http://a:0",
            "http://a:99999",
            "http://a:1/v1",
            "http://a:1?x",
            "http://u:p@a:1",
            "grpc://a:1",
            "http://a:1,",
            "http://a:1,weight",
            "http://a:1,weight=0",
            "http://a:1,weight=101",
            "http://a:1,wait=2",
            "http://a:1,http://b:1",
        ] {
            assert_eq!(Upstream::parse(text), None, "{text}");
        }
    }
}
