//! The shim over real sockets: what comes in by either protocol and what arrives behind it.

mod crash;
mod crossing;
mod delivery;
mod doors;
mod durable;
mod program;
mod receiving;
mod support;
mod tls;
mod tool;
mod viewer;
