//! Configuration in two stages: [`Args`] is what was typed, [`Config`] what the proxy uses.
//!
//! `keys` is the table of settings; `sources` finds the value of each: flag, variable, file or default.

mod keys;
mod sources;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use lantern_telemetry::config::{ConfigError, from_env};

use crate::access::ApiKeys;
use crate::error::FileError;
use crate::instrumentation::Instrumentation;
use crate::keep::Keep;
use crate::limits::Limits;
use crate::origin::TrustedProxies;
use crate::route::Routes;
use crate::tls::{Identity, ServerTls, UpstreamTls};
use crate::upstream::{Balance, Health, Upstream};
use keys::UPSTREAM;
use sources::{Setting, Sources};

pub use keys::Flags;
pub(crate) use sources::{line_of, read_text};

/// Names the file when `--config` does not.
const CONFIG_VARIABLE: &str = "LANTERN_PROXY_CONFIG";

/// Settings that name a PEM file.
const FILES: [&str; 6] = [
    "tls-certificate",
    "tls-key",
    "tls-client-ca",
    "upstream-ca",
    "upstream-certificate",
    "upstream-key",
];

/// More in a row than this of anything is a mistake.
const MAX_IN_A_ROW: usize = 1_000_000;

/// The flags of the proxy. They are strings until [`Args::into_config`] has read them, so that
/// every bad value is reported the same way.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Proxy")]
pub struct Args {
    /// TOML file of settings: each flag is a key of it, with _ for -. Flags and variables go before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Check the settings, print what they come to and where each is from, and exit
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    flags: Flags,
}

impl Args {
    /// Checks every value, and reads how spans are to be written from the environment.
    pub fn into_config(self) -> Result<Config, ConfigError> {
        Config::read(&self.sources()?, Instrumentation::from_env()?)
    }

    /// What `--check` prints, if it was typed: settings in the form of the file, each with its place.
    pub fn checked(&self) -> Result<Option<String>, ConfigError> {
        if !self.check {
            return Ok(None);
        }
        let sources = self.sources()?;
        Config::read(&sources, Instrumentation::from_env()?)?;
        Ok(Some(sources.describe()))
    }

    /// Names the upstream of a proxy that was told none, by whatever source; whether that is so.
    pub fn default_upstream(&mut self, url: &str) -> Result<bool, ConfigError> {
        let is_needed = self.sources()?.all(UPSTREAM).is_empty();
        if is_needed {
            self.flags.push(UPSTREAM, url.to_owned());
        }
        Ok(is_needed)
    }

    fn sources(&self) -> Result<Sources, ConfigError> {
        from_env(|variable| {
            let path = self
                .config
                .clone()
                .or_else(|| variable(CONFIG_VARIABLE).map(PathBuf::from));
            let file = match path {
                Some(path) => sources::read_file(&path)?,
                None => Vec::new(),
            };
            Ok(Sources::new(&self.flags, variable, &file))
        })
    }
}

/// A proxy's configuration, valid by construction.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where requests go. Must not be empty.
    pub upstreams: Vec<Upstream>,
    /// Which of them a request goes to.
    pub balance: Balance,
    /// What takes an upstream out, and in again.
    pub health: Health,
    /// Longest wait for a connection to one address of an upstream.
    pub connect_timeout: Duration,
    /// Longest silence of an upstream; the wait starts anew with every byte.
    pub read_timeout: Duration,
    /// How long an upstream's connection is kept for the next request.
    pub upstream_idle_timeout: Duration,
    /// How long clients are waited for.
    pub client: ClientTimeouts,
    /// How long requests in flight may take to finish on shutdown.
    pub drain_timeout: Duration,
    /// Most client connections at once.
    pub max_connections: usize,
    /// What of a request, and of all of them, is too much.
    pub limits: Limits,
    /// File of API keys; `None`: everybody is let in.
    pub api_keys: Option<PathBuf>,
    /// TLS towards clients; `None`: they speak plain HTTP.
    pub tls: Option<ServerTls>,
    /// TLS towards those upstreams that speak it.
    pub upstream_tls: UpstreamTls,
    /// How often files of certificates and keys are looked at.
    pub reload_interval: Duration,
    /// Routes beside those that are known.
    pub routes: Routes,
    /// Where Prometheus finds the metrics, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// Whether upstreams are asked for the usage of streams whose client did not.
    pub ask_for_usage: bool,
    /// Which requests leave a span though nobody sampled them. The telemetry must record unsampled
    /// spans for it.
    pub keep: Keep,
    /// Proxies in front of this one that are believed.
    pub trusted_proxies: TrustedProxies,
    /// How HTTP spans are written.
    pub instrumentation: Instrumentation,
}

