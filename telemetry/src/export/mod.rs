//! From ended spans to an OTLP endpoint: a bounded queue of encoded spans, a task that sends them, and one
//! ledger that both write losses into.
//!
//! ```text
//! span ends -> QueueProcessor (encode) -> SpanQueue -> worker -> OtlpClient (own runtime)
//!                    \______________ DropLedger ________/
//! ```

mod encode;
mod grpc_channel;
mod http_client;
mod last_failure;
mod ledger;
mod limits;
mod metrics;
mod otlp;
mod queue;
mod retry;
mod worker;

pub(crate) use encode::resource as encoded_resource;
pub(crate) use last_failure::LastFailure;
pub(crate) use ledger::{DropLedger, Losses};
pub(crate) use metrics::MeteredExporter;
pub(crate) use otlp::{OtlpClient, Signal};
pub(crate) use queue::{QueueLimits, SpanQueue};
pub(crate) use worker::{ExportContext, start};
