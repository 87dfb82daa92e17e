//! Downloads, against a local server that speaks the hub's protocol.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use lantern_inference::loader::{
    self, DTypeChoice, DeviceChoice, HubOptions, LoadError, ModelFiles, ModelSource, WeightFiles,
};
use serde_json::json;
use tempfile::TempDir;

use crate::support::goldens;

const ID: &str = "someone/tiny-opt";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub with one model, and what it was asked.
struct Hub {
    address: SocketAddr,
    served: Arc<Served>,
    /// Stops the server when dropped.
    _runtime: tokio::runtime::Runtime,
    cache: TempDir,
}

struct Served {
    folder: PathBuf,
    /// Who does not send it gets 401.
    token: Option<&'static str>,
    /// Weights are elsewhere: the hub answers with a redirect, as for large files.
    redirect_weights: bool,
    /// Path and `authorization` of each request.
    asked: Mutex<Vec<(String, Option<String>)>>,
}

fn start(folder: PathBuf, token: Option<&'static str>, redirect_weights: bool) -> Hub {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let served = Arc::new(Served {
        folder,
        token,
        redirect_weights,
        asked: Mutex::default(),
    });
    let router = Router::new()
        .fallback(answer)
        .with_state(Arc::clone(&served));
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move { axum::serve(listener, router).await });
    Hub {
        address,
        served,
        _runtime: runtime,
        cache: tempfile::tempdir().unwrap(),
    }
}

impl Hub {
    fn options(&self) -> HubOptions {
        let endpoint = format!("http://{}", self.address);
        let home = self.cache.path().to_str().unwrap().to_owned();
        HubOptions::from_vars(Path::new("/nonexistent"), |name| match name {
            "HF_ENDPOINT" => Some(endpoint.clone()),
            "HF_HOME" => Some(home.clone()),
            _ => None,
        })
    }

