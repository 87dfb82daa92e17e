//! What the command line and the environment say, in two stages: [`Args`] as typed, [`Config`]
//! ready to use.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use lantern_telemetry::serve::Limits;
use lantern_telemetry::{ConfigError, ExporterSettings, Settings};

use crate::signal::{Signal, Signals};
use crate::tail::TailPolicy;
pub use backends::{Backend, LogAck, QueueDir, Waiting};
pub use door::{Door, DoorArgs, Origins};
pub use kafka::KafkaSettings;
pub use limits::{LimitArgs, Pace};
pub use tail::TailArgs;
pub use ways::{Balance, FileSettings, Way};

mod backends;
mod door;
mod kafka;
mod limits;
mod tail;
#[cfg(test)]
mod tests;
mod ways;

/// A year: what is longer is a mistake, and would be past what the clock can tell.
const MAX_DRAIN_SECONDS: u64 = 365 * 86_400;

/// Nobody's sender waits for longer.
const MAX_QUEUE_WAIT_SECONDS: u64 = 3_600;

const MIB: usize = 1024 * 1024;

/// The default of `--max-request-bytes`: what the OTLP specification recommends.
pub const DEFAULT_MAX_REQUEST_BYTES: usize = 64 * MIB;
/// The most that `--max-request-bytes` can be: a length in gRPC has 32 bits.
pub(crate) const LARGEST_REQUEST_BYTES: usize = u32::MAX as usize;
/// The default of `--queue-max-bytes` for a queue on disk.
pub const DEFAULT_QUEUE_DIR_MAX_BYTES: usize = 256 * MIB;
/// The same in memory, so that a shim whose backend is away takes 64 MiB in all.
pub const DEFAULT_QUEUE_MAX_BYTES: usize = 32 * MIB;
/// The default of `--queue-wait-seconds`: well within the 10 s that SDKs give a request.
pub const DEFAULT_QUEUE_WAIT: Duration = Duration::from_secs(2);
/// The default of `--store-max-bytes`.
pub const DEFAULT_STORE_MAX_BYTES: usize = 256 * MIB;
/// The default of `--drain-timeout-seconds`.
pub const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The default of `--report-seconds`.
const DEFAULT_REPORT_SECONDS: u32 = 60;

/// How the shim is run.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Where OTLP/gRPC comes in
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4317", value_parser = address)]
    pub grpc: SocketAddr,

    /// Where OTLP/HTTP comes in: POST /v1/traces, /v1/metrics, …, protobuf or JSON
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4318", value_parser = address)]
    pub http: SocketAddr,

    /// Where traces are looked at, and /metrics and /healthz; `none` switches it off
    #[arg(long, value_name = "ADDR|none", default_value = "127.0.0.1:16686", value_parser = viewer)]
    pub viewer: Viewer,

    /// Which signals are taken; without a backend only traces are
    #[arg(long, value_name = "SIGNAL,…", value_enum, value_delimiter = ',', default_values_t = Signal::ALL)]
    pub signals: Vec<Signal>,

    /// The largest request taken, before decompression and after
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_MAX_REQUEST_BYTES)]
    pub max_request_bytes: usize,

    /// Forward to this backend, or to OTLP/JSON lines in file:///DIR, or to kafka://HOST:PORT,…/TOPIC if
    /// it was built for that; may be repeated. NAME is for you to choose: settings of the backend are LANTERN_BACKEND_NAME_PROTOCOL, …_HEADERS and so on
    #[arg(long, value_name = "NAME=URL")]
    pub backend: Vec<String>,

    /// With a backend: how much may wait for it before senders are told to come back; 33554432, or
    /// 268435456 with --queue-dir. One request may be larger when no other waits in memory
    #[arg(long, value_name = "BYTES")]
    pub queue_max_bytes: Option<usize>,

    /// With a backend: how long a request waits for room in a queue that is full before its sender is
    /// told to come back
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_QUEUE_WAIT.as_secs(),
        value_parser = clap::value_parser!(u64).range(0..=MAX_QUEUE_WAIT_SECONDS))]
    pub queue_wait_seconds: u64,

    /// With a backend: what waits for it is kept in this directory and survives a crash
    #[arg(long, value_name = "DIR")]
    pub queue_dir: Option<PathBuf>,

    /// When a request is acknowledged; `disk` is the default with --queue-dir
    #[arg(long, value_name = "WHEN")]
    pub ack: Option<Ack>,

    /// Without one: how much is kept in memory before the oldest trace goes
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_STORE_MAX_BYTES)]
    pub store_max_bytes: usize,

    /// How long shutdown may take to send what still waits
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_DRAIN_TIMEOUT.as_secs())]
    pub drain_timeout_seconds: u64,

    /// How often a log line tells what has passed through; 0 for never
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_REPORT_SECONDS)]
    pub report_seconds: u32,

    /// Which traces are sent on.
    #[command(flatten)]
    pub tail: TailArgs,

    /// Who may send.
    #[command(flatten)]
    pub door: DoorArgs,

    /// What clients may take.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// When a request is acknowledged to its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Ack {
    /// Once it is written to the queue's directory and synced
    Disk,
    /// Once every backend has accepted it; nothing is queued, and a backend that is away is the
    /// sender's to wait for
    Backend,
    /// Once it is queued in memory
    Memory,
}