/// How long clients are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientTimeouts {
    /// For a TLS handshake and the first bytes of a connection, and for any request's head.
    pub header: Duration,
    /// For the next piece of a body, and until the client reads on.
    pub silence: Duration,
    /// For the next request on a connection.
    pub idle: Duration,
}

impl ClientTimeouts {
    /// At least one: pingora takes 0 for no limit.
    pub(crate) fn idle_seconds(self) -> u64 {
        self.idle.as_secs_f64().ceil() as u64
    }
}

impl Config {
    /// A proxy in front of one upstream, everything else at its default and the environment
    /// left unread.
    pub fn new(listen: SocketAddr, upstream: impl Into<Upstream>) -> Self {
        let upstream = upstream.into();
        let mut flags = Flags::default();
        flags.push(UPSTREAM, upstream.to_string());
        let defaults = Sources::new(&flags, &|_| None, &[]);
        Self {
            listen,
            upstreams: vec![upstream],
            ..Self::read(&defaults, Instrumentation::default()).expect("the defaults are valid")
        }
    }

    fn read(sources: &Sources, instrumentation: Instrumentation) -> Result<Self, ConfigError> {
        let seconds = |name| sources.required(name).seconds();
        Ok(Self {
            listen: address(sources.required("listen"))?,
            upstreams: upstreams(sources)?,
            balance: balance(sources)?,
            health: health(sources)?,
            connect_timeout: seconds("connect-timeout-seconds")?,
            read_timeout: seconds("read-timeout-seconds")?,
            upstream_idle_timeout: seconds("upstream-idle-timeout-seconds")?,
            client: ClientTimeouts {
                header: seconds("header-timeout-seconds")?,
                silence: seconds("client-timeout-seconds")?,
                idle: seconds("client-idle-timeout-seconds")?,
            },
            drain_timeout: seconds("drain-timeout-seconds")?,
            max_connections: sources
                .required("max-connections")
                .count(tokio::sync::Semaphore::MAX_PERMITS)?,
            limits: limits(sources)?,
            api_keys: api_keys(sources)?,
            tls: server_tls(sources)?,
            upstream_tls: upstream_tls(sources)?,
            reload_interval: seconds("reload-interval-seconds")?,
            metrics: sources.get("metrics").map(address).transpose()?,
            routes: routes(sources)?,
            ask_for_usage: sources.required("ask-for-usage").switch()?,
            keep: keep(sources)?,
            trusted_proxies: trusted_proxies(sources)?,
            instrumentation,
        })
    }
}

fn upstreams(sources: &Sources) -> Result<Vec<Upstream>, ConfigError> {
    let named = sources.all(UPSTREAM);
    if named.is_empty() {
        let allowed = "at least one http://host:port";
        return Err(ConfigError::new("--upstream", "", allowed));
    }
    let parse = |setting: &Setting| {
        Upstream::parse(&setting.value).ok_or_else(|| setting.error(Upstream::ALLOWED))
    };
    named.iter().map(parse).collect()
}

fn address(setting: &Setting) -> Result<SocketAddr, ConfigError> {
    let address = setting.value.parse();
    address.map_err(|_| setting.error("an IP address and a port, 127.0.0.1:8000"))
}

fn keep(sources: &Sources) -> Result<Keep, ConfigError> {
    let slower_than = sources.get("keep-slower-than-seconds");
    Ok(Keep {
        errors: sources.required("keep-errors").switch()?,
        slower_than: slower_than.map(Setting::seconds).transpose()?,
    })
}

fn routes(sources: &Sources) -> Result<Routes, ConfigError> {
    let mut routes = Routes::default();
    for setting in sources.all("route") {
        let added = routes.add(&setting.value);
        added.ok_or_else(|| setting.error(Routes::ALLOWED))?;
    }
    Ok(routes)
}

