//! The way to one backend: a request is carried once, in a form that the backend takes.
//!
//! Two things are learnt from its answers: which signals it does not have, and which codings it does
//! not decompress. Jaeger has traces alone, and a server built on tonic knows zstd only if asked. Not
//! all say so: the Collector calls a coding that it does not know a bad request.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use lantern_telemetry::config::Compression;
use lantern_telemetry::{ConfigError, ExporterSettings, LimitedLog, Protocol};

use super::as_json::AsJson;
use super::balance::Balancer;
use super::files::Files;
#[cfg(feature = "kafka")]
use super::kafka::Kafka;
use super::parts::{Answered, Share};
use super::{Answer, Cause, Message, Rejection, grpc, http};
use crate::coding::{self, Coding};
use crate::config::{Backend, Way};
use crate::counts::PerSignal;
use crate::queue::{Batch, Payload};
use crate::signal::{Signal, Signals};

/// A signal that the backend did not have is offered again after this: it may have been replaced.
const LACKING_LIMIT: Duration = Duration::from_secs(300);

const LOCK: &str = "no holder of this lock panics";

enum Client {
    /// Each request as a whole.
    Whole(Box<Carrier>),
    /// In parts.
    Parts(Arc<dyn Share>),
}

enum Carrier {
    Grpc(grpc::GrpcClient),
    Http(http::HttpClient),
    Files(Arc<Files>),
}

impl Carrier {
    fn has_place_for(&self, signal: Signal) -> bool {
        match self {
            Carrier::Http(client) => client.has_place_for(signal),
            Carrier::Grpc(_) | Carrier::Files(_) => true,
        }
    }
}

/// See the module.
pub(crate) struct Outlet {
    pub(crate) name: String,
    pub(crate) endpoint: String,
    way: Mutex<Way>,
    /// Made anew when the TLS files change.
    client: RwLock<Arc<Client>>,
    /// For one attempt. Files take the time they take: a line that is half written is no answer.
    timeout: Option<Duration>,
    /// For who takes no protobuf.
    as_json: Option<AsJson>,
    compression: Option<Compression>,
    signals: Signals,
    /// Which signals it has taken, or did not have.
    known: Mutex<PerSignal<Known>>,
    gzip: Decompresses,
    zstd: Decompresses,
}

/// What is known of a backend and a coding.
#[derive(Debug, Default)]
struct Decompresses {
    /// It has taken what was compressed so.
    yes: AtomicBool,
    /// It took plain what it had refused so.
    no: AtomicBool,
}

/// What is known of a backend and a signal.
#[derive(Debug, Clone, Copy, Default)]
enum Known {
    #[default]
    Nothing,
    Taken,
    LackingSince(Instant),
}

impl Outlet {
    pub(crate) fn new(backend: &Backend) -> Outlet {
        let exporter = backend.way.exporter();
        let takes_protobuf =
            exporter.is_some_and(|exporter| exporter.protocol != Protocol::HttpJson);
        Outlet {
            name: backend.name.clone(),
            endpoint: backend.way.endpoint(),
            client: RwLock::new(Arc::new(client(&backend.way, backend.signals))),
            way: Mutex::new(backend.way.clone()),
            timeout: exporter.map(|exporter| exporter.timeout),
            as_json: (!takes_protobuf).then(AsJson::default),
            compression: exporter.map_or(Some(Compression::None), |one| one.compression),
            signals: backend.signals,
            known: Mutex::default(),
            gzip: Decompresses::default(),
            zstd: Decompresses::default(),
        }
    }

    /// The way to one address of several that a name has.
    pub(super) fn member(
        settings: &ExporterSettings,
        address: SocketAddr,
        signals: Signals,
    ) -> Outlet {
        let mut exporter = settings.clone();
        exporter.connect_to = Some(address);
        let endpoint = format!("{} at {address}", settings.endpoint);
        let backend = Backend {
            signals,
            ..Backend::only(exporter)
        };
        Outlet {
            endpoint,
            ..Outlet::new(&backend)
        }
    }