/// The value of `--viewer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Viewer {
    /// Served there.
    At(SocketAddr),
    /// Not served.
    None,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let allowed = "use an IP address and a port, such as 127.0.0.1:4317";
    text.parse().map_err(|_| allowed.to_owned())
}

fn viewer(text: &str) -> Result<Viewer, String> {
    if text == "none" {
        return Ok(Viewer::None);
    }
    let at = address(text).map(Viewer::At);
    at.map_err(|allowed| format!("{allowed}, or none"))
}

/// A shim ready to be bound. [`Config::embedded`] and [`Config::forwarding`] are the ways to one
/// without a command line.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where OTLP/gRPC comes in.
    pub grpc: SocketAddr,
    /// Where OTLP/HTTP comes in.
    pub http: SocketAddr,
    /// Where the viewer is, if anywhere.
    pub viewer: Option<SocketAddr>,
    /// Which signals are taken.
    pub signals: Signals,
    /// The largest request, before decompression and after.
    pub max_request_bytes: usize,
    /// How long shutdown may take to send what still waits.
    pub drain_timeout: Duration,
    /// How often a log line tells what has passed through.
    pub report_interval: Option<Duration>,
    /// Who may send.
    pub door: Door,
    /// What clients may take on each port.
    pub limits: Limits,
    /// How slow a sender may be.
    pub pace: Pace,
    /// How long a request waits for room in a queue that is full.
    pub queue_wait: Duration,
    /// Which traces are sent on; None sends all.
    pub tail: Option<TailPolicy>,
    /// Where the spans go.
    pub destination: Destination,
}

/// Where accepted spans go.
#[derive(Debug, Clone)]
pub enum Destination {
    /// Into memory, to be looked at in the viewer.
    Store {
        /// Over it the oldest trace goes.
        max_bytes: usize,
    },
    /// On to backends, all of it to each.
    Backends {
        /// One or more.
        backends: Vec<Backend>,
        /// What may wait or be on its way. Over it senders are told to come back.
        queue_max_bytes: usize,
        /// Where it waits.
        waiting: Waiting,
    },
}

/// Any free port of the loopback interface.
const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

impl Config {
    /// Keeps traces itself, on free loopback ports; change the fields that matter.
    pub fn embedded() -> Config {
        Config {
            grpc: LOOPBACK,
            http: LOOPBACK,
            viewer: Some(LOOPBACK),
            signals: Signals::ALL,
            max_request_bytes: DEFAULT_MAX_REQUEST_BYTES,
            drain_timeout: DEFAULT_DRAIN_TIMEOUT,
            report_interval: None,
            door: Door::default(),
            limits: limits::DEFAULTS.ports(),
            pace: limits::DEFAULTS.pace(),
            queue_wait: DEFAULT_QUEUE_WAIT,
            tail: None,
            destination: Destination::Store {
                max_bytes: DEFAULT_STORE_MAX_BYTES,
            },
        }
    }

