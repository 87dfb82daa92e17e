//! A proxy with one place that it leads to, whatever name it is asked for.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    _serving: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn to(backend: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, backend, Arc::clone(&heads)));
        Proxy {
            address,
            heads,
            _serving: serving,
        }
    }

    /// The head of the first request on each connection.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("no panic").clone()
    }
}

async fn serve(listener: TcpListener, backend: SocketAddr, heads: Arc<Mutex<Vec<String>>>) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.expect("accepts");
        connections.spawn(pass_on(client, backend, Arc::clone(&heads)));
    }
}

async fn pass_on(mut client: TcpStream, backend: SocketAddr, heads: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match client.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let is_tunnel = head.starts_with(b"CONNECT ");
    let text = String::from_utf8(head.clone()).expect("a head is text");
    heads.lock().expect("no panic").push(text);
    let mut server = TcpStream::connect(backend)
        .await
        .expect("the backend is there");
    if is_tunnel {
        let established = b"HTTP/1.1 200 Connection established\r\n\r\n";
        client
            .write_all(established)
            .await
            .expect("the client is there");
    } else {
        server.write_all(&head).await.expect("the backend is there");
    }
    // Either may end it as it likes.
    let _ = copy_bidirectional(&mut client, &mut server).await;
}
