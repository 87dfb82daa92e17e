//! The table of settings. An entry is a flag, a variable and a key of the file at once, so that none
//! of them can be forgotten: `read_timeout_seconds` in the file is `--read-timeout-seconds` and
//! `LANTERN_PROXY_READ_TIMEOUT_SECONDS`.
//!
//! clap's derive lost: a struct of forty optional strings, and then a list of their names for the file,
//! another for the variables and a third for `--check`.

use clap::builder::StyledStr;
use clap::{Arg, ArgAction, ArgMatches, Command};

/// What the variables begin with.
const VARIABLE_PREFIX: &str = "LANTERN_PROXY_";

/// One setting.
#[derive(Debug)]
pub(crate) struct Key {
    /// As the flag spells it: clap wants that to be static.
    pub(crate) name: &'static str,
    /// What its value is, for the help.
    pub(crate) value: &'static str,
    pub(crate) help: &'static str,
    /// Empty: not set.
    pub(crate) default: &'static str,
    pub(crate) kind: Kind,
}

/// How many values a setting has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    One,
    /// `true` or `false`; the flag alone means `true`.
    Switch,
    List,
}

const fn one(
    name: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
) -> Key {
    Key {
        name,
        value,
        help,
        default,
        kind: Kind::One,
    }
}

const fn switch(name: &'static str, help: &'static str) -> Key {
    Key {
        name,
        value: "BOOL",
        help,
        default: "false",
        kind: Kind::Switch,
    }
}

const fn list(name: &'static str, value: &'static str, help: &'static str) -> Key {
    Key {
        name,
        value,
        help,
        default: "",
        kind: Kind::List,
    }
}

pub(crate) const UPSTREAM: &str = "upstream";

/// All settings, in the order of the help.
pub(crate) const KEYS: &[Key] = &[
    one(
        "listen",
        "ADDR",
        "127.0.0.1:8000",
        "Address to accept connections on",
    ),
    list(
        UPSTREAM,
        "URL[,weight=N]",
        "Server behind the proxy, http://host:port, https:// or h2c:// (HTTP/2 without TLS); may be \
         given several times",
    ),
    one(
        "balance",
        "HOW",
        "least-loaded",
        "Which upstream a request goes to: least-loaded, by requests in flight over weight; or \
         prefix, the one that has seen the start of the prompt, unless it is much busier than the others",
    ),
    one(
        "health-path",
        "PATH",
        "",
        "Path that every upstream is asked for, as /health; only those that answer 2xx get requests",
    ),
    one(
        "health-interval-seconds",
        "SECONDS",
        "5",
        "Time from one health check to the next, and the longest wait for its answer",
    ),
    one(
        "unhealthy-after",
        "N",
        "3",
        "Failed health checks in a row that take an upstream out",
    ),
    one(
        "healthy-after",
        "N",
        "1",
        "Good health checks in a row that take it in again",
    ),
    one(
        "eject-after",
        "N",
        "3",
        "Failed connects of requests in a row that take an upstream out for a while",
    ),
    one(
        "eject-seconds",
        "SECONDS",
        "10",
        "How long an upstream stays out after failed connects",
    ),
    one(
        "connect-timeout-seconds",
        "SECONDS",
        "5",
        "Longest wait for a connection to an upstream; then its next address, or 504",
    ),
    one(
        "read-timeout-seconds",
        "SECONDS",
        "300",
        "Longest silence of an upstream, before and within its answer; then 504, or the answer is cut",
    ),
    one(
        "upstream-idle-timeout-seconds",
        "SECONDS",
        "4",
        "How long an upstream's connection is kept for the next request; uvicorn closes it after 5",
    ),
    one(
        "header-timeout-seconds",
        "SECONDS",
        "30",
        "Longest time for a new client's TLS handshake and first bytes, and for any request's head",
    ),
    one(
        "client-timeout-seconds",
        "SECONDS",
        "120",
        "Longest silence of a client within its request's body (with HTTP/2 only while --balance prefix waits for its \
         start), and longest wait until it reads on",
    ),
    one(
        "client-idle-timeout-seconds",
        "SECONDS",
        "120",
        "How long a client's connection is kept for its next request",
    ),
    one(
        "drain-timeout-seconds",
        "SECONDS",
        "30",
        "How long requests in flight may take to finish once the proxy is told to stop",
    ),
    one(
        "max-connections",
        "N",
        "16384",
        "Most client connections at once; one more is answered 503",
    ),
    one(
        "max-requests",
        "N",
        "16384",
        "Most requests at once; one more is answered 503",
    ),
    one(
        "max-header-bytes",
        "BYTES",
        "65536",
        "Largest head of a request; a larger one is answered 431, above 1 MiB 400",
    ),
    one(
        "max-body-bytes",
        "BYTES",
        "67108864",
        "Largest body of a request; a larger one is answered 413",
    ),
    one(
        "max-in-flight-bytes",
        "BYTES",
        "1073741824",
        "Most bytes of the bodies of requests at once; a request with more is answered 503",
    ),
    one(
        "api-keys",
        "FILE",
        "",
        "TOML file of API keys, [[key]] with name, key or sha256, requests_per_minute and \
         tokens_per_minute; requests need one, but for GET /health. Tokens are those that answers tell \
         of; of a stream without usage its chunks count, of a compressed answer nothing",
    ),
    one(
        "tls-certificate",
        "FILE",
        "",
        "PEM file of the proxy's certificate chain; with it and the key clients must speak TLS",
    ),
    one("tls-key", "FILE", "", "PEM file of its private key"),
    one(
        "tls-client-ca",
        "FILE",
        "",
        "PEM file of authorities; every client must show a certificate of one of them",
    ),
    one(
        "upstream-ca",
        "FILE",
        "",
        "PEM file of authorities that https upstreams are believed by, in place of the system's",
    ),
    one(
        "upstream-certificate",
        "FILE",
        "",
        "PEM file of the certificate chain that the proxy shows https upstreams",
    ),
    one("upstream-key", "FILE", "", "PEM file of its private key"),
    one(
        "reload-interval-seconds",
        "SECONDS",
        "10",
        "How often certificates and keys are looked at, to load them again when they have changed",
    ),
    list(
        "route",
        "PATH",
        "Route beside those of OpenAI-style APIs that are known, /v1/things/{id} or /files/{path*}; may be \
         given several times",
    ),
    one(
        "metrics",
        "ADDR",
        "",
        "Address to serve Prometheus metrics on, at /metrics",
    ),
    switch(
        "ask-for-usage",
        "Ask upstreams for the token usage of streams whose client did not, and hide the event that comes \
         of it from the client; an upstream that refuses the question is not asked again",
    ),
    switch(
        "keep-errors",
        "Record requests that fail by a 5xx, an upstream or an abort though nobody sampled them",
    ),
    one(
        "keep-slower-than-seconds",
        "SECONDS",
        "",
        "Record requests that take longer though nobody sampled them",
    ),
    list(
        "trusted-proxies",
        "CIDR",
        "Proxies in front of this one whose Forwarded and X-Forwarded-* are believed: addresses and \
         networks (10.0.0.0/8), separated by commas or given several times [default: none]",
    ),
];

