//! The shim over real sockets: what comes in by either protocol and what arrives behind it.

mod acknowledging;
mod balancing;
mod crash;
mod crossing;
mod delivery;
mod doors;
mod durable;
mod duties;
mod fanning;
mod files;
#[cfg(feature = "kafka")]
mod kafka;
mod program;
mod proxied;
mod receiving;
mod relaying;
mod signals;
mod support;
mod tail;
mod tls;
mod tool;
mod viewer;
