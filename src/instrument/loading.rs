//! Whether a server that listens has loaded its model. Some listen at once, llama.cpp's for one, and answer 503 until
//! they have.

use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, Uri};
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use lantern_proxy::Upstream;
use tokio::time::timeout;

use super::listening::wait_for;

/// The longest wait for an answer. Who takes longer may be busy with anything.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// Waits until one of `upstreams` does not say by a 503 to `GET /health` that it is loading. One without such a page
/// says another thing, and one that does not speak HTTP without TLS is not asked.
pub(super) async fn loaded(upstreams: &[Upstream]) {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let any_loaded = async || {
        for upstream in upstreams {
            if !is_loading(&client, upstream).await {
                return Some(());
            }
        }
        None
    };
    wait_for("/health to answer something else than 503", any_loaded).await;
}

async fn is_loading(client: &Client<HttpConnector, Empty<Bytes>>, upstream: &Upstream) -> bool {
    let Some(url) = health_url(upstream) else {
        return false;
    };
    let answer = timeout(ANSWER_LIMIT, client.get(url)).await;
    matches!(answer, Ok(Ok(answer)) if answer.status() == StatusCode::SERVICE_UNAVAILABLE)
}

fn health_url(upstream: &Upstream) -> Option<Uri> {
    let upstream = upstream.to_string();
    let (origin, _weight) = upstream.split_once(',').unwrap_or((&upstream, ""));
    let url = origin
        .starts_with("http://")
        .then(|| format!("{origin}/health"));
    url?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_speaks_plain_http_is_asked() {
        for (upstream, expect) in [
            ("http://a:1", Some("http://a:1/health")),
            ("http://[::1]:1,weight=2", Some("http://[::1]:1/health")),
            ("https://a:1", None),
            ("h2c://a:1", None),
        ] {
            let upstream = Upstream::parse(upstream).expect("an upstream");
            let url = health_url(&upstream).map(|url| url.to_string());
            assert_eq!(url.as_deref(), expect);
        }
    }
}