impl Key {
    /// `--read-timeout-seconds`
    pub(crate) fn flag(&self) -> String {
        format!("--{}", self.name)
    }

    /// `LANTERN_PROXY_READ_TIMEOUT_SECONDS`
    pub(crate) fn variable(&self) -> String {
        let name = self.in_file().to_ascii_uppercase();
        format!("{VARIABLE_PREFIX}{name}")
    }

    /// `read_timeout_seconds`
    pub(crate) fn in_file(&self) -> String {
        self.name.replace('-', "_")
    }

    fn argument(&self) -> Arg {
        let help = match self.default {
            "" => self.help.to_owned(),
            default => format!("{} [default: {default}]", self.help),
        };
        let argument = Arg::new(self.name)
            .long(self.name)
            .value_name(self.value)
            .help(StyledStr::from(help));
        match self.kind {
            Kind::One => argument.action(ArgAction::Set),
            Kind::Switch => argument
                .action(ArgAction::Set)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true"),
            Kind::List => argument.action(ArgAction::Append),
        }
    }

    /// Whether it may have several values.
    pub(crate) fn is_list(&self) -> bool {
        self.kind == Kind::List
    }
}

/// The flags that were typed, as they were typed.
#[derive(Clone, Debug, Default)]
pub struct Flags(Vec<(&'static str, Vec<String>)>);

impl Flags {
    /// What was typed for a setting; nothing when it was not.
    pub(crate) fn values(&self, name: &str) -> &[String] {
        let typed = self.0.iter().find(|(typed, _)| *typed == name);
        typed.map_or(&[], |(_, values)| values)
    }

    pub(crate) fn push(&mut self, name: &'static str, value: String) {
        match self.0.iter_mut().find(|(typed, _)| *typed == name) {
            Some((_, values)) => values.push(value),
            None => self.0.push((name, vec![value])),
        }
    }
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for key in KEYS {
            if let Some(values) = matches.get_many::<String>(key.name) {
                self.0.retain(|(name, _)| *name != key.name);
                self.0.push((key.name, values.cloned().collect()));
            }
        }
        Ok(())
    }
}

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        command.args(KEYS.iter().map(Key::argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
