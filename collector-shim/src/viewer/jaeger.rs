//! Jaeger's query API over the embedded store: the same paths, parameters and JSON, so that what
//! reads Jaeger reads this. Jaeger itself documents it as what its UI uses.
//!
//! How a span becomes Jaeger's follows
//! <https://opentelemetry.io/docs/specs/otel/trace/sdk_exporters/jaeger/>.

mod convert;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use serde::Serialize;

use crate::store::{QueryError, SpanKind, Store, TraceQuery};
pub(super) use convert::trace_id_text;

/// How far back `/api/dependencies` looks when it is not told.
const DEFAULT_DEPENDENCY_LOOKBACK: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_TRACE_ID_DIGITS: usize = 32;
/// Spans shown that link to one trace; a long request was in thousands of engine steps.
const MAX_LINKING: usize = 100;

pub(super) fn router(store: Arc<Store>) -> Router {
    Router::new()
        .route("/api/services", get(services))
        .route(
            "/api/services/{service}/operations",
            get(operations_of_path),
        )
        .route("/api/operations", get(operations))
        .route("/api/traces", get(traces))
        .route("/api/traces/{id}", get(trace))
        .route("/api/dependencies", get(dependencies))
        // Jaeger has nothing like it: it shows where links lead, and not whence.
        .route("/ui/traces/{id}/linking", get(linking))
        .with_state(store)
}

/// The frame of every answer.
#[derive(Serialize)]
struct Answer<T> {
    data: Option<T>,
    total: usize,
    limit: usize,
    offset: usize,
    errors: Option<Vec<Problem>>,
}

#[derive(Serialize)]
struct Problem {
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
    msg: String,
    #[serde(rename = "traceID", skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
}

type Result<T> = std::result::Result<Json<Answer<T>>, Failure>;

/// An answer that is only a problem.
struct Failure(StatusCode, String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Failure(status, msg) = self;
        let problem = Problem {
            code: Some(status.as_u16()),
            msg,
            trace_id: None,
        };
        let errors = Some(vec![problem]);
        let answer = Answer::<()> {
            data: None,
            total: 0,
            limit: 0,
            offset: 0,
            errors,
        };
        (status, Json(answer)).into_response()
    }
}

impl From<QueryError> for Failure {
    fn from(error: QueryError) -> Failure {
        Failure(StatusCode::BAD_REQUEST, error.to_string())
    }
}

fn answer<T>(data: T, total: usize, problems: Vec<Problem>) -> Json<Answer<T>> {
    let errors = Some(problems).filter(|problems| !problems.is_empty());
    Json(Answer {
        data: Some(data),
        total,
        limit: 0,
        offset: 0,
        errors,
    })
}

async fn services(State(store): State<Arc<Store>>) -> Json<Answer<Vec<String>>> {
    let services: Vec<_> = store.services().iter().map(ToString::to_string).collect();
    let total = services.len();
    answer(services, total, Vec::new())
}

async fn operations_of_path(
    State(store): State<Arc<Store>>,
    Path(service): Path<String>,
) -> Json<Answer<BTreeSet<String>>> {
    let names: BTreeSet<_> = store
        .operations(&service)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let total = names.len();
    answer(names, total, Vec::new())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Operation {
    name: String,
    span_kind: &'static str,
}

type Parameters = Query<Vec<(String, String)>>;

/// The first value of `name` that is not empty.
fn parameter<'a>(parameters: &'a Parameters, name: &str) -> Option<&'a str> {
    let mut named = parameters
        .iter()
        .filter(|(key, value)| key == name && !value.is_empty());
    named.next().map(|(_, value)| value.as_str())
}

async fn operations(
    State(store): State<Arc<Store>>,
    parameters: Parameters,
) -> Result<Vec<Operation>> {
    let service = parameter(&parameters, "service").ok_or(QueryError::ServiceRequired)?;
    let wanted = parameter(&parameters, "spanKind");
    let is_wanted = |kind: SpanKind| wanted.is_none_or(|wanted| wanted == kind.as_str());
    let operations: Vec<_> = store
        .operations(service)
        .into_iter()
        .filter(|(_, kind)| is_wanted(*kind))
        .map(|(name, kind)| Operation {
            name,
            span_kind: kind.as_str(),
        })
        .collect();
    let total = operations.len();
    Ok(answer(operations, total, Vec::new()))
}

