//! Where spans and metrics go: the forms in which users name an OTLP endpoint, and the URL that each means.

use http::Uri;

use super::{ConfigError, Protocol, Signal};

const DEFAULT_GRPC_URL: &str = "http://localhost:4317";
const DEFAULT_HTTP_URL: &str = "http://localhost:4318";
const ALLOWED: &str = "grpc://host:port, http://host:port, https://host:port or host:port";

/// Whether an endpoint was named for one signal or for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    OneSignal,
    AllSignals,
}

/// An endpoint as somebody named it, and known to be usable.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// The variable or flag that named it.
    variable: String,
    named: String,
    /// With scheme `http` or `https`.
    url: String,
    scope: Scope,
}

impl Endpoint {
    /// Takes `named` apart. `insecure` decides for an endpoint without a scheme only, as the
    /// specification has it.
    pub(super) fn parse(
        variable: &str,
        named: &str,
        insecure: bool,
        scope: Scope,
    ) -> Result<Self, ConfigError> {
        let error = || ConfigError::new(variable, named, ALLOWED);
        let (scheme, rest) = match named.split_once("://") {
            Some((scheme, rest)) => match scheme.to_ascii_lowercase().as_str() {
                // `grpc://` is what vLLM's examples write for plaintext gRPC.
                "grpc" | "http" => ("http", rest),
                "https" => ("https", rest),
                _ => return Err(error()),
            },
            None if insecure => ("http", named),
            None => ("https", named),
        };
        let url = format!("{scheme}://{rest}");
        let uri: Uri = url.parse().map_err(|_| error())?;
        let authority = uri.authority().ok_or_else(error)?;
        let bare_port = authority
            .as_str()
            .rsplit_once(':')
            .is_some_and(|(_, port)| {
                !port.ends_with(']') && !(1..=u16::MAX).contains(&port.parse().unwrap_or(0))
            });
        if uri.host().is_none_or(str::is_empty) || authority.as_str().contains('@') || bare_port {
            return Err(error());
        }
        Ok(Self {
            variable: variable.to_owned(),
            named: named.to_owned(),
            url,
            scope,
        })
    }

    /// One that was named for all signals, though perhaps with the path that traces have there.
    pub(super) fn for_all_signals(
        variable: &str,
        named: &str,
        insecure: bool,
    ) -> Result<Self, ConfigError> {
        let base = named.strip_suffix(Signal::Traces.path()).unwrap_or(named);
        Self::parse(variable, base, insecure, Scope::AllSignals)
    }

    /// As it was written.
    pub(super) fn named(&self) -> &str {
        &self.named
    }

    /// What named it.
    pub(super) fn variable(&self) -> &str {
        &self.variable
    }

    /// The URL to send `signal` to by `protocol`.
    fn url(&self, protocol: Protocol, signal: Signal) -> String {
        match (protocol, self.scope) {
            (Protocol::HttpProtobuf | Protocol::HttpJson, Scope::AllSignals) => {
                format!("{}{}", self.url.trim_end_matches('/'), signal.path())
            }
            _ => self.url.clone(),
        }
    }
}

/// The URL to send `signal` to: the endpoint that was named, else the default of `protocol`.
pub(super) fn resolve(endpoint: Option<&Endpoint>, protocol: Protocol, signal: Signal) -> String {
    match (endpoint, protocol) {
        (Some(endpoint), _) => endpoint.url(protocol, signal),
        (None, Protocol::Grpc) => DEFAULT_GRPC_URL.to_owned(),
        (None, Protocol::HttpProtobuf | Protocol::HttpJson) => {
            format!("{DEFAULT_HTTP_URL}{}", signal.path())
        }
    }
}
