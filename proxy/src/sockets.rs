//! Sockets that listen already when the proxy is made: from the program that it replaces ([`crate::upgrade`]), or from
//! systemd, by `LISTEN_FDS` in both cases; or bound beforehand by whoever embeds it. A setting's address takes the one
//! that listens there; what nobody has handed over is bound.

use std::net::{self, SocketAddr};
use std::os::unix::net::UnixDatagram;

use lantern_telemetry::ConfigError;
use listenfd::ListenFd;
use tokio::net::TcpListener;

use crate::config::Config;
use crate::error::Error;

/// What was handed over and nobody has taken.
#[derive(Default)]
pub struct Sockets {
    listeners: Vec<net::TcpListener>,
    /// Where the program that this one replaces waits for its word.
    predecessor: Option<UnixDatagram>,
}

impl Sockets {
    /// Those of a proxy that is made later: clients wait in their queues until it runs.
    pub async fn bind(config: &Config) -> Result<Self, Error> {
        let mut sockets = Self::default();
        let mut listeners = Vec::new();
        for address in [Some(config.listen), config.metrics].into_iter().flatten() {
            let (listener, address) = sockets.listen(address).await?;
            let listener = listener.into_std();
            listeners.push(listener.map_err(|source| Error::Bind { address, source })?);
        }
        sockets.listeners = listeners;
        Ok(sockets)
    }

    /// What the environment names.
    pub(crate) fn inherited() -> Result<Self, ConfigError> {
        let mut handed = ListenFd::from_env();
        let mut sockets = Self::default();
        for index in 0..handed.len() {
            if let Ok(predecessor) = handed.take_unix_datagram(index) {
                sockets.predecessor = predecessor;
                continue;
            }
            let taken = handed.take_tcp_listener(index).and_then(|listener| {
                if let Some(listener) = &listener {
                    // tokio's listeners must not block.
                    listener.set_nonblocking(true)?;
                }
                Ok(listener)
            });
            let taken = taken.map_err(|error| {
                let given = format!("{} ({error})", handed.len());
                ConfigError::new("LISTEN_FDS", &given, "sockets that listen for TCP")
            })?;
            sockets.listeners.extend(taken);
        }
        Ok(sockets)
    }

    /// A listener on `address`, and where it is: for port 0 on any port.
    pub(crate) async fn listen(
        &mut self,
        address: SocketAddr,
    ) -> Result<(TcpListener, SocketAddr), Error> {
        let failed = |source| Error::Bind { address, source };
        let listener = match self.take(address) {
            Some(listener) => TcpListener::from_std(listener),
            None => TcpListener::bind(address).await,
        };
        let listener = listener.map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        Ok((listener, local_addr))
    }

    fn take(&mut self, wanted: SocketAddr) -> Option<net::TcpListener> {
        let listens_there = |local: SocketAddr| {
            local.ip() == wanted.ip() && (wanted.port() == 0 || wanted.port() == local.port())
        };
        let mut listeners = self.listeners.iter();
        let index =
            listeners.position(|listener| listener.local_addr().is_ok_and(listens_there))?;
        Some(self.listeners.remove(index))
    }

    /// The program is ready: it says so to the one that it replaces, and has no use for the other sockets.
    pub(crate) fn ready(self) {
        for listener in self.listeners {
            if let Ok(address) = listener.local_addr() {
                tracing::warn!(%address, "no setting names the address of a socket that was handed over");
            }
        }
        if let Some(predecessor) = self.predecessor
            && let Err(error) = predecessor.send(&[0])
        {
            tracing::warn!(%error, "the program to replace is gone already");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Upstream;

    fn bound(address: &str) -> net::TcpListener {
        let listener = net::TcpListener::bind(address).expect("a free port");
        listener.set_nonblocking(true).expect("it is open");
        listener
    }

    #[tokio::test]
    async fn an_address_takes_the_socket_that_listens_there_and_another_is_bound() {
        let [first, second] = ["127.0.0.1:0", "127.0.0.1:0"].map(bound);
        let address = second.local_addr().expect("it is bound");
        let mut sockets = Sockets {
            listeners: vec![first, second],
            predecessor: None,
        };
        let taken = sockets.listen(address).await.expect("it was handed over");
        assert_eq!(taken.1, address);
        let other: SocketAddr = "127.0.0.2:0".parse().expect("an address");
        let bound = sockets.listen(other).await.expect("a free port");
        assert_eq!(bound.1.ip(), other.ip());
        assert_eq!(
            sockets.listeners.len(),
            1,
            "the first is at another address"
        );
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let first = sockets.listeners[0].local_addr().expect("it is bound");
        assert_eq!(sockets.listen(any).await.expect("any port").1, first);
    }

    #[tokio::test]
    async fn what_was_bound_beforehand_is_taken_even_for_any_port() {
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let upstream = Upstream::parse("http://127.0.0.1:1").expect("an upstream");
        let mut config = Config::new(any, upstream);
        config.metrics = Some(any);
        let mut sockets = Sockets::bind(&config).await.expect("free ports");
        let bound: Vec<_> = sockets
            .listeners
            .iter()
            .map(|listener| listener.local_addr().expect("it is bound"))
            .collect();
        for expected in bound {
            assert_eq!(sockets.listen(any).await.expect("a listener").1, expected);
        }
        assert!(sockets.listeners.is_empty());
    }
}
