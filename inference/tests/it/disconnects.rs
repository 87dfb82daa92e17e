//! Clients that hang up on the whole server, whose KV cache is too short for all of them.

use std::net::SocketAddr;
use std::time::Duration;

use lantern_inference::server::Server;
use lantern_telemetry::Telemetry;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::served::{config, get, model, post_to};

const CLIENTS: u64 = 24;
const DISCONNECTS_EACH: usize = 64;
/// After so long a gauge is not expected to fall any more.
const PATIENCE: Duration = Duration::from_secs(60);
/// Tokens that the cache has room for; a sequence may take 128 of them.
const KV_TOKENS: u64 = 160;

/// Where in a request its client goes.
enum Leaves {
    /// After so many bytes of the request.
    Asking(usize),
    /// When all of it is sent.
    Waiting,
    /// After so many pieces of the answer, or its end.
    Reading(usize),
}

fn leaves(random: &mut StdRng, request: &[u8]) -> Leaves {
    match random.random_range(0..10) {
        0 => Leaves::Asking(random.random_range(0..request.len())),
        1..4 => Leaves::Waiting,
        _ => Leaves::Reading(random.random_range(1..12)),
    }
}

fn request(random: &mut StdRng) -> Vec<u8> {
    let prompt_tokens = random.random_range(1..60);
    let first = random.random_range(5..9);
    let body = json!({
        "prompt": (first..first + prompt_tokens).collect::<Vec<_>>(), "max_tokens": 40, "ignore_eos": true,
        "stream": random.random_bool(0.8), "n": random.random_range(1..4), "seed": random.random::<u32>(),
    });
    let body = body.to_string();
    let length = body.len();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    (head + &body).into_bytes()
}

/// Asks and hangs up.
async fn disconnect(address: SocketAddr, random: &mut StdRng) {
    let request = request(random);
    let mut socket = TcpStream::connect(address).await.unwrap();
    let pieces = match leaves(random, &request) {
        Leaves::Asking(bytes) => {
            socket.write_all(&request[..bytes]).await.unwrap();
            return;
        }
        Leaves::Waiting => 0,
        Leaves::Reading(pieces) => pieces,
    };
    socket.write_all(&request).await.unwrap();
    let mut buffer = [0; 4096];
    for _ in 0..pieces {
        if socket.read(&mut buffer).await.unwrap() == 0 {
            return;
        }
    }
}

/// What a gauge or a counter without labels of its own says.
async fn metric(address: SocketAddr, name: &str) -> f64 {
    let metrics = get(address, "/metrics").await;
    let series = format!("vllm:{name}{{model_name=\"small\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&series));
    let value = value.unwrap_or_else(|| panic!("no {name} in\n{metrics}"));
    value.parse().unwrap()
}

#[tokio::test]
async fn whenever_clients_hang_up_nothing_of_their_requests_stays() {
    let mut config = config(&model());
    config.max_model_len = Some(128);
    config.engine.kv_cache_bytes = Some(KV_TOKENS * 4 * 2 * 192 * 4);
    config.engine.max_num_seqs = 16;
    let server = Server::bind(config, &Telemetry::disabled()).await.unwrap();
    let (address, shutdown) = (server.local_addr(), CancellationToken::new());
    let running = tokio::spawn(server.run(shutdown.clone()));

    let mut clients = tokio::task::JoinSet::new();
    for seed in 0..CLIENTS {
        clients.spawn(async move {
            let mut random = StdRng::seed_from_u64(seed);
            for _ in 0..DISCONNECTS_EACH {
                disconnect(address, &mut random).await;
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    // The engine notes that a client is gone before its next step.
    for gauge in [
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
    ] {
        let emptied = async {
            while metric(address, gauge).await != 0.0 {
                tokio::task::yield_now().await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, emptied).await;
        in_time.unwrap_or_else(|_| panic!("{gauge} does not come back to 0"));
    }
    assert!(metric(address, "num_preemptions_total").await > 0.0);
    let body = json!({"prompt": [5, 6, 7], "max_tokens": 5, "ignore_eos": true});
    let answer: Value =
        serde_json::from_str(&post_to(address, "/v1/completions", &body).await).unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 5, "{answer}");
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
