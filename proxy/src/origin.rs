//! Who asked, and for which server: the client's connection, or what trusted proxies in front of
//! this one say of it in `Forwarded` (RFC 7239) or `X-Forwarded-*`.
//!
//! Anybody can write these headers, so they are believed only from hops that are named as trusted,
//! and only as far back as the chain of trusted hops reaches. No hop is trusted unless somebody says
//! so, this machine's own addresses included.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr as _;

use http::header::{FORWARDED, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Version};
use ipnet::IpNet;
use lantern_telemetry::config::ConfigError;

use crate::ip;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Hops that are looked at in one request. Nobody has so many proxies.
const MAX_HOPS: usize = 32;

/// The proxies whose word is taken.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Those of `value` too: addresses and networks, several of them separated by commas. An error
    /// names `place`, where the value was found.
    pub fn add(&mut self, place: &str, value: &str) -> Result<(), ConfigError> {
        for entry in value.split(',').map(str::trim) {
            let network = IpNet::from_str(entry)
                .or_else(|_| IpAddr::from_str(entry).map(IpNet::from))
                .map_err(|_| {
                    let allowed = "an IP address or a network in CIDR form, 10.0.0.0/8";
                    ConfigError::new(place, entry, allowed)
                })?;
            self.0.push(network);
        }
        Ok(())
    }

    fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// A request's head and the two ends of its connection.
pub(crate) struct Arrival<'a> {
    pub(crate) head: &'a Parts,
    /// The head's own, unless that was never read.
    pub(crate) version: Option<Version>,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) local: Option<SocketAddr>,
    /// Whether the connection is one of TLS.
    pub(crate) tls: bool,
}

/// Who asked, and for what.
#[derive(Debug, PartialEq)]
pub(crate) struct Origin {
    pub(crate) client: Option<String>,
    pub(crate) scheme: &'static str,
    /// The server that the client meant; without a Host, the address it reached.
    pub(crate) server: Option<(String, Option<u16>)>,
}

impl Origin {
    pub(crate) fn of(arrival: &Arrival<'_>, trusted: &TrustedProxies) -> Self {
        let peer = arrival.peer.map(|peer| peer.ip().to_canonical());
        let told = match peer {
            Some(peer) if trusted.trusts(peer) => Told::by(&arrival.head.headers, trusted),
            _ => Told::default(),
        };
        let own_scheme = if arrival.tls { "https" } else { "http" };
        let authority = told.host.as_deref().or_else(|| authority(arrival.head));
        let server = match (authority, arrival.local) {
            (Some(authority), _) => {
                let (host, port) = split_authority(authority);
                Some((host.to_owned(), port))
            }
            (None, Some(local)) => {
                let address = ip::text(local.ip());
                Some((address, Some(local.port())))
            }
            (None, None) => None,
        };
        Self {
            client: told.client.or_else(|| peer.map(ip::text)),
            scheme: told.scheme.unwrap_or(own_scheme),
            server,
        }
    }

    /// The URL that excluded URLs are searched in: scheme, host and path.
    pub(crate) fn url(&self, path: &str) -> String {
        let scheme = self.scheme;
        match &self.server {
            Some((host, Some(port))) if host.contains(':') => {
                format!("{scheme}://[{host}]:{port}{path}")
            }
            Some((host, Some(port))) => format!("{scheme}://{host}:{port}{path}"),
            Some((host, None)) => format!("{scheme}://{host}{path}"),
            None => format!("{scheme}://{path}"),
        }
    }
}

/// What trusted proxies tell.
#[derive(Default)]
struct Told {
    client: Option<String>,
    scheme: Option<&'static str>,
    host: Option<String>,
}

impl Told {
    /// `Forwarded` is the standard; where it is absent, the headers that came before it.
    fn by(headers: &HeaderMap, trusted: &TrustedProxies) -> Self {
        if headers.contains_key(FORWARDED) {
            Self::by_forwarded(headers, trusted)
        } else {
            Self::by_x_forwarded(headers, trusted)
        }
    }

    fn by_forwarded(headers: &HeaderMap, trusted: &TrustedProxies) -> Self {
        let elements = from_the_last(headers, &FORWARDED, elements);
        let hops: Vec<Hop> = elements.map(Hop::parse).collect();
        let clients = hops.iter().map(|hop| hop.client.as_deref());
        let Some(first) = first_hop(clients, trusted) else {
            return Self::default();
        };
        let hop = &hops[first];
        Self {
            client: hop.client.as_deref().map(address),
            scheme: hop.proto.as_deref().and_then(scheme),
            host: hop.host.clone(),
        }
    }

    fn by_x_forwarded(headers: &HeaderMap, trusted: &TrustedProxies) -> Self {
        let clients: Vec<_> = from_the_last(headers, &X_FORWARDED_FOR, at_commas).collect();
        let first = first_hop(clients.iter().map(|client| Some(*client)), trusted);
        // Some proxies append to the other lists too, some replace them.
        let beside = |name| {
            let values: Vec<_> = from_the_last(headers, name, at_commas).collect();
            let index = first.unwrap_or(0).min(values.len().checked_sub(1)?);
            Some(values[index])
        };
        Self {
            client: first.map(|first| address(clients[first])),
            scheme: beside(&X_FORWARDED_PROTO).and_then(scheme),
            host: beside(&X_FORWARDED_HOST).map(str::to_owned),
        }
    }
}

