//! What every test here needs: waiting on conditions, free ports, HTTP, and the parts below.

pub(crate) mod backend;
pub(crate) mod path;
pub(crate) mod process;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

/// How long a condition may take before a test calls it failed: far beyond what any takes, so that
/// a busy machine fails nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Waits until `condition` gives a value.
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(
            Instant::now() < deadline,
            "waited {PATIENCE:?} in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Held while a port is tried and while a process is started. Between fork and exec a child has all
/// descriptors of its parent, and a listener among them would keep its port taken for that moment.
static NO_FORK_WHILE_A_PORT_IS_TRIED: Mutex<()> = Mutex::new(());

/// Starts `command` while no port is being tried.
pub(crate) fn spawn(command: &mut Command) -> std::io::Result<Child> {
    let _held = NO_FORK_WHILE_A_PORT_IS_TRIED
        .lock()
        .expect("no holder panics");
    command.spawn()
}

/// Ports that only this process takes, as long as it holds the first of them: other runs at the same time have
/// others. Below the range that outgoing connections take theirs from.
struct Ports {
    first: TcpListener,
    next: AtomicU16,
}

impl Ports {
    const FIRST: u16 = 15_000;
    const COUNT: u16 = 256;
    const BLOCKS: u16 = 64;

    fn reserve() -> Self {
        let _held = NO_FORK_WHILE_A_PORT_IS_TRIED
            .lock()
            .expect("no holder panics");
        let own = (std::process::id() % u32::from(Self::BLOCKS)) as u16;
        let blocks = (own..Self::BLOCKS).chain(0..own);
        let first = blocks
            .map(|block| Self::FIRST + block * Self::COUNT)
            .find_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())
            .expect("fewer runs than blocks of ports");
        let port = first.local_addr().expect("it is bound").port();
        Self {
            first,
            next: AtomicU16::new(port + 1),
        }
    }

    fn next(&self) -> u16 {
        let first = self.first.local_addr().expect("it is bound").port();
        let port = self.next.fetch_add(1, Ordering::Relaxed);
        assert!(port < first + Self::COUNT, "the run takes too many ports");
        port
    }
}

/// A loopback address that nobody listens on.
pub(crate) fn free_addr() -> SocketAddr {
    static PORTS: LazyLock<Ports> = LazyLock::new(Ports::reserve);
    loop {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, PORTS.next()));
        let _held = NO_FORK_WHILE_A_PORT_IS_TRIED
            .lock()
            .expect("no holder panics");
        if TcpListener::bind(addr).is_ok() {
            return addr;
        }
    }
}

pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// An HTTP client that hands every status back and waits as long as a test does.
pub(crate) fn http() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(PATIENCE))
        .build()
        .into()
}

/// What `script` (below `tests/`) prints: the path of something that it has built or installed.
pub(crate) fn provided_by(script: &str) -> PathBuf {
    let mut command = Command::new(repository().join("tests").join(script));
    command.stdout(Stdio::piped()).stderr(Stdio::inherit());
    let output = spawn(&mut command)
        .and_then(Child::wait_with_output)
        .unwrap_or_else(|error| panic!("cannot run tests/{script}: {error}"));
    let status = output.status;
    assert!(status.success(), "tests/{script} ended with {status}");
    PathBuf::from(
        String::from_utf8(output.stdout)
            .expect("a path is text")
            .trim(),
    )
}