    /// Looks at the TLS files again and again. New connections use what has changed; what cannot be
    /// used is told, and what was there before stays. Ends when it is dropped.
    pub(crate) async fn follow(self: Arc<Self>, interval: Duration) {
        let failures = LimitedLog::default();
        let endpoint = &self.endpoint;
        loop {
            tokio::time::sleep(interval).await;
            let outlet = Arc::clone(&self);
            let reloaded = tokio::task::spawn_blocking(move || outlet.reload());
            match reloaded.await.expect("reading files does not panic") {
                Ok(true) => tracing::info!(endpoint, "new connections use the changed TLS files"),
                Ok(false) => {}
                Err(error) => {
                    if let Some(failures) = failures.due(1) {
                        tracing::warn!(endpoint, %error, failures, "the TLS files stay as they were");
                    }
                }
            }
        }
    }

    /// Whether there are files that may change.
    pub(crate) fn has_tls_files(&self) -> bool {
        let way = self.way.lock().expect(LOCK);
        way.exporter().is_some_and(|settings| {
            settings.certificate.is_some() || settings.client_certificate.is_some()
        })
    }

    /// Whether there was something new.
    fn reload(&self) -> Result<bool, ConfigError> {
        let mut way = self.way.lock().expect(LOCK);
        let Some(changed) = way.with_changed_tls_files()? else {
            return Ok(false);
        };
        *self.client.write().expect(LOCK) = Arc::new(client(&changed, self.signals));
        *way = changed;
        Ok(true)
    }

    fn client(&self) -> Arc<Client> {
        Arc::clone(&self.client.read().expect(LOCK))
    }

    /// Whether it is to be sent `signal`, as far as is known.
    pub(crate) fn takes(&self, signal: Signal) -> bool {
        let is_lacking = matches!(
            self.known().of(signal),
            Known::LackingSince(then) if then.elapsed() < LACKING_LIMIT
        );
        self.is_meant_for(signal) && !is_lacking
    }

    /// Whether it was meant to be sent `signal`.
    fn is_meant_for(&self, signal: Signal) -> bool {
        let has_place = match &*self.client() {
            Client::Whole(carrier) => carrier.has_place_for(signal),
            Client::Parts(share) => share.has_place_for(signal),
        };
        let has_words = self.as_json.is_none() || AsJson::has_words_for(signal);
        self.signals.has(signal) && has_place && has_words
    }

    /// What shares requests out, if there are several places to send to.
    pub(super) fn share(&self) -> Option<Arc<dyn Share>> {
        match &*self.client() {
            Client::Parts(share) => Some(Arc::clone(share)),
            Client::Whole(_) => None,
        }
    }

    /// Sends each part of `payloads` once, to its place.
    pub(super) async fn send_shares(
        &self,
        share: Arc<dyn Share>,
        payloads: Vec<Payload>,
    ) -> Vec<Answered> {
        let answered = share.send(payloads).await;
        for (part, answer) in &answered {
            self.learn(part.signal, answer);
        }
        answered
    }

    /// [`Outlet::send`] for who is called by it.
    pub(super) fn send_boxed(
        outlet: Arc<Outlet>,
        payload: Payload,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        Box::pin(async move { outlet.send(&payload).await })
    }

    /// Sends the payloads of `batch` once, as one request.
    pub(super) async fn send_batch(&self, batch: &Batch) -> Answer {
        let is_sent_as_it_is =
            self.as_json.is_none() && self.coding_for(Coding::Identity) == Coding::Identity;
        match (batch.payloads(), &*self.client()) {
            ([only], _) => self.send(only).await,
            (payloads @ [first, ..], Client::Whole(carrier)) if is_sent_as_it_is => {
                let message = payloads.iter().map(|payload| payload.bytes.clone());
                let message = message.collect();
                let attempt = self.attempt(carrier, first.signal, Coding::Identity, message);
                let answer = attempt.await;
                self.learn(first.signal, &answer);
                answer
            }
            _ => self.send(&batch.merged()).await,
        }
    }

