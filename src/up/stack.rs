//! The three parts in one process: started backend first, stopped in the other direction.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use lantern_inference::Server;
use lantern_inference::config::capture_content;
use lantern_proxy::{Instrumentation, Proxy};
use lantern_shim::{Shim, ShimHandle};
use lantern_telemetry::{ConfigError, Protocol, Settings, Telemetry};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::client;

/// How long each exporter may take to hand its last spans to the shim.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);
/// How soon a span reaches the store, in milliseconds, unless OTEL_BSP_SCHEDULE_DELAY says
/// otherwise: somebody is looking at the viewer.
const SCHEDULE_DELAY_MS: &str = "500";

/// Addresses and the model.
pub(super) struct StackConfig {
    /// A directory or a hub id.
    pub(super) model: String,
    /// What requests call it.
    pub(super) model_name: String,
    pub(super) listen: SocketAddr,
    pub(super) inference: SocketAddr,
    pub(super) grpc: SocketAddr,
    pub(super) http: SocketAddr,
    pub(super) viewer: SocketAddr,
}

/// The running stack.
pub(super) struct Stack {
    shim: Part,
    inference: Part,
    proxy: Part,
    client: Telemetry,
    handle: ShimHandle,
    addresses: Addresses,
    /// The endpoint that spans are forwarded to; `None` when the shim keeps them.
    backend: Option<String>,
    model_name: String,
    /// Cancelled when a part ends, whoever asked for it.
    part_ended: CancellationToken,
}

struct Addresses {
    grpc: SocketAddr,
    http: SocketAddr,
    viewer: SocketAddr,
    inference: SocketAddr,
    proxy: SocketAddr,
}

impl Stack {
    /// Starts all of it, once all configuration is read. When it returns, the proxy's port answers.
    pub(super) async fn start(config: StackConfig, settings: &Settings) -> anyhow::Result<Self> {
        let instrumentation = Instrumentation::from_env()?;
        let inference_config = inference_config(&config)?;
        let shim = Shim::bind(shim_config(&config, settings)).await?;
        let handle = shim.handle();
        let telemetry = ToShim {
            grpc: shim.grpc_addr(),
            http: shim.http_addr(),
            settings,
        };

        let inference_telemetry = telemetry.named_by_environment("lantern-inference")?;
        let inference = Server::bind(inference_config, &inference_telemetry).await?;

        let proxy_telemetry = telemetry.named("lantern-proxy")?;
        let upstream = inference.local_addr();
        let proxy_config = lantern_proxy::Config {
            instrumentation,
            ..lantern_proxy::Config::new(config.listen, upstream)
        };
        let proxy = Proxy::bind(proxy_config, &proxy_telemetry).await?;

        let addresses = Addresses {
            grpc: shim.grpc_addr(),
            http: shim.http_addr(),
            viewer: shim.viewer_addr().unwrap_or(config.viewer),
            inference: inference.local_addr(),
            proxy: proxy.local_addr(),
        };
        let ended = CancellationToken::new();
        let [at_shim, at_inference, at_proxy] = [(); 3].map(|()| CancellationToken::new());
        Ok(Self {
            client: telemetry.named(client::SERVICE_NAME)?,
            shim: Part::spawn("shim", shim.run(at_shim.clone()), at_shim, &ended),
            inference: Part::spawn(
                "inference server",
                inference.run(at_inference.clone()),
                at_inference,
                &ended,
            )
            .with(inference_telemetry),
            proxy: Part::spawn("proxy", proxy.run(at_proxy.clone()), at_proxy, &ended)
                .with(proxy_telemetry),
            handle,
            addresses,
            backend: settings.traces_endpoint().map(str::to_owned),
            model_name: config.model_name,
            part_ended: ended,
        })
    }

    /// What the client's spans are made with: a request of ours comes from a service of its own.
    pub(super) fn client(&self) -> &Telemetry {
        &self.client
    }

    /// Asks the shim what arrived.
    pub(super) fn shim(&self) -> &ShimHandle {
        &self.handle
    }

    pub(super) fn model_name(&self) -> &str {
        &self.model_name
    }

    pub(super) fn proxy_addr(&self) -> SocketAddr {
        self.addresses.proxy
    }

    pub(super) fn viewer_addr(&self) -> SocketAddr {
        self.addresses.viewer
    }

    /// Hands every span that has ended to the shim.
    pub(super) async fn flush(&self) -> anyhow::Result<()> {
        self.client.flush().await?;
        for part in [&self.proxy, &self.inference] {
            part.flush().await?;
        }
        Ok(())
    }