/// Of the clients that hops name, the nearest hop's first: the index of the one that is no trusted
/// proxy itself, else of the last. `None` stands for a hop that names nobody, where the chain ends.
fn first_hop<'a>(
    clients: impl Iterator<Item = Option<&'a str>>,
    trusted: &TrustedProxies,
) -> Option<usize> {
    let mut last = None;
    for (index, client) in clients.enumerate() {
        let Some(client) = client else { break };
        last = Some(index);
        let is_proxy = address(client)
            .parse()
            .is_ok_and(|address| trusted.trusts(address));
        if !is_proxy {
            break;
        }
    }
    last
}

/// The entries of a list header, over all its lines, the last first. `cut` takes a line apart.
fn from_the_last<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    cut: impl Fn(&'a str) -> Vec<&'a str>,
) -> impl Iterator<Item = &'a str> {
    let values: Vec<_> = headers.get_all(name).iter().collect();
    values
        .into_iter()
        .rev()
        .filter_map(|value| value.to_str().ok())
        .flat_map(move |value| cut(value).into_iter().rev())
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .take(MAX_HOPS)
}

fn at_commas(line: &str) -> Vec<&str> {
    line.split(',').collect()
}

/// A comma in quotes separates nothing: a host that somebody asked for may have one. But a quote that is
/// never closed is no quote, or whoever sends one would hide what trusted proxies have added.
fn elements(line: &str) -> Vec<&str> {
    match outside_quotes(line, ',') {
        Some(elements) => elements,
        None => at_commas(line),
    }
}

/// `text` cut at each `separator` that is not in quotes. `None` when a quote is not closed.
fn outside_quotes(text: &str, separator: char) -> Option<Vec<&str>> {
    let (mut quoted, mut escaped) = (false, false);
    let pieces = text.split(|character| {
        let begins_escape = quoted && !escaped && character == '\\';
        if character == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = begins_escape;
        character == separator && !quoted
    });
    let pieces = pieces.collect();
    (!quoted).then_some(pieces)
}

/// One element of `Forwarded`.
#[derive(Default)]
struct Hop {
    client: Option<String>,
    host: Option<String>,
    proto: Option<String>,
}

impl Hop {
    fn parse(element: &str) -> Self {
        let mut hop = Self::default();
        let pairs = outside_quotes(element, ';').unwrap_or_else(|| element.split(';').collect());
        for pair in pairs {
            let Some((name, value)) = pair.split_once('=') else {
                continue;
            };
            let value = value.trim().trim_matches('"').replace('\\', "");
            let slot = match name.trim().to_ascii_lowercase().as_str() {
                "for" => &mut hop.client,
                "host" => &mut hop.host,
                "proto" => &mut hop.proto,
                _ => continue,
            };
            *slot = Some(value).filter(|value| !value.is_empty());
        }
        hop
    }
}

/// The address of a node, without its port: `192.0.2.1:80`, `[2001:db8::1]:80`, `2001:db8::1`,
/// `unknown`, `_hidden`.
fn address(node: &str) -> String {
    if let Ok(ip) = node.parse::<IpAddr>() {
        return ip::text(ip);
    }
    let (host, _) = split_authority(node);
    match host.parse::<IpAddr>() {
        Ok(ip) => ip::text(ip),
        Err(_) => host.to_owned(),
    }
}

fn scheme(proto: &str) -> Option<&'static str> {
    ["http", "https"]
        .into_iter()
        .find(|known| proto.eq_ignore_ascii_case(known))
}

fn authority(head: &Parts) -> Option<&str> {
    match head.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => head.headers.get(HOST).and_then(|host| host.to_str().ok()),
    }
    .filter(|authority| !authority.is_empty())
}

