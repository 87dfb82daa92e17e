//! What can go wrong: [`Error`] for whoever embeds the proxy, and `Failure` for one request, with
//! its one mapping to `error.type`, to a status and to the body that OpenAI's clients understand.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::StatusCode;
use opentelemetry::trace::TraceId;
use pingora::{Error as PingoraError, ErrorSource, ErrorType};
use rustix::io::Errno;

/// Why a proxy does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration names no upstream.
    #[error("a proxy needs at least one upstream")]
    NoUpstream,
    /// The address is taken, or not one of this machine.
    #[error("could not listen on {address}")]
    Bind {
        /// The address of the configuration.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// A file of the configuration cannot be used any more.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl FileError {
    pub(crate) fn new(path: &Path, reason: impl fmt::Display) -> Self {
        Self {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// pingora's type for the error of an upstream whose name has no address.
pub(crate) const UNRESOLVED: ErrorType = ErrorType::Custom("UpstreamUnresolved");

/// Why a request had no complete answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The client left before its answer was complete.
    ClientDisconnected,
    /// The client stopped sending its body, or reading its answer.
    ClientTimeout,
    /// The client's body is not valid HTTP.
    InvalidRequest,
    UpstreamUnresolved,
    UpstreamConnectionRefused,
    UpstreamConnectTimeout,
    UpstreamConnectFailed,
    /// The upstream was silent for longer than allowed.
    UpstreamTimeout,
    /// The upstream hung up before its answer was complete.
    UpstreamClosed,
    UpstreamInvalidResponse,
    /// The process has no file descriptor left for a connection to the upstream.
    OutOfDescriptors,
    /// The client's TLS cannot be agreed with, or it has no certificate that it needs.
    TlsHandshake,
    /// More clients than the bound allows.
    TooManyConnections,
    /// CONNECT: this is no tunnel.
    MethodNotAllowed,
    /// No API key, or one that nobody knows.
    InvalidApiKey,
    /// More requests or tokens than the API key may have in a minute.
    RateLimited,
    /// The request's head has more bytes than the bound allows.
    HeadTooLarge,
    /// The request's body has.
    BodyTooLarge,
    /// More requests at once than the bound allows.
    TooManyRequests,
    /// More bytes of requests at once than the bound allows.
    TooManyBytes,
    Internal,
    /// The proxy itself gave the request up: the drain timeout had passed, or it panicked.
    Aborted,
}

impl Failure {
    /// The failure behind one of pingora's errors.
    pub(crate) fn of(error: &PingoraError) -> Self {
        use ErrorType::{
            BindError, ConnectError, ConnectNoRoute, ConnectRefused, ConnectTimedout,
            ConnectionClosed, Custom, CustomCode, H1Error, H2Error, HandshakeError, InvalidCert,
            InvalidH2, InvalidHTTPHeader, ReadError, ReadTimedout, SocketError,
            TLSHandshakeFailure, TLSHandshakeTimedout, WriteError, WriteTimedout,
        };
        if is_out_of_descriptors(error) {
            return Self::OutOfDescriptors;
        }
        match (error.esource(), error.etype()) {
            // A stream of HTTP/2 that is reset, by whomever: what is malformed in it never gets here.
            (ErrorSource::Downstream, ConnectionClosed | ReadError | WriteError | H2Error)
            // pingora leaves the source of some failed writes to the client unset.
            | (ErrorSource::Unset, WriteError) => Self::ClientDisconnected,
            (ErrorSource::Downstream, ReadTimedout | WriteTimedout) => Self::ClientTimeout,
            (ErrorSource::Downstream, Custom(code)) => Self::refusal(code),
            (ErrorSource::Downstream, _) => Self::InvalidRequest,
            (ErrorSource::Upstream, etype) => match etype {
                ConnectRefused => Self::UpstreamConnectionRefused,
                ConnectTimedout | TLSHandshakeTimedout => Self::UpstreamConnectTimeout,
                ConnectNoRoute | ConnectError | SocketError | BindError | TLSHandshakeFailure
                | HandshakeError | InvalidCert => Self::UpstreamConnectFailed,
                ReadTimedout | WriteTimedout => Self::UpstreamTimeout,
                ConnectionClosed | ReadError | WriteError => Self::UpstreamClosed,
                etype if *etype == UNRESOLVED => Self::UpstreamUnresolved,
                // pingora's types for broken chunks and lengths are custom ones.
                InvalidHTTPHeader | H1Error | H2Error | InvalidH2 | Custom(_) | CustomCode(..) => {
                    Self::UpstreamInvalidResponse
                }
                _ => Self::Internal,
            },
            (ErrorSource::Internal | ErrorSource::Unset, _) => Self::Internal,
        }
    }

    /// Requests that the proxy refuses by its own rules.
    const REFUSALS: [Self; 7] = [
        Self::InvalidApiKey,
        Self::RateLimited,
        Self::MethodNotAllowed,
        Self::HeadTooLarge,
        Self::BodyTooLarge,
        Self::TooManyRequests,
        Self::TooManyBytes,
    ];

    /// The refusal that pingora was told of by this code. What else it calls custom of a client's is an
    /// invalid body.
    fn refusal(code: &str) -> Self {
        let refusal = Self::REFUSALS
            .into_iter()
            .find(|known| known.as_str() == code);
        refusal.unwrap_or(Self::InvalidRequest)
    }

    /// A refusal as pingora takes it.
    pub(crate) fn into_error(self) -> Box<PingoraError> {
        PingoraError::new_down(ErrorType::Custom(self.as_str()))
    }

    /// The value of `error.type`, and the `code` of the error body.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::ClientDisconnected => "client_disconnected",
            Self::ClientTimeout => "client_timeout",
            Self::InvalidRequest => "invalid_request",
            Self::UpstreamUnresolved => "upstream_unresolved",
            Self::UpstreamConnectionRefused => "upstream_connection_refused",
            Self::UpstreamConnectTimeout => "upstream_connect_timeout",
            Self::UpstreamConnectFailed => "upstream_connect_failed",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::UpstreamClosed => "upstream_closed",
            Self::UpstreamInvalidResponse => "upstream_invalid_response",
            Self::OutOfDescriptors => "out_of_file_descriptors",
            Self::TlsHandshake => "tls_handshake_failed",
            Self::TooManyConnections => "too_many_connections",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::InvalidApiKey => "invalid_api_key",
            Self::RateLimited => "rate_limit_exceeded",
            Self::HeadTooLarge => "request_header_too_large",
            Self::BodyTooLarge => "request_body_too_large",
            Self::TooManyRequests => "too_many_requests_in_flight",
            Self::TooManyBytes => "too_many_bytes_in_flight",
            Self::Internal => "internal_error",
            Self::Aborted => "aborted",
        }
    }

    /// The answer to the client, if there is anybody to answer.
    pub(crate) fn status(self) -> Option<StatusCode> {
        match self {
            Self::ClientDisconnected | Self::TlsHandshake | Self::Aborted => None,
            Self::ClientTimeout => Some(StatusCode::REQUEST_TIMEOUT),
            Self::InvalidRequest => Some(StatusCode::BAD_REQUEST),
            Self::UpstreamConnectTimeout | Self::UpstreamTimeout => {
                Some(StatusCode::GATEWAY_TIMEOUT)
            }
            Self::OutOfDescriptors
            | Self::TooManyConnections
            | Self::TooManyRequests
            | Self::TooManyBytes => Some(StatusCode::SERVICE_UNAVAILABLE),
            Self::InvalidApiKey => Some(StatusCode::UNAUTHORIZED),
            Self::RateLimited => Some(StatusCode::TOO_MANY_REQUESTS),
            Self::HeadTooLarge => Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            Self::BodyTooLarge => Some(StatusCode::PAYLOAD_TOO_LARGE),
            Self::MethodNotAllowed => Some(StatusCode::METHOD_NOT_ALLOWED),
            Self::Internal => Some(StatusCode::INTERNAL_SERVER_ERROR),
            Self::UpstreamUnresolved
            | Self::UpstreamConnectionRefused
            | Self::UpstreamConnectFailed
            | Self::UpstreamClosed
            | Self::UpstreamInvalidResponse => Some(StatusCode::BAD_GATEWAY),
        }
    }

    /// For the client, who need not know where the upstream is.
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::ClientDisconnected => "the client left",
            Self::ClientTimeout => "the request was not received in time",
            Self::InvalidRequest => "the request is not valid HTTP",
            Self::UpstreamUnresolved => "the upstream server's name could not be resolved",
            Self::UpstreamConnectionRefused => "the upstream server refused the connection",
            Self::UpstreamConnectTimeout => {
                "the upstream server did not accept a connection in time"
            }
            Self::UpstreamConnectFailed => "the upstream server could not be reached",
            Self::UpstreamTimeout => "the upstream server did not answer in time",
            Self::UpstreamClosed => "the upstream server closed the connection before it answered",
            Self::UpstreamInvalidResponse => "the upstream server's answer is not valid HTTP",
            Self::OutOfDescriptors | Self::TooManyConnections => {
                "the proxy has too many connections"
            }
            Self::TlsHandshake => "the TLS handshake failed",
            Self::MethodNotAllowed => "the proxy opens no tunnels",
            Self::InvalidApiKey => "the API key is missing or not known",
            Self::RateLimited => "the API key has used up its requests or tokens of this minute",
            Self::HeadTooLarge => "the request's header is too large",
            Self::BodyTooLarge => "the request's body is too large",
            Self::TooManyRequests | Self::TooManyBytes => {
                "the proxy has too many requests in flight"
            }
            Self::Internal => "the proxy failed to handle the request",
            Self::Aborted => "the proxy gave the request up",
        }
    }

    /// When another attempt makes sense, in seconds.
    pub(crate) fn retry_after(self) -> Option<u64> {
        match self {
            Self::TooManyConnections | Self::TooManyRequests | Self::TooManyBytes => Some(1),
            _ => None,
        }
    }

    /// OpenAI's error body, which its clients turn into an exception with this message.
    pub(crate) fn openai_body(self, trace_id: Option<TraceId>) -> Bytes {
        let kind = match self.status() {
            Some(StatusCode::TOO_MANY_REQUESTS) => "rate_limit_error",
            Some(status) if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        let (message, code) = (self.message(), self.as_str());
        let trace_id = trace_id.map_or_else(String::new, |id| format!(r#","trace_id":"{id}""#));
        // The texts are ours and need no escaping.
        Bytes::from(format!(
            r#"{{"error":{{"message":"{message}","type":"{kind}","param":null,"code":"{code}"{trace_id}}}}}"#
        ))
    }
}

/// pingora calls it an internal error, with the system's word for it as the cause.
fn is_out_of_descriptors(error: &PingoraError) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    matches!(
        cause.and_then(Errno::from_io_error),
        Some(Errno::MFILE | Errno::NFILE)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pingora_errors_map_to_failures_by_source_and_type() {
        use ErrorType::*;
        for (error, failure) in [
            (
                PingoraError::new_down(ConnectionClosed),
                Failure::ClientDisconnected,
            ),
            (
                PingoraError::new_down(WriteError),
                Failure::ClientDisconnected,
            ),
            (PingoraError::new_down(ReadTimedout), Failure::ClientTimeout),
            (PingoraError::new_down(H2Error), Failure::ClientDisconnected),
            (
                PingoraError::new_down(InvalidHTTPHeader),
                Failure::InvalidRequest,
            ),
            (
                PingoraError::new_up(ConnectRefused),
                Failure::UpstreamConnectionRefused,
            ),
            (
                PingoraError::new_up(ConnectTimedout),
                Failure::UpstreamConnectTimeout,
            ),
            (
                PingoraError::new_up(ConnectNoRoute),
                Failure::UpstreamConnectFailed,
            ),
            (PingoraError::new_up(ReadTimedout), Failure::UpstreamTimeout),
            (
                PingoraError::new_up(ConnectionClosed),
                Failure::UpstreamClosed,
            ),
            (
                PingoraError::new_up(InvalidHTTPHeader),
                Failure::UpstreamInvalidResponse,
            ),
            (
                PingoraError::new_up(UNRESOLVED),
                Failure::UpstreamUnresolved,
            ),
            (PingoraError::new_in(InternalError), Failure::Internal),
        ] {
            assert_eq!(Failure::of(&error), failure, "{error}");
        }
    }

    #[test]
    fn a_connect_without_a_file_descriptor_is_the_proxys_want_of_them() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
            let socket = PingoraError::because(
                ErrorType::SocketError,
                "failed to create socket",
                io::Error::from(errno),
            );
            let connect =
                PingoraError::because(ErrorType::InternalError, "fail to connect", socket);
            let expect = match errno {
                Errno::NOMEM => Failure::Internal,
                _ => Failure::OutOfDescriptors,
            };
            assert_eq!(Failure::of(&connect), expect, "{errno}");
        }
        let status = Failure::OutOfDescriptors.status();
        assert_eq!(status, Some(StatusCode::SERVICE_UNAVAILABLE));
    }

    #[test]
    fn the_body_is_that_of_openai() {
        assert_eq!(
            Failure::UpstreamConnectionRefused.openai_body(None),
            r#"{"error":{"message":"the upstream server refused the connection","type":"server_error","param":null,"code":"upstream_connection_refused"}}"#
        );
        assert_eq!(
            Failure::Internal.openai_body(Some(TraceId::from(0xabc))),
            r#"{"error":{"message":"the proxy failed to handle the request","type":"server_error","param":null,"code":"internal_error","trace_id":"00000000000000000000000000000abc"}}"#
        );
    }
}
