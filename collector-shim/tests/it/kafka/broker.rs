//! Two brokers in one process, as far as a producer sees them: they tell who leads, and keep records.
//!
//! <https://kafka.apache.org/protocol>: ApiVersions 3, Metadata 1, Produce 3.

use std::collections::{BTreeMap, VecDeque};
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Buf, BufMut, Bytes};
use flate2::read::GzDecoder;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

const PRODUCE: i16 = 0;
const METADATA: i16 = 3;
const API_VERSIONS: i16 = 18;

const UNKNOWN_TOPIC: i16 = 3;
const NOT_LEADER: i16 = 6;
const MESSAGE_TOO_LARGE: i16 = 10;

const GZIP: i16 = 1;

/// What to do with a batch of records.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reply {
    /// Keep it, and break the connection instead of an answer.
    KeepAndBreak,
    /// Answer with this error.
    Error(i16),
}

#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) key: Option<Bytes>,
    pub(super) value: Bytes,
    pub(super) was_compressed: bool,
}

/// What it keeps of a topic: the records of each partition.
pub(super) type Topic = Vec<Vec<Kept>>;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) topics: BTreeMap<String, Topic>,
    /// Partitions of a topic that is made when somebody asks for it; without, none is.
    pub(super) creates_partitions: Option<usize>,
    pub(super) max_batch_bytes: Option<usize>,
    /// For the batches that come next; then all are taken.
    pub(super) script: VecDeque<Reply>,
    /// Which of the two.
    pub(super) leader: usize,
}

pub(super) struct Brokers {
    addresses: [SocketAddr; 2],
    state: Arc<Mutex<State>>,
    is_up: watch::Sender<bool>,
    _serving: [AbortOnDropHandle<()>; 2],
}

impl Brokers {
    pub(super) async fn start(state: State) -> Brokers {
        Brokers::run(state, None).await
    }

    pub(super) async fn encrypted(state: State, tls: rustls::ServerConfig) -> Brokers {
        Brokers::run(state, Some(TlsAcceptor::from(Arc::new(tls)))).await
    }

    async fn run(state: State, tls: Option<TlsAcceptor>) -> Brokers {
        let listen = || TcpListener::bind(("127.0.0.1", 0));
        let listeners = [
            listen().await.expect("a free port"),
            listen().await.expect("another"),
        ];
        let addresses = listeners.each_ref().map(|listener| {
            let address = listener.local_addr();
            address.expect("it listens")
        });
        let state = Arc::new(Mutex::new(state));
        let is_up = watch::Sender::new(true);
        let mut number = 0;
        let serving = listeners.map(|listener| {
            let broker = Broker {
                number,
                addresses,
                state: Arc::clone(&state),
            };
            number += 1;
            let serving = accept(listener, broker, is_up.subscribe(), tls.clone());
            AbortOnDropHandle::new(tokio::spawn(serving))
        });
        Brokers {
            addresses,
            state,
            is_up,
            _serving: serving,
        }
    }

    /// `HOST:PORT` of both.
    pub(super) fn list(&self) -> String {
        let [first, second] = self.addresses;
        format!("{first},{second}")
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    /// Breaks all connections, and every new one.
    pub(super) fn go_down(&self) {
        self.is_up.send_replace(false);
    }

    pub(super) fn come_up(&self) {
        self.is_up.send_replace(true);
    }

    /// The records of a topic, partition by partition.
    pub(super) fn records(&self, topic: &str) -> Topic {
        self.state().topics.get(topic).cloned().unwrap_or_default()
    }
}

#[derive(Clone)]
struct Broker {
    number: usize,
    addresses: [SocketAddr; 2],
    state: Arc<Mutex<State>>,
}

async fn accept(
    listener: TcpListener,
    broker: Broker,
    is_up: watch::Receiver<bool>,
    tls: Option<TlsAcceptor>,
) {
    loop {
        let (stream, _) = listener.accept().await.expect("accepts");
        let (broker, mut is_up, tls) = (broker.clone(), is_up.clone(), tls.clone());
        tokio::spawn(async move {
            let serving = async {
                match tls {
                    None => broker.serve(stream).await,
                    // A client that does not trust us ends the handshake.
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => broker.serve(stream).await,
                        Err(_) => None,
                    },
                }
            };
            tokio::select! {
                biased;
                _ = is_up.wait_for(|is_up| !is_up) => {}
                _ = serving => {}
            }
        });
    }
}

impl Broker {
    /// Until the connection ends.
    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Option<()> {
        loop {
            let length = stream.read_i32().await.ok()?;
            let mut frame = vec![0; usize::try_from(length).ok()?];
            stream.read_exact(&mut frame).await.ok()?;
            let mut request = Bytes::from(frame);
            let (key, version, correlation) =
                (request.get_i16(), request.get_i16(), request.get_i32());
            let _client = text(&mut request);
            let mut answer = Vec::new();
            answer.put_i32(correlation);
            match (key, version) {
                (API_VERSIONS, 3) => api_versions(&mut answer),
                (METADATA, 1) => self.metadata(request, &mut answer),
                (PRODUCE, 3) => self.produce(request, &mut answer)?,
                other => panic!("the client was told not to ask for {other:?}"),
            }
            stream.write_i32(answer.len() as i32).await.ok()?;
            stream.write_all(&answer).await.ok()?;
            stream.flush().await.ok()?;
        }
    }