    /// Sends `payload` once.
    pub(super) async fn send(&self, payload: &Payload) -> Answer {
        match &*self.client() {
            Client::Whole(carrier) => self.send_whole(carrier, payload).await,
            Client::Parts(share) => {
                let answered = self.send_shares(Arc::clone(share), vec![payload.clone()]);
                Answer::of_parts(answered.await)
            }
        }
    }

    async fn send_whole(&self, carrier: &Carrier, payload: &Payload) -> Answer {
        let payload = &match self.encoded(payload).await {
            Ok(payload) => payload,
            Err(rejection) => return Answer::Refused(rejection),
        };
        let (coding, bytes) = self.coded(payload).await;
        let answer = self.attempt(carrier, payload.signal, coding, bytes.into());
        let answer = answer.await;
        let Some(decompresses) = self.decompresses(coding) else {
            self.learn(payload.signal, &answer);
            return answer;
        };
        match &answer {
            Answer::Accepted(_) => decompresses.yes.store(true, Relaxed),
            Answer::Refused(rejection) if may_be_the_coding(rejection, decompresses) => {
                return self.send_decompressed(carrier, payload, coding).await;
            }
            Answer::Refused(_) | Answer::Later { .. } => {}
        }
        self.learn(payload.signal, &answer);
        answer
    }

    /// The backend may mean the coding, or the signal or the data: the same in none tells.
    async fn send_decompressed(
        &self,
        carrier: &Carrier,
        payload: &Payload,
        refused: Coding,
    ) -> Answer {
        let signal = payload.signal;
        let plain = recoded(payload, Coding::Identity).await;
        let answer = self.attempt(carrier, signal, Coding::Identity, plain.into());
        let answer = answer.await;
        if let (Answer::Accepted(_), Some(decompresses)) = (&answer, self.decompresses(refused)) {
            let endpoint = &self.endpoint;
            let coding = refused.as_str();
            tracing::info!(
                endpoint,
                coding,
                "backend does not decompress this, it gets it plain"
            );
            decompresses.no.store(true, Relaxed);
        }
        self.learn(signal, &answer);
        answer
    }

