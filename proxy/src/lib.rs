//! A reverse proxy for LLM servers that gives every HTTP request its server span, so that the server
//! behind it needs no tracing of HTTP at all.
//!
//! It continues the trace that a request brings, or starts one; gives every attempt at an upstream a
//! CLIENT span, which the upstream is told as the parent; and ends the SERVER span with the last byte
//! of the answer. Bodies pass through as they
//! come, in both directions: nothing is buffered or, unless `--ask-for-usage` says so, changed. Those of requests to a model are read in
//! passing, for what they say of the model's work.
//!
//! # Layout
//!
//! - [`Args`] → [`Config`]: flags, variables and the file, checked before anything binds (`config`), and
//!   the environment of the HTTP instrumentation ([`Instrumentation`]).
//! - [`Proxy`]: binds and accepts (`server`); `clients` bounds connections, serves and drains them;
//!   `connection` is the client's connection as pingora sees it, over a `transport` that is plain or
//!   encrypted.
//! - `tls`: certificates and keys on both sides; `reload`: what is made again when its files change.
//! - `service`: a request's life in pingora's phases, and what is known of it between them (`request`);
//!   `forwarded`: what the upstream is told of the client; `answer`: our own answers, to requests that
//!   failed; `retry`: what may be sent again; `upstream`: where a request goes, by load or by prompt, and
//!   who is out.
//! - `entrance`: lets requests in; `access` knows who may ask, by API key, `limits` what is too much.
//! - `observer`: begins a request's observation. `span`: the SERVER span and the guard that ends it;
//!   `attempt`: the CLIENT spans. `origin`, `route`, `redact`, `headers` and `ip` find out what goes
//!   onto them; `propagation`: trace headers in and out; `identity`: what the client is told of them.
//! - `refusal`: requests that pingora never hands over; `http2`: those that are refused within a connection of HTTP/2.
//! - `bodies`: what passes between the heads; `sse` and `json` read it byte by byte, `genai` knows what
//!   the APIs mean by it.
//! - `metrics`: what is measured of all requests, for Prometheus. [`Keep`]: which unsampled ones leave
//!   their spans.
//! - `usage`: asks upstreams for a stream's usage, where that is wanted.
//! - `program`: arguments to exit, for `lantern-proxy` and for `lantern proxy`; `upgrade`: a new program in
//!   place of a running one; `sockets`: those that listened before the program began.
//! - [`Error`], and what a failed request looks like to its client and on its span (`error`).
//!
//! # What a span says
//!
//! The attributes are those of the stable HTTP conventions. Of its own it adds
//!
//! | attribute | type | |
//! |---|---|---|
//! | `lantern.http.response.time_to_first_byte` | double, s | from the request's head to the first byte of the answer's |
//! | `lantern.http.response.chunk_count` | int | pieces in which a body without Content-Length arrived |
//! | `lantern.sse.event_count` | int | complete events of a `text/event-stream`, a closing `[DONE]` included |
//! | `lantern.request.id` | string | the client's own `x-request-id`; without one, the request's id is the trace's |
//! | `lantern.api_key.name` | string | the name of the API key that let the request in |
//! | `lantern.sampling.kept` | string | of a span that was not sampled, why it is there: `error`, `slow` |
//!
//! A CLIENT span has `http.request.resend_count` from the second attempt on, and as
//! `lantern.upstream.request.id` the upstream's `x-request-id` where it is not ours.
//!
//! A `POST` to `/v1/completions`, `/v1/chat/completions`, `/v1/responses` or `/v1/embeddings` has the
//! GenAI conventions' attributes too, of whatever its bodies say: `gen_ai.operation.name` always;
//! `gen_ai.request.*` from the request; `gen_ai.response.{id, model, finish_reasons}` and
//! `gen_ai.usage.{input_tokens, output_tokens, cache_read.input_tokens}` from a JSON answer or the
//! events of a stream; `gen_ai.provider.name` only where the answer's head names it. The responses API
//! has no finish reasons: it is the reason why the response is incomplete, or else its final status.
//! Without usage, llama.cpp's `timings` count the tokens. Prompts and completions are recorded only if
//! `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT` says so, as `gen_ai.input.messages`,
//! `gen_ai.output.messages` and `gen_ai.system_instructions`, of bodies up to 64 KiB.
//!
//! | attribute | type | |
//! |---|---|---|
//! | `gen_ai.response.time_to_first_chunk` | double, s | of a stream: from the request's head to its first chunk |
//! | `lantern.gen_ai.response.chunk_count` | int | chunks: events with a piece of a choice or a delta; not `[DONE]`, nor those with nothing but usage, a status or an error |
//! | `lantern.gen_ai.response.time_between_chunks.mean` | double, s | from two chunks on |
//! | `lantern.gen_ai.response.time_between_chunks.max` | double, s | the longest that the stream stood still |
//! | `lantern.gen_ai.content.truncated` | bool | true: messages are missing or cut, as a body was too long |
//! | `lantern.gen_ai.usage.partial` | bool | true: the answer was cut before its end, and usage and finish reasons are what was seen |
//!
//! What is not read, and has none of these from its body: a body with a Content-Encoding, and
//! broken JSON from the break on. A string is recorded up to 256 bytes, 16 stop sequences, and the finish
//! reasons of 128 choices.
//!
//! `error.type` is the status code for an upstream's 5xx; otherwise `client_disconnected`,
//! `client_timeout`, `invalid_request`, `upstream_unresolved`, `upstream_connection_refused`,
//! `upstream_connect_timeout`, `upstream_connect_failed`, `upstream_timeout`, `upstream_closed`,
//! `upstream_invalid_response`, `out_of_file_descriptors`, `too_many_connections`,
//! `method_not_allowed` (CONNECT), `tls_handshake_failed`, `invalid_api_key`, `rate_limit_exceeded`,
//! `request_header_too_large`, `request_body_too_large`, `too_many_requests_in_flight`,
//! `too_many_bytes_in_flight`, `internal_error`, or `aborted` for a request that the proxy gave up
//! on shutdown. A status code is there only if the client was sent one. To an attempt a 4xx is an error
//! too; to the request it is none of the server's, whoever answered it.

mod access;
mod answer;
mod attempt;
mod bodies;
mod clients;
mod config;
mod connection;
mod entrance;
mod error;
mod forwarded;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod genai;
mod headers;
mod http2;
mod identity;
mod instrumentation;
mod ip;
mod json;
mod keep;
mod limits;
mod metrics;
mod observer;
mod origin;
mod program;
mod propagation;
mod redact;
mod refusal;
mod reload;
mod request;
mod retry;
mod route;
mod server;
mod service;
mod sockets;
mod span;
mod sse;
mod tls;
mod transport;
mod upgrade;
mod upstream;
mod usage;

pub use config::{Args, ClientTimeouts, Config, Flags};
pub use error::{Error, FileError};
pub use instrumentation::Instrumentation;
pub use keep::Keep;
pub use limits::Limits;
pub use origin::TrustedProxies;
pub use program::{AFTER_HELP, DEFAULT_SERVICE_NAME, run};
pub use route::Routes;
pub use server::Proxy;
pub use sockets::Sockets;
pub use tls::{Identity, ServerTls, UpstreamTls};
pub use upstream::{Balance, Health, Upstream};
