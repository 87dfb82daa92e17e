//! The whole path as separate processes: proxy → inference server, both exporting to a shim that
//! forwards to a backend.

use std::net::SocketAddr;

use super::backend::{Backend, endpoint};
use super::process::Process;
use super::{free_addr, http};

/// The name that the bundled model is served under here.
pub(crate) const MODEL: &str = "lantern-tiny";

/// Proxy, inference server and forwarding shim.
pub(crate) struct ServingPath {
    pub(crate) proxy_addr: SocketAddr,
    pub(crate) proxy: Process,
    pub(crate) inference: Process,
    pub(crate) shim: Process,
    protocol: &'static str,
    shim_endpoint: String,
}

impl ServingPath {
    /// Every program exports by `protocol_in`; the shim sends to `backend` by `protocol_out`.
    pub(crate) fn start(backend: &Backend, protocol_in: &'static str, protocol_out: &str) -> Self {
        let (grpc, otlp_http) = (free_addr(), free_addr());
        let shim = Process::lantern(
            &[
                "shim",
                "--grpc",
                &grpc.to_string(),
                "--http",
                &otlp_http.to_string(),
            ]
            .into_iter()
            .chain(["--viewer", &free_addr().to_string()])
            .collect::<Vec<_>>(),
            &[
                (
                    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                    &backend.endpoint(protocol_out),
                ),
                ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol_out),
            ],
        );
        let shim_endpoint = endpoint(protocol_in, grpc, otlp_http);
        let env = [
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", shim_endpoint.as_str()),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol_in),
            ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ];
        let (inference, inference_addr) = start_inference(&[], &env);
        let (proxy, proxy_addr) = start_proxy(inference_addr, &env);
        let mut path = Self {
            proxy_addr,
            proxy,
            inference,
            shim,
            protocol: protocol_in,
            shim_endpoint,
        };
        path.proxy.wait_until("an answer through the proxy", || {
            let health = http().get(format!("http://{proxy_addr}/health")).call();
            health.is_ok_and(|response| response.status() == 200)
        });
        path
    }

    /// A request of the dummy client; its trace id. The client exports through the shim too.
    pub(crate) fn client_request(&self, arguments: &[&str]) -> String {
        let url = format!("http://{}/v1/completions", self.proxy_addr);
        let mut all = vec!["client", "--url", &url, "--model", MODEL];
        all.extend(arguments);
        let env = [
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                self.shim_endpoint.as_str(),
            ),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", self.protocol),
        ];
        let ended = Process::lantern(&all, &env).wait();
        assert_eq!(ended.code, Some(0), "{}", ended.output);
        let line = ended
            .output
            .lines()
            .find_map(|line| line.strip_prefix("trace "));
        line.expect("the client prints its trace id").to_owned()
    }

    pub(crate) fn completions_url(&self) -> String {
        format!("http://{}/v1/completions", self.proxy_addr)
    }
}

/// The bundled model's server, with more arguments.
pub(crate) fn start_inference(more: &[&str], env: &[(&str, &str)]) -> (Process, SocketAddr) {
    let addr = free_addr();
    let port = addr.port().to_string();
    let arguments = [
        "serve",
        "models/tiny",
        "--served-model-name",
        MODEL,
        "--port",
        &port,
    ];
    (Process::lantern(&[&arguments, more].concat(), env), addr)
}

/// A proxy in front of `upstream`.
pub(crate) fn start_proxy(upstream: SocketAddr, env: &[(&str, &str)]) -> (Process, SocketAddr) {
    let addr = free_addr();
    let upstream = format!("http://{upstream}");
    let arguments = [
        "proxy",
        "--listen",
        &addr.to_string(),
        "--upstream",
        &upstream,
    ];
    (Process::lantern(&arguments, env), addr)
}
