//! The server behind the proxies, as small as a server of models can be: a JSON answer, a stream of
//! events, a stream that says nothing for a long time.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior};

/// Whose answer is [`REPLY`].
pub(crate) const PLAIN: &str = "/v1/completions";
/// Whose answer is a stream of events.
pub(crate) const EVENTS: &str = "/v1/chat/completions";
/// Whose answer is an event, a long silence and another event.
pub(crate) const IDLE: &str = "/v1/responses";

/// 200 bytes.
const REPLY: &str = concat!(
    r#"{"id":"cmpl-0123456789abc","object":"text_completion","created":1750000000,"#,
    r#""model":"bench","choices":[{"index":0,"text":" a","finish_reason":"stop"}],"#,
    r#""usage":{"prompt_tokens":5,"completion_tokens":1}}"#,
);
/// Stands before the time at which an event was sent, in nanoseconds of [`Clock`].
pub(crate) const SENT_AT: &[u8] = br#""sent_at":"#;

/// The time that upstream and client share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn now(self) -> Duration {
        self.start.elapsed()
    }
}

/// How events come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) events: u32,
    pub(crate) interval: Duration,
}

/// A server that listens. Dropping it closes its port.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    pub(crate) clock: Clock,
    /// Idle streams end when it says so.
    pub(crate) silence_is_over: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Upstream {
    pub(crate) async fn start(pace: Pace) -> Result<Upstream> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let clock = Clock {
            start: Instant::now(),
        };
        let (silence_is_over, silence) = watch::channel(false);
        let answers = Arc::new(Answers {
            pace,
            clock,
            silence,
        });
        Ok(Upstream {
            address,
            clock,
            silence_is_over,
            accepting: tokio::spawn(accept(listener, answers)),
        })
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

struct Answers {
    pace: Pace,
    clock: Clock,
    silence: watch::Receiver<bool>,
}

async fn accept(listener: TcpListener, answers: Arc<Answers>) {
    loop {
        // An accept that fails does so for want of descriptors, which the bench has raised.
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        // Without it the kernel would hold events back, and the proxies would be blamed.
        let _ = stream.set_nodelay(true);
        let answers = Arc::clone(&answers);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answers = Arc::clone(&answers);
                async move { answers.answer(request).await }
            });
            // Whoever asks hangs up when it has its answer.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

impl Answers {
    async fn answer(&self, request: Request<Incoming>) -> Result<Answer, hyper::Error> {
        let path = request.uri().path().to_owned();
        request.into_body().collect().await?;
        let (kind, body) = match path.as_str() {
            EVENTS => ("text/event-stream", self.events().boxed()),
            IDLE => ("text/event-stream", self.idle().boxed()),
            _ => ("application/json", Full::from(REPLY).boxed()),
        };
        let mut response = Response::new(body);
        let kind = HeaderValue::from_static(kind);
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        Ok(response)
    }

    fn events(&self) -> Events {
        let mut ticks = tokio::time::interval(self.pace.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Events {
            clock: self.clock,
            ticks,
            left: self.pace.events,
        }
    }

    fn idle(&self) -> Idle {
        let mut silence = self.silence.clone();
        let end = async move {
            // A sender that is gone ends the silence too.
            let _ = silence.wait_for(|over| *over).await;
        };
        Idle {
            begun: false,
            end: Some(Box::pin(end)),
        }
    }
}

/// Events at a pace, each with the time at which it was sent.
struct Events {
    clock: Clock,
    ticks: Interval,
    left: u32,
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        ready!(self.ticks.poll_tick(context));
        self.left -= 1;
        Poll::Ready(Some(Ok(event(self.clock.now()))))
    }
}

type Silence = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// An event, silence, an event.
struct Idle {
    begun: bool,
    end: Option<Silence>,
}

impl Body for Idle {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !self.begun {
            self.begun = true;
            return Poll::Ready(Some(Ok(event(Duration::ZERO))));
        }
        let Some(end) = &mut self.end else {
            return Poll::Ready(None);
        };
        ready!(end.as_mut().poll(context));
        self.end = None;
        Poll::Ready(Some(Ok(event(Duration::ZERO))))
    }
}

fn event(sent_at: Duration) -> Frame<Bytes> {
    let sent_at = sent_at.as_nanos();
    let event = format!(
        "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"model\":\"bench\",\"choices\":[{{\"index\":0,\
         \"delta\":{{\"content\":\" word\"}},\"finish_reason\":null}}],\"sent_at\":{sent_at}}}\n\n"
    );
    Frame::data(event.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_has_two_hundred_bytes() {
        assert_eq!(REPLY.len(), 200);
    }
}