fn trusted_proxies(sources: &Sources) -> Result<TrustedProxies, ConfigError> {
    let mut trusted = TrustedProxies::default();
    for setting in sources.all("trusted-proxies") {
        trusted.add(&setting.place, &setting.value)?;
    }
    Ok(trusted)
}

fn balance(sources: &Sources) -> Result<Balance, ConfigError> {
    let setting = sources.required("balance");
    match setting.value.as_str() {
        "least-loaded" => Ok(Balance::LeastLoaded),
        "prefix" => Ok(Balance::Prefix),
        _ => Err(setting.error("least-loaded or prefix")),
    }
}

fn health(sources: &Sources) -> Result<Health, ConfigError> {
    let in_a_row = |name| sources.required(name).count(MAX_IN_A_ROW);
    let path = sources.get("health-path").map(|setting| {
        let path = setting.value.parse().ok();
        path.filter(|_| setting.value.starts_with('/'))
            .ok_or_else(|| setting.error("a path, /health"))
    });
    Ok(Health {
        path: path.transpose()?,
        interval: sources.required("health-interval-seconds").seconds()?,
        unhealthy_after: in_a_row("unhealthy-after")?,
        healthy_after: in_a_row("healthy-after")?,
        eject_after: in_a_row("eject-after")?,
        eject_for: sources.required("eject-seconds").seconds()?,
    })
}

fn limits(sources: &Sources) -> Result<Limits, ConfigError> {
    let count = |name| sources.required(name).count(usize::MAX);
    Ok(Limits {
        header_bytes: count("max-header-bytes")?,
        body_bytes: count("max-body-bytes")?,
        requests: count("max-requests")?,
        in_flight_bytes: count("max-in-flight-bytes")?,
    })
}

fn api_keys(sources: &Sources) -> Result<Option<PathBuf>, ConfigError> {
    let Some(setting) = sources.get("api-keys") else {
        return Ok(None);
    };
    let path = setting.path();
    ApiKeys::load(&path)
        .map_err(|error| setting.error(format!("a file of API keys ({})", error.reason)))?;
    Ok(Some(path))
}

fn server_tls(sources: &Sources) -> Result<Option<ServerTls>, ConfigError> {
    let client_ca = sources.get("tls-client-ca");
    let Some(identity) = identity(sources, ["tls-certificate", "tls-key"])? else {
        return match client_ca {
            Some(setting) => Err(setting.error("it together with --tls-certificate")),
            None => Ok(None),
        };
    };
    let tls = ServerTls {
        identity,
        client_ca: client_ca.map(Setting::path),
    };
    tls.load().map_err(|error| wrong_file(sources, &error))?;
    Ok(Some(tls))
}

fn upstream_tls(sources: &Sources) -> Result<UpstreamTls, ConfigError> {
    let tls = UpstreamTls {
        ca: sources.get("upstream-ca").map(Setting::path),
        identity: identity(sources, ["upstream-certificate", "upstream-key"])?,
    };
    tls.load().map_err(|error| wrong_file(sources, &error))?;
    Ok(tls)
}

/// A certificate and its key: both or neither.
fn identity(sources: &Sources, names: [&str; 2]) -> Result<Option<Identity>, ConfigError> {
    match names.map(|name| sources.get(name)) {
        [Some(certificate), Some(key)] => Ok(Some(Identity {
            certificate: certificate.path(),
            key: key.path(),
        })),
        [Some(alone), None] => Err(alone.error(format!("it together with --{}", names[1]))),
        [None, Some(alone)] => Err(alone.error(format!("it together with --{}", names[0]))),
        [None, None] => Ok(None),
    }
}

