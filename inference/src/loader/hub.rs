//! Models from the Hugging Face hub, through its shared cache.
//!
//! The environment is read as Python's `huggingface_hub` reads it, and the cache has its layout, so what
//! one of them has downloaded the other finds.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::LoadError;
use super::files::{self, ModelFiles};
use super::progress::Progress;

/// Where models come from and where they are kept.
#[derive(Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// Branch, tag or commit.
    pub revision: String,
    /// The hub's address; `HF_ENDPOINT`.
    pub endpoint: String,
    /// Sent as a bearer token; `HF_TOKEN`, or what `hf auth login` stored.
    pub token: Option<String>,
    /// The cache; `HF_HUB_CACHE`, or `hub` in `HF_HOME`.
    pub cache_dir: PathBuf,
    /// Ask nobody; `HF_HUB_OFFLINE`.
    pub offline: bool,
}

const DEFAULT_REVISION: &str = "main";
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Times that a broken download is resumed.
const DOWNLOAD_RETRIES: usize = 3;

impl HubOptions {
    /// What the process's environment says.
    pub fn from_env() -> Self {
        let home = std::env::home_dir().unwrap_or_default();
        Self::from_vars(&home, |name| std::env::var(name).ok())
    }

    /// What these variables say, in the home directory `home`.
    pub fn from_vars(home: &Path, get: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| get(name).filter(|value| !value.trim().is_empty());
        let path = |name: &str| get(name).map(PathBuf::from);
        let cache_home = || path("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
        let hf_home = path("HF_HOME").unwrap_or_else(|| cache_home().join("huggingface"));
        let token_path = path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
        let stored_token = || std::fs::read_to_string(token_path).ok();
        let token = get("HF_TOKEN")
            .or_else(stored_token)
            .map(|token| token.trim().to_owned());
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        Self {
            revision: DEFAULT_REVISION.to_owned(),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.filter(|token| !token.is_empty()),
            cache_dir: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| hf_home.join("hub")),
            offline: get("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
        }
    }
}

impl fmt::Debug for HubOptions {
    /// The token is a secret: only whether there is one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "hidden");
        f.debug_struct("HubOptions")
            .field("revision", &self.revision)
            .field("endpoint", &self.endpoint)
            .field("token", &token)
            .field("cache_dir", &self.cache_dir)
            .field("offline", &self.offline)
            .finish()
    }
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.trim().to_ascii_lowercase().as_str())
}

/// Why the hub did not give a model.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// 404.
    #[error("{endpoint} has no model {id} at revision {revision}")]
    NotFound {
        /// The hub.
        endpoint: String,
        /// The model.
        id: String,
        /// Branch, tag or commit.
        revision: String,
    },
    /// 401 or 403.
    #[error(
        "{endpoint} does not give out {id} (status {status}): it does not exist, or it is private or gated and \
         needs a token with access in HF_TOKEN ({token})"
    )]
    Refused {
        /// The hub.
        endpoint: String,
        /// The model.
        id: String,
        /// 401 or 403.
        status: u16,
        /// Whether one was sent.
        token: &'static str,
    },
    /// Anything else between us and the hub.
    #[error("cannot get {what} of {id} from {endpoint}")]
    Request {
        /// A file, or the list of files.
        what: String,
        /// The model.
        id: String,
        /// The hub.
        endpoint: String,
        /// What went wrong.
        source: Box<ApiError>,
    },
    /// Offline, and never downloaded.
    #[error("model {id} at revision {revision} is not in the cache {}, and HF_HUB_OFFLINE is set", cache.display())]
    NotCached {
        /// The model.
        id: String,
        /// Branch, tag or commit.
        revision: String,
        /// Where it would be.
        cache: PathBuf,
    },
    /// Offline, and downloaded in part.
    #[error("{file} of {id} is not in the cache {}, and HF_HUB_OFFLINE is set", cache.display())]
    FileNotCached {
        /// What is missing.
        file: String,
        /// The model.
        id: String,
        /// Where it would be.
        cache: PathBuf,
    },
}

/// True for `name` and `owner/name` in the hub's alphabet.
pub(super) fn is_model_id(model: &str) -> bool {
    const MAX_ID_CHARS: usize = 96;
    let part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with(['-', '.']) && part.chars().all(allowed)
    };
    let parts: Vec<&str> = model.split('/').collect();
    model.len() <= MAX_ID_CHARS && parts.len() <= 2 && parts.into_iter().all(part)
}

