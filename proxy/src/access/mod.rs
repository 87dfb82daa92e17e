//! Who may ask, and how much: API keys from a file, and the requests and tokens that each may have in a
//! minute.
//!
//! `keys` reads the file and knows a key when it sees one; `quota` counts. A token counts when the answer
//! has told it, so a key's last answer may take it below zero, and then it waits for longer.

mod keys;
mod quota;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, HeaderName, Method};

use crate::bodies::Bodies;
use crate::error::{Failure, FileError};
use crate::genai::{self, Exchange};
use crate::reload::Reloaded;
use crate::route::Routes;

pub(crate) use keys::ApiKeys;
use keys::Key;
use quota::Quotas;

/// What load balancers ask for, and what tells nobody anything.
const OPEN_PATH: &str = "/health";

/// The name that Anthropic's API has for it.
pub(crate) const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Lets requests in by their key.
pub(crate) struct Access {
    keys: Arc<Reloaded<ApiKeys>>,
    quotas: Arc<Mutex<Quotas>>,
    routes: Routes,
}

/// Why a request is not let in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Denied {
    pub(crate) failure: Failure,
    /// Seconds until it makes sense to ask again.
    pub(crate) retry_after: Option<u64>,
    /// Whose key it shows, if it is a known one.
    pub(crate) name: Option<Arc<str>>,
}

/// A request that was let in by a key.
pub(crate) struct Guest {
    pub(crate) name: Arc<str>,
    meter: Option<Meter>,
}

/// Counts what a request took.
struct Meter {
    name: Arc<str>,
    quotas: Arc<Mutex<Quotas>>,
    /// Reads it from the bodies; `None` if the request's span does.
    bodies: Option<Bodies>,
}

impl ApiKeys {
    /// Those of a file.
    pub(crate) fn load(path: &Path) -> Result<Self, FileError> {
        keys::read(path)
    }
}

impl Access {
    /// By the keys of a file.
    pub(crate) fn new(file: PathBuf, routes: Routes) -> Result<Self, FileError> {
        let files = vec![file.clone()];
        let keys = Reloaded::new(files, move || ApiKeys::load(&file))?;
        Ok(Self {
            keys: Arc::new(keys),
            quotas: Arc::default(),
            routes,
        })
    }

    pub(crate) fn keys(&self) -> Arc<Reloaded<ApiKeys>> {
        Arc::clone(&self.keys)
    }

    /// Lets a request in by its head; `None` if it needs no key. `is_read`: its span reads its bodies.
    pub(crate) fn admit(&self, head: &Parts, is_read: bool) -> Result<Option<Guest>, Denied> {
        let is_look = matches!(head.method, Method::GET | Method::HEAD);
        if is_look && head.uri.path() == OPEN_PATH {
            return Ok(None);
        }
        let keys = self.keys.current();
        let known = presented(&head.headers).and_then(|key| keys.find(key));
        let Some(key) = known else {
            return Err(Denied {
                failure: Failure::InvalidApiKey,
                retry_after: None,
                name: None,
            });
        };
        let mut quotas = lock(&self.quotas);
        quotas.forget_all_but(&keys);
        let admitted = quotas.admit(key, Instant::now());
        drop(quotas);
        admitted.map_err(|wait| Denied {
            failure: Failure::RateLimited,
            retry_after: Some(wait.as_secs_f64().ceil().max(1.0) as u64),
            name: Some(Arc::clone(&key.name)),
        })?;
        Ok(Some(Guest {
            name: Arc::clone(&key.name),
            meter: self.meter(key, head, is_read),
        }))
    }

    /// Only where tokens are limited: reading bodies takes time.
    fn meter(&self, key: &Key, head: &Parts, is_read: bool) -> Option<Meter> {
        key.tokens_per_minute?;
        let operation = genai::operation(&head.method, self.routes.find(head.uri.path()))?;
        let bodies = || {
            let exchange = Exchange::new(operation, Instant::now(), None);
            Bodies::new(&head.headers, Some(exchange))
        };
        Some(Meter {
            name: Arc::clone(&key.name),
            quotas: Arc::clone(&self.quotas),
            bodies: (!is_read).then(bodies),
        })
    }
}

impl Guest {
    /// The head of the final answer passes by.
    pub(crate) fn response_head(&mut self, headers: &HeaderMap) {
        if let Some(bodies) = self.bodies() {
            bodies.response_head(headers);
        }
    }

    /// A piece of the answer's body passes by.
    pub(crate) fn response_body(&mut self, bytes: &[u8]) {
        if let Some(bodies) = self.bodies() {
            bodies.response(bytes);
        }
    }

    fn bodies(&mut self) -> Option<&mut Bodies> {
        self.meter.as_mut()?.bodies.as_mut()
    }

    /// The request is over. `read`: the tokens that its span has read.
    pub(crate) fn leave(self, read: Option<u64>) {
        if let Some(meter) = self.meter {
            let tokens = meter.bodies.as_ref().map(Bodies::tokens);
            let tokens = tokens.or(read).unwrap_or(0);
            lock(&meter.quotas).spend(&meter.name, tokens);
        }
    }
}

/// The key that a request shows.
fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked("Bearer ".len())?;
        scheme
            .eq_ignore_ascii_case(b"Bearer ")
            .then(|| key.trim_ascii())
    });
    bearer.or_else(|| headers.get(X_API_KEY).map(|value| value.as_bytes()))
}

fn lock(quotas: &Mutex<Quotas>) -> MutexGuard<'_, Quotas> {
    quotas.lock().unwrap_or_else(PoisonError::into_inner)
}
