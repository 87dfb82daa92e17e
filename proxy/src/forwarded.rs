//! What the upstream is told of the client in `X-Forwarded-*`. The chain of addresses is continued, whoever
//! wrote its beginning; whom to believe is the upstream's to decide.

use std::net::IpAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use pingora::Result;
use pingora::http::RequestHeader;

use crate::ip;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Tells in `request` who the `peer` is and by which scheme the client came.
pub(crate) fn tell(
    request: &mut RequestHeader,
    peer: Option<IpAddr>,
    scheme: &'static str,
) -> Result<()> {
    if let Some(peer) = peer {
        let forwarded = forwarded_for(&request.headers, &ip::text(peer));
        request.insert_header(X_FORWARDED_FOR, forwarded)?;
    }
    request.insert_header(X_FORWARDED_PROTO, HeaderValue::from_static(scheme))
}

/// The addresses in X-Forwarded-For and, behind them, the peer.
fn forwarded_for(headers: &HeaderMap, peer: &str) -> HeaderValue {
    let mut list = Vec::with_capacity(peer.len());
    for value in headers.get_all(X_FORWARDED_FOR) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(peer.as_bytes());
    HeaderValue::from_maybe_shared(Bytes::from(list)).expect("header values and an IP address")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_is_appended_to_the_addresses_that_came_in() {
        let mut headers = HeaderMap::new();
        assert_eq!(forwarded_for(&headers, "10.0.0.1"), "10.0.0.1");
        headers.append(
            X_FORWARDED_FOR,
            HeaderValue::from_static("1.1.1.1, 2.2.2.2"),
        );
        headers.append(X_FORWARDED_FOR, HeaderValue::from_static("3.3.3.3"));
        assert_eq!(
            forwarded_for(&headers, "10.0.0.1"),
            "1.1.1.1, 2.2.2.2, 3.3.3.3, 10.0.0.1"
        );
    }
}
