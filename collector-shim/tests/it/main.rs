//! The shim over real sockets: what comes in by either protocol and what arrives behind it.

mod crossing;
mod delivery;
mod program;
mod receiving;
mod support;
mod tls;
mod viewer;
