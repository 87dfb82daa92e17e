//! What the page's list shows: a line for each of the newest traces, and what is missing.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};

use super::jaeger::{now_ns, trace_id_text};
use crate::store::{StatusCode, Store, StoredTrace, TraceQuery};

const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1_000;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Parameters {
    service: String,
    limit: usize,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters {
            service: String::new(),
            limit: DEFAULT_LIMIT,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Overview {
    services: Vec<String>,
    traces: Vec<Line>,
    stored_traces: u64,
    stored_spans: u64,
    evicted_traces: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    #[serde(rename = "traceID")]
    trace_id: String,
    /// Of the root, or of the earliest span while the root has not come.
    service: String,
    operation: String,
    /// Microseconds since the Unix epoch.
    start_time: u64,
    /// Microseconds from the first start to the last end.
    duration: u64,
    spans: usize,
    errors: usize,
    /// Spans by service.
    services: BTreeMap<String, usize>,
}

pub(super) async fn overview(
    State(store): State<Arc<Store>>,
    Query(parameters): Query<Parameters>,
) -> Json<Overview> {
    let mut query = TraceQuery::newest(now_ns(), parameters.limit.min(MAX_LIMIT));
    // A sender's clock may run ahead of ours; its traces are to be seen all the same.
    query.start_max_ns = u64::MAX;
    query.service = Some(parameters.service).filter(|service| !service.is_empty());
    let holdings = store.holdings();
    Json(Overview {
        services: store.services().iter().map(ToString::to_string).collect(),
        traces: store.find(&query).iter().filter_map(line).collect(),
        stored_traces: holdings.traces,
        stored_spans: holdings.spans,
        evicted_traces: holdings.evicted_traces,
    })
}

fn line(trace: &StoredTrace) -> Option<Line> {
    let known: HashSet<&str> = trace.spans.iter().map(|span| &*span.span_id).collect();
    let is_root = |parent: &Option<String>| {
        parent
            .as_deref()
            .is_none_or(|parent| !known.contains(parent))
    };
    let root = trace
        .spans
        .iter()
        .filter(|span| is_root(&span.parent_span_id))
        .min_by_key(|span| (span.parent_span_id.is_some(), span.start_unix_ns))
        .or(trace.spans.first())?;
    let start_ns = trace.spans.iter().map(|span| span.start_unix_ns).min()?;
    let end_ns = trace.spans.iter().map(|span| span.end_unix_ns).max()?;
    let failed = |status: &crate::store::Status| status.code == StatusCode::Error;
    let mut services = BTreeMap::new();
    for span in &trace.spans {
        *services.entry(span.service_name.to_string()).or_insert(0) += 1;
    }
    Some(Line {
        trace_id: trace_id_text(&trace.trace_id),
        service: root.service_name.to_string(),
        operation: root.name.clone(),
        start_time: start_ns / 1_000,
        duration: end_ns.saturating_sub(start_ns) / 1_000,
        spans: trace.spans.len(),
        errors: trace
            .spans
            .iter()
            .filter(|span| failed(&span.status))
            .count(),
        services,
    })
}
