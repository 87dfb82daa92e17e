//! Where a command's server listens.
//!
//! Its processes' own sockets tell (on Linux), so no program's arguments need to be understood: not a shell's, not
//! those that leave the port to a variable or to a default. What can be read of the arguments decides between several
//! sockets, and stands in for them where they cannot be seen.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use lantern_proxy::Upstream;
use rustix::process::Pid;
use tokio::time::{Instant, interval};

/// Where a server is expected of which nothing is known: the port that `lantern serve` listens on.
const DEFAULT_PORT: u16 = 8001;

/// The first of the ports that systems give to whoever wants any. Nobody tells clients of such a port: it is one that
/// the server's own processes talk on.
const FIRST_OF_ANY: u16 = 32_768;

/// The time from one look to the next.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The longest wait for a connection to be taken.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// How long the wait goes on without a word.
const WORDLESS: Duration = Duration::from_secs(10);
/// How long a server is waited for: a large model takes long to load. Then clients are told that it does not answer.
const WAIT_LIMIT: Duration = Duration::from_secs(3600);

/// What a command says of its server's port.
pub(super) struct Expected {
    /// What `--port`, `--bind` or `-b` says, if it is a port.
    argument: Option<u16>,
    /// Every number in the command and in `PORT`.
    numbers: Vec<u16>,
}

impl Expected {
    pub(super) fn of(command: &[String]) -> Self {
        let variable = std::env::var("PORT").ok();
        let words = command.iter().chain(&variable);
        let numbers =
            words.flat_map(|word| word.split(|character: char| !character.is_ascii_digit()));
        Self {
            argument: port_argument(command),
            numbers: numbers.filter_map(|number| number.parse().ok()).collect(),
        }
    }

    /// Where the server is, as long as nothing better is known.
    pub(super) fn address(&self) -> SocketAddr {
        let port = self.argument.unwrap_or(DEFAULT_PORT);
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    }

    /// Waits until the server whose first process is `root` listens; where.
    pub(super) async fn listening(self, root: Pid) -> SocketAddr {
        let look = async || self.look(root).await;
        let what = "the command to listen; --upstream names its address if that is not found";
        wait_for(what, look).await.unwrap_or(self.address())
    }

    async fn look(&self, root: Pid) -> Option<SocketAddr> {
        let sockets = tokio::task::spawn_blocking(move || sockets::listening(root)).await;
        if let Some(address) = self.choose(&sockets.unwrap_or_default()) {
            return Some(reachable(address).await);
        }
        // It may run where nobody can look: in a container, as another user.
        let is_known = self.argument.is_some() || !cfg!(target_os = "linux");
        let accepts = is_known && Upstream::from(self.address()).accepts(CONNECT_LIMIT).await;
        accepts.then(|| self.address())
    }

    /// The socket for clients, of all on which the server listens.
    fn choose(&self, listening: &[SocketAddr]) -> Option<SocketAddr> {
        let candidates = listening.iter().filter(|address| {
            let port = address.port();
            match self.argument {
                Some(argument) => port == argument,
                None => port < FIRST_OF_ANY || self.numbers.contains(&port),
            }
        });
        // The numbers of ports decide last, so that it is always the same one.
        let key = |address: &&SocketAddr| (!self.numbers.contains(&address.port()), **address);
        candidates.min_by_key(key).copied()
    }
}

/// Waits until one of `upstreams` takes connections.
pub(super) async fn accepting(upstreams: &[Upstream]) {
    let any_accepts = async || {
        for upstream in upstreams {
            if upstream.accepts(CONNECT_LIMIT).await {
                return Some(());
            }
        }
        None
    };
    wait_for("the upstream to take connections", any_accepts).await;
}

/// What `look` finds, once it does; `None` after the limit.
pub(super) async fn wait_for<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    let mut ticks = interval(LOOK_INTERVAL);
    let mut is_told = false;
    while began.elapsed() < WAIT_LIMIT {
        ticks.tick().await;
        if let Some(found) = look().await {
            return Some(found);
        }
        if !is_told && began.elapsed() > WORDLESS {
            is_told = true;
            tracing::info!("waiting for {what}");
        }
    }
    tracing::warn!(limit = ?WAIT_LIMIT, "waited in vain for {what}");
    None
}

/// Where one connects to who listens on `address`.
async fn reachable(address: SocketAddr) -> SocketAddr {
    let on_loopback = |ip: IpAddr| SocketAddr::new(ip, address.port());
    match address.ip().to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() => on_loopback(Ipv4Addr::LOCALHOST.into()),
        // Most take both versions; some machines have but one.
        IpAddr::V6(ip) if ip.is_unspecified() => {
            let version_4 = on_loopback(Ipv4Addr::LOCALHOST.into());
            if Upstream::from(version_4).accepts(CONNECT_LIMIT).await {
                version_4
            } else {
                on_loopback(Ipv6Addr::LOCALHOST.into())
            }
        }
        ip => on_loopback(ip),
    }
}

