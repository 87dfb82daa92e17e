//! What may stand between a client and the upstream, and how each is started.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use async_trait::async_trait;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::Server;
use pingora::upstreams::peer::HttpPeer;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};

use crate::Setup;
use crate::process::Launch;

/// Between a client and the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gateway {
    /// Nothing.
    Direct,
    /// Bytes from one socket to the other, on tokio: what a proxy costs that does nothing.
    Copy,
    /// pingora, which ours is built on, with nothing added.
    Pingora,
    Ours {
        traced: bool,
    },
    Envoy,
    Caddy,
}

/// The byte copy comes first: the others are told as multiples of it.
pub(crate) const GATEWAYS: [Gateway; 7] = [
    Gateway::Copy,
    Gateway::Pingora,
    Gateway::Ours { traced: true },
    Gateway::Ours { traced: false },
    Gateway::Envoy,
    Gateway::Caddy,
    Gateway::Direct,
];

/// What every gateway has to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    pub(crate) listens: SocketAddr,
    pub(crate) upstream: SocketAddr,
    /// Takes the spans.
    pub(crate) sink: SocketAddr,
}

impl Gateway {
    pub(crate) fn name(self) -> String {
        match self {
            Gateway::Direct => "direct",
            Gateway::Copy => "byte copy",
            Gateway::Pingora => "pingora alone",
            Gateway::Ours { traced: true } => "lantern",
            Gateway::Ours { traced: false } => "lantern untraced",
            Gateway::Envoy => "envoy",
            Gateway::Caddy => "caddy",
        }
        .to_owned()
    }

    /// How it is started; None when it is not here, or nothing at all.
    pub(crate) fn launch(self, setup: &Setup, route: Route, dir: &Path) -> Result<Option<Launch>> {
        let Route {
            listens,
            upstream,
            sink,
        } = route;
        let config = dir.join("gateway.conf");
        let at_config = |flag: &str, rest: &[&str]| {
            let mut args = vec![flag.to_owned(), config.display().to_string()];
            args.extend(rest.iter().map(|arg| (*arg).to_owned()));
            args
        };
        let (program, args, env) = match self {
            Gateway::Direct => return Ok(None),
            Gateway::Copy | Gateway::Pingora => {
                let command = if self == Gateway::Copy {
                    "copy"
                } else {
                    "pingora"
                };
                let args = [
                    command,
                    "--listen",
                    &listens.to_string(),
                    "--to",
                    &upstream.to_string(),
                ]
                .map(str::to_owned);
                (Some(std::env::current_exe()?), args.to_vec(), Vec::new())
            }
            Gateway::Ours { traced } => {
                let upstream = format!("http://{upstream}");
                let args =
                    ["--listen", &listens.to_string(), "--upstream", &upstream].map(str::to_owned);
                let mut env = exporter(sink);
                if !traced {
                    env.push(("OTEL_TRACES_EXPORTER", "none".to_owned()));
                }
                (
                    Some(setup.programs.ours("lantern-proxy")?),
                    args.to_vec(),
                    env,
                )
            }
            Gateway::Envoy => {
                std::fs::write(&config, envoy(route))?;
                let rest = [
                    "--config-yaml",
                    "{}",
                    "--concurrency",
                    "1",
                    "--log-level",
                    "error",
                    "--disable-hot-restart",
                ];
                (
                    setup.programs.peer("envoy"),
                    at_config("--config-path", &rest),
                    Vec::new(),
                )
            }
            Gateway::Caddy => {
                std::fs::write(&config, caddy(route))?;
                let mut args = vec!["run".to_owned()];
                args.extend(at_config("--config", &["--adapter", "caddyfile"]));
                let mut env = exporter(sink);
                env.push(("HOME", dir.display().to_string()));
                (setup.programs.peer("caddy"), args, env)
            }
        };
        Ok(program.map(|program| Launch {
            program,
            args,
            env,
            listens,
        }))
    }
}

/// Every second, and with room for all that comes in one: all spans are to arrive.
pub(crate) fn exporter(sink: SocketAddr) -> Vec<(&'static str, String)> {
    vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{sink}")),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc".to_owned()),
        ("OTEL_EXPORTER_OTLP_INSECURE", "true".to_owned()),
        ("OTEL_TRACES_SAMPLER", "always_on".to_owned()),
        ("OTEL_BSP_SCHEDULE_DELAY", "1000".to_owned()),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "65536".to_owned()),
    ]
}

