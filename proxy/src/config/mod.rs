//! Configuration in two stages: [`Args`] is what was typed, [`Config`] what the proxy uses.
//!
//! `keys` is the table of settings; `sources` finds the value of each: flag, variable, file or default.

mod keys;
mod sources;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use lantern_telemetry::config::{ConfigError, from_env};

use crate::instrumentation::Instrumentation;
use crate::origin::TrustedProxies;
use crate::upstream::{Balance, Health, Upstream};
use keys::UPSTREAM;
use sources::Sources;

pub use keys::Flags;

/// Names the file when `--config` does not.
const CONFIG_VARIABLE: &str = "LANTERN_PROXY_CONFIG";

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

    /// Names the upstream of a proxy that was told none, by whatever source.
    pub fn default_upstream(
        &mut self,
        url: impl FnOnce() -> Result<String, ConfigError>,
    ) -> Result<(), ConfigError> {
        if self.sources()?.all(UPSTREAM).is_empty() {
            self.flags.push(UPSTREAM, url()?);
        }
        Ok(())
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
    /// How long requests in flight may take to finish on shutdown.
    pub drain_timeout: Duration,
    /// Most client connections at once.
    pub max_connections: usize,
    /// Proxies in front of this one that are believed.
    pub trusted_proxies: TrustedProxies,
    /// How HTTP spans are written.
    pub instrumentation: Instrumentation,
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
        let listen = sources.required("listen");
        Ok(Self {
            listen: listen
                .value
                .parse()
                .map_err(|_| listen.error("an IP address and a port, 127.0.0.1:8000"))?,
            upstreams: upstreams(sources)?,
            balance: balance(sources)?,
            health: health(sources)?,
            connect_timeout: seconds("connect-timeout-seconds")?,
            read_timeout: seconds("read-timeout-seconds")?,
            drain_timeout: seconds("drain-timeout-seconds")?,
            max_connections: sources
                .required("max-connections")
                .count(tokio::sync::Semaphore::MAX_PERMITS)?,
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
    let parse = |setting: &sources::Setting| {
        Upstream::parse(&setting.value).ok_or_else(|| setting.error(Upstream::ALLOWED))
    };
    named.iter().map(parse).collect()
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
    fn a_bad_value_is_one_line_that_names_flag_value_and_what_is_allowed() {
        for (flag, value) in [
            ("--listen", "8000"),
            ("--listen", "localhost:8000"),
            ("--upstream", "https://a:1"),
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
    fn a_proxy_needs_an_upstream() {
        let args = Cli::try_parse_from(["proxy"]).expect("known flags").args;
        let error = args.into_config().expect_err("no upstream").to_string();
        assert!(error.contains("--upstream"), "{error}");
    }
}
