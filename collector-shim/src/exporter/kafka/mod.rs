//! The way into Kafka: records of `otlp_proto`, as the Collector and Jaeger's ingester read them.
//!
//! A request is taken apart by trace ([`records`]), and the trace chooses the partition
//! ([`partitioner`]). A partition gets its records one batch after another, each acknowledged by all replicas
//! in sync before the next leaves, so that they lie in the order in which they came. The client is asked
//! to try once: what fails is tried again where every backend's failures are, for as long as it takes, and
//! by then it has asked anew where the partitions are.
//!
//! A record counts as delivered once its batch is acknowledged. One whose acknowledgement was lost is sent
//! again, and then is there twice.

mod partitioner;
mod records;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lantern_telemetry::config::Compression;
use rskafka::BackoffConfig;
use rskafka::chrono::{DateTime, Utc};
use rskafka::client::error::{Error, ProtocolError};
use rskafka::client::partition::{self, PartitionClient, UnknownTopicHandling};
use rskafka::client::{Client, ClientBuilder};
use tokio::sync::{Mutex, OnceCell};
use tokio::task::JoinSet;
use tonic::Code;

use super::parts::{Answered, Share, Sharing, all_later};
use super::{Accepted, Answer, Cause, Rejection, shortened};
use crate::config::KafkaSettings;
use crate::counts::PerSignal;
use crate::queue::Payload;
use crate::signal::Signal;
use records::Record;

/// How the brokers tell it from others.
const CLIENT_ID: &str = "lantern-shim";
/// How long the number of partitions is taken for known: as long as Kafka's own client does.
const KNOWN_FOR: Duration = Duration::from_secs(300);
/// What brokers answer is no longer: the longest lists all topics.
const MAX_RESPONSE_BYTES: usize = 16 * 1024 * 1024;

/// See the module.
pub(super) struct Kafka {
    settings: KafkaSettings,
    /// None also after a failure: what was known may be wrong.
    known: Mutex<Option<Known>>,
    /// Which partition is next to get what has no key.
    turn: AtomicUsize,
}

struct Known {
    cluster: Arc<Cluster>,
    asked: Instant,
}

struct Cluster {
    client: Arc<Client>,
    /// The partitions of each signal's topic, each with a connection once it was needed; none while the
    /// brokers have no such topic.
    partitions: PerSignal<Vec<OnceCell<PartitionClient>>>,
}

/// A partition, by the place of its signal and its number.
type Place = (usize, usize);

impl Share for Kafka {
    fn has_place_for(&self, signal: Signal) -> bool {
        self.settings.topic(signal).is_some()
    }

    fn send(self: Arc<Self>, payloads: Vec<Payload>) -> Sharing {
        Box::pin(async move {
            let cluster = match self.within_limit(self.cluster()).await {
                Ok(cluster) => cluster,
                Err(reason) => return all_later(payloads, &reason),
            };
            let answered = Arc::clone(&self).share_out(&cluster, payloads).await;
            let is_later = |(_, answer): &Answered| matches!(answer, Answer::Later { .. });
            if answered.iter().any(is_later) {
                self.forget(&cluster).await;
            }
            answered
        })
    }
}

impl Kafka {
    pub(super) fn new(settings: KafkaSettings) -> Kafka {
        Kafka {
            settings,
            known: Mutex::default(),
            turn: AtomicUsize::new(0),
        }
    }

    async fn share_out(
        self: Arc<Self>,
        cluster: &Arc<Cluster>,
        payloads: Vec<Payload>,
    ) -> Vec<Answered> {
        let (kafka, known) = (Arc::clone(&self), Arc::clone(cluster));
        // It takes time: beside the threads that serve connections.
        let sharing = tokio::task::spawn_blocking(move || kafka.shares(&known, payloads));
        let (shares, mut answered) = sharing.await.expect("sharing out does not panic");
        let mut sending = JoinSet::new();
        for (place, share) in shares {
            let (kafka, cluster) = (Arc::clone(&self), Arc::clone(cluster));
            sending.spawn(async move { kafka.produce(&cluster, place, share).await });
        }
        while let Some(share) = sending.join_next().await {
            answered.extend(share.expect("sending does not panic"));
        }
        answered
    }