/// With the tracer that exports OTLP, at 100 %, and spans for the server's and the client's side, as ours.
fn envoy(
    Route {
        listens,
        upstream,
        sink,
    }: Route,
) -> String {
    format!(
        r#"{{"admin": null,
"layered_runtime": {{"layers": [{{"name": "static", "static_layer": {{"tracing.opentelemetry.flush_interval_ms": 1000}}}}]}},
"static_resources": {{
 "listeners": [{{"name": "in", {listens}, "filter_chains": [{{"filters": [{{
  "name": "envoy.filters.network.http_connection_manager",
  "typed_config": {{
   "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
   "stat_prefix": "in", "stream_idle_timeout": "0s",
   "route_config": {{"virtual_hosts": [{{"name": "all", "domains": ["*"],
    "routes": [{{"match": {{"prefix": "/"}}, "route": {{"cluster": "upstream", "timeout": "0s"}}}}]}}]}},
   "http_filters": [{{"name": "envoy.filters.http.router",
    "typed_config": {{"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}}}],
   "tracing": {{"random_sampling": {{"value": 100}}, "spawn_upstream_span": true, "provider": {{"name": "envoy.tracers.opentelemetry",
    "typed_config": {{"@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig", "service_name": "envoy",
     "grpc_service": {{"envoy_grpc": {{"cluster_name": "sink"}}, "timeout": "5s"}}}}}}}}}}}}]}}]}}],
 "clusters": [
  {{"name": "upstream", "type": "STATIC", {many}, "load_assignment": {{"cluster_name": "upstream", "endpoints": [{{"lb_endpoints": [{{"endpoint": {{{upstream}}}}}]}}]}}}},
  {{"name": "sink", "type": "STATIC", {many}, "load_assignment": {{"cluster_name": "sink", "endpoints": [{{"lb_endpoints": [{{"endpoint": {{{sink}}}}}]}}]}},
   "typed_extension_protocol_options": {{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {{
    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    "explicit_http_config": {{"http2_protocol_options": {{}}}}}}}}}}]}}}}"#,
        listens = socket(listens),
        upstream = socket(upstream),
        sink = socket(sink),
        many = r#""circuit_breakers": {"thresholds": [{"max_connections": 100000, "max_pending_requests": 100000, "max_requests": 100000}]}"#,
    )
}

fn socket(address: SocketAddr) -> String {
    let (host, port) = (address.ip(), address.port());
    format!(r#""address": {{"socket_address": {{"address": "{host}", "port_value": {port}}}}}"#)
}

fn caddy(
    Route {
        listens, upstream, ..
    }: Route,
) -> String {
    format!(
        "{{\n admin off\n auto_https off\n persist_config off\n log default {{\n  level ERROR\n }}\n}}\n\
         http://{listens} {{\n bind 127.0.0.1\n tracing {{\n  span all\n }}\n reverse_proxy {upstream} {{\n  flush_interval -1\n }}\n}}\n"
    )
}

/// Of the gateways that are part of this program.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct OwnArgs {
    /// Where clients connect
    #[arg(long)]
    listen: SocketAddr,
    /// Where their bytes go
    #[arg(long)]
    to: SocketAddr,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CopyArgs {
    #[command(flatten)]
    ends: OwnArgs,
    /// Bytes read and written at once, each way
    #[arg(long, default_value_t = 8 * 1024)]
    buffer_bytes: usize,
}

/// Copies until it is killed.
pub(crate) async fn copy(args: &CopyArgs) -> Result<()> {
    let listener = TcpListener::bind(args.ends.listen).await?;
    loop {
        let (mut client, _) = listener.accept().await?;
        let (to, buffer_bytes) = (args.ends.to, args.buffer_bytes);
        tokio::spawn(async move {
            let mut upstream = TcpStream::connect(to).await?;
            client.set_nodelay(true)?;
            upstream.set_nodelay(true)?;
            let (client, upstream) = (&mut client, &mut upstream);
            copy_bidirectional_with_sizes(client, upstream, buffer_bytes, buffer_bytes).await
        });
    }
}

/// Passes requests on until it is killed.
pub(crate) fn pingora(args: &OwnArgs) -> Result<()> {
    let mut server = Server::new(None)?;
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Pingora { upstream: args.to });
    service.add_tcp(&args.listen.to_string());
    server.add_service(service);
    server.run_forever()
}

struct Pingora {
    upstream: SocketAddr,
}

#[async_trait]
impl ProxyHttp for Pingora {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        _ctx: &mut Self::CTX,
    ) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.upstream, false, String::new())))
    }
}