    fn metadata(&self, mut request: Bytes, answer: &mut Vec<u8>) {
        let mut state = self.state.lock().expect("no panic");
        let asked = request.get_i32();
        let named: Vec<_> = (0..asked).filter_map(|_| text(&mut request)).collect();
        answer.put_i32(self.addresses.len() as i32);
        for (number, address) in self.addresses.iter().enumerate() {
            answer.put_i32(number as i32);
            put_text(answer, &address.ip().to_string());
            answer.put_i32(address.port().into());
            answer.put_i16(-1);
        }
        answer.put_i32(0);
        if let Some(partitions) = state.creates_partitions {
            for name in &named {
                let topic = state.topics.entry(name.clone());
                topic.or_insert_with(|| vec![Vec::new(); partitions]);
            }
        }
        let all = || state.topics.keys().cloned().collect();
        let told: Vec<String> = if asked < 0 { all() } else { named };
        answer.put_i32(told.len() as i32);
        for name in told {
            let topic = state.topics.get(&name);
            answer.put_i16(if topic.is_some() { 0 } else { UNKNOWN_TOPIC });
            put_text(answer, &name);
            answer.put_u8(0);
            let partitions = topic.map_or(0, Vec::len);
            answer.put_i32(partitions as i32);
            for partition in 0..partitions {
                answer.put_i16(0);
                answer.put_i32(partition as i32);
                answer.put_i32(state.leader as i32);
                // No replicas, and none in sync.
                answer.put_i32(0);
                answer.put_i32(0);
            }
        }
    }

    /// None when the connection is to break.
    fn produce(&self, mut request: Bytes, answer: &mut Vec<u8>) -> Option<()> {
        let mut state = self.state.lock().expect("no panic");
        let _transaction = text(&mut request);
        let acks = request.get_i16();
        assert_eq!(acks, -1, "acknowledged by all replicas in sync");
        let _timeout = request.get_i32();
        assert_eq!(request.get_i32(), 1, "one topic");
        let topic = text(&mut request).expect("its name");
        assert_eq!(request.get_i32(), 1, "one partition");
        let partition = request.get_i32();
        let length = request.get_i32() as usize;
        let reply = if state.leader == self.number {
            state.script.pop_front()
        } else {
            Some(Reply::Error(NOT_LEADER))
        };
        let is_too_large = state.max_batch_bytes.is_some_and(|most| length > most);
        let error = match reply {
            Some(Reply::Error(error)) => error,
            _ if is_too_large => MESSAGE_TOO_LARGE,
            Some(Reply::KeepAndBreak) | None => {
                let topic = state.topics.get_mut(&topic).expect("it was told of");
                topic[partition as usize].extend(records(request.split_to(length)));
                0
            }
        };
        answer.put_i32(1);
        put_text(answer, &topic);
        answer.put_i32(1);
        answer.put_i32(partition);
        answer.put_i16(error);
        answer.put_i64(0);
        answer.put_i64(-1);
        answer.put_i32(0);
        (!matches!(reply, Some(Reply::KeepAndBreak))).then_some(())
    }
}

/// In the compact form, whose lengths are one more than they are.
fn api_versions(answer: &mut Vec<u8>) {
    let apis = [(API_VERSIONS, 3), (METADATA, 1), (PRODUCE, 3)];
    answer.put_i16(0);
    answer.put_u8(apis.len() as u8 + 1);
    for (key, version) in apis {
        answer.put_i16(key);
        answer.put_i16(version);
        answer.put_i16(version);
        answer.put_u8(0);
    }
    answer.put_i32(0);
    answer.put_u8(0);
}

/// <https://kafka.apache.org/documentation/#recordbatch>
fn records(mut batch: Bytes) -> Vec<Kept> {
    // Offset, length, epoch, magic, checksum; then up to the count: time, producer.
    batch.advance(8 + 4 + 4 + 1 + 4);
    let was_compressed = batch.get_i16() == GZIP;
    batch.advance(4 + 8 + 8 + 8 + 2 + 4);
    let count = batch.get_i32();
    if was_compressed {
        let mut plain = Vec::new();
        let mut decoder = GzDecoder::new(&batch[..]);
        decoder.read_to_end(&mut plain).expect("sound gzip");
        batch = plain.into();
    }
    let mut record = |_| {
        let _length = varint(&mut batch);
        batch.advance(1);
        let (_time, _offset) = (varint(&mut batch), varint(&mut batch));
        let key = block(&mut batch);
        let value = block(&mut batch).expect("each has a value");
        assert_eq!(varint(&mut batch), 0, "no headers");
        Kept {
            key,
            value,
            was_compressed,
        }
    };
    (0..count).map(&mut record).collect()
}

fn block(from: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(varint(from)).ok()?;
    Some(from.split_to(length))
}

fn varint(from: &mut Bytes) -> i64 {
    let zigzag = prost::encoding::decode_varint(from).expect("a number");
    (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed()
}

fn text(from: &mut Bytes) -> Option<String> {
    let length = usize::try_from(from.get_i16()).ok()?;
    let text = from.split_to(length).to_vec();
    Some(String::from_utf8(text).expect("text"))
}

fn put_text(to: &mut Vec<u8>, text: &str) {
    to.put_i16(text.len() as i16);
    to.put_slice(text.as_bytes());
}