/// Host and port of `host`, `host:port`, `[v6]` or `[v6]:port`.
fn split_authority(authority: &str) -> (&str, Option<u16>) {
    if let Some((host, rest)) = authority
        .strip_prefix('[')
        .and_then(|v6| v6.split_once(']'))
    {
        return (
            host,
            rest.strip_prefix(':').and_then(|port| port.parse().ok()),
        );
    }
    match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()),
        None => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Request};

    use super::*;

    const TRUSTED: &str = "10.0.0.0/8, 2001:db8::/32,127.0.0.1";

    fn origin(peer: &str, headers: &[(&'static str, &'static str)]) -> Origin {
        let mut request = Request::builder().uri("/").header(HOST, "own.example:8000");
        for (name, value) in headers {
            request = request.header(*name, HeaderValue::from_static(value));
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let peer = peer.parse().expect("an address");
        let arrival = Arrival {
            head: &head,
            version: Some(head.version),
            peer: Some(SocketAddr::new(peer, 1)),
            local: None,
            tls: false,
        };
        let mut trusted = TrustedProxies::default();
        trusted.add("--trusted-proxies", TRUSTED).expect("networks");
        Origin::of(&arrival, &trusted)
    }

    fn expect(client: &str, scheme: &'static str, host: &str, port: Option<u16>) -> Origin {
        Origin {
            client: Some(client.to_owned()),
            scheme,
            server: Some((host.to_owned(), port)),
        }
    }

    #[test]
    fn an_untrusted_peer_is_the_client_whatever_it_says() {
        let own = expect("192.0.2.9", "http", "own.example", Some(8000));
        for headers in [
            &[("forwarded", "for=1.1.1.1;proto=https;host=evil")][..],
            &[
                ("x-forwarded-for", "10.1.1.1"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "evil"),
            ],
        ] {
            assert_eq!(origin("192.0.2.9", headers), own);
        }
    }

    #[test]
    fn a_trusted_peer_is_believed_as_far_back_as_the_trusted_hops_reach() {
        for (headers, expected) in [
            (
                &[("forwarded", "for=192.0.2.1;proto=https;host=llm.example")][..],
                expect("192.0.2.1", "https", "llm.example", None),
            ),
            (
                &[(
                    "forwarded",
                    "for=6.6.6.6;host=evil, for=192.0.2.1;host=a:81, For=\"10.0.0.2:99\";host=b",
                )],
                expect("192.0.2.1", "http", "a", Some(81)),
            ),
            (
                &[("forwarded", "for=\"[2001:db9::1]:4711\"")],
                expect("2001:db9::1", "http", "own.example", Some(8000)),
            ),
            (
                &[("forwarded", "for=6.6.6.6;proto=https, proto=http")],
                expect("10.0.0.1", "http", "own.example", Some(8000)),
            ),
            (
                &[("forwarded", r#"for=192.0.2.1;host="a\", for=6.6.6.6;b""#)],
                expect("192.0.2.1", "http", "a\", for=6.6.6.6;b", None),
            ),
            (
                &[("forwarded", "for=\"6.6.6.6, for=\"192.0.2.1\"")],
                expect("192.0.2.1", "http", "own.example", Some(8000)),
            ),
            (
                &[("forwarded", "for=unknown")],
                expect("unknown", "http", "own.example", Some(8000)),
            ),
            (
                &[("x-forwarded-for", "6.6.6.6, 192.0.2.1, 10.0.0.3")],
                expect("192.0.2.1", "http", "own.example", Some(8000)),
            ),
            (
                &[
                    ("x-forwarded-for", "10.0.0.5"),
                    ("x-forwarded-for", "10.0.0.3"),
                ],
                expect("10.0.0.5", "http", "own.example", Some(8000)),
            ),
            (
                &[
                    ("x-forwarded-for", "192.0.2.1"),
                    ("x-forwarded-proto", "HTTPS"),
                    ("x-forwarded-host", "llm.example:8443"),
                ],
                expect("192.0.2.1", "https", "llm.example", Some(8443)),
            ),
            (
                &[
                    ("x-forwarded-for", "192.0.2.1, 10.0.0.3"),
                    ("x-forwarded-proto", "https, http"),
                ],
                expect("192.0.2.1", "https", "own.example", Some(8000)),
            ),
            (
                &[
                    ("forwarded", "for=192.0.2.1"),
                    ("x-forwarded-for", "6.6.6.6"),
                    ("x-forwarded-proto", "https"),
                ],
                expect("192.0.2.1", "http", "own.example", Some(8000)),
            ),
            (
                &[("x-forwarded-proto", "gopher")],
                expect("10.0.0.1", "http", "own.example", Some(8000)),
            ),
        ] {
            assert_eq!(origin("10.0.0.1", headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn a_single_address_is_a_network_and_an_ipv4_one_is_known_in_ipv6_form() {
        let headers = &[("x-forwarded-for", "192.0.2.1")];
        for peer in ["127.0.0.1", "::ffff:10.0.0.1", "2001:db8::7"] {
            let origin = origin(peer, headers);
            assert_eq!(origin.client.as_deref(), Some("192.0.2.1"), "{peer}");
        }
    }

    #[test]
    fn nobody_is_trusted_by_default() {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        assert!(!TrustedProxies::default().trusts(loopback));
    }

    #[test]
    fn what_is_no_network_is_an_error_that_names_it() {
        for value in ["10.0.0.0/33", "localhost", "10.0.0", "1.2.3.4, x"] {
            let error = TrustedProxies::default().add("--trusted-proxies", value);
            let error = error.expect_err(value).to_string();
            assert!(error.contains("--trusted-proxies"), "{error}");
        }
    }

    #[test]
    fn an_authority_splits_into_host_and_port() {
        for (authority, expected) in [
            ("localhost", ("localhost", None)),
            ("localhost:8000", ("localhost", Some(8000))),
            ("[::1]", ("::1", None)),
            ("[::1]:8000", ("::1", Some(8000))),
            ("a:b", ("a", None)),
        ] {
            assert_eq!(split_authority(authority), expected, "{authority}");
        }
    }
}
