//! TLS on a port: a certificate, its key and the authority of clients, read again when they change.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;

use crate::LimitedLog;
use crate::config::{ConfigError, PemFile};

/// What clients may choose from. A port that speaks one version alone refuses the other itself.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Where TLS has what it needs from, each named by a flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// `--tls-cert`: the certificates to show, ours first.
    pub certificate: PathBuf,
    /// `--tls-key`: the private key of the first.
    pub key: PathBuf,
    /// `--tls-client-ca`: clients must have a certificate that these vouch for.
    pub client_ca: Option<PathBuf>,
}

/// TLS that is ready to be spoken, by what the files had in them when they were last sound.
pub struct Tls {
    files: TlsFiles,
    contents: Mutex<Contents>,
    config: RwLock<Arc<ServerConfig>>,
}

#[derive(PartialEq)]
struct Contents {
    certificate: PemFile,
    key: PemFile,
    client_ca: Option<PemFile>,
}

impl Tls {
    /// Reads the files and makes sure that they belong together.
    pub fn load(files: TlsFiles) -> Result<Tls, ConfigError> {
        let contents = Contents::read(&files)?;
        let config = contents.config()?;
        Ok(Tls {
            files,
            contents: Mutex::new(contents),
            config: RwLock::new(config.into()),
        })
    }

    /// Looks at the files again and again. New connections use what has changed; what cannot be used
    /// is told, and what was there before stays. Ends when it is dropped.
    pub async fn follow(self: Arc<Self>, interval: Duration) {
        let failures = LimitedLog::default();
        loop {
            tokio::time::sleep(interval).await;
            let tls = Arc::clone(&self);
            let reloaded = tokio::task::spawn_blocking(move || tls.reload());
            match reloaded.await.expect("reading files does not panic") {
                Ok(true) => {
                    let certificate = self.files.certificate.display();
                    tracing::info!(%certificate, "new connections use the changed TLS files");
                }
                Ok(false) => {}
                Err(error) => {
                    if let Some(failures) = failures.due(1) {
                        tracing::warn!(%error, failures, "the TLS files stay as they were");
                    }
                }
            }
        }
    }

    /// Whether there was something new.
    fn reload(&self) -> Result<bool, ConfigError> {
        let read = Contents::read(&self.files)?;
        let mut contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        if *contents == read {
            return Ok(false);
        }
        let config = read.config()?;
        *contents = read;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config.into();
        Ok(true)
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&config))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tls({:?})", self.files)
    }
}

impl Contents {
    fn read(files: &TlsFiles) -> Result<Contents, ConfigError> {
        let client_ca = files.client_ca.as_deref();
        Ok(Contents {
            certificate: read("--tls-cert", &files.certificate)?,
            key: read("--tls-key", &files.key)?,
            client_ca: client_ca
                .map(|path| read("--tls-client-ca", path))
                .transpose()?,
        })
    }

    fn config(&self) -> Result<ServerConfig, ConfigError> {
        // Named because a process may hold a second provider, and rustls then has no default.
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("ring has the default versions of TLS");
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let error = || file.error("--tls-client-ca", "a PEM file of certificates");
                let roots = Arc::new(file.roots().ok_or_else(error)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                    .build()
                    .map_err(|_| error())?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let certificates = self.certificate.certificates().ok_or_else(|| {
            let allowed = "a PEM file of one or more certificates";
            self.certificate.error("--tls-cert", allowed)
        })?;
        let key = self.key.private_key().ok_or_else(|| {
            let allowed = "a PEM file of an unencrypted private key";
            self.key.error("--tls-key", allowed)
        })?;
        let mut config = builder.with_single_cert(certificates, key).map_err(|_| {
            let allowed = format!("the private key of {}", self.certificate.path.display());
            self.key.error("--tls-key", allowed)
        })?;
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(config)
    }
}

impl PemFile {
    fn error(&self, flag: &str, allowed: impl Into<String>) -> ConfigError {
        ConfigError::new(flag, self.path.display().to_string(), allowed)
    }
}

fn read(flag: &str, path: &Path) -> Result<PemFile, ConfigError> {
    PemFile::read(path).map_err(|error: io::Error| {
        let allowed = format!("the path of a PEM file that can be read ({error})");
        ConfigError::new(flag, path.display().to_string(), allowed)
    })
}
