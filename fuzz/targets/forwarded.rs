//! `Forwarded` and `X-Forwarded-*`, against the standard's grammar. The first line of input says which
//! header the others are lines of.
#![no_main]

use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;

use http::{HeaderMap, HeaderName, HeaderValue};
use lantern_proxy::TrustedProxies;
use lantern_proxy::fuzzing::origin;
use libfuzzer_sys::fuzz_target;

const PEER: &str = "10.0.0.1";
/// Hops that are looked at.
const MAX_HOPS: usize = 32;

static TRUSTED: LazyLock<TrustedProxies> = LazyLock::new(|| {
    let mut trusted = TrustedProxies::default();
    trusted.add("fuzz", "10.0.0.0/8").expect("a network");
    trusted
});

fuzz_target!(|data: &[u8]| {
    let mut lines = data.split(|byte| *byte == b'\n');
    let name = HeaderName::from_bytes(lines.next().unwrap_or_default());
    let values: Vec<_> = lines
        .filter_map(|line| HeaderValue::from_bytes(line).ok())
        .collect();
    let Ok(name) = name else {
        return;
    };
    let mut headers = HeaderMap::new();
    for value in &values {
        headers.append(&name, value.clone());
    }
    let stranger = SocketAddr::from(([192, 0, 2, 1], 1));
    let (client, scheme, server) = origin(stranger, headers.clone(), &TRUSTED);
    assert_eq!(
        (client.as_deref(), scheme),
        (Some("192.0.2.1"), "http"),
        "strangers tell nothing"
    );
    assert!(server.is_none() || name == "host");

    let peer = SocketAddr::new(PEER.parse().expect("an address"), 1);
    let (client, _, _) = origin(peer, headers, &TRUSTED);
    let client = client.expect("there is a peer");
    if let [value] = &values[..]
        && name == "forwarded"
        && let Some(hops) = value.to_str().ok().and_then(hops)
        && hops.len() <= MAX_HOPS
    {
        assert_eq!(client, first(&hops), "{value:?}");
    }
});

/// The nearest hop that is not trusted, or the last that is named.
fn first(hops: &[Option<String>]) -> String {
    let mut client = PEER.to_owned();
    for hop in hops.iter().rev() {
        let Some(named) = hop else { break };
        client.clone_from(named);
        if !matches!(named.parse(), Ok(IpAddr::V4(address)) if address.octets()[0] == 10) {
            break;
        }
    }
    client
}

/// For whom each element is, of a header that keeps to <https://www.rfc-editor.org/rfc/rfc7239#section-4>.
/// None for others, and for those with ports or backslashes.
fn hops(value: &str) -> Option<Vec<Option<String>>> {
    let mut hops = Vec::new();
    let mut rest = value.trim_matches([' ', '\t']);
    while !rest.is_empty() {
        if let Some(next) = rest.strip_prefix([',', ' ', '\t']) {
            rest = next;
            continue;
        }
        let mut names = Vec::new();
        let mut client = None;
        loop {
            if let Some((name, after)) = token(rest) {
                let (text, after) = value_of(after.strip_prefix('=')?)?;
                let name = name.to_ascii_lowercase();
                if names.contains(&name) {
                    return None;
                }
                if name == "for" {
                    client = Some(text.to_owned()).filter(|text| !text.is_empty());
                }
                names.push(name);
                rest = after;
            }
            match rest.strip_prefix(';') {
                Some(after) => rest = after,
                None => break,
            }
        }
        let ended = rest.trim_start_matches([' ', '\t']);
        if !ended.is_empty() && !ended.starts_with(',') {
            return None;
        }
        if client
            .as_ref()
            .is_some_and(|client| client.contains([':', '[', ' ', '\t', '"']))
        {
            return None;
        }
        hops.push(client);
        rest = ended;
    }
    Some(hops)
}

fn token(text: &str) -> Option<(&str, &str)> {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let length = text.bytes().take_while(|byte| is_token(byte)).count();
    (length > 0).then(|| text.split_at(length))
}

fn value_of(text: &str) -> Option<(&str, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        return token(text);
    };
    let (inside, after) = quoted.split_once('"')?;
    (!inside.contains('\\')).then_some((inside, after))
}