/// The port in the last `--port N`, `--bind HOST:N` or `-b HOST:N`, with or without `=`.
fn port_argument(command: &[String]) -> Option<u16> {
    let mut values = command.iter().enumerate().filter_map(|(index, argument)| {
        let next = command.get(index + 1).map(String::as_str);
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (argument.as_str(), next),
        };
        match name {
            "--port" => value?.parse().ok(),
            // Without a port they mean something else: a host, the size of a batch.
            "--bind" | "-b" => port_of(value?),
            _ => None,
        }
    });
    values.next_back()
}

/// The port of `host:port`, `[v6]:port` or `:port`.
fn port_of(address: &str) -> Option<u16> {
    if let Ok(address) = address.parse::<SocketAddr>() {
        return Some(address.port());
    }
    let (_, port) = address.split_once(':')?;
    port.parse().ok()
}

/// The sockets of processes.
#[cfg(target_os = "linux")]
mod sockets {
    use std::collections::{HashMap, HashSet};
    use std::net::SocketAddr;

    use procfs::net::{TcpState, tcp, tcp6};
    use procfs::process::{FDTarget, Process, Stat, all_processes};
    use rustix::process::Pid;

    /// Where `root`, its process group and what they have started listen for TCP, as far as one can see.
    pub(super) fn listening(root: Pid) -> Vec<SocketAddr> {
        let own: HashSet<u64> = family(root.as_raw_pid()).iter().flat_map(inodes).collect();
        let all = [tcp(), tcp6()].into_iter().flatten().flatten();
        let listening =
            all.filter(|socket| socket.state == TcpState::Listen && own.contains(&socket.inode));
        listening.map(|socket| socket.local_address).collect()
    }

    fn family(root: i32) -> Vec<Process> {
        // Processes that end meanwhile are no matter.
        let all = all_processes().into_iter().flatten().flatten();
        let stats = all.filter_map(|process| process.stat().ok());
        let all: HashMap<i32, Stat> = stats.map(|stat| (stat.pid, stat)).collect();
        let belongs = |mut pid: i32| {
            // A chain of parents has no circle, but what was read of it was not read at once.
            for _ in 0..all.len() {
                match all.get(&pid) {
                    Some(stat) if stat.pid == root || stat.pgrp == root => return true,
                    Some(stat) => pid = stat.ppid,
                    None => return false,
                }
            }
            false
        };
        let own = all.keys().copied().filter(|&pid| belongs(pid));
        own.filter_map(|pid| Process::new(pid).ok()).collect()
    }

    /// Of the sockets that a process has.
    fn inodes(process: &Process) -> Vec<u64> {
        let descriptors = process.fd().into_iter().flatten().flatten();
        let inodes = descriptors.filter_map(|descriptor| match descriptor.target {
            FDTarget::Socket(inode) => Some(inode),
            _ => None,
        });
        inodes.collect()
    }
}

/// The sockets of processes: only Linux shows them to everybody in the same way.
#[cfg(not(target_os = "linux"))]
mod sockets {
    use std::net::SocketAddr;

    use rustix::process::Pid;

    pub(super) fn listening(_root: Pid) -> Vec<SocketAddr> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(command: &str) -> Expected {
        let words: Vec<String> = command.split(' ').map(str::to_owned).collect();
        Expected::of(&words)
    }

    #[test]
    fn a_port_is_read_of_the_arguments_that_name_one() {
        let check = |command: &str, expect: Option<u16>| {
            assert_eq!(expected(command).argument, expect, "{command}");
        };
        check("vllm serve facebook/opt-125m", None);
        check("vllm serve facebook/opt-125m --port 9000", Some(9000));
        check("uvicorn app:app --port=9001", Some(9001));
        check("gunicorn -b 0.0.0.0:9002 app:app", Some(9002));
        check("gunicorn --bind=[::1]:9003 app:app", Some(9003));
        check("gunicorn -b :9004 app:app", Some(9004));
        check("python3 -m http.server --bind ::1", None);
        check("llama-server -b 2048", None);
        check("server --port=1 --port 2", Some(2));
        check("server --port http", None);
        check("server --port", None);
    }

    #[test]
    fn of_several_sockets_it_is_the_one_that_the_command_names() {
        let check = |command: &str, ports: &[u16], expect: Option<u16>| {
            let addresses: Vec<_> = ports
                .iter()
                .map(|&port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
                .collect();
            let chosen = expected(command).choose(&addresses);
            assert_eq!(chosen.map(|address| address.port()), expect, "{command}");
        };
        check("llama-server", &[8080], Some(8080));
        check("python3 -m http.server 9000", &[80, 9000], Some(9000));
        check("sh -c 'PORT=9000 server'", &[80, 9000], Some(9000));
        // It is on its way; the other is for the server's own processes.
        check("vllm serve model --port 9000", &[29_500], None);
        check("vllm serve model", &[45_000], None);
        check("server :45000", &[45_000], Some(45_000));
        check("server", &[9000, 8080, 45_000], Some(8080));
        check("server", &[], None);
    }

    #[tokio::test]
    async fn who_listens_everywhere_is_reached_on_loopback() {
        for (address, expect) in [
            ("0.0.0.0:9", "127.0.0.1:9"),
            ("127.0.0.2:9", "127.0.0.2:9"),
            ("[::ffff:127.0.0.3]:9", "127.0.0.3:9"),
            ("[::1]:9", "[::1]:9"),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(reachable(address).await.to_string(), expect);
        }
    }
}
