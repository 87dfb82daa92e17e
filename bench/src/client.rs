//! Clients of the proxies: requests one after the other on connections that are kept, and what an
//! answer took.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use crate::upstream::{Clock, SENT_AT};

const REQUEST: &str =
    r#"{"model":"bench","messages":[{"role":"user","content":"Hello"}],"max_tokens":64}"#;

/// A connection that is kept alive.
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
    address: SocketAddr,
}

impl Client {
    /// `from`: the last part of the loopback address that it comes from, so that there are ports enough.
    pub(crate) async fn connect(address: SocketAddr, from: u8) -> Result<Client> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 0, 0, from], 0)))?;
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, driver) = handshake(TokioIo::new(stream)).await?;
        // It ends with the connection, and what was sent on it fails by itself.
        tokio::spawn(driver);
        Ok(Client { sender, address })
    }

    /// Asks for `path`; the answer's body.
    pub(crate) async fn ask(&mut self, path: &str) -> Result<Incoming> {
        self.post(path, Bytes::from_static(REQUEST.as_bytes()))
            .await
    }

    /// The same with a JSON document to send.
    pub(crate) async fn post(&mut self, path: &str, document: Bytes) -> Result<Incoming> {
        let request = Request::post(path)
            .header("host", self.address.to_string())
            .header("content-type", "application/json")
            .body(Full::new(document))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        ensure!(response.status() == 200, "status {}", response.status());
        Ok(response.into_body())
    }
}

/// What the requests of one measurement saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) requests: u64,
    pub(crate) events: u64,
    /// Of whole requests, or of events from the upstream to the client.
    pub(crate) delays: Vec<Duration>,
}

impl Seen {
    pub(crate) fn add(&mut self, other: Seen) {
        self.requests += other.requests;
        self.events += other.events;
        self.delays.extend(other.delays);
    }

    /// The delay that this part of all stays under.
    pub(crate) fn percentile(&mut self, part: f64) -> Result<Duration> {
        self.delays.sort_unstable();
        let at = (self.delays.len() as f64 * part) as usize;
        let delay = self.delays.get(at.min(self.delays.len().saturating_sub(1)));
        delay.copied().context("nothing was measured")
    }
}

/// Requests of `path` for `duration`, `clients` at once.
pub(crate) async fn run(
    to: SocketAddr,
    path: &'static str,
    clients: usize,
    duration: Duration,
    clock: Clock,
) -> Result<Seen> {
    let until = Instant::now() + duration;
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let mut running = JoinSet::new();
    for _ in 0..clients {
        let seen = Arc::clone(&seen);
        running.spawn(async move {
            let one = one_client(to, path, until, clock).await?;
            seen.lock().expect("no holder panics").add(one);
            anyhow::Ok(())
        });
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    let mut seen = seen.lock().expect("no holder panics");
    Ok(std::mem::take(&mut *seen))
}

async fn one_client(to: SocketAddr, path: &str, until: Instant, clock: Clock) -> Result<Seen> {
    let mut client = Client::connect(to, 1).await?;
    let mut seen = Seen::default();
    while Instant::now() < until {
        let start = Instant::now();
        let mut body = client.ask(path).await?;
        let mut events = 0;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            let now = clock.now();
            for sent_at in times(&data) {
                events += 1;
                seen.delays.push(now.saturating_sub(sent_at));
            }
        }
        if events == 0 {
            seen.delays.push(start.elapsed());
        }
        seen.requests += 1;
        seen.events += events;
    }
    Ok(seen)
}

/// When the events in `data` were sent. Every event is written at once, and so it is read.
fn times(data: &[u8]) -> impl Iterator<Item = Duration> {
    let marked = data.windows(SENT_AT.len()).enumerate();
    let starts = marked.filter(|(_, window)| *window == SENT_AT);
    starts.filter_map(|(at, _)| {
        let digits = data[at + SENT_AT.len()..].split(|byte| !byte.is_ascii_digit());
        let digits = str::from_utf8(digits.into_iter().next()?).ok()?;
        Some(Duration::from_nanos(digits.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{EVENTS, PLAIN, Pace, Upstream};

    #[test]
    fn every_event_of_a_chunk_tells_when_it_was_sent() {
        let data = br#"data: {"sent_at":12} data: {"sent_at":7}"#;
        let nanos: Vec<_> = times(data).map(|time| time.as_nanos()).collect();
        assert_eq!(nanos, [12, 7]);
    }

    #[tokio::test]
    async fn all_events_of_every_stream_are_seen() {
        let pace = Pace {
            events: 5,
            interval: Duration::from_millis(1),
        };
        let upstream = Upstream::start(pace).await.expect("it listens");
        let (to, clock) = (upstream.address, upstream.clock);
        let short = Duration::from_millis(20);
        let streams = run(to, EVENTS, 3, short, clock).await.expect("answers");
        assert!(streams.requests >= 3);
        assert_eq!(streams.events, 5 * streams.requests);
        let replies = run(to, PLAIN, 3, short, clock).await.expect("answers");
        assert_eq!(
            (replies.delays.len() as u64, replies.events),
            (replies.requests, 0)
        );
    }

    #[test]
    fn half_of_the_delays_stay_under_the_median() {
        let mut seen = Seen {
            delays: [4, 1, 3, 2, 5].map(Duration::from_millis).to_vec(),
            ..Seen::default()
        };
        assert_eq!(
            seen.percentile(0.5).expect("some"),
            Duration::from_millis(3)
        );
        assert_eq!(
            seen.percentile(1.0).expect("some"),
            Duration::from_millis(5)
        );
        assert!(Seen::default().percentile(0.5).is_err());
    }
}