    /// Names of the files that were downloaded, and forgets them.
    fn downloaded(&self) -> Vec<String> {
        let asked = std::mem::take(&mut *self.served.asked.lock().unwrap());
        let prefix = format!("/{ID}/resolve/{COMMIT}/");
        let name = |path: String| path.strip_prefix(&prefix).map(str::to_owned);
        let mut names: Vec<_> = asked
            .into_iter()
            .filter_map(|(path, _)| name(path))
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

async fn answer(
    State(served): State<Arc<Served>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let authorization = headers.get(header::AUTHORIZATION);
    let authorization = authorization.map(|value| value.to_str().unwrap().to_owned());
    let path = uri.path().to_owned();
    served
        .asked
        .lock()
        .unwrap()
        .push((path.clone(), authorization.clone()));
    if let Some(token) = served.token
        && authorization != Some(format!("Bearer {token}"))
    {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let listing = format!("/api/models/{ID}/revision/main");
    let resolve = format!("/{ID}/resolve/{COMMIT}/");
    if path == listing {
        let names = fs::read_dir(&served.folder).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let siblings: Vec<_> = names.map(|name| json!({ "rfilename": name })).collect();
        axum::Json(json!({ "sha": COMMIT, "siblings": siblings })).into_response()
    } else if let Some(name) = path.strip_prefix(&resolve) {
        let large = served.redirect_weights && name.starts_with("model");
        if large {
            redirect(&served, name, &headers)
        } else {
            file(&served, name, &headers)
        }
    } else if let Some(name) = path.strip_prefix("/elsewhere/") {
        file(&served, name, &headers)
    } else {
        assert_eq!(method, Method::GET);
        StatusCode::NOT_FOUND.into_response()
    }
}

fn redirect(served: &Served, name: &str, headers: &HeaderMap) -> Response {
    let host = headers.get(header::HOST).unwrap().to_str().unwrap();
    let size = fs::metadata(served.folder.join(name)).unwrap().len();
    let mut response = StatusCode::FOUND.into_response();
    let mut insert = |name: &'static str, value: String| {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_str(&value).unwrap());
    };
    insert("location", format!("http://{host}/elsewhere/{name}"));
    insert("x-linked-etag", format!("\"{name}-hash\""));
    insert("x-linked-size", size.to_string());
    insert("x-repo-commit", COMMIT.to_owned());
    response
}

/// The part of a file that `range` asks for.
fn file(served: &Served, name: &str, headers: &HeaderMap) -> Response {
    let Ok(content) = fs::read(served.folder.join(name)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = headers
        .get(header::RANGE)
        .expect("hf-hub always asks for a range");
    let range = range.to_str().unwrap().strip_prefix("bytes=").unwrap();
    let (first, last) = range.split_once('-').unwrap();
    let first: usize = first.parse().unwrap();
    let end = last
        .parse::<usize>()
        .map_or(content.len(), |last| last + 1)
        .min(content.len());
    let content_range = format!("bytes {first}-{}/{}", end - 1, content.len());
    let fields = [
        ("etag", format!("\"{name}-hash\"")),
        ("x-repo-commit", COMMIT.to_owned()),
        ("content-range", content_range),
    ];
    (
        StatusCode::PARTIAL_CONTENT,
        fields,
        content[first..end].to_vec(),
    )
        .into_response()
}

/// The files of a model of the hub.
fn resolve(model: &str, options: &HubOptions) -> Result<ModelFiles, LoadError> {
    match loader::resolve(model, options)? {
        ModelSource::Files(files) => Ok(files),
        ModelSource::Gguf(_) => panic!("the hub's models are directories"),
    }
}

fn message(model: &str, options: &HubOptions) -> String {
    resolve(model, options).expect_err("refused").to_string()
}

#[test]
fn a_model_is_downloaded_once_and_then_loads_offline() {
    let hub = start(goldens().join("opt-350m-like"), None, false);
    let files = resolve(ID, &hub.options()).unwrap();
    assert_eq!(
        hub.downloaded(),
        ["config.json", "pytorch_model.bin"],
        "and nothing else"
    );
    let model = loader::load(
        &ModelSource::Files(files.clone()),
        DeviceChoice::Cpu,
        DTypeChoice::Auto,
        None,
    )
    .unwrap();
    assert_eq!(model.vocab_size, 320);

    assert_eq!(resolve(ID, &hub.options()).unwrap(), files);
    assert_eq!(
        hub.downloaded(),
        [] as [&str; 0],
        "the second time all of it is there"
    );

    let offline = HubOptions {
        offline: true,
        ..hub.options()
    };
    hub.served.asked.lock().unwrap().clear();
    assert_eq!(resolve(ID, &offline).unwrap(), files);
    let by_commit = HubOptions {
        revision: COMMIT.to_owned(),
        ..offline
    };
    assert_eq!(resolve(ID, &by_commit).unwrap(), files);
    assert!(
        hub.served.asked.lock().unwrap().is_empty(),
        "nobody was asked"
    );
}

#[test]
fn large_files_are_followed_to_where_they_are() {
    let hub = start(goldens().join("opt-untied"), None, true);
    let files = resolve(ID, &hub.options()).unwrap();
    assert!(matches!(&files.weights, WeightFiles::Safetensors(shards) if shards.len() == 3));
    for path in files.weights.paths() {
        let original = goldens().join("opt-untied").join(path.file_name().unwrap());
        assert_eq!(fs::read(path).unwrap(), fs::read(original).unwrap());
    }
}

#[test]
fn of_two_formats_only_safetensors_is_downloaded() {
    let folder = tempfile::tempdir().unwrap();
    for (model, name) in [
        ("opt-pre-ln", "config.json"),
        ("opt-pre-ln", "model.safetensors"),
        ("opt-half", "pytorch_model.bin"),
    ] {
        fs::copy(goldens().join(model).join(name), folder.path().join(name)).unwrap();
    }
    fs::write(folder.path().join("README.md"), "not needed").unwrap();
    let hub = start(folder.path().to_owned(), None, false);
    resolve(ID, &hub.options()).unwrap();
    assert_eq!(hub.downloaded(), ["config.json", "model.safetensors"]);
}

#[test]
fn the_token_is_sent_and_its_absence_explained() {
    let hub = start(goldens().join("opt-half"), Some("hf_secret"), false);
    let endpoint = hub.options().endpoint;
    assert_eq!(
        message(ID, &hub.options()),
        format!(
            "{endpoint} does not give out {ID} (status 401): it does not exist, or it is private or gated and \
             needs a token with access in HF_TOKEN (none was sent)"
        )
    );
    let wrong = HubOptions {
        token: Some("hf_other".to_owned()),
        ..hub.options()
    };
    assert!(message(ID, &wrong).ends_with("(one was sent)"));
    let right = HubOptions {
        token: Some("hf_secret".to_owned()),
        ..hub.options()
    };
    resolve(ID, &right).unwrap();
}

#[test]
fn what_the_hub_does_not_have_is_said_by_name() {
    let hub = start(goldens().join("opt-half"), None, false);
    let endpoint = hub.options().endpoint;
    assert_eq!(
        message("someone/else", &hub.options()),
        format!("{endpoint} has no model someone/else at revision main")
    );
    let revision = HubOptions {
        revision: "v9".to_owned(),
        ..hub.options()
    };
    assert_eq!(
        message(ID, &revision),
        format!("{endpoint} has no model {ID} at revision v9")
    );
    let empty = tempfile::tempdir().unwrap();
    let hub = start(empty.path().to_owned(), None, false);
    assert_eq!(
        message(ID, &hub.options()),
        format!("{ID} has no config.json")
    );
}

#[test]
fn offline_without_a_cached_model_says_what_is_missing() {
    let hub = start(goldens().join("opt-half"), None, false);
    let offline = HubOptions {
        offline: true,
        ..hub.options()
    };
    let cache = offline.cache_dir.display();
    assert_eq!(
        message(ID, &offline),
        format!(
            "model {ID} at revision main is not in the cache {cache}, and HF_HUB_OFFLINE is set"
        )
    );
}

#[test]
fn a_hub_that_cannot_be_reached_is_replaced_by_the_cache() {
    let hub = start(goldens().join("opt-half"), None, false);
    let files = resolve(ID, &hub.options()).unwrap();
    let Hub {
        address,
        _runtime,
        cache,
        ..
    } = hub;
    drop(_runtime);
    let closed = format!("http://{address}");
    let options = HubOptions {
        revision: "main".to_owned(),
        endpoint: closed.clone(),
        token: None,
        cache_dir: cache.path().join("hub"),
        offline: false,
    };
    assert_eq!(resolve(ID, &options).unwrap(), files);
    let unknown = message("someone/else", &options);
    assert_eq!(
        unknown,
        format!("cannot get the list of files of someone/else from {closed}")
    );
}
