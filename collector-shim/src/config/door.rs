//! Who may send: TLS, tokens, and pages of which origins.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::value_parser;
use http::{HeaderValue, Uri};
use lantern_telemetry::ConfigError;
use lantern_telemetry::serve::{Tls, TlsFiles};

use crate::receiver::tokens::Tokens;

/// The default of `--reload-seconds`.
const DEFAULT_RELOAD_SECONDS: u64 = 10;
const ANY_ORIGIN: &str = "*";

/// The ways in as typed. All are open on the loopback interface unless told otherwise.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Who may send")]
pub struct DoorArgs {
    /// Speak TLS on --grpc and --http, with the certificates in this PEM file
    #[arg(long, value_name = "PATH", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// The private key of --tls-cert, a PEM file
    #[arg(long, value_name = "PATH", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Take clients with a certificate of these authorities alone (mTLS), a PEM file
    #[arg(long, value_name = "PATH", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,

    /// Take requests with a token from this file alone: `authorization: Bearer TOKEN`, one a line
    #[arg(long, value_name = "PATH")]
    pub bearer_token_file: Option<PathBuf>,

    /// Let pages of this origin, or of any (*), send by OTLP/HTTP; may be repeated
    #[arg(long, value_name = "ORIGIN|*")]
    pub cors_origin: Vec<String>,

    /// How often the files of TLS and tokens are looked at for changes
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_RELOAD_SECONDS,
        value_parser = value_parser!(u64).range(1..=86_400))]
    pub reload_seconds: u64,
}

/// The ways in, ready to be used.
#[derive(Debug, Clone)]
pub struct Door {
    /// Spoken on both receivers' ports.
    pub tls: Option<Arc<Tls>>,
    /// Of which a request must have one.
    pub tokens: Option<Arc<Tokens>>,
    /// Whose pages may send.
    pub origins: Option<Origins>,
    /// How often files are looked at for changes.
    pub reload_interval: Duration,
}

/// Origins, in the sense of browsers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// Whichever.
    Any,
    /// These.
    These(Vec<HeaderValue>),
}

impl Default for Door {
    fn default() -> Door {
        Door {
            tls: None,
            tokens: None,
            origins: None,
            reload_interval: Duration::from_secs(DEFAULT_RELOAD_SECONDS),
        }
    }
}

impl DoorArgs {
    pub(super) fn into_door(self) -> Result<Door, ConfigError> {
        let origins = origins(&self.cors_origin)?;
        let tls = match (self.tls_cert, self.tls_key) {
            (Some(certificate), Some(key)) => {
                let client_ca = self.tls_client_ca;
                Some(Arc::new(Tls::load(TlsFiles {
                    certificate,
                    key,
                    client_ca,
                })?))
            }
            _ => None,
        };
        let tokens = self.bearer_token_file.as_deref().map(tokens).transpose()?;
        Ok(Door {
            tls,
            tokens,
            origins,
            reload_interval: Duration::from_secs(self.reload_seconds),
        })
    }
}

fn tokens(path: &Path) -> Result<Arc<Tokens>, ConfigError> {
    let tokens = Tokens::load(path).map_err(|error| {
        let allowed = format!("the path of a file with one token a line ({error})");
        ConfigError::new("--bearer-token-file", path.display().to_string(), allowed)
    })?;
    Ok(Arc::new(tokens))
}

fn origins(named: &[String]) -> Result<Option<Origins>, ConfigError> {
    if named.is_empty() {
        return Ok(None);
    }
    if named.iter().any(|origin| origin == ANY_ORIGIN) {
        return Ok(Some(Origins::Any));
    }
    let origins = named.iter().map(|named| origin(named));
    Ok(Some(Origins::These(origins.collect::<Result<_, _>>()?)))
}

/// Scheme, host and port as a browser writes them: it compares letter by letter.
fn origin(named: &str) -> Result<HeaderValue, ConfigError> {
    let is_origin = named.parse::<Uri>().is_ok_and(|uri| {
        let authority = uri.authority().map(|authority| authority.as_str());
        let whole = authority
            .zip(uri.scheme_str())
            .map(|(authority, scheme)| format!("{scheme}://{authority}"));
        whole.as_deref() == Some(named) && !named.contains('@')
    });
    let value = HeaderValue::from_str(named).ok().filter(|_| is_origin);
    value.ok_or_else(|| {
        let allowed = "an origin such as https://app.example.com, without a path, or *";
        ConfigError::new("--cors-origin", named, allowed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_a_browser_sends_and_nothing_else() {
        let check = |named: &str, is_one: bool| {
            assert_eq!(origin(named).is_ok(), is_one, "{named}");
        };
        check("https://app.example.com", true);
        check("http://localhost:3000", true);
        check("https://app.example.com/", false);
        check("https://user@app.example.com", false);
        check("app.example.com", false);
        check("", false);
        let any = origins(&["http://a".to_owned(), "*".to_owned()]).expect("sound");
        assert_eq!(any, Some(Origins::Any));
        let error = origins(&["a b".to_owned()])
            .expect_err("no origin")
            .to_string();
        assert!(error.starts_with("--cors-origin='a b'"), "{error}");
    }
}
