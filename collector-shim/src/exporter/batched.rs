//! A connection whose writes are gathered: what HTTP/2 says in one go leaves in few calls.
//!
//! An HTTP/2 connection writes each frame by itself and flushes after it. Most backends take frames of
//! 16 KiB at most, so that a request of a quarter of a megabyte was seventeen writes and as many
//! packets; copying it once more costs less. What a flush asks for is therefore put off
//! until the connection has nothing more to say for now: it is woken once more, and whatever it does
//! then, reading first of all, sends what is there. Not for HTTP/1, which writes a request whole and
//! may not come back to its connection when woken.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};

/// What is gathered at most: a few of the largest packets of a loopback interface.
const GATHERED_BYTES: usize = 256 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Batched<T> {
    inner: T,
    gathered: Vec<u8>,
    /// So much of it has left.
    sent: usize,
    is_flush_due: bool,
}

impl<T> Batched<T> {
    pub(super) fn new(inner: T) -> Batched<T> {
        Batched {
            inner,
            gathered: Vec::new(),
            sent: 0,
            is_flush_due: false,
        }
    }
}

impl<T: Write + Unpin> Batched<T> {
    /// Sends all that was gathered.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.gathered.len() {
            let rest = &self.gathered[self.sent..];
            match ready!(Pin::new(&mut self.inner).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.sent += written,
            }
        }
        self.gathered.clear();
        self.sent = 0;
        self.is_flush_due = false;
        Pin::new(&mut self.inner).poll_flush(context)
    }
}

impl<T: Write + Unpin> Write for Batched<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.gathered.len() >= GATHERED_BYTES {
            ready!(self.poll_send(context))?;
        }
        let mut taken = 0;
        for part in parts {
            let room = GATHERED_BYTES - self.gathered.len();
            let part = &part[..part.len().min(room)];
            self.gathered.extend_from_slice(part);
            taken += part.len();
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.gathered.is_empty() && !self.is_flush_due {
            self.is_flush_due = true;
            context.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

impl<T: Read + Write + Unpin> Read for Batched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_flush_due {
            // What cannot be sent yet wakes the connection when it can.
            if let Poll::Ready(Err(error)) = self.poll_send(context) {
                return Poll::Ready(Err(error));
            }
        }
        Pin::new(&mut self.inner).poll_read(context, into)
    }
}

impl<T: Connection> Connection for Batched<T> {
    fn connected(&self) -> Connected {
        self.inner.connected()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::task::{Wake, Waker};

    use super::*;

    /// Takes so many bytes, and remembers each write.
    #[derive(Debug, Default)]
    struct Socket {
        room: usize,
        writes: Vec<Vec<u8>>,
    }

    impl Write for Socket {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let taken = bytes.len().min(self.room);
            if taken == 0 {
                return Poll::Pending;
            }
            self.room -= taken;
            self.writes.push(bytes[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Read for Socket {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: ReadBufCursor<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    fn with_room(room: usize) -> Batched<Socket> {
        Batched::new(Socket {
            room,
            writes: Vec::new(),
        })
    }

    fn write(batched: &mut Batched<Socket>, bytes: &[u8]) -> Poll<usize> {
        let context = &mut Context::from_waker(Waker::noop());
        let batched = Pin::new(batched);
        let written = batched.poll_write_vectored(context, &[IoSlice::new(bytes)]);
        written.map(|written| written.expect("it takes what it has room for"))
    }

    fn flush(batched: &mut Batched<Socket>) {
        let context = &mut Context::from_waker(Waker::noop());
        assert!(Pin::new(batched).poll_flush(context).is_ready());
    }

    fn read(batched: &mut Batched<Socket>) {
        let context = &mut Context::from_waker(Waker::noop());
        let mut into = hyper::rt::ReadBuf::new(&mut []);
        assert!(
            Pin::new(batched)
                .poll_read(context, into.unfilled())
                .is_pending()
        );
    }

    #[test]
    fn several_frames_leave_in_one_write_when_the_connection_has_come_back() {
        let mut batched = with_room(usize::MAX);
        for frame in [b"one", b"two"] {
            assert_eq!(write(&mut batched, frame), Poll::Ready(3));
            flush(&mut batched);
        }
        assert!(batched.inner.writes.is_empty());
        read(&mut batched);
        assert_eq!(batched.inner.writes, [b"onetwo"]);
        read(&mut batched);
        assert_eq!(batched.inner.writes.len(), 1);
    }

    #[test]
    fn no_more_than_the_bound_is_gathered_and_nothing_is_lost_or_doubled() {
        let mut batched = with_room(GATHERED_BYTES / 2);
        let large = vec![7; GATHERED_BYTES + 1];
        assert_eq!(write(&mut batched, &large), Poll::Ready(GATHERED_BYTES));
        assert_eq!(write(&mut batched, b"more"), Poll::Pending);
        batched.inner.room = usize::MAX;
        assert_eq!(write(&mut batched, b"more"), Poll::Ready(4));
        let context = &mut Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut batched).poll_shutdown(context).is_ready());
        let sent = batched.inner.writes.concat();
        assert_eq!(sent, [&large[..GATHERED_BYTES], b"more"].concat());
    }

    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Wake for Counting {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn a_flush_wakes_the_connection_once() {
        let wakes = Arc::new(Counting::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let context = &mut Context::from_waker(&waker);
        let mut batched = with_room(usize::MAX);
        assert!(Pin::new(&mut batched).poll_flush(context).is_ready());
        assert_eq!(wakes.0.load(Relaxed), 0);
        assert_eq!(write(&mut batched, b"frame"), Poll::Ready(5));
        for _ in 0..2 {
            assert!(Pin::new(&mut batched).poll_flush(context).is_ready());
        }
        assert_eq!(wakes.0.load(Relaxed), 1);
    }
}
