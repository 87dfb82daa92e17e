//! Which member a trace goes to: rendezvous hashing.
//!
//! Each shim must choose alike, of whatever version or machine. So the hash is spelled out here and
//! never changes, where the standard library's may. A ring of many points for each member spreads less
//! evenly, and is state.

use std::net::{IpAddr, SocketAddr};

/// A member's part of its scores.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seed(u64);

impl Seed {
    /// IPv4 has the same in its IPv6 form.
    pub(super) fn of(address: SocketAddr) -> Seed {
        let ip = match address.ip().to_canonical() {
            IpAddr::V4(ip) => u128::from(ip.to_ipv6_mapped()),
            IpAddr::V6(ip) => u128::from(ip),
        };
        Seed(mixed_in(u64::from(address.port()), ip))
    }
}

/// How much the member of `seed` is for the trace: of several members the one with the highest.
pub(super) fn score(Seed(seed): Seed, trace_id: [u8; 16]) -> u64 {
    mixed_in(seed, u128::from_be_bytes(trace_id))
}

fn mixed_in(state: u64, value: u128) -> u64 {
    let (high, low) = ((value >> 64) as u64, value as u64);
    mix(mix(state ^ high) ^ low)
}

/// The finalizer of SplitMix64, <https://doi.org/10.1145/2660193.2660195>.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(last: u8) -> Seed {
        Seed::of(SocketAddr::from(([10, 0, 0, last], 4317)))
    }

    fn chosen(members: &[u8], trace: u128) -> u8 {
        let score = |member: &u8| score(seed(*member), trace.to_be_bytes());
        *members
            .iter()
            .max_by_key(|member| score(member))
            .expect("some")
    }

    #[test]
    fn each_member_has_its_even_share_of_the_traces() {
        let members = [1, 2, 3, 4, 5];
        // Ids of some SDKs count up; of others they are random in the lower half alone.
        for step in [1, 1 << 64, 0x1234_5678_9abc_def0_1234_5678_9abc_def1] {
            let mut shares = [0_u32; 6];
            for number in 0..10_000_u128 {
                shares[usize::from(chosen(&members, number.wrapping_mul(step)))] += 1;
            }
            let is_even = |share: &u32| (1_800..=2_200).contains(share);
            assert!(shares[1..].iter().all(is_even), "{shares:?}");
        }
    }

    #[test]
    fn only_the_traces_of_a_member_that_goes_move() {
        for trace in 0..1_000 {
            let before = chosen(&[1, 2, 3, 4], trace);
            let after = chosen(&[1, 2, 4], trace);
            assert!(before == 3 || after == before, "trace {trace}");
        }
    }

    #[test]
    fn scores_are_what_every_other_version_has() {
        let mapped = Seed::of("[::ffff:10.0.0.1]:4317".parse().expect("an address"));
        for seed in [seed(1), mapped] {
            assert_eq!(score(seed, [7; 16]), 3_971_852_508_003_873_991);
        }
    }
}