async fn traces(
    State(store): State<Arc<Store>>,
    parameters: Parameters,
) -> Result<Vec<convert::Trace>> {
    let query = TraceQuery::parse(&parameters, now_ns())?;
    if query.trace_ids.is_empty() {
        let traces = store.find(&query).iter().map(convert::trace).collect();
        return Ok(answer(traces, 0, Vec::new()));
    }
    let (mut traces, mut problems) = (Vec::new(), Vec::new());
    for id in &query.trace_ids {
        check_trace_id(id)?;
        match store.trace(id) {
            Some(trace) => traces.push(convert::trace(&trace)),
            None => problems.push(Problem {
                code: None,
                msg: NOT_FOUND.to_owned(),
                trace_id: Some(trace_id_text(id)),
            }),
        }
    }
    Ok(answer(traces, 0, problems))
}

const NOT_FOUND: &str = "trace not found";

async fn trace(
    State(store): State<Arc<Store>>,
    Path(id): Path<String>,
) -> Result<[convert::Trace; 1]> {
    check_trace_id(&id)?;
    match store.trace(&id) {
        Some(trace) => Ok(answer([convert::trace(&trace)], 0, Vec::new())),
        None => Err(Failure(StatusCode::NOT_FOUND, NOT_FOUND.to_owned())),
    }
}

/// The longest spans elsewhere that link into a trace, each in a trace of its own without its neighbours.
async fn linking(
    State(store): State<Arc<Store>>,
    Path(id): Path<String>,
) -> Result<Vec<convert::Trace>> {
    check_trace_id(&id)?;
    let spans = store.linking(&id, MAX_LINKING);
    let spans: Vec<_> = spans.iter().map(convert::trace).collect();
    let total = spans.len();
    Ok(answer(spans, total, Vec::new()))
}

fn check_trace_id(id: &str) -> std::result::Result<(), Failure> {
    let is_hex = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hex && id.len() <= MAX_TRACE_ID_DIGITS {
        return Ok(());
    }
    let message = format!("trace id {id:?} is not 1 to {MAX_TRACE_ID_DIGITS} hex digits");
    Err(Failure(StatusCode::BAD_REQUEST, message))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dependency {
    parent: String,
    child: String,
    call_count: u64,
}

async fn dependencies(
    State(store): State<Arc<Store>>,
    parameters: Parameters,
) -> Result<Vec<Dependency>> {
    let millis = |name: &'static str, default_ns: u64| match parameter(&parameters, name) {
        None => Ok(default_ns),
        Some(text) => {
            let bad = |_| {
                let message = format!("unable to parse param '{name}': not milliseconds: {text:?}");
                Failure(StatusCode::BAD_REQUEST, message)
            };
            text.parse::<u64>()
                .map(|millis| millis.saturating_mul(1_000_000))
                .map_err(bad)
        }
    };
    let end_ns = millis("endTs", now_ns())?;
    let lookback_ns = millis("lookback", DEFAULT_DEPENDENCY_LOOKBACK.as_nanos() as u64)?;
    let service = parameter(&parameters, "service");
    let links = store
        .dependencies(end_ns.saturating_sub(lookback_ns)..=end_ns)
        .into_iter()
        .filter(|((parent, child), _)| {
            service.is_none_or(|service| **parent == *service || **child == *service)
        })
        .map(|((parent, child), call_count)| Dependency {
            parent: parent.to_string(),
            child: child.to_string(),
            call_count,
        })
        .collect();
    Ok(answer(links, 0, Vec::new()))
}

/// Nanoseconds since the Unix epoch.
pub(super) fn now_ns() -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since_epoch.map_or(0, |elapsed| {
        u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
    })
}