    /// Waits until `shutdown`, or until a part ends by itself, which none should.
    pub(super) async fn serve(&self, shutdown: &CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.part_ended.cancelled() => {}
        }
    }

    /// Stops the parts in the order of the request's way, so that whatever one part still sends
    /// finds the next one alive. All are stopped, whatever the first one says.
    pub(super) async fn shut_down(self) -> anyhow::Result<()> {
        let proxy = self.proxy.stop().await;
        let inference = self.inference.stop().await;
        let client = self.client.shutdown(FLUSH_LIMIT).await;
        let shim = self.shim.stop().await;
        proxy
            .and(inference)
            .and(client.map_err(Into::into))
            .and(shim)
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Addresses {
            grpc,
            http,
            viewer,
            inference,
            proxy,
        } = &self.addresses;
        writeln!(
            f,
            "proxy      http://{proxy}  clients send their requests here"
        )?;
        writeln!(f, "inference  http://{inference}  {}", self.model_name)?;
        write!(f, "shim       grpc://{grpc}  http://{http}/v1/traces  ")?;
        match &self.backend {
            Some(endpoint) => writeln!(f, "forwarding to {endpoint}"),
            None => writeln!(f, "viewer http://{viewer}"),
        }
    }
}

/// One running part, and the guard of the spans that it makes (the shim makes none).
struct Part {
    name: &'static str,
    task: JoinHandle<anyhow::Result<()>>,
    shutdown: CancellationToken,
    telemetry: Option<Telemetry>,
}

impl Part {
    /// Runs `running`, which ends when `shutdown` is cancelled, and tells `ended` when it has.
    fn spawn<E: Into<anyhow::Error>>(
        name: &'static str,
        running: impl Future<Output = Result<(), E>> + Send + 'static,
        shutdown: CancellationToken,
        ended: &CancellationToken,
    ) -> Self {
        let ended = ended.clone().drop_guard();
        let task = tokio::spawn(async move {
            let _ended = ended;
            running.await.map_err(Into::into)
        });
        Self {
            name,
            task,
            shutdown,
            telemetry: None,
        }
    }

    /// With the guard of its spans, to be shut down after it.
    fn with(self, telemetry: Telemetry) -> Self {
        Self {
            telemetry: Some(telemetry),
            ..self
        }
    }

    async fn flush(&self) -> anyhow::Result<()> {
        let Some(telemetry) = &self.telemetry else {
            return Ok(());
        };
        telemetry.flush().await.with_context(|| self.name)
    }

    /// Drains the part, then hands its last spans over.
    async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        let ended = self
            .task
            .await
            .with_context(|| format!("the {} panicked", self.name))?;
        if let Some(telemetry) = self.telemetry {
            telemetry
                .shutdown(FLUSH_LIMIT)
                .await
                .with_context(|| self.name)?;
        }
        ended.with_context(|| format!("the {} failed", self.name))
    }
}

/// Makes the guards of the parts: each exports to our own shim, by the protocol that the environment
/// names, with everything else as the environment says.
struct ToShim<'a> {
    grpc: SocketAddr,
    http: SocketAddr,
    settings: &'a Settings,
}

impl ToShim<'_> {
    /// For a part that keeps its name: OTEL_SERVICE_NAME is for the server that is being run.
    fn named(&self, service: &str) -> Result<Telemetry, ConfigError> {
        Telemetry::start(&self.settings()?.with_service_name(service), service)
    }

    fn named_by_environment(&self, default: &str) -> Result<Telemetry, ConfigError> {
        Telemetry::start(&self.settings()?, default)
    }

    fn settings(&self) -> Result<Settings, ConfigError> {
        let protocol = self.settings.protocol();
        let endpoint = match protocol {
            Protocol::Grpc => format!("http://{}", self.grpc),
            Protocol::HttpProtobuf | Protocol::HttpJson => {
                format!("http://{}/v1/traces", self.http)
            }
        };
        // Credentials, certificates and compression are the backend's: the shim uses them.
        let settings = Settings::from_vars(|name| match std::env::var(name).ok() {
            Some(_) if name.starts_with("OTEL_EXPORTER_OTLP") => None,
            None if name == "OTEL_BSP_SCHEDULE_DELAY" => Some(SCHEDULE_DELAY_MS.to_owned()),
            value => value,
        })?;
        settings
            .with_protocol(protocol)
            .with_traces_endpoint("--grpc", &endpoint)
    }
}

fn shim_config(config: &StackConfig, settings: &Settings) -> lantern_shim::Config {
    let base = match settings.traces_endpoint() {
        Some(_) => lantern_shim::Config::forwarding(settings.exporter().clone()),
        None => lantern_shim::Config::embedded(),
    };
    lantern_shim::Config {
        grpc: config.grpc,
        http: config.http,
        viewer: Some(config.viewer),
        ..base
    }
}

fn inference_config(config: &StackConfig) -> Result<lantern_inference::Config, ConfigError> {
    let mut inference = lantern_inference::Config::new(&config.model);
    inference.served_names = vec![config.model_name.clone()];
    inference.host = config.inference.ip().to_string();
    inference.port = config.inference.port();
    inference.capture_content = capture_content(|name| std::env::var(name).ok())?;
    Ok(inference)
}
