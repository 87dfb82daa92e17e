//! Configuration in two stages: [`Args`] is what was typed, [`Config`] what the proxy uses.

use std::net::SocketAddr;
use std::time::Duration;

use lantern_telemetry::config::ConfigError;

use crate::instrumentation::Instrumentation;
use crate::origin::TrustedProxies;
use crate::upstream::Upstream;

const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Generous: a language model may think for minutes before it says a word.
const DEFAULT_READ_TIMEOUT: Duration = Duration::from_secs(300);
const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_MAX_CONNECTIONS: usize = 16_384;

/// A year: what is longer is a mistake.
const MAX_SECONDS: f64 = 365.0 * 86_400.0;

/// The flags of the proxy. They are strings until [`Args::into_config`] has read them, so that
/// every bad value is reported the same way.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Proxy")]
pub struct Args {
    /// Address to accept connections on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000")]
    pub listen: String,

    /// Server behind the proxy, http://host:port; given several times, requests take turns
    #[arg(long = "upstream", value_name = "URL")]
    pub upstreams: Vec<String>,

    /// Longest wait for a connection to an upstream; then its next address, or 504
    #[arg(long, value_name = "SECONDS", default_value = "5")]
    pub connect_timeout_seconds: String,

    /// Longest silence of an upstream, before and within its answer; then 504, or the answer is cut
    #[arg(long, value_name = "SECONDS", default_value = "300")]
    pub read_timeout_seconds: String,

    /// How long requests in flight may take to finish once the proxy is told to stop
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    pub drain_timeout_seconds: String,

    /// Most client connections at once; one more is answered 503
    #[arg(long, value_name = "N", default_value = "16384")]
    pub max_connections: String,

    /// Proxies in front of this one whose Forwarded and X-Forwarded-* are believed: addresses and
    /// networks (10.0.0.0/8), separated by commas or given several times [default: none]
    #[arg(long, value_name = "CIDR")]
    pub trusted_proxies: Vec<String>,
}

impl Args {
    /// Checks every value, and reads how spans are to be written from the environment.
    pub fn into_config(self) -> Result<Config, ConfigError> {
        let listen = self.listen.parse().map_err(|_| {
            ConfigError::new(
                "--listen",
                &self.listen,
                "an IP address and a port, 127.0.0.1:8000",
            )
        })?;
        if self.upstreams.is_empty() {
            return Err(ConfigError::new(
                "--upstream",
                "",
                "at least one http://host:port",
            ));
        }
        let upstreams = self
            .upstreams
            .iter()
            .map(|url| Upstream::parse(url))
            .collect::<Result<_, _>>()?;
        Ok(Config {
            listen,
            upstreams,
            connect_timeout: seconds("--connect-timeout-seconds", &self.connect_timeout_seconds)?,
            read_timeout: seconds("--read-timeout-seconds", &self.read_timeout_seconds)?,
            drain_timeout: seconds("--drain-timeout-seconds", &self.drain_timeout_seconds)?,
            max_connections: connections(&self.max_connections)?,
            trusted_proxies: TrustedProxies::parse("--trusted-proxies", &self.trusted_proxies)?,
            instrumentation: Instrumentation::from_env()?,
        })
    }
}

/// A proxy's configuration, valid by construction.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where requests go, in turns. Must not be empty.
    pub upstreams: Vec<Upstream>,
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
        Self {
            listen,
            upstreams: vec![upstream.into()],
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            read_timeout: DEFAULT_READ_TIMEOUT,
            drain_timeout: DEFAULT_DRAIN_TIMEOUT,
            max_connections: DEFAULT_MAX_CONNECTIONS,
            trusted_proxies: TrustedProxies::default(),
            instrumentation: Instrumentation::default(),
        }
    }
}

fn seconds(flag: &'static str, value: &str) -> Result<Duration, ConfigError> {
    value
        .parse::<f64>()
        .ok()
        .filter(|&seconds| seconds > 0.0 && seconds <= MAX_SECONDS)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| ConfigError::new(flag, value, "a number of seconds above 0"))
}

fn connections(value: &str) -> Result<usize, ConfigError> {
    value
        .parse()
        .ok()
        .filter(|&count| count > 0 && count <= tokio::sync::Semaphore::MAX_PERMITS)
        .ok_or_else(|| ConfigError::new("--max-connections", value, "a whole number above 0"))
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
    fn flags_not_given_have_the_defaults_of_an_embedded_proxy() {
        let typed = config(&[]).expect("valid");
        let embedded = Config::new(typed.listen, typed.upstreams[0].clone());
        assert_eq!(typed.listen, SocketAddr::from(([127, 0, 0, 1], 8000)));
        assert_eq!(typed.connect_timeout, embedded.connect_timeout);
        assert_eq!(typed.read_timeout, embedded.read_timeout);
        assert_eq!(typed.drain_timeout, embedded.drain_timeout);
        assert_eq!(typed.max_connections, embedded.max_connections);
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
