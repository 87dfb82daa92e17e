//! The way to one backend: a request is carried once, in a form that the backend takes.
//!
//! Two things are learnt from its answers: which signals it does not have, and which codings it does
//! not decompress. Jaeger has traces alone, and a server built on tonic knows zstd only if asked. Not
//! all say so: the Collector calls a coding that it does not know a bad request.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lantern_telemetry::config::Compression;
use lantern_telemetry::{ConfigError, ExporterSettings, LimitedLog, Protocol};

use super::{Answer, Cause, Rejection, grpc, http};
use crate::coding::{self, Coding};
use crate::config::Backend;
use crate::counts::PerSignal;
use crate::queue::Payload;
use crate::signal::{Signal, Signals};

/// A signal that the backend did not have is offered again after this: it may have been replaced.
const LACKING_LIMIT: Duration = Duration::from_secs(300);

const LOCK: &str = "no holder of this lock panics";

enum Client {
    Grpc(grpc::GrpcClient),
    Http(http::HttpClient),
}

/// See the module.
pub(crate) struct Outlet {
    pub(crate) name: String,
    pub(crate) endpoint: String,
    settings: Mutex<ExporterSettings>,
    /// Made anew when the TLS files change.
    client: RwLock<Arc<Client>>,
    timeout: Duration,
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
        let settings = &backend.exporter;
        Outlet {
            name: backend.name.clone(),
            endpoint: settings.endpoint.clone(),
            client: RwLock::new(Arc::new(client(settings))),
            settings: Mutex::new(settings.clone()),
            timeout: settings.timeout,
            compression: settings.compression,
            signals: backend.signals,
            known: Mutex::default(),
            gzip: Decompresses::default(),
            zstd: Decompresses::default(),
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
        let settings = self.settings.lock().expect(LOCK);
        settings.certificate.is_some() || settings.client_certificate.is_some()
    }

    /// Whether there was something new.
    fn reload(&self) -> Result<bool, ConfigError> {
        let mut settings = self.settings.lock().expect(LOCK);
        let Some(changed) = settings.with_changed_tls_files()? else {
            return Ok(false);
        };
        *self.client.write().expect(LOCK) = Arc::new(client(&changed));
        *settings = changed;
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
            Client::Grpc(_) => true,
            Client::Http(client) => client.has_place_for(signal),
        };
        self.signals.has(signal) && has_place
    }

    /// Sends `payload` once.
    pub(super) async fn send(&self, payload: &Payload) -> Answer {
        let (coding, bytes) = self.coded(payload);
        let answer = self.attempt(payload.signal, coding, bytes).await;
        let Some(decompresses) = self.decompresses(coding) else {
            self.learn(payload.signal, &answer);
            return answer;
        };
        match &answer {
            Answer::Accepted(_) => decompresses.yes.store(true, Relaxed),
            Answer::Refused(rejection) if may_be_the_coding(rejection, decompresses) => {
                return self.send_decompressed(payload, coding, decompresses).await;
            }
            Answer::Refused(_) | Answer::Later { .. } => {}
        }
        self.learn(payload.signal, &answer);
        answer
    }

    /// The backend may mean the coding, or the signal or the data: the same in none tells.
    async fn send_decompressed(
        &self,
        payload: &Payload,
        refused: Coding,
        decompresses: &Decompresses,
    ) -> Answer {
        let plain = payload.decompressed();
        let answer = self.attempt(payload.signal, Coding::Identity, plain).await;
        if let Answer::Accepted(_) = &answer {
            let endpoint = &self.endpoint;
            let coding = refused.as_str();
            tracing::info!(
                endpoint,
                coding,
                "backend does not decompress this, it gets it plain"
            );
            decompresses.no.store(true, Relaxed);
        }
        self.learn(payload.signal, &answer);
        answer
    }

    async fn attempt(&self, signal: Signal, coding: Coding, bytes: Bytes) -> Answer {
        let client = self.client();
        let sending = async {
            match &*client {
                Client::Grpc(client) => client.send(signal, coding, bytes).await,
                Client::Http(client) => client.send(signal, coding, bytes).await,
            }
        };
        tokio::time::timeout(self.timeout, sending)
            .await
            .unwrap_or_else(|_| Answer::later(format!("no answer within {:?}", self.timeout)))
    }

    /// `payload` as it is to leave: as it came, unless the settings or the backend want it
    /// otherwise.
    fn coded(&self, payload: &Payload) -> (Coding, Bytes) {
        let is_refused = self
            .decompresses(payload.coding)
            .is_some_and(|decompresses| decompresses.no.load(Relaxed));
        let wants_gzip = self.compression == Some(Compression::Gzip) && !self.gzip.no.load(Relaxed);
        match payload.coding {
            Coding::Identity if wants_gzip => (Coding::Gzip, coding::gzip(&payload.bytes).into()),
            Coding::Identity => (Coding::Identity, payload.bytes.clone()),
            Coding::Zstd if is_refused && wants_gzip => {
                (Coding::Gzip, coding::gzip(&payload.decompressed()).into())
            }
            _ if is_refused || self.compression == Some(Compression::None) => {
                (Coding::Identity, payload.decompressed())
            }
            coding => (coding, payload.bytes.clone()),
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

/// Whether the request might have been taken plain.
fn may_be_the_coding(rejection: &Rejection, decompresses: &Decompresses) -> bool {
    match rejection.cause {
        Cause::Kind => true,
        Cause::Data => !decompresses.yes.load(Relaxed),
        Cause::Sender => false,
    }
}

fn client(settings: &ExporterSettings) -> Client {
    match settings.protocol {
        Protocol::Grpc => Client::Grpc(grpc::GrpcClient::new(settings)),
        Protocol::HttpProtobuf => Client::Http(http::HttpClient::new(settings)),
    }
}

impl std::fmt::Debug for Outlet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Its headers are secrets.
        write!(f, "Outlet({} {})", self.name, self.endpoint)
    }
}
