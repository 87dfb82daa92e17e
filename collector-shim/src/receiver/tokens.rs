//! The bearer tokens that a request may come with (RFC 6750 2.1), from a file that is read again when
//! it changes: with two in it, one can be replaced while the other is still in use.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::{HeaderMap, header};
use lantern_telemetry::LimitedLog;
use subtle::{Choice, ConstantTimeEq as _};

/// The file is read up to this size.
const MAX_FILE_BYTES: u64 = 64 * 1024;
const SCHEME: &[u8] = b"bearer ";

/// See the module.
pub struct Tokens {
    path: PathBuf,
    known: RwLock<Vec<String>>,
}

impl Tokens {
    /// Reads the file, in which there must be a token.
    pub fn load(path: &Path) -> io::Result<Tokens> {
        Ok(Tokens {
            path: path.to_owned(),
            known: RwLock::new(read(path)?),
        })
    }

    /// Looks at the file again and again. Ends when it is dropped.
    pub(crate) async fn follow(self: Arc<Self>, interval: Duration) {
        let failures = LimitedLog::default();
        let path = self.path.display();
        loop {
            tokio::time::sleep(interval).await;
            let file = self.path.clone();
            let reading = tokio::task::spawn_blocking(move || read(&file));
            match reading.await.expect("reading a file does not panic") {
                Ok(tokens) => {
                    let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
                    if *known != tokens {
                        tracing::info!(%path, tokens = tokens.len(), "the tokens have changed");
                        *known = tokens;
                    }
                }
                Err(error) => {
                    if let Some(failures) = failures.due(1) {
                        tracing::warn!(%path, %error, failures, "the tokens stay as they were");
                    }
                }
            }
        }
    }

    /// Whether a request with these headers has one. How long it takes tells of a token no more than
    /// its length.
    pub(crate) fn admit(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return false;
        };
        let Some((scheme, token)) = value.as_bytes().split_at_checked(SCHEME.len()) else {
            return false;
        };
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let is_known = known.iter().fold(Choice::from(0), |found, known| {
            found | known.as_bytes().ct_eq(token)
        });
        scheme.eq_ignore_ascii_case(SCHEME) && is_known.into()
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({})", self.path.display())
    }
}

fn read(path: &Path) -> io::Result<Vec<String>> {
    let mut text = String::new();
    File::open(path)?
        .take(MAX_FILE_BYTES)
        .read_to_string(&mut text)?;
    let tokens: Vec<String> = text
        .lines()
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect();
    if tokens.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no token in it"));
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_needs_one_of_the_tokens_and_the_scheme() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        assert!(Tokens::load(file.path()).is_err(), "no token");
        std::fs::write(file.path(), "first\n\n second \n").expect("written");
        let tokens = Tokens::load(file.path()).expect("two tokens");
        let check = |value: &'static str, admitted: bool| {
            let value = http::HeaderValue::from_static(value);
            let headers = [(header::AUTHORIZATION, value)].into_iter().collect();
            assert_eq!(tokens.admit(&headers), admitted, "{headers:?}");
        };
        check("Bearer first", true);
        check("bearer second", true);
        check("Bearer firs", false);
        check("Bearer first ", false);
        check("Bearer ", false);
        check("Basic first", false);
        check("first", false);
        assert!(!tokens.admit(&HeaderMap::new()));
        assert!(!format!("{tokens:?}").contains("first"));
    }
}
