//! Request bodies, read and decompressed under bounds of size and time.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body;

use super::room::Room;
use crate::coding::{self, Coding, DecodeError};
use crate::config::Pace;
use crate::intake::{Refusal, beside_if_large};

/// How much is set aside at most for what a body announces, so that what has come need not be moved.
const MOST_AHEAD_BYTES: usize = 1024 * 1024;
/// From this size on, a body that came in one piece stays where it is. A smaller one is copied, so that
/// it does not keep a much larger buffer alive for as long as it waits.
const KEPT_BYTES: usize = 64 * 1024;

/// Reads all of `body`. `check` sees what has come so far; it may refuse early, or know how much there
/// will be.
pub(crate) async fn read<B>(
    body: B,
    max_bytes: usize,
    room: &mut Room,
    check: impl Fn(&[u8]) -> Result<Option<usize>, Refusal>,
    pace: Pace,
) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let reading = collect(body, max_bytes, room, check, pace.silence);
    within(pace.whole, reading).await?
}

async fn within<T>(limit: Duration, reading: impl Future<Output = T>) -> Result<T, Refusal> {
    tokio::time::timeout(limit, reading).await.map_err(|_| {
        let reason = format!("the body, or more of it, did not come within {limit:?}");
        Refusal::unavailable(reason)
    })
}

async fn collect<B>(
    body: B,
    max_bytes: usize,
    room: &mut Room,
    check: impl Fn(&[u8]) -> Result<Option<usize>, Refusal>,
    silence: Duration,
) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let too_large = Refusal::TooLarge { max_bytes };
    let announced = body.size_hint();
    if announced.lower() > max_bytes as u64 {
        return Err(too_large);
    }
    let announced = usize::try_from(announced.lower()).unwrap_or(0);
    let (mut all, mut expected) = (Pieces::None, 0);
    let mut body = std::pin::pin!(body);
    while let Some(frame) = within(silence, body.frame()).await? {
        let frame = frame.map_err(|error| Refusal::Malformed(format!("broken body: {error}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if all.bytes().len() + data.remaining() > max_bytes {
            return Err(too_large);
        }
        room.take(data.remaining())?;
        all = all.and(data, announced.max(expected));
        if let Some(length) = check(all.bytes())? {
            expected = length;
        }
    }
    Ok(all.into_bytes())
}

/// What has come of a body.
enum Pieces {
    None,
    /// Where the connection has put it.
    One(Bytes),
    /// Copied together.
    Several(BytesMut),
}

impl Pieces {
    /// With `more`, where `expected` bytes will come in all, as far as is known.
    fn and(self, more: Bytes, expected: usize) -> Pieces {
        let mut all = match self {
            Pieces::None => return Pieces::One(more),
            Pieces::One(first) => {
                let length = first.len() + more.len();
                let mut all = BytesMut::with_capacity(length.max(expected.min(MOST_AHEAD_BYTES)));
                all.extend_from_slice(&first);
                all
            }
            Pieces::Several(all) => all,
        };
        all.extend_from_slice(&more);
        Pieces::Several(all)
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Pieces::None => &[],
            Pieces::One(bytes) => bytes,
            Pieces::Several(bytes) => bytes,
        }
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Pieces::None => Bytes::new(),
            Pieces::One(bytes) if bytes.len() < KEPT_BYTES => Bytes::copy_from_slice(&bytes),
            Pieces::One(bytes) => bytes,
            Pieces::Several(bytes) => bytes.freeze(),
        }
    }
}

/// What a body was before it was compressed.
pub(crate) struct Plain {
    pub(crate) bytes: Bytes,
    /// The compressed bytes, if they may be passed on in its place.
    pub(crate) compressed: Option<Bytes>,
    /// What both take.
    pub(crate) room: Room,
}

/// Decompresses `compressed` into at most `max_bytes`.
pub(crate) async fn decompress(
    coding: Coding,
    compressed: Bytes,
    max_bytes: usize,
    mut room: Room,
) -> Result<Plain, Refusal> {
    // What matters for the time is what comes out, which only doing it tells.
    beside_if_large(compressed.len() * 8, move || {
        let came = coding::decompress(coding, &compressed, max_bytes, |more| room.take(more));
        match came {
            Ok(came) => Ok(Plain {
                bytes: came.plain.into(),
                compressed: came.is_unambiguous.then_some(compressed),
                room,
            }),
            Err(DecodeError::TooLarge { max_bytes }) => Err(Refusal::TooLarge { max_bytes }),
            Err(DecodeError::NoRoom(refusal)) => Err(refusal),
            Err(DecodeError::Broken(error)) => {
                let reason = format!("broken {}: {error}", coding.as_str());
                Err(Refusal::Malformed(reason))
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, ready};

    use hyper::body::Frame;
    use tokio::sync::Semaphore;
    use tokio::time::{Instant, Sleep};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);
    const SHORT: Duration = Duration::from_millis(50);

    /// Sends a byte every now and then until `until` has come, then nothing.
    struct Dripping {
        until: Instant,
        next: Pin<Box<Sleep>>,
    }

    impl Body for Dripping {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            if Instant::now() >= self.until {
                return Poll::Pending;
            }
            ready!(self.next.as_mut().poll(context));
            self.next.as_mut().reset(Instant::now() + SHORT / 10);
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b".")))))
        }
    }

    async fn read_at(pace: Pace, drips: Duration) -> Refusal {
        let mut room = Room::none_yet(&Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)));
        let until = Instant::now() + drips;
        let next = Box::pin(tokio::time::sleep(SHORT / 10));
        let body = Dripping { until, next };
        let read = read(body, usize::MAX, &mut room, |_| Ok(None), pace).await;
        read.expect_err("it never ends")
    }

    #[tokio::test]
    async fn a_sender_may_be_slow_and_not_silent() {
        let start = Instant::now();
        let pace = Pace {
            silence: SHORT,
            whole: HOUR,
        };
        let refusal = read_at(pace, 3 * SHORT).await;
        assert!(matches!(refusal, Refusal::Unavailable { .. }));
        // Over all it took longer than a silence may.
        assert!(start.elapsed() >= 3 * SHORT);
    }

    #[tokio::test]
    async fn a_body_that_only_drips_ends_all_the_same() {
        let pace = Pace {
            silence: HOUR,
            whole: SHORT,
        };
        let refusal = read_at(pace, SHORT / 2).await;
        assert!(matches!(refusal, Refusal::Unavailable { .. }));
    }
}