    /// Forwards by `exporter`, from free loopback ports; change the fields that matter.
    pub fn forwarding(exporter: ExporterSettings) -> Config {
        let destination = Destination::Backends {
            backends: vec![Backend::only(exporter)],
            queue_max_bytes: DEFAULT_QUEUE_MAX_BYTES,
            waiting: Waiting::InMemory,
        };
        Config {
            destination,
            ..Config::embedded()
        }
    }
}

impl Args {
    /// Joins the command line with the environment: a backend named there is forwarded to, and
    /// without one the shim keeps traces itself.
    ///
    /// With `--backend` those are all of them, each with the variables of its name that `get` gives.
    pub fn into_config(
        self,
        settings: &Settings,
        get: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Config, ConfigError> {
        self.check_bounds()?;
        let backends = self.backends(settings, get)?;
        let destination = if backends.is_empty() {
            self.keeping()?
        } else {
            Destination::Backends {
                backends,
                queue_max_bytes: self.queue_max_bytes(),
                waiting: self.waiting()?,
            }
        };
        let tail = self.tail(&destination)?;
        Ok(Config {
            tail,
            grpc: self.grpc,
            http: self.http,
            viewer: match self.viewer {
                Viewer::At(address) => Some(address),
                Viewer::None => None,
            },
            signals: self.signals.iter().copied().collect(),
            max_request_bytes: self.max_request_bytes,
            drain_timeout: Duration::from_secs(self.drain_timeout_seconds),
            report_interval: match self.report_seconds {
                0 => None,
                seconds => Some(Duration::from_secs(seconds.into())),
            },
            limits: self.limits.ports(),
            pace: self.limits.pace(),
            queue_wait: Duration::from_secs(self.queue_wait_seconds),
            door: self.door.into_door()?,
            destination,
        })
    }

    fn backends(
        &self,
        settings: &Settings,
        get: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Vec<Backend>, ConfigError> {
        let named = match (settings.traces_endpoint(), &self.backend[..]) {
            (None, []) => return Ok(Vec::new()),
            (Some(named), []) => {
                let variable = settings.traces_endpoint_variable();
                let variable = variable.expect("whatever named the endpoint is known");
                let backend = Backend::only(settings.exporter().clone());
                vec![(variable, named, backend)]
            }
            (_, flags) => {
                let backends = backends::read(flags, get)?;
                let named = flags.iter().zip(backends);
                named
                    .map(|(flag, backend)| (backends::FLAG, flag.as_str(), backend))
                    .collect()
            }
        };
        named
            .into_iter()
            .map(|(variable, named, backend)| {
                if let Some(exporter) = backend.way.exporter() {
                    self.check_not_ourselves(variable, named, &exporter.endpoint)?;
                }
                Ok(backend)
            })
            .collect()
    }

    /// Without a backend.
    fn keeping(&self) -> Result<Destination, ConfigError> {
        const BACKEND: &str =
            "with a backend to send to (OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or --backend)";
        if let Some(path) = &self.queue_dir {
            let allowed = format!("a directory, {BACKEND}");
            let path = path.display().to_string();
            return Err(ConfigError::new("--queue-dir", path, allowed));
        }
        if self.ack == Some(Ack::Backend) {
            return Err(ConfigError::new(
                "--ack",
                "backend",
                format!("it {BACKEND}"),
            ));
        }
        Ok(Destination::Store {
            max_bytes: self.store_max_bytes,
        })
    }

    fn queue_max_bytes(&self) -> usize {
        let default = match self.queue_dir {
            Some(_) => DEFAULT_QUEUE_DIR_MAX_BYTES,
            None => DEFAULT_QUEUE_MAX_BYTES,
        };
        self.queue_max_bytes.unwrap_or(default)
    }

    fn waiting(&self) -> Result<Waiting, ConfigError> {
        let ack = match (self.ack, &self.queue_dir) {
            (None | Some(Ack::Memory), None) => return Ok(Waiting::InMemory),
            (Some(Ack::Backend), None) => return Ok(Waiting::AtSender),
            (Some(Ack::Disk), None) => {
                let allowed = "memory or backend, or disk with --queue-dir";
                return Err(ConfigError::new("--ack", "disk", allowed));
            }
            (Some(Ack::Backend), Some(_)) => {
                let allowed = "backend without --queue-dir: nothing is queued then";
                return Err(ConfigError::new("--ack", "backend", allowed));
            }
            (None | Some(Ack::Disk), Some(_)) => LogAck::Disk,
            (Some(Ack::Memory), Some(_)) => LogAck::Memory,
        };
        let path = self.queue_dir.clone().unwrap_or_default();
        // Segments are freed whole, so that one delivered in part still takes its room.
        let least = 2 * self.max_request_bytes;
        if self.queue_max_bytes() < least {
            let allowed = format!("{least} (twice --max-request-bytes) or more with --queue-dir");
            let value = self.queue_max_bytes().to_string();
            return Err(ConfigError::new("--queue-max-bytes", value, allowed));
        }
        Ok(Waiting::OnDisk(QueueDir { path, ack }))
    }

    /// Decisions are made between a queue and its backends.
    fn tail(&self, destination: &Destination) -> Result<Option<TailPolicy>, ConfigError> {
        let tail = self.tail.policy()?;
        let has_queue = match destination {
            Destination::Store { .. } => false,
            Destination::Backends { waiting, .. } => *waiting != Waiting::AtSender,
        };
        match self.tail.tail_keep.first() {
            Some(named) if !has_queue => {
                let allowed = "it with a backend and a queue: not with --ack backend";
                Err(ConfigError::new("--tail-keep", named, allowed))
            }
            _ => Ok(tail),
        }
    }

    fn check_bounds(&self) -> Result<(), ConfigError> {
        if self.max_request_bytes == 0 || self.max_request_bytes > LARGEST_REQUEST_BYTES {
            let allowed = format!("1 to {LARGEST_REQUEST_BYTES}");
            let value = self.max_request_bytes.to_string();
            return Err(ConfigError::new("--max-request-bytes", value, allowed));
        }
        if self.queue_max_bytes == Some(0) {
            return Err(ConfigError::new("--queue-max-bytes", "0", "1 or more"));
        }
        if self.drain_timeout_seconds > MAX_DRAIN_SECONDS {
            let value = self.drain_timeout_seconds.to_string();
            let allowed = format!("0 to {MAX_DRAIN_SECONDS}, a year");
            return Err(ConfigError::new("--drain-timeout-seconds", value, allowed));
        }
        if self.store_max_bytes == 0 {
            return Err(ConfigError::new("--store-max-bytes", "0", "1 or more"));
        }
        Ok(())
    }

    /// A shim that sends to itself would send for ever.
    fn check_not_ourselves(
        &self,
        variable: &str,
        named: &str,
        endpoint: &str,
    ) -> Result<(), ConfigError> {
        let uri: Uri = endpoint.parse().expect("the settings hold a checked URL");
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = uri
            .port_u16()
            .unwrap_or(if uri.scheme_str() == Some("https") {
                443
            } else {
                80
            });
        let is_ours = |listen: SocketAddr| {
            let own = listen.ip().to_canonical();
            let is_local = own.is_loopback() || own.is_unspecified();
            let same_host = match host.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
                // Connecting to the unspecified address reaches the loopback interface.
                Ok(ip) if ip.is_unspecified() => is_local,
                Ok(ip) => ip == own || (ip.is_loopback() && own.is_unspecified()),
                Err(_) => host.eq_ignore_ascii_case("localhost") && is_local,
            };
            port == listen.port() && same_host
        };
        if is_ours(self.grpc) || is_ours(self.http) {
            let allowed = "a backend's address: this is where the shim itself listens \
                           (--grpc, --http)";
            return Err(ConfigError::new(variable, named, allowed));
        }
        Ok(())
    }
}
