//! How a connection to an upstream ended: whether the upstream can have read the whole request.
//!
//! HTTP forbids to send a POST again that may have been processed
//! (<https://www.rfc-editor.org/rfc/rfc9110.html#section-9.2.2>). An upstream that closes an idle
//! connection just when a request is on its way has not: it closes with bytes unread, or before they
//! arrive. Its kernel answers these with a reset, and does not acknowledge bytes that come after the
//! close. One that has read the whole request and then dies acknowledges all of it before it closes, and
//! there is no reset. So TCP knows what the bare end of a connection does not tell. (An application that
//! resets on purpose, by SO_LINGER 0, after it has read a request and before it says a word would look
//! like the former.)
//!
//! pingora has dropped the connection when it asks for a retry, and tells of the drop only through the
//! connection's tracer, on the same thread and just before: hence the thread's last ending, with the
//! connection that it belongs to.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use pingora::protocols::SocketDigest;
use pingora::upstreams::peer::{Tracer, Tracing};

/// The kernel's `TCP_CLOSE`: reset, for a connection that this side has not closed yet.
const TCP_CLOSE: u8 = 7;

thread_local! {
    /// The connection to an upstream that was dropped last on this thread, and whether it left bytes of
    /// a request unread.
    static LAST: RefCell<Option<(Arc<SocketDigest>, bool)>> = const { RefCell::new(None) };
}

/// Sees a connection end. pingora keeps it with the connection for as long as that lasts.
#[derive(Clone, Debug, Default)]
pub(super) struct Witness(Arc<OnceLock<Arc<SocketDigest>>>);

impl Witness {
    pub(super) fn tracer(&self) -> Tracer {
        Tracer(Box::new(self.clone()))
    }

    /// The connection is there.
    pub(super) fn watch(&self, socket: &Arc<SocketDigest>) {
        // It is set once: a connection has one witness, and one beginning.
        let _ = self.0.set(Arc::clone(socket));
    }
}

impl Tracing for Witness {
    fn on_connected(&self) {}

    fn on_disconnected(&self) {
        if let Some(socket) = self.0.get() {
            let unread = has_unread_bytes(socket);
            LAST.set(Some((Arc::clone(socket), unread)));
        }
    }

    fn boxed_clone(&self) -> Box<dyn Tracing> {
        Box::new(self.clone())
    }
}

/// Whether the connection, dropped just now, ended before the upstream had read all that it was sent.
pub(super) fn left_bytes_unread(socket: &Arc<SocketDigest>) -> bool {
    let last = LAST.take();
    last.is_some_and(|(last, unread)| unread && Arc::ptr_eq(&last, socket))
}

/// For a connection that the other side has closed. Where the system does not tell, it says `false`.
fn has_unread_bytes(socket: &SocketDigest) -> bool {
    let info = socket.tcp_info();
    info.is_some_and(|info| info.tcpi_state == TCP_CLOSE || info.tcpi_unacked > 0)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd as _;

    use super::*;

    /// The proxy's end of a connection, and the upstream's.
    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let proxy = TcpStream::connect(address).expect("it listens");
        let (upstream, _) = listener.accept().expect("a connection");
        (proxy, upstream)
    }

    /// Whether the witness says that bytes were left unread, once the end of the connection was seen.
    fn unread(mut proxy: TcpStream) -> bool {
        let end = proxy.read(&mut [0; 8]);
        assert!(matches!(end, Ok(0) | Err(_)), "no byte of an answer");
        let socket = Arc::new(SocketDigest::from_raw_fd(proxy.as_raw_fd()));
        let peer = proxy.peer_addr().ok().map(Into::into);
        socket.peer_addr.set(peer).expect("the digest is new");
        let witness = Witness::default();
        witness.watch(&socket);
        witness.on_disconnected();
        left_bytes_unread(&socket)
    }

    #[test]
    fn a_request_that_came_after_the_close_was_not_read() {
        let (mut proxy, upstream) = connection();
        drop(upstream);
        proxy.write_all(b"POST").expect("the first write succeeds");
        assert!(unread(proxy));
    }

    #[test]
    fn a_request_that_came_before_the_close_and_was_left_there_was_not_read() {
        let (mut proxy, upstream) = connection();
        proxy.write_all(b"POST").expect("a connection");
        upstream.peek(&mut [0; 4]).expect("the request");
        drop(upstream);
        assert!(unread(proxy));
    }

    #[test]
    fn a_request_of_which_a_part_was_read_was_not_read() {
        let (mut proxy, mut upstream) = connection();
        proxy.write_all(b"POST").expect("a connection");
        upstream.read_exact(&mut [0; 2]).expect("the request");
        drop(upstream);
        assert!(unread(proxy));
    }

    #[test]
    fn a_request_that_was_read_may_have_been_processed() {
        let (mut proxy, mut upstream) = connection();
        proxy.write_all(b"POST").expect("a connection");
        upstream.read_exact(&mut [0; 4]).expect("the request");
        drop(upstream);
        assert!(!unread(proxy));
    }

    #[test]
    fn the_end_of_another_connection_says_nothing() {
        let (mut proxy, upstream) = connection();
        drop(upstream);
        proxy.write_all(b"POST").expect("the first write succeeds");
        let other = Arc::new(SocketDigest::from_raw_fd(proxy.as_raw_fd()));
        let socket = Arc::new(SocketDigest::from_raw_fd(proxy.as_raw_fd()));
        let witness = Witness::default();
        witness.watch(&socket);
        witness.on_disconnected();
        assert!(!left_bytes_unread(&other));
    }
}
