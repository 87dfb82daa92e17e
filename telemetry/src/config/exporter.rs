//! How spans, and metrics, are sent: everything an OTLP exporter needs, whoever exports. The shim's way out reads the
//! same settings as the exporter of this crate.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::endpoint::{self, Endpoint};
use super::proxies::Proxies;
use super::tls::{self, PemFile};
use super::vars::{Var, Vars};
use super::{ConfigError, Signal};

/// The specification's default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than any sensible wait, short enough that a misplaced number is noticed.
const MAX_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// The OTLP transports that can be sent by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Protocol {
    /// `grpc`: OTLP/gRPC, the default.
    #[default]
    Grpc,
    /// `http/protobuf`: OTLP/HTTP with protobuf bodies.
    HttpProtobuf,
    /// `http/json`: OTLP/HTTP with JSON bodies.
    HttpJson,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Grpc => "grpc",
            Self::HttpProtobuf => "http/protobuf",
            Self::HttpJson => "http/json",
        })
    }
}

/// How requests are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// `none`, which an exporter of its own spans takes for the default.
    None,
    /// `gzip`.
    Gzip,
}

/// The validated `OTEL_EXPORTER_OTLP_*` variables.
#[derive(Clone, Debug)]
pub struct ExporterSettings {
    /// The URL to send to, its scheme `http` or `https`; for OTLP/HTTP with its path.
    pub endpoint: String,
    /// The transport.
    pub protocol: Protocol,
    /// Headers (gRPC: metadata) of every request, marked as sensitive.
    pub headers: HeaderMap,
    /// The longest that one export may take, its retries included.
    pub timeout: Duration,
    /// The compression of requests, where one is named: who passes requests on may else leave them
    /// as they came.
    pub compression: Option<Compression>,
    /// Whether an endpoint without a scheme is reached without TLS.
    pub insecure: bool,
    /// The authorities to trust instead of the public ones.
    pub certificate: Option<PemFile>,
    /// The private key of the client certificate.
    pub client_key: Option<PemFile>,
    /// The certificate chain to show to the server.
    pub client_certificate: Option<PemFile>,
    /// Where to connect to, whatever address the endpoint's host has; no proxy stands before it.
    pub connect_to: Option<SocketAddr>,
    pub(super) proxies: Proxies,
}

impl ExporterSettings {
    /// How to send to `url`, as given by `flag`. Its other settings are the variables whose names begin
    /// with `prefix` where those of OTLP begin with `OTEL_EXPORTER_OTLP_`, which are not looked at:
    /// credentials are for who they were given for.
    pub fn named(
        flag: &str,
        url: &str,
        prefix: &str,
        get: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut settings = Self::from_vars(&Vars::of_exporter(get, prefix), Signal::Traces)?;
        let endpoint = Endpoint::for_all_signals(flag, url, settings.insecure)?;
        settings.endpoint = endpoint::resolve(Some(&endpoint), settings.protocol, Signal::Traces);
        Ok(settings)
    }

    /// Reads all but the endpoint, which [`super::Settings`] resolves.
    pub(super) fn from_vars(vars: &Vars<'_>, signal: Signal) -> Result<Self, ConfigError> {
        let protocol = vars
            .otlp(signal, "PROTOCOL")
            .map_or(Ok(Protocol::default()), |v| protocol(&v))?;
        let timeout = vars
            .otlp(signal, "TIMEOUT")
            .map(|var| var.milliseconds(MAX_TIMEOUT))
            .transpose()?;
        let compression = vars
            .otlp(signal, "COMPRESSION")
            .map(|var| compression(&var))
            .transpose()?;
        let insecure = vars
            .otlp(signal, "INSECURE")
            .map(|var| var.switch())
            .transpose()?;
        let headers = vars
            .otlp(signal, "HEADERS")
            .map(|var| headers(&var))
            .transpose()?;
        let tls = tls::Files::from_vars(vars, signal)?;
        Ok(Self {
            endpoint: endpoint::resolve(None, protocol, signal),
            protocol,
            headers: headers.unwrap_or_default(),
            timeout: timeout.unwrap_or(DEFAULT_TIMEOUT),
            compression,
            insecure: insecure.unwrap_or(false),
            certificate: tls.certificate,
            client_key: tls.client_key,
            client_certificate: tls.client_certificate,
            connect_to: None,
            proxies: Proxies::from_vars(vars)?,
        })
    }
}

fn protocol(var: &Var) -> Result<Protocol, ConfigError> {
    match var.lowercase().as_str() {
        "grpc" => Ok(Protocol::Grpc),
        "http/protobuf" => Ok(Protocol::HttpProtobuf),
        "http/json" => Ok(Protocol::HttpJson),
        _ => Err(var.error("grpc, http/protobuf or http/json")),
    }
}

fn compression(var: &Var) -> Result<Compression, ConfigError> {
    match var.lowercase().as_str() {
        "none" => Ok(Compression::None),
        "gzip" => Ok(Compression::Gzip),
        _ => Err(var.error("gzip or none")),
    }
}

fn headers(var: &Var) -> Result<HeaderMap, ConfigError> {
    let mut headers = HeaderMap::new();
    for (index, (name, value)) in var.pairs()?.into_iter().enumerate() {
        let error = || var.hidden_entry_error(index, &format!("{name}="));
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| error())?;
        let mut value = HeaderValue::from_str(&value).map_err(|_| error())?;
        value.set_sensitive(true);
        headers.insert(header, value);
    }
    Ok(headers)
}