    /// What each partition is to get; and the answer for what has no topic.
    fn shares(
        &self,
        cluster: &Cluster,
        payloads: Vec<Payload>,
    ) -> (BTreeMap<Place, Vec<Record>>, Vec<Answered>) {
        let mut shares: BTreeMap<Place, Vec<Record>> = BTreeMap::new();
        let mut answered = Vec::new();
        for payload in payloads {
            let signal = payload.signal;
            let partitions = cluster.partitions.of(signal).len();
            if partitions == 0 {
                let topic = self.settings.topic(signal).unwrap_or_default();
                let reason = format!("the brokers have no topic {topic}");
                answered.extend(all_later(vec![payload], &reason));
                continue;
            }
            let turn = self.turn.fetch_add(1, Relaxed) % partitions;
            for record in records::records(&payload, self.settings.max_record_bytes) {
                let of_key = |key: &String| partitioner::partition_of(key.as_bytes(), partitions);
                let partition = record.key.as_ref().map_or(turn, of_key);
                let share = shares.entry((signal as usize, partition));
                share.or_default().push(record);
            }
        }
        (shares, answered)
    }

    /// Sends `share` to one partition, in order: behind what has to come later nothing goes first.
    async fn produce(&self, cluster: &Cluster, place: Place, share: Vec<Record>) -> Vec<Answered> {
        let mut answered = Vec::new();
        let mut waiting = records::batches(share, self.settings.max_record_bytes);
        while let Some(batch) = waiting.pop_front() {
            let answer = match self
                .within_limit(self.produce_batch(cluster, place, &batch))
                .await
            {
                Ok(answer) => answer,
                Err(reason) => Answer::later(reason),
            };
            match answer {
                // One record must not take the others with it: each alone.
                Answer::Refused(_) if batch.len() > 1 => {
                    for record in batch.into_iter().rev() {
                        waiting.push_front(vec![record]);
                    }
                }
                Answer::Later { reason, .. } => {
                    let left = std::iter::once(batch).chain(std::mem::take(&mut waiting));
                    let left = left.flatten().map(|record| record.value);
                    answered.extend(all_later(left.collect(), &reason));
                }
                answer => {
                    let values = batch.into_iter().map(|record| record.value);
                    answered.extend(values.map(|value| (value, answer.clone())));
                }
            }
        }
        answered
    }

    async fn produce_batch(
        &self,
        cluster: &Cluster,
        (signal, number): Place,
        batch: &[Record],
    ) -> Result<Answer, String> {
        let signal = Signal::ALL[signal];
        let topic = self.settings.topic(signal).unwrap_or_default();
        let connected = cluster.partitions.of(signal)[number].get_or_try_init(|| {
            let number = i32::try_from(number).expect("it came as such a number");
            let unknown = UnknownTopicHandling::Error;
            cluster.client.partition_client(topic, number, unknown)
        });
        let partition = connected.await.map_err(|error| error.to_string())?;
        let records = batch.iter().map(record).collect();
        match partition.produce(records, self.compression()).await {
            Ok(_) => Ok(Answer::Accepted(Accepted::default())),
            Err(error) => {
                let size = batch.iter().map(Record::size).sum();
                refusal(&error, topic, size)
                    .map(Answer::Refused)
                    .ok_or_else(|| error.to_string())
            }
        }
    }

    fn compression(&self) -> partition::Compression {
        match self.settings.exporter.compression {
            Some(Compression::Gzip) => partition::Compression::Gzip,
            Some(Compression::None) | None => partition::Compression::NoCompression,
        }
    }

    /// What is known of the brokers, asked for when nothing is or that was long ago.
    async fn cluster(&self) -> Result<Arc<Cluster>, String> {
        let mut known = self.known.lock().await;
        let client = match &*known {
            Some(known) if known.asked.elapsed() < KNOWN_FOR => {
                return Ok(Arc::clone(&known.cluster));
            }
            Some(known) => Arc::clone(&known.cluster.client),
            None => self.connect().await?,
        };
        let before = known.take();
        let partitions = self.partitions(&client).await?;
        let is_same = |before: &Known| {
            let is_same = |signal: &Signal| {
                before.cluster.partitions.of(*signal).len() == *partitions.of(*signal)
            };
            Signal::ALL.iter().all(is_same)
        };
        let cluster = match before {
            Some(before) if is_same(&before) => before.cluster,
            _ => Arc::new(Cluster::new(client, &partitions)),
        };
        *known = Some(Known {
            cluster: Arc::clone(&cluster),
            asked: Instant::now(),
        });
        Ok(cluster)
    }

