//! From ended spans to an OTLP endpoint: a bounded queue in front of the SDK's batch processor, a guarded
//! exporter behind it, and one ledger that both write losses into.
//!
//! ```text
//! span ends -> CountedQueue -> BatchSpanProcessor (its thread) -> GuardedExporter -> OTLP exporter
//!                    \______________ DropLedger _________________/    (own runtime)
//! ```

mod grpc_channel;
mod guarded;
mod http_client;
mod last_failure;
mod ledger;
mod limits;
mod metrics;
mod otlp;
mod queue;
mod rejections;
mod split;

pub(crate) use guarded::{Explain, ExportContext, GuardedExporter};
pub(crate) use last_failure::LastFailure;
pub(crate) use ledger::{DropLedger, Losses};
pub(crate) use metrics::build_metrics;
pub(crate) use otlp::build;
pub(crate) use queue::{CountedQueue, Waiting};
