//! Finding the addresses behind a name.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;

/// What a resolver is still busy with.
pub type Resolving<'a> = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>>;

/// Finds the addresses behind a name. The system does, and tests do.
pub trait Resolve: fmt::Debug + Send + Sync {
    /// All addresses of `host`, with `port`, in any order.
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> Resolving<'a>;
}

/// Asks as every program of this system does: files, then DNS.
#[derive(Debug, Clone, Copy)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> Resolving<'a> {
        Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })
    }
}