    /// `payload` as JSON where that is what is taken.
    async fn encoded<'p>(&self, payload: &'p Payload) -> Result<Cow<'p, Payload>, Rejection> {
        let Some(as_json) = &self.as_json else {
            return Ok(Cow::Borrowed(payload));
        };
        let gzipped = payload.coding != Coding::Identity
            && self.compression != Some(Compression::None)
            && !self.gzip.no.load(Relaxed);
        let encoded = as_json.encode(&self.endpoint, payload, gzipped).await;
        encoded.map(Cow::Owned)
    }

    async fn attempt(
        &self,
        carrier: &Carrier,
        signal: Signal,
        coding: Coding,
        mut message: Message,
    ) -> Answer {
        let sending = async {
            match carrier {
                Carrier::Grpc(client) => client.send(signal, coding, message).await,
                Carrier::Http(client) => client.send(signal, coding, message).await,
                Carrier::Files(files) => {
                    let bytes = message.copy_to_bytes(message.remaining());
                    Arc::clone(files).send(signal, bytes).await
                }
            }
        };
        let Some(limit) = self.timeout else {
            return sending.await;
        };
        tokio::time::timeout(limit, sending)
            .await
            .unwrap_or_else(|_| Answer::later(format!("no answer within {limit:?}")))
    }

    /// `payload` as it is to leave: as it came, unless the settings or the backend want it
    /// otherwise.
    async fn coded(&self, payload: &Payload) -> (Coding, Bytes) {
        let coding = self.coding_for(payload.coding);
        (coding, recoded(payload, coding).await)
    }

    fn coding_for(&self, came_in: Coding) -> Coding {
        let is_refused = self
            .decompresses(came_in)
            .is_some_and(|decompresses| decompresses.no.load(Relaxed));
        let wants_gzip = self.compression == Some(Compression::Gzip) && !self.gzip.no.load(Relaxed);
        match came_in {
            Coding::Identity if wants_gzip => Coding::Gzip,
            Coding::Zstd if is_refused && wants_gzip => Coding::Gzip,
            _ if is_refused || self.compression == Some(Compression::None) => Coding::Identity,
            coding => coding,
        }
    }

    fn decompresses(&self, coding: Coding) -> Option<&Decompresses> {
        match coding {
            Coding::Identity => None,
            Coding::Gzip => Some(&self.gzip),
            Coding::Zstd => Some(&self.zstd),
        }
    }

    fn learn(&self, signal: Signal, answer: &Answer) {
        let mut known = self.known();
        let known = known.of_mut(signal);
        match (answer, *known) {
            (Answer::Accepted(_), Known::Taken) | (Answer::Later { .. }, _) => {}
            (Answer::Accepted(_), _) => *known = Known::Taken,
            (Answer::Refused(rejection), Known::Nothing | Known::LackingSince(_))
                if rejection.cause == Cause::Kind =>
            {
                *known = Known::LackingSince(Instant::now());
                let (endpoint, reason) = (&self.endpoint, &rejection.reason);
                let again_after = LACKING_LIMIT;
                tracing::warn!(
                    endpoint, %signal, reason, ?again_after, "backend does not have this signal, it is not sent"
                );
            }
            (Answer::Refused(_), _) => {}
        }
    }

    fn known(&self) -> MutexGuard<'_, PerSignal<Known>> {
        self.known.lock().expect(LOCK)
    }
}

/// The request of `payload` in `coding`: identity, gzip, or what it came in. What takes time to bring
/// about is done beside the threads that serve connections.
async fn recoded(payload: &Payload, coding: Coding) -> Bytes {
    if coding == payload.coding {
        return payload.bytes.clone();
    }
    let payload = payload.clone();
    let recode = move || match coding {
        Coding::Gzip => coding::gzip(&payload.decompressed()).into(),
        Coding::Identity | Coding::Zstd => payload.decompressed(),
    };
    let recoded = tokio::task::spawn_blocking(recode).await;
    recoded.expect("what came in can be decompressed, and anything compressed")
}

/// Whether the request might have been taken plain.
fn may_be_the_coding(rejection: &Rejection, decompresses: &Decompresses) -> bool {
    match rejection.cause {
        Cause::Kind => true,
        Cause::Data => !decompresses.yes.load(Relaxed),
        Cause::Sender => false,
    }
}

fn client(way: &Way, signals: Signals) -> Client {
    match way {
        Way::Otlp(settings) => Client::Whole(Box::new(match settings.protocol {
            Protocol::Grpc => Carrier::Grpc(grpc::GrpcClient::new(settings)),
            Protocol::HttpProtobuf | Protocol::HttpJson => {
                Carrier::Http(http::HttpClient::new(settings))
            }
        })),
        Way::Balanced(settings, balance) => {
            Client::Parts(Arc::new(Balancer::new(settings, balance, signals)))
        }
        #[cfg(feature = "kafka")]
        Way::Kafka(settings) => Client::Parts(Arc::new(Kafka::new(settings.clone()))),
        #[cfg(not(feature = "kafka"))]
        Way::Kafka(_) => unreachable!("reading such settings is an error in this program"),
        Way::Files(settings) => {
            let files = Files::new(settings.clone());
            Client::Whole(Box::new(Carrier::Files(Arc::new(files))))
        }
    }
}

impl std::fmt::Debug for Outlet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Its headers are secrets.
        write!(f, "Outlet({} {})", self.name, self.endpoint)
    }
}
