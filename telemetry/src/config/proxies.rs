//! `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, in capitals or not.

use std::net::IpAddr;
use std::sync::Arc;

use http::Uri;
use http::uri::Scheme;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};

use super::ConfigError;
use super::vars::{Var, Vars};

const ALLOWED: &str = "http://host:port or https://host:port, with user:password@ before the host \
                       where the proxy asks for them";

/// Which proxy stands before which endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Proxies(Arc<Matcher>);

impl Proxies {
    pub(super) fn from_vars(vars: &Vars<'_>) -> Result<Self, ConfigError> {
        let value = |names: &[&str]| {
            let var = vars.first(names);
            var.map_or(Ok(String::new()), |var| checked(&var))
        };
        let no = vars.first(&["NO_PROXY", "no_proxy"]);
        let matcher = Matcher::builder()
            .http(value(&["HTTP_PROXY", "http_proxy"])?)
            .https(value(&["HTTPS_PROXY", "https_proxy"])?)
            .all(value(&["ALL_PROXY", "all_proxy"])?)
            .no(no.map(|var| var.value).unwrap_or_default());
        Ok(Self(Arc::new(matcher.build())))
    }

    /// The proxy before `endpoint`. Whatever is tunnelled goes by `HTTPS_PROXY`, plaintext gRPC
    /// included, as it does with other gRPC clients; what is on this machine needs no proxy.
    pub(super) fn between(&self, endpoint: &Uri, is_tunnelled: bool) -> Option<Intercept> {
        let host = endpoint.host()?.trim_matches(['[', ']']);
        let is_here = match host.parse::<IpAddr>() {
            Ok(ip) => ip.to_canonical().is_loopback(),
            Err(_) => host.eq_ignore_ascii_case("localhost"),
        };
        if is_here {
            return None;
        }
        let scheme = if is_tunnelled {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        };
        let mut parts = endpoint.clone().into_parts();
        parts.scheme = Some(scheme);
        self.0.intercept(&Uri::from_parts(parts).ok()?)
    }
}

/// The value, once it is known to name a proxy. An error does not show it: it may hold a password.
fn checked(var: &Var) -> Result<String, ConfigError> {
    let probe = Matcher::builder().all(var.value.as_str()).build();
    let proxy = probe.intercept(&Uri::from_static("http://endpoint/"));
    let is_http = |proxy: &Intercept| matches!(proxy.uri().scheme_str(), Some("http" | "https"));
    match proxy.filter(is_http) {
        Some(_) => Ok(var.value.clone()),
        None => Err(ConfigError::new(&var.name, "…", ALLOWED)),
    }
}