/// Downloads what is needed and not there yet. Blocks.
pub(super) fn fetch(id: &str, options: &HubOptions) -> Result<ModelFiles, LoadError> {
    if options.offline {
        return from_cache(id, options);
    }
    let hub = Hub::new(id, options)?;
    let listed = hub.list();
    match listed {
        Ok(listing) => hub.download(&listing),
        Err(error) if error.is_unreachable() => match from_cache(id, options) {
            Ok(files) => {
                tracing::warn!("{}: using {id} as cached", options.endpoint);
                Ok(files)
            }
            Err(_) => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

fn repo(id: &str, revision: &str) -> Repo {
    Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned())
}

/// What an earlier download left, with nobody asked.
fn from_cache(id: &str, options: &HubOptions) -> Result<ModelFiles, LoadError> {
    let HubOptions {
        revision,
        cache_dir,
        ..
    } = options;
    let cached = Cache::new(cache_dir.clone()).repo(repo(id, revision));
    let snapshot = snapshot(&cached, cache_dir, id, revision);
    let names = snapshot
        .as_deref()
        .and_then(|snapshot| names_in(snapshot).ok());
    let (Some(snapshot), Some(names)) = (snapshot, names) else {
        let (id, revision) = (id.to_owned(), revision.clone());
        return Err(HubError::NotCached {
            id,
            revision,
            cache: cache_dir.clone(),
        }
        .into());
    };
    files::collect(id, &names, |name| {
        let path = snapshot.join(name);
        if path.exists() {
            return Ok(path);
        }
        let (file, id) = (name.to_owned(), id.to_owned());
        Err(HubError::FileNotCached {
            file,
            id,
            cache: cache_dir.clone(),
        }
        .into())
    })
}

/// The folder of a cached revision: `refs/` says which commit a branch was at.
fn snapshot(cached: &CacheRepo, cache: &Path, id: &str, revision: &str) -> Option<PathBuf> {
    let reference = cache
        .join(repo(id, revision).folder_name())
        .join("refs")
        .join(revision);
    let commit = std::fs::read_to_string(reference).unwrap_or_else(|_| revision.to_owned());
    Some(cached.pointer_path(commit.trim())).filter(|path| path.is_dir())
}

fn names_in(directory: &Path) -> std::io::Result<BTreeSet<String>> {
    std::fs::read_dir(directory)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// One model on the hub.
struct Hub<'a> {
    id: &'a str,
    options: &'a HubOptions,
    api: Api,
}

/// What a revision of a model is.
struct Listing {
    commit: String,
    names: BTreeSet<String>,
}

impl<'a> Hub<'a> {
    fn new(id: &'a str, options: &'a HubOptions) -> Result<Self, HubError> {
        let api = ApiBuilder::from_cache(Cache::new(options.cache_dir.clone()))
            .with_endpoint(options.endpoint.clone())
            .with_token(options.token.clone())
            .with_retries(DOWNLOAD_RETRIES)
            .with_progress(false)
            .with_user_agent("lantern", env!("CARGO_PKG_VERSION"))
            .build();
        match api {
            Ok(api) => Ok(Self { id, options, api }),
            Err(source) => Err(request_error(id, options, "a client", source)),
        }
    }

    fn list(&self) -> Result<Listing, HubError> {
        let info = self.api.repo(repo(self.id, &self.options.revision)).info();
        let info = info.map_err(|error| self.error("the list of files", error))?;
        let names = info
            .siblings
            .into_iter()
            .map(|file| file.rfilename)
            .collect();
        Ok(Listing {
            commit: info.sha,
            names,
        })
    }

    fn download(&self, listing: &Listing) -> Result<ModelFiles, LoadError> {
        // By commit, so that all files are of one revision even if the branch moves meanwhile.
        let remote = self.api.repo(repo(self.id, &listing.commit));
        let cache = Cache::new(self.options.cache_dir.clone());
        let cached = cache.repo(repo(self.id, &self.options.revision));
        let snapshot = cached.pointer_path(&listing.commit);
        let files = files::collect(self.id, &listing.names, |name| {
            let path = snapshot.join(name);
            if path.exists() {
                Ok(path)
            } else {
                Ok(self.download_file(&remote, name)?)
            }
        })?;
        if let Err(error) = cached.create_ref(&listing.commit) {
            // Only a later offline start needs it.
            tracing::warn!(%error, "cannot note the revision of {} in the cache", self.id);
        }
        Ok(files)
    }

    fn download_file(&self, remote: &ApiRepo, name: &str) -> Result<PathBuf, HubError> {
        let downloaded = remote.download_with_progress(name, Download::default());
        downloaded.map_err(|error| self.error(name, error))
    }

    fn error(&self, what: &str, error: ApiError) -> HubError {
        let HubOptions {
            endpoint,
            revision,
            token,
            ..
        } = self.options;
        let (id, endpoint) = (self.id.to_owned(), endpoint.clone());
        match status(&error) {
            Some(404) => HubError::NotFound {
                endpoint,
                id,
                revision: revision.clone(),
            },
            Some(status @ (401 | 403)) => {
                let token = if token.is_some() {
                    "one was sent"
                } else {
                    "none was sent"
                };
                HubError::Refused {
                    endpoint,
                    id,
                    status,
                    token,
                }
            }
            _ => request_error(self.id, self.options, what, error),
        }
    }
}

fn request_error(id: &str, options: &HubOptions, what: &str, source: ApiError) -> HubError {
    HubError::Request {
        what: what.to_owned(),
        id: id.to_owned(),
        endpoint: options.endpoint.clone(),
        source: Box::new(source),
    }
}

/// The hub's answer, if it gave one.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match error.as_ref() {
            ureq::Error::StatusCode(status) => Some(*status),
            _ => None,
        },
        ApiError::TooManyRetries(error) => status(error),
        _ => None,
    }
}

