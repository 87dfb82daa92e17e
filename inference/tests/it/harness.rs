//! The API on a real socket, in front of an engine that a test scripts.
//!
//! The tokenizer is as plain as can be: token ids below 256 are the bytes of the same value, 256 is
//! `</s>`, which the tokenizer puts in front of every text.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use lantern_inference::api::{App, ServedModel};
use lantern_inference::chat_template::ChatTemplate;
use lantern_inference::engine::request::{Event, FinishReason, StepTimes, Submission};
use lantern_inference::engine::{Engine, EngineConfig};
use lantern_inference::generation::Generator;
use lantern_inference::generation::exchange::Observers;
use lantern_inference::loader::{ModelFiles, ModelSource, TokenizerFiles, WeightFiles};
use lantern_inference::metrics::Metrics;
use lantern_inference::serve::{Lifetime, serve};
use lantern_inference::spans::Spans;
use lantern_inference::tokenizer::Tokenizer;
use lantern_telemetry::Telemetry;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SpanData};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// `</s>`: in front of every prompt, and the end of sequence.
pub(crate) const EOS: u32 = 256;
/// A byte per token and `</s>`.
pub(crate) const VOCAB_SIZE: usize = 257;
/// Prompt and output together.
pub(crate) const MAX_MODEL_LEN: usize = 128;
/// The model's name.
pub(crate) const MODEL: &str = "scripted";
/// Longest body.
pub(crate) const MAX_BODY_BYTES: usize = 4096;

/// What a test may choose.
pub(crate) struct Options {
    pub(crate) chat_template: Option<&'static str>,
    pub(crate) max_waiting_requests: usize,
    pub(crate) capture_content: bool,
    pub(crate) drain_grace: Duration,
    /// Where spans go in place of the exporter in memory.
    pub(crate) telemetry: Option<Telemetry>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            chat_template: None,
            max_waiting_requests: 1024,
            capture_content: false,
            // Never the reason that a test passes: those that need the end of it set their own.
            drain_grace: Duration::from_secs(600),
            telemetry: None,
        }
    }
}

/// A running API.
pub(crate) struct Harness {
    pub(crate) address: SocketAddr,
    pub(crate) exporter: InMemorySpanExporter,
    pub(crate) shutdown: CancellationToken,
    pub(crate) server: JoinHandle<()>,
    pub(crate) telemetry: Telemetry,
}

/// What a request was answered with.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The chunks of a stream, which must be framed and ended as they should be.
    pub(crate) fn chunks(&self) -> Vec<Value> {
        let frames = self
            .text
            .strip_suffix("data: [DONE]\n\n")
            .expect("the stream is ended");
        let frames = frames.split_terminator("\n\n");
        let data = frames.map(|frame| frame.strip_prefix("data: ").expect("one data line each"));
        data.map(|data| serde_json::from_str(data).expect("a chunk is JSON"))
            .collect()
    }
}

impl Harness {
    /// Starts the API; `script` answers the engine's submissions, one after the other.
    pub(crate) async fn start(script: impl FnMut(Submission) + Send + 'static) -> Self {
        Self::with(Options::default(), script).await
    }

    pub(crate) async fn with(
        options: Options,
        mut script: impl FnMut(Submission) + Send + 'static,
    ) -> Self {
        let (harness, submissions) = Self::held(options).await;
        std::thread::spawn(move || submissions.iter().for_each(&mut script));
        harness
    }

    /// Starts the API with an engine that the test holds.
    pub(crate) async fn held(options: Options) -> (Self, Receiver<Submission>) {
        let config = EngineConfig {
            max_waiting_requests: options.max_waiting_requests,
            ..EngineConfig::default()
        };
        let (engine, submissions) = Engine::channel(config, MAX_MODEL_LEN);
        (Self::on(engine, options).await, submissions)
    }

