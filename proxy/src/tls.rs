//! TLS on both sides, from PEM files: what the proxy shows its clients and asks of them, and what it shows
//! its upstreams and believes of them. ring is named wherever rustls would look for a default provider.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pingora::protocols::tls::CaType;
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::error::FileError;

/// What clients may speak, the preferred first.
const SERVER_PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// A certificate with those that lead to its authority, and its key: PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The chain, its own certificate first.
    pub certificate: PathBuf,
    /// The private key, not encrypted.
    pub key: PathBuf,
}

/// TLS towards clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// Who the proxy is.
    pub identity: Identity,
    /// Authorities, one of which must have signed a client's certificate; `None`: a client needs none.
    pub client_ca: Option<PathBuf>,
}

/// TLS towards upstreams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Authorities that are believed; `None`: those of the system.
    pub ca: Option<PathBuf>,
    /// Who the proxy is, to an upstream that asks.
    pub identity: Option<Identity>,
}

/// [`UpstreamTls`], read.
#[derive(Default)]
pub(crate) struct UpstreamTrust {
    pub(crate) ca: Option<Arc<CaType>>,
    pub(crate) identity: Option<Arc<CertKey>>,
}

impl Identity {
    fn files(&self) -> [PathBuf; 2] {
        [self.certificate.clone(), self.key.clone()]
    }

    fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), FileError> {
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| FileError::new(&self.key, format!("no private key: {error}")))?;
        Ok((certificates(&self.certificate)?, key))
    }

    /// An identity that can be used: the key is that of the certificate.
    fn checked(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), FileError> {
        let (chain, key) = self.read()?;
        ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                let builder = builder.with_no_client_auth();
                builder.with_single_cert(chain.clone(), key.clone_key())
            })
            .map_err(|error| FileError::new(&self.key, error))?;
        Ok((chain, key))
    }
}

impl ServerTls {
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let identity = self.identity.files().into_iter();
        identity.chain(self.client_ca.clone()).collect()
    }

    pub(crate) fn load(&self) -> Result<ServerConfig, FileError> {
        let (chain, key) = self.identity.read()?;
        let wrong_key = |error| FileError::new(&self.identity.key, error);
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(wrong_key)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    let added = roots.add(certificate);
                    added.map_err(|error| FileError::new(path, error))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
                        .build()
                        .map_err(|error| FileError::new(path, error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(wrong_key)?;
        config.alpn_protocols = SERVER_PROTOCOLS.map(<[u8]>::to_vec).into();
        Ok(config)
    }
}

impl UpstreamTls {
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let identity = self.identity.iter().flat_map(Identity::files);
        identity.chain(self.ca.clone()).collect()
    }

    pub(crate) fn load(&self) -> Result<UpstreamTrust, FileError> {
        let ca = self.ca.as_deref().map(authorities).transpose()?;
        let identity = self.identity.as_ref().map(|identity| {
            let (chain, key) = identity.checked()?;
            let chain = chain
                .iter()
                .map(|certificate| certificate.to_vec())
                .collect();
            Ok(Arc::new(CertKey::new(chain, key.secret_der().to_vec())))
        });
        Ok(UpstreamTrust {
            ca,
            identity: identity.transpose()?,
        })
    }
}

fn authorities(path: &Path) -> Result<Arc<CaType>, FileError> {
    // What pingora would refuse, connection by connection, is refused here.
    let mut roots = RootCertStore::empty();
    let mut wrapped = Vec::new();
    for certificate in certificates(path)? {
        wrapped.push(WrappedX509::new(certificate.to_vec(), parse_x509));
        let added = roots.add(certificate);
        added.map_err(|error| FileError::new(path, error))?;
    }
    Ok(wrapped.into())
}

/// At least one certificate.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| FileError::new(path, format!("no certificates: {error}")))?;
    if certificates.is_empty() {
        return Err(FileError::new(path, "no certificate in it"));
    }
    Ok(certificates)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
