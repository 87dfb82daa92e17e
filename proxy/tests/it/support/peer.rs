//! One end of a TCP connection, driven by hand, as client or as upstream.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::within;

pub(crate) struct Peer {
    stream: TcpStream,
    /// Read but not yet taken.
    buffer: Vec<u8>,
}

pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

/// The first value of a header in a head's text.
pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

impl Peer {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).await.expect("somebody listens"))
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.stream.local_addr().expect("a connected socket")
    }

    pub(crate) async fn write(&mut self, text: &str) {
        within("a write", self.stream.write_all(text.as_bytes()))
            .await
            .expect("an open connection");
    }

    /// Writes unless the other side has closed the connection.
    pub(crate) async fn try_write(&mut self, text: &str) -> bool {
        let written = within("a write", self.stream.write_all(text.as_bytes())).await;
        written.is_ok()
    }

    pub(crate) async fn write_chunk(&mut self, text: &str) {
        self.write(&format!("{:x}\r\n{text}\r\n", text.len())).await;
    }

    /// Waits for bytes and leaves them there.
    pub(crate) async fn readable(&self) {
        within("bytes", self.stream.readable())
            .await
            .expect("an open connection");
    }

    /// Everything up to and with `end`.
    pub(crate) async fn read_until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = find(&self.buffer, end.as_bytes()) {
                let taken: Vec<u8> = self.buffer.drain(..at + end.len()).collect();
                return String::from_utf8(taken).expect("text");
            }
            assert!(
                self.fill(end).await,
                "the connection ended before {end:?}, after {:?}",
                String::from_utf8_lossy(&self.buffer)
            );
        }
    }

    pub(crate) async fn read_head(&mut self) -> String {
        self.read_until("\r\n\r\n").await
    }

    pub(crate) async fn read_bytes(&mut self, count: usize) -> String {
        while self.buffer.len() < count {
            assert!(
                self.fill("a body").await,
                "the connection ended within a body"
            );
        }
        String::from_utf8(self.buffer.drain(..count).collect()).expect("text")
    }

    /// One chunk of a chunked body; empty for the last.
    pub(crate) async fn read_chunk(&mut self) -> String {
        let size = self.read_until("\r\n").await;
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk's size");
        let chunk = self.read_bytes(size).await;
        assert_eq!(self.read_bytes(2).await, "\r\n");
        chunk
    }

    /// A head, and its body as the head frames it.
    pub(crate) async fn read_message(&mut self) -> (String, String) {
        let head = self.read_head().await;
        let body = if header(&head, "transfer-encoding").is_some() {
            let mut body = String::new();
            loop {
                let chunk = self.read_chunk().await;
                if chunk.is_empty() {
                    break body;
                }
                body.push_str(&chunk);
            }
        } else {
            let size =
                header(&head, "content-length").map_or(0, |size| size.parse().expect("a size"));
            self.read_bytes(size).await
        };
        (head, body)
    }

    pub(crate) async fn read_response(&mut self) -> Response {
        let (head, body) = self.read_message().await;
        Self::response(head, body)
    }

    /// The answer to a HEAD request, which has no body whatever its head says.
    pub(crate) async fn read_response_head(&mut self) -> Response {
        let head = self.read_head().await;
        Self::response(head, String::new())
    }

    fn response(head: String, body: String) -> Response {
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Response {
            status: status.expect("a status line"),
            head,
            body,
        }
    }

    /// Everything until the other side closes, or resets, the connection.
    pub(crate) async fn read_to_end(&mut self) -> String {
        while self.fill("the end of the connection").await {}
        String::from_utf8(std::mem::take(&mut self.buffer)).expect("text")
    }

    /// More bytes; `false` at the end of the connection.
    async fn fill(&mut self, what: &str) -> bool {
        let mut bytes = [0; 4096];
        match within(what, self.stream.read(&mut bytes)).await {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.buffer.extend_from_slice(&bytes[..count]);
                true
            }
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

/// An upstream whose connections the test answers itself.
pub(crate) struct RawUpstream {
    listener: TcpListener,
}

impl RawUpstream {
    pub(crate) async fn bind() -> Self {
        Self::bind_to(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    pub(crate) async fn bind_to(address: SocketAddr) -> Self {
        Self {
            listener: TcpListener::bind(address).await.expect("a free port"),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("a bound listener")
    }

    pub(crate) async fn accept(&self) -> Peer {
        let (stream, _) = within("a connection to the upstream", self.listener.accept())
            .await
            .expect("a connection");
        Peer::new(stream)
    }
}