impl HubError {
    /// True if the hub said nothing at all, or that it is out of order.
    fn is_unreachable(&self) -> bool {
        match self {
            Self::Request { source, .. } => status(source).is_none_or(|status| status >= 500),
            _ => false,
        }
    }
}

/// hf-hub reports here.
#[derive(Default)]
struct Download(Option<Progress>);

impl hf_hub::api::Progress for Download {
    fn init(&mut self, size: usize, filename: &str) {
        // Called once more for each attempt.
        self.0
            .get_or_insert_with(|| Progress::new(format!("downloading {filename}"), size as u64));
    }

    fn update(&mut self, size: usize) {
        if let Some(progress) = &self.0 {
            progress.add(size as u64);
        }
    }

    fn finish(&mut self) {
        if let Some(progress) = &self.0 {
            progress.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(vars: &[(&str, &str)]) -> HubOptions {
        HubOptions::from_vars(Path::new("/home/me"), |name| {
            let found = vars.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn with_nothing_set_the_public_hub_and_its_usual_cache_are_used() {
        let defaults = HubOptions {
            revision: "main".to_owned(),
            endpoint: "https://huggingface.co".to_owned(),
            token: None,
            cache_dir: "/home/me/.cache/huggingface/hub".into(),
            offline: false,
        };
        assert_eq!(options(&[]), defaults);
        assert_eq!(
            options(&[("HF_HUB_OFFLINE", "0"), ("HF_TOKEN", " ")]),
            defaults
        );
    }

    #[test]
    fn the_hubs_own_variables_are_followed() {
        let set = options(&[
            ("HF_ENDPOINT", "http://localhost:9/"),
            ("HF_HOME", "/models"),
            ("HF_TOKEN", "hf_secret\n"),
            ("HF_HUB_OFFLINE", "YES"),
        ]);
        assert_eq!(set.endpoint, "http://localhost:9");
        assert_eq!(set.cache_dir, Path::new("/models/hub"));
        assert_eq!(set.token.as_deref(), Some("hf_secret"));
        assert!(set.offline);
        assert!(
            !format!("{set:?}").contains("hf_secret"),
            "a log is no place for it"
        );
        let cache = options(&[("HF_HOME", "/models"), ("HF_HUB_CACHE", "/cache")]).cache_dir;
        assert_eq!(cache, Path::new("/cache"));
    }

    #[test]
    fn ids_are_told_from_paths() {
        for id in ["gpt2", "facebook/opt-125m", "a_b/c.d-e"] {
            assert!(is_model_id(id), "{id}");
        }
        for path in [
            "",
            "/models/opt",
            "./opt",
            "../opt",
            "a/b/c",
            "a//b",
            "~/opt",
            "a b",
        ] {
            assert!(!is_model_id(path), "{path}");
        }
    }
}
