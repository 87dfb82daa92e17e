//! What the server says about itself: models, health, version, metrics.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde_json::{Value, json};

use crate::metrics::CONTENT_TYPE;

use super::App;

/// The models, one entry for each name.
pub(super) async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let entry = |name: &String| {
        json!({
            "id": name,
            "object": "model",
            "created": app.created,
            "owned_by": "lantern",
            "root": app.model.root,
            "parent": null,
            "max_model_len": app.model.max_model_len,
        })
    };
    let entries: Vec<Value> = app.model.names.iter().map(entry).collect();
    Json(json!({"object": "list", "data": entries}))
}

/// Whether the engine can serve.
pub(super) async fn health(State(app): State<Arc<App>>) -> StatusCode {
    if app.generator.engine.stats().healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// The version of this program.
pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// The metrics, for Prometheus.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let text = app.observers.metrics.render();
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}