/// The setting that names the file which is wrong.
fn wrong_file(sources: &Sources, error: &FileError) -> ConfigError {
    let setting = FILES
        .iter()
        .filter_map(|name| sources.get(name))
        .find(|setting| setting.path() == error.path);
    let allowed = format!("a PEM file that can be used ({})", error.reason);
    setting.map_or_else(
        || ConfigError::new("--config", error.path.display().to_string(), &allowed),
        |setting| setting.error(&allowed),
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn config(flags: &[&str]) -> Result<Config, ConfigError> {
        let flags = ["proxy", "--upstream", "http://127.0.0.1:8001"]
            .iter()
            .chain(flags);
        Cli::try_parse_from(flags)
            .expect("known flags")
            .args
            .into_config()
    }

    #[test]
    fn an_embedded_proxy_has_the_defaults_of_the_flags() {
        let address = SocketAddr::from(([127, 0, 0, 1], 8000));
        let embedded = Config::new(address, SocketAddr::from(([127, 0, 0, 1], 8001)));
        let typed = config(&[]).expect("valid");
        assert_eq!(typed.listen, address);
        assert_eq!(typed.upstreams, embedded.upstreams);
        assert_eq!(embedded.read_timeout, Duration::from_secs(300));
    }

    #[test]
    fn a_switch_is_on_when_its_flag_is_there() {
        assert!(!config(&[]).expect("valid").keep.errors);
        for flag in ["--keep-errors", "--keep-errors=true"] {
            assert!(config(&[flag]).expect("valid").keep.errors);
        }
        assert!(!config(&["--keep-errors=false"]).expect("valid").keep.errors);
    }

    #[test]
    fn a_bad_value_is_one_line_that_names_flag_value_and_what_is_allowed() {
        for (flag, value) in [
            ("--listen", "8000"),
            ("--listen", "localhost:8000"),
            ("--upstream", "ftp://a:1"),
            ("--connect-timeout-seconds", "0"),
            ("--read-timeout-seconds", "-1"),
            ("--read-timeout-seconds", "NaN"),
            ("--drain-timeout-seconds", "soon"),
            ("--drain-timeout-seconds", "1e300"),
            ("--max-connections", "0"),
            ("--max-connections", "many"),
            ("--upstream", "http://a:1,weight=0"),
            ("--balance", "random"),
            ("--health-path", "health"),
            ("--health-interval-seconds", "0"),
            ("--unhealthy-after", "0"),
            ("--healthy-after", "-1"),
            ("--eject-after", "x"),
            ("--eject-seconds", "0"),
            ("--header-timeout-seconds", "0"),
            ("--client-timeout-seconds", "0"),
            ("--client-idle-timeout-seconds", "0"),
            ("--upstream-idle-timeout-seconds", "0"),
            ("--max-requests", "0"),
            ("--max-header-bytes", "0"),
            ("--max-body-bytes", "64M"),
            ("--max-in-flight-bytes", "-1"),
            ("--tls-certificate", "alone.pem"),
            ("--tls-key", "alone.pem"),
            ("--tls-client-ca", "alone.pem"),
            ("--upstream-ca", "/nonexistent/ca.pem"),
            ("--upstream-certificate", "alone.pem"),
            ("--upstream-key", "alone.pem"),
            ("--reload-interval-seconds", "never"),
            ("--metrics", "9090"),
            ("--route", "/a{b}"),
            ("--keep-errors", "perhaps"),
            ("--keep-slower-than-seconds", "0"),
        ] {
            let flags = [format!("{flag}={value}")];
            let error = config(&flags.each_ref().map(String::as_str))
                .expect_err(value)
                .to_string();
            assert!(error.contains(flag) && error.contains(value), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_by_its_setting() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("empty.pem");
        std::fs::write(&path, "").expect("it can be written");
        let path = path.display();
        let certificate = format!("--tls-certificate={path}");
        let error = config(&[&certificate, "--tls-key=/nonexistent/key.pem"]);
        let error = error.expect_err("no key").to_string();
        assert!(
            error.starts_with("--tls-key='/nonexistent/key.pem'"),
            "{error}"
        );
        let error = config(&[&format!("--upstream-ca={path}")]);
        let error = error.expect_err("no certificate").to_string();
        assert!(
            error.starts_with(&format!("--upstream-ca='{path}'")),
            "{error}"
        );
    }

    #[test]
    fn a_proxy_needs_an_upstream() {
        let args = Cli::try_parse_from(["proxy"]).expect("known flags").args;
        let error = args.into_config().expect_err("no upstream").to_string();
        assert!(error.contains("--upstream"), "{error}");
    }
}