    /// Starts the API in front of an engine.
    pub(crate) async fn on(engine: Engine, options: Options) -> Self {
        let exporter = InMemorySpanExporter::default();
        let in_memory = || Telemetry::with_exporter(exporter.clone(), "test");
        let telemetry = options.telemetry.unwrap_or_else(in_memory);
        let meter = telemetry.meter("test");
        let metrics = Metrics::new(MODEL, &engine, meter.as_ref());
        let generator = Generator::new(engine, byte_tokenizer(), Arc::new([EOS]), None);
        let template = options.chat_template.map(|source| {
            ChatTemplate::new(source.to_owned(), None, None).expect("the test's template compiles")
        });
        let served = ServedModel {
            names: vec![MODEL.to_owned(), "alias".to_owned()],
            root: "/models/scripted".to_owned(),
            max_model_len: MAX_MODEL_LEN,
            vocab_size: VOCAB_SIZE,
            chat_template: template,
        };
        let abandoned = CancellationToken::new();
        let observers = Observers {
            spans: Spans::new(&telemetry, options.capture_content),
            metrics,
            abandoned: abandoned.clone(),
        };
        let app = Arc::new(App::new(generator, served, observers, MAX_BODY_BYTES));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shutdown = CancellationToken::new();
        let lifetime = Lifetime {
            shutdown: shutdown.clone(),
            abandoned,
            drain_grace: options.drain_grace,
        };
        let server = tokio::spawn(serve(listener, app.router(), lifetime));
        Self {
            address,
            exporter,
            shutdown,
            server,
            telemetry,
        }
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        let request = Request::post(self.url(path)).header("content-type", "application/json");
        self.send(request.body(body.to_string().into()).expect("a request"))
            .await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(
            Request::get(self.url(path))
                .body(Full::default())
                .expect("a request"),
        )
        .await
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let response = client.request(request).await.expect("a response");
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a whole body").to_bytes();
        let text = String::from_utf8(bytes.to_vec()).expect("bodies are UTF-8");
        Answer {
            status: parts.status,
            headers: parts.headers,
            text,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The spans once at least `count` have ended.
    pub(crate) async fn spans(&self, count: usize) -> Vec<SpanData> {
        loop {
            let spans = self
                .exporter
                .get_finished_spans()
                .expect("the exporter runs");
            if spans.len() >= count {
                return spans;
            }
            tokio::task::yield_now().await;
        }
    }

    /// The `llm_request` spans once at least `count` have ended.
    pub(crate) async fn request_spans(&self, count: usize) -> Vec<SpanData> {
        loop {
            let mut spans = self.spans(count).await;
            spans.retain(|span| span.name == "llm_request");
            if spans.len() >= count {
                return spans;
            }
            tokio::task::yield_now().await;
        }
    }
}

/// The value of an attribute as text.
pub(crate) fn attribute(span: &SpanData, name: &str) -> Option<String> {
    let found = span
        .attributes
        .iter()
        .find(|attribute| attribute.key.as_str() == name);
    found.map(|attribute| attribute.value.to_string())
}

/// Answers with `text`, a byte a token, one token a millisecond, then the end of sequence.
pub(crate) fn say(submission: &Submission, text: &[u8]) {
    let tokens: Vec<u32> = text.iter().map(|&byte| byte.into()).chain([EOS]).collect();
    tell(submission, &tokens, FinishReason::Eos);
}

/// Answers with tokens: scheduled after 1 ms, the first token after 3, then one each millisecond.
pub(crate) fn tell(submission: &Submission, tokens: &[u32], reason: FinishReason) {
    let at = |millis| submission.queued + Duration::from_millis(millis);
    // A stream that is gone has cancelled the rest: then nobody minds that sending fails.
    let send = |event| submission.events.send(event).is_ok();
    send(Event::Scheduled {
        at: at(1),
        cached_tokens: 0,
    });
    let mut last = 3;
    for (&id, millis) in tokens.iter().zip(last..) {
        last = millis;
        send(Event::Token {
            id,
            logprobs: None,
            at: at(millis),
            times: StepTimes::default(),
        });
    }
    send(Event::Finished {
        reason,
        at: at(last),
    });
}

/// Answers with the prompt itself, cut at `max_tokens`.
pub(crate) fn echo(submission: &Submission) {
    let params = &submission.request.params;
    let prompt = submission
        .request
        .prompt_tokens
        .iter()
        .copied()
        .filter(|&id| id != EOS);
    let tokens: Vec<u32> = prompt.take(params.max_tokens).collect();
    tell(submission, &tokens, FinishReason::Length);
}

/// The tokenizer described above.
pub(crate) fn byte_tokenizer() -> Tokenizer {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let files = byte_tokenizer_files(directory.path());
    Tokenizer::load(&ModelSource::Files(files)).expect("the files are whole")
}

/// Writes the tokenizer's files, in the layout of OPT's.
pub(crate) fn byte_tokenizer_files(directory: &Path) -> ModelFiles {
    let mut vocab: BTreeMap<String, u32> = (0..=255)
        .map(|byte: u8| (byte_letter(byte).to_string(), byte.into()))
        .collect();
    vocab.insert("</s>".to_owned(), EOS);
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).expect("the directory is writable");
        path
    };
    let vocab = write(
        "vocab.json",
        &serde_json::to_string(&vocab).expect("strings and numbers"),
    );
    let merges = write("merges.txt", "#version: 0.2\n");
    let config = r#"{"bos_token": "</s>", "eos_token": "</s>", "add_bos_token": true, "tokenizer_class": "GPT2Tokenizer"}"#;
    ModelFiles {
        config_json: directory.join("config.json"),
        weights: WeightFiles::Safetensors(Vec::new()),
        tokenizer: Some(TokenizerFiles::VocabAndMerges { vocab, merges }),
        tokenizer_config: Some(write("tokenizer_config.json", config)),
        special_tokens_map: None,
        added_tokens: None,
        generation_config: None,
        chat_template: None,
    }
}

/// GPT-2's letter for a byte: itself where it is printable, else the next one from U+0100.
fn byte_letter(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if printable(byte) {
        return byte.into();
    }
    let before = (0..byte).filter(|&byte| !printable(byte)).count();
    char::from_u32(256 + before as u32).expect("a letter of Latin Extended-A")
}
