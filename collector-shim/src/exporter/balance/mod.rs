//! The way to every address behind one name: each trace goes to one of them, whichever shim sends it.
//!
//! Kubernetes calls such a name headless. All spans of a trace must meet for tail sampling or span
//! metrics, so the trace id chooses: of all members the one with the highest [`hashing::score`] for it.
//! When one comes or goes, only its own traces move. A request is taken apart by trace, the bytes of its
//! spans untouched; what has no trace id of its own, as metrics have none, goes to any member.
//!
//! A member that is away holds back its share until it is back or the name no longer has it.

mod hashing;
mod resolve;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::Uri;
use lantern_telemetry::{ExporterSettings, LimitedLog};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::parts::{Answered, Share, Sharing, all_later, by_trace};
use super::{Answer, Cause, Outlet};
use crate::config::Balance;
use crate::queue::{Batch, Payload};
use crate::signal::{Signal, Signals};
use hashing::Seed;
pub use resolve::{Resolve, Resolving, SystemResolver};

/// More addresses than any name has; the others are left out.
const MAX_MEMBERS: usize = 256;
/// How long a resolver may take.
const RESOLVE_LIMIT: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Balancer {
    settings: ExporterSettings,
    balance: Balance,
    signals: Signals,
    host: String,
    port: u16,
    known: Mutex<Known>,
    /// Whose turn it is to get what has no trace id.
    turn: AtomicUsize,
    failures: LimitedLog,
}

/// What was resolved last, and when.
#[derive(Default)]
struct Known {
    members: Arc<[Member]>,
    asked: Option<Instant>,
}

struct Member {
    address: SocketAddr,
    seed: Seed,
    outlet: Arc<Outlet>,
}

impl Balancer {
    pub(super) fn new(
        settings: &ExporterSettings,
        balance: &Balance,
        signals: Signals,
    ) -> Balancer {
        let endpoint: Uri = settings
            .endpoint
            .parse()
            .expect("the settings hold a checked URL");
        let host = endpoint.host().unwrap_or_default();
        let is_encrypted = endpoint.scheme_str() == Some("https");
        Balancer {
            settings: settings.clone(),
            balance: balance.clone(),
            signals,
            host: host.trim_matches(['[', ']']).to_owned(),
            port: endpoint
                .port_u16()
                .unwrap_or(if is_encrypted { 443 } else { 80 }),
            known: Mutex::default(),
            turn: AtomicUsize::new(0),
            failures: LimitedLog::default(),
        }
    }

    async fn share_out(&self, payloads: Vec<Payload>) -> Vec<Answered> {
        let members = match self.members().await {
            Ok(members) => members,
            Err(reason) => return all_later(payloads, &reason),
        };
        let (all, turn) = (Arc::clone(&members), self.turn.fetch_add(1, Relaxed));
        // It takes time: beside the threads that serve connections.
        let sharing = tokio::task::spawn_blocking(move || shares(&all, turn, payloads));
        let mut sending = JoinSet::new();
        for (member, share) in sharing.await.expect("sharing out does not panic") {
            sending.spawn(send_share(Arc::clone(&members[member].outlet), share));
        }
        let mut answered = Vec::new();
        while let Some(share) = sending.join_next().await {
            answered.extend(share.expect("sending does not panic"));
        }
        if answered
            .iter()
            .any(|(_, answer)| matches!(answer, Answer::Later { .. }))
        {
            // Perhaps the name has other addresses by now.
            self.known.lock().await.asked = None;
        }
        answered
    }

    /// The members, asked for again when that was long ago. None known yet is an error.
    async fn members(&self) -> Result<Arc<[Member]>, String> {
        let mut known = self.known.lock().await;
        let is_fresh = |asked: Instant| asked.elapsed() < self.balance.interval;
        if known.asked.is_some_and(is_fresh) {
            return Ok(Arc::clone(&known.members));
        }
        match self.resolve().await {
            Ok(addresses) => {
                self.replace(&mut known, &addresses);
                known.asked = Some(Instant::now());
            }
            Err(reason) if known.members.is_empty() => return Err(reason),
            // Who was there before is the best guess.
            Err(reason) => {
                known.asked = Some(Instant::now());
                if let Some(failures) = self.failures.due(1) {
                    let host = &self.host;
                    tracing::warn!(host, reason, failures, "addresses stay as they were");
                }
            }
        }
        Ok(Arc::clone(&known.members))
    }