    async fn connect(&self) -> Result<Arc<Client>, String> {
        let once = BackoffConfig {
            deadline: Some(Duration::ZERO),
            ..BackoffConfig::default()
        };
        let builder = ClientBuilder::new(self.settings.brokers.clone())
            .client_id(CLIENT_ID)
            .max_message_size(MAX_RESPONSE_BYTES)
            .backoff_config(once);
        let builder = if self.settings.is_encrypted {
            builder.tls_config(Arc::new(self.settings.exporter.rustls_config()))
        } else {
            builder
        };
        let client = builder.build().await;
        client.map(Arc::new).map_err(|error| error.to_string())
    }

    /// How many partitions each signal's topic has. A topic that is not there is asked for: brokers
    /// may be told to make those that are.
    async fn partitions(&self, client: &Client) -> Result<PerSignal<usize>, String> {
        let topics = client
            .list_topics()
            .await
            .map_err(|error| error.to_string())?;
        let mut partitions = PerSignal::default();
        for signal in Signal::ALL {
            let Some(name) = self.settings.topic(signal) else {
                continue;
            };
            match topics.iter().find(|topic| topic.name == name) {
                Some(topic) => *partitions.of_mut(signal) = topic.partitions.len(),
                None => {
                    let unknown = UnknownTopicHandling::Error;
                    drop(client.partition_client(name, 0, unknown).await);
                }
            }
        }
        Ok(partitions)
    }

    /// Unless something newer is known by now.
    async fn forget(&self, cluster: &Arc<Cluster>) {
        let mut known = self.known.lock().await;
        if known
            .as_ref()
            .is_some_and(|known| Arc::ptr_eq(&known.cluster, cluster))
        {
            *known = None;
        }
    }

    /// Ends `work` with an error when it takes longer than an attempt may.
    async fn within_limit<T>(
        &self,
        work: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
        let limit = self.settings.exporter.timeout;
        let done = match tokio::time::timeout(limit, work).await {
            Ok(done) => done,
            Err(_) => Err(format!("no answer within {limit:?}")),
        };
        done.map_err(|reason| shortened(&reason))
    }
}

impl Cluster {
    fn new(client: Arc<Client>, partitions: &PerSignal<usize>) -> Cluster {
        let mut cells = PerSignal::default();
        for signal in Signal::ALL {
            let of_signal = (0..*partitions.of(signal)).map(|_| OnceCell::new());
            *cells.of_mut(signal) = of_signal.collect();
        }
        Cluster {
            client,
            partitions: cells,
        }
    }
}

/// As the client has it.
fn record(record: &Record) -> rskafka::record::Record {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since_epoch.map_or(0, |since| since.as_millis());
    let millis = i64::try_from(millis).unwrap_or(i64::MAX);
    rskafka::record::Record {
        key: record.key.clone().map(String::into_bytes),
        value: Some(record.value.bytes.to_vec()),
        headers: BTreeMap::new(),
        timestamp: DateTime::<Utc>::from_timestamp_millis(millis).unwrap_or_default(),
    }
}

/// Why the brokers will never take these records, if that is what they say. All else, an authorisation that
/// is missing among it, somebody may set right.
fn refusal(error: &Error, topic: &str, bytes: usize) -> Option<Rejection> {
    let Error::ServerError { protocol_error, .. } = error else {
        return None;
    };
    let (code, name) = match protocol_error {
        ProtocolError::MessageTooLarge => (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
        ProtocolError::RecordListTooLarge => (Code::ResourceExhausted, "RECORD_LIST_TOO_LARGE"),
        ProtocolError::InvalidRecord => (Code::InvalidArgument, "INVALID_RECORD"),
        _ => return None,
    };
    Some(Rejection {
        reason: format!("{name}: topic {topic} takes no record as this one of {bytes} bytes"),
        cause: Cause::Data,
        code,
    })
}
