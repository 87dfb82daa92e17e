//! The TLS files: read and understood before anything binds, so that a wrong path is an error at the
//! start and not a failing export an hour later.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::vars::{Var, Vars};
use super::{ConfigError, ExporterSettings, Signal};

/// A file is read up to this size: a bundle of every public authority has a quarter of it.
const MAX_PEM_BYTES: u64 = 1024 * 1024;
const CHECKED: &str = "the TLS files were checked when they were read";

/// A PEM file that was read and has in it what its variable asks for.
#[derive(Clone, PartialEq, Eq)]
pub struct PemFile {
    /// Where it was read from.
    pub path: PathBuf,
    /// Its text.
    pub pem: Vec<u8>,
}

impl fmt::Debug for PemFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The text may be a private key.
        write!(f, "PemFile({})", self.path.display())
    }
}

impl PemFile {
    /// Reads the file, whatever is in it.
    pub(crate) fn read(path: &Path) -> io::Result<PemFile> {
        use std::io::Read as _;

        let mut pem = Vec::new();
        let file = std::fs::File::open(path)?;
        file.take(MAX_PEM_BYTES).read_to_end(&mut pem)?;
        let path = path.to_owned();
        Ok(PemFile { path, pem })
    }

    pub(crate) fn certificates(&self) -> Option<Vec<CertificateDer<'static>>> {
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&self.pem)
            .collect::<Result<_, _>>()
            .ok()?;
        (!certificates.is_empty()).then_some(certificates)
    }

    pub(crate) fn private_key(&self) -> Option<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(&self.pem).ok()
    }

    pub(crate) fn roots(&self) -> Option<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            roots.add(certificate).ok()?;
        }
        Some(roots)
    }
}

#[derive(Default)]
pub(super) struct Files {
    pub(super) certificate: Option<PemFile>,
    pub(super) client_key: Option<PemFile>,
    pub(super) client_certificate: Option<PemFile>,
}

impl Files {
    pub(super) fn from_vars(vars: &Vars<'_>, signal: Signal) -> Result<Self, ConfigError> {
        let certificate = vars.otlp(signal, "CERTIFICATE");
        let key = vars.otlp(signal, "CLIENT_KEY");
        let client_certificate = vars.otlp(signal, "CLIENT_CERTIFICATE");
        let files = Self {
            certificate: certificate.as_ref().map(read).transpose()?,
            client_key: key.as_ref().map(read).transpose()?,
            client_certificate: client_certificate.as_ref().map(read).transpose()?,
        };
        if let (Some(var), Some(file)) = (&certificate, &files.certificate)
            && file.roots().is_none()
        {
            return Err(var.error("a PEM file of one or more certificates"));
        }
        match (&key, &client_certificate) {
            (Some(key), None) => {
                let other = vars.otlp_name("CLIENT_CERTIFICATE");
                return Err(key.error(format!("it together with {other}")));
            }
            (None, Some(chain)) => {
                let other = vars.otlp_name("CLIENT_KEY");
                return Err(chain.error(format!("it together with {other}")));
            }
            (Some(key), Some(chain)) => files.check_identity(key, chain)?,
            (None, None) => {}
        }
        Ok(files)
    }

    /// The client's key and certificate can be read and belong together.
    fn check_identity(&self, key: &Var, chain: &Var) -> Result<(), ConfigError> {
        let (Some(key_file), Some(chain_file)) = (&self.client_key, &self.client_certificate)
        else {
            return Ok(());
        };
        let private_key = key_file
            .private_key()
            .ok_or_else(|| key.error("a PEM file of an unencrypted private key"))?;
        let certificates = chain_file
            .certificates()
            .ok_or_else(|| chain.error("a PEM file of one or more certificates"))?;
        builder()
            .with_root_certificates(RootCertStore::empty())
            .with_client_auth_cert(certificates, private_key)
            .map_err(|_| key.error(format!("the private key of {}", chain.value)))?;
        Ok(())
    }
}

impl ExporterSettings {
    /// Reads the TLS files again. None when they hold what they held before; an error when that cannot
    /// be used.
    pub fn with_changed_tls_files(&self) -> Result<Option<Self>, ConfigError> {
        let path = |name: &str| {
            let file = match name {
                "CERTIFICATE" => self.certificate.as_ref(),
                "CLIENT_KEY" => self.client_key.as_ref(),
                "CLIENT_CERTIFICATE" => self.client_certificate.as_ref(),
                _ => None,
            };
            file.map(|file| file.path.display().to_string())
        };
        let files = Files::from_vars(&Vars::of_exporter(&path, ""), Signal::Traces)?;
        let known = (
            &self.certificate,
            &self.client_key,
            &self.client_certificate,
        );
        if known
            == (
                &files.certificate,
                &files.client_key,
                &files.client_certificate,
            )
        {
            return Ok(None);
        }
        Ok(Some(Self {
            certificate: files.certificate,
            client_key: files.client_key,
            client_certificate: files.client_certificate,
            ..self.clone()
        }))
    }

    /// The TLS of a client of the endpoint; application protocols are left to it.
    pub fn rustls_config(&self) -> ClientConfig {
        let builder = builder().with_root_certificates(self.trusted());
        match (&self.client_certificate, &self.client_key) {
            (Some(chain), Some(key)) => builder
                .with_client_auth_cert(
                    chain.certificates().expect(CHECKED),
                    key.private_key().expect(CHECKED),
                )
                .expect(CHECKED),
            _ => builder.with_no_client_auth(),
        }
    }

    /// The same without the client's identity, which is not for the proxy on the way.
    pub(super) fn anonymous_rustls_config(&self) -> ClientConfig {
        builder()
            .with_root_certificates(self.trusted())
            .with_no_client_auth()
    }

    fn trusted(&self) -> RootCertStore {
        match &self.certificate {
            Some(file) => file.roots().expect(CHECKED),
            None => RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        }
    }
}

/// ring is named here because a process may hold a second provider, and rustls then has no default.
fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions of TLS")
}

fn read(var: &Var) -> Result<PemFile, ConfigError> {
    PemFile::read(Path::new(&var.value))
        .map_err(|error| var.error(format!("the path of a PEM file that can be read ({error})")))
}