    /// One address or more, in order.
    async fn resolve(&self) -> Result<Vec<SocketAddr>, String> {
        let host = &self.host;
        let resolving = self.balance.resolver.resolve(host, self.port);
        let mut addresses = match tokio::time::timeout(RESOLVE_LIMIT, resolving).await {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(error)) => return Err(format!("cannot resolve {host}: {error}")),
            Err(_) => return Err(format!("cannot resolve {host} within {RESOLVE_LIMIT:?}")),
        };
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(MAX_MEMBERS);
        if addresses.is_empty() {
            return Err(format!("{host} has no address"));
        }
        Ok(addresses)
    }

    /// Members that stay keep their connections.
    fn replace(&self, known: &mut Known, addresses: &[SocketAddr]) {
        let before = known.members.iter().map(|member| &member.address);
        if before.eq(addresses) {
            return;
        }
        let member = |address: &SocketAddr| {
            let stays = known
                .members
                .iter()
                .find(|member| member.address == *address);
            let outlet = stays.map(|member| Arc::clone(&member.outlet));
            Member {
                address: *address,
                seed: Seed::of(*address),
                outlet: outlet.unwrap_or_else(|| {
                    Arc::new(Outlet::member(&self.settings, *address, self.signals))
                }),
            }
        };
        known.members = addresses.iter().map(member).collect();
        let (host, members) = (&self.host, addresses.len());
        tracing::info!(host, members, "sharing out traces among these");
    }
}

impl Share for Balancer {
    /// Any member takes it, as far as is known.
    fn has_place_for(&self, _: Signal) -> bool {
        true
    }

    fn send(self: Arc<Self>, payloads: Vec<Payload>) -> Sharing {
        Box::pin(async move { self.share_out(payloads).await })
    }
}

/// What each member is to get. What has no trace id goes to the one whose `turn` it is.
fn shares(members: &[Member], turn: usize, payloads: Vec<Payload>) -> BTreeMap<usize, Batch> {
    let mut shares: BTreeMap<usize, Batch> = BTreeMap::new();
    let mut add = |member, part| match shares.get_mut(&member) {
        Some(share) => share.push(part),
        None => drop(shares.insert(member, Batch::of(part))),
    };
    for payload in payloads {
        if payload.signal == Signal::Traces {
            let parts = by_trace(payload, |trace_id| member_of(members, trace_id));
            parts
                .into_iter()
                .for_each(|(member, part)| add(member, part));
        } else {
            add(turn % members.len(), payload);
        }
    }
    shares
}

fn member_of(members: &[Member], trace_id: [u8; 16]) -> usize {
    let score = |member: usize| hashing::score(members[member].seed, trace_id);
    (0..members.len())
        .max_by_key(|member| score(*member))
        .unwrap_or(0)
}

/// Sends what can be merged in one request, and again one by one where that was refused as bad data:
/// one sender's broken data must not take the others' with it.
async fn send_share(outlet: Arc<Outlet>, share: Batch) -> Vec<Answered> {
    let mut answered = Vec::new();
    for batch in share.joinable() {
        let answer = Outlet::send_boxed(Arc::clone(&outlet), batch.merged()).await;
        let is_bad_data =
            matches!(&answer, Answer::Refused(rejection) if rejection.cause == Cause::Data);
        if !is_bad_data || batch.payloads().len() == 1 {
            answered.extend(answer.for_each_of(batch.into_payloads()));
            continue;
        }
        for part in batch.into_payloads() {
            let answer = Outlet::send_boxed(Arc::clone(&outlet), part.clone()).await;
            answered.push((part, answer));
        }
    }
    answered
}
