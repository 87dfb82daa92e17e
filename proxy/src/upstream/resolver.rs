//! The addresses of an upstream's name.
//!
//! A lookup runs on a thread of the system's resolver and cannot be called off. So there is never more
//! than one for a name, nobody waits for it longer than a bound, and meanwhile the old addresses serve.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OwnedMutexGuard;

/// How long an answer of the name service is used. Short, since containers move.
const RESOLVED_FOR: Duration = Duration::from_secs(5);

/// Asks a name service for the addresses of a host and port.
type LookUp = fn(String, u16) -> Pin<Box<dyn Future<Output = Answer> + Send>>;
type Answer = io::Result<Vec<SocketAddr>>;

/// The system's name service.
pub(crate) fn look_up(host: String, port: u16) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
    Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })
}

/// See the module.
pub(crate) struct Resolver {
    host: String,
    port: u16,
    /// The longest wait for an answer.
    limit: Duration,
    look_up: LookUp,
    last: Arc<Mutex<Option<Resolved>>>,
    /// Held by the lookup in flight until it is over, however long nobody waits for it any more.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone)]
struct Resolved {
    at: Instant,
    addresses: Arc<[SocketAddr]>,
}

impl Resolver {
    pub(crate) fn new(host: String, port: u16, limit: Duration, look_up: LookUp) -> Self {
        Self {
            host,
            port,
            limit,
            look_up,
            last: Arc::default(),
            turn: Arc::default(),
        }
    }

    /// How many addresses were found last.
    pub(crate) fn known_addresses(&self) -> usize {
        self.last().map_or(0, |last| last.addresses.len())
    }

    /// The addresses of the name; old ones while no newer ones can be had, none when there never were any.
    pub(crate) async fn addresses(&self) -> Arc<[SocketAddr]> {
        if let Some(fresh) = self.fresh() {
            return fresh;
        }
        let old = self.last().map(|last| last.addresses);
        let new = match (&old, Arc::clone(&self.turn).try_lock_owned()) {
            (Some(old), Err(_)) => return Arc::clone(old),
            (None, Err(_)) => self.within_limit(self.wait_and_look_up()).await,
            (_, Ok(turn)) => self.within_limit(self.look_up(turn)).await,
        };
        // An old address may still work; the name service may only be away for a moment.
        new.or(old).unwrap_or_default()
    }

    async fn within_limit(
        &self,
        looking: impl Future<Output = Option<Arc<[SocketAddr]>>>,
    ) -> Option<Arc<[SocketAddr]>> {
        let Ok(found) = tokio::time::timeout(self.limit, looking).await else {
            let (host, limit) = (&self.host, self.limit);
            tracing::warn!(host, ?limit, "the name service does not answer");
            return None;
        };
        found
    }

    /// After the lookup in flight, and only if that found nothing.
    async fn wait_and_look_up(&self) -> Option<Arc<[SocketAddr]>> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        match self.fresh() {
            Some(fresh) => Some(fresh),
            None => self.look_up(turn).await,
        }
    }

    async fn look_up(&self, turn: OwnedMutexGuard<()>) -> Option<Arc<[SocketAddr]>> {
        let (host, last) = (self.host.clone(), Arc::clone(&self.last));
        let answer = (self.look_up)(host.clone(), self.port);
        // A task of its own: it goes on, and keeps its turn, when whoever waits for it gives up.
        let looking = tokio::spawn(async move {
            let answer = answer.await;
            let found = match answer {
                Ok(addresses) => {
                    let addresses: Arc<[SocketAddr]> = addresses.into();
                    *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Resolved {
                        at: Instant::now(),
                        addresses: Arc::clone(&addresses),
                    });
                    Some(addresses)
                }
                Err(error) => {
                    tracing::warn!(host, %error, "could not resolve the upstream's name");
                    None
                }
            };
            drop(turn);
            found
        });
        looking.await.ok().flatten()
    }

    fn fresh(&self) -> Option<Arc<[SocketAddr]>> {
        self.last()
            .filter(|last| last.at.elapsed() < RESOLVED_FOR)
            .map(|last| last.addresses)
    }

    fn last(&self) -> Option<Resolved> {
        self.last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(20);

    fn old_address() -> Arc<[SocketAddr]> {
        Arc::from([SocketAddr::from(([127, 0, 0, 1], 1))])
    }

    fn resolver(limit: Duration, look_up: LookUp) -> Resolver {
        Resolver::new("upstream".to_owned(), 1, limit, look_up)
    }

    /// Makes `resolver` know an address that has gone stale.
    fn age(resolver: &Resolver) {
        let at = Instant::now().checked_sub(RESOLVED_FOR);
        *resolver.last.lock().expect("no panic") = Some(Resolved {
            at: at.expect("the machine has run for longer"),
            addresses: old_address(),
        });
    }

    #[tokio::test]
    async fn a_name_service_that_does_not_answer_is_not_waited_for_and_asked_once() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        let silent = resolver(LIMIT, |_, _| {
            ASKED.fetch_add(1, Ordering::Relaxed);
            Box::pin(std::future::pending())
        });
        assert!(silent.addresses().await.is_empty());
        assert!(silent.addresses().await.is_empty());
        age(&silent);
        assert_eq!(silent.addresses().await, old_address());
        assert_eq!(ASKED.load(Ordering::Relaxed), 1, "it still has its turn");
    }

    #[tokio::test]
    async fn an_old_address_serves_when_the_limit_has_passed() {
        let silent = resolver(LIMIT, |_, _| Box::pin(std::future::pending()));
        age(&silent);
        assert_eq!(silent.addresses().await, old_address());
    }

    #[tokio::test]
    async fn requests_at_once_share_one_lookup() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        let slow = resolver(Duration::from_secs(60), |_, port| {
            ASKED.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                tokio::task::yield_now().await;
                Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))])
            })
        });
        let (one, two) = tokio::join!(slow.addresses(), slow.addresses());
        assert_eq!((&one, &two), (&old_address(), &old_address()));
        assert_eq!(ASKED.load(Ordering::Relaxed), 1);
        assert_eq!(slow.known_addresses(), 1);
    }

    #[tokio::test]
    async fn an_old_address_serves_when_the_name_cannot_be_resolved() {
        let failing = resolver(Duration::from_secs(60), |_, _| {
            Box::pin(async { Err(io::Error::other("no such host")) })
        });
        assert!(failing.addresses().await.is_empty());
        age(&failing);
        assert_eq!(failing.addresses().await, old_address());
    }
}
