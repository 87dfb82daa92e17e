//! Which upstream a request goes to: pure, without clocks, names or sockets.
//!
//! By load, it is the one with the fewest requests in flight for its weight. Those that are equal take
//! turns, a heavier one more often.
//!
//! By prefix, upstreams are ranked for each key by weighted rendezvous hashing, and the first that is not
//! over its bound gets the request: 1.25 times its fair share of what is in flight
//! (<https://arxiv.org/abs/1608.01350>, consistent hashing with bounded loads). A ring of virtual nodes
//! lost: it is larger, less even, and spills all keys of one upstream to the same neighbour, where this
//! spreads them over all others. With as many upstreams as GPUs, ranking all of them costs nothing.

use std::cmp::Ordering;
use std::hash::{DefaultHasher, Hash, Hasher};

/// How far above its fair share an upstream may be loaded for the sake of its cache: 5/4.
const BOUND_NUMERATOR: u64 = 5;
const BOUND_DENOMINATOR: u64 = 4;

/// What a turn of an upstream with weight 1 takes; all weights divide it well enough.
const TURN: u64 = 1 << 20;

/// The load of all upstreams.
pub(crate) struct Balancer {
    members: Vec<Member>,
    /// The due time of the last turn that was taken.
    now: u64,
}

struct Member {
    /// Tells it from the others, in this proxy and in the next: the rank of a key depends on it.
    id: u64,
    weight: u64,
    in_flight: u64,
    /// When its next turn is due.
    due: u64,
}

impl Balancer {
    /// Of upstreams with these names and weights.
    pub(crate) fn new<'a>(members: impl Iterator<Item = (&'a str, u32)>) -> Self {
        let member = |(name, weight): (&str, u32)| Member {
            id: hash(&name),
            weight: u64::from(weight),
            in_flight: 0,
            due: 0,
        };
        Self {
            members: members.map(member).collect(),
            now: 0,
        }
    }

    /// The candidate for a request: the one for its `key`, or the least loaded. The request counts from
    /// now on, until [`Self::end`].
    pub(crate) fn begin(
        &mut self,
        key: Option<u64>,
        is_candidate: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let candidates = || (0..self.members.len()).filter(|&index| is_candidate(index));
        let chosen = match key {
            Some(key) => self.first_for(key, &candidates().collect::<Vec<_>>()),
            None => candidates().min_by(|&a, &b| self.compare_loads(a, b)),
        }?;
        let member = &mut self.members[chosen];
        // One that was away has no turns to catch up with.
        self.now = self.now.max(member.due);
        member.due = self.now + TURN / member.weight;
        member.in_flight += 1;
        Some(chosen)
    }

    /// A request that [`Self::begin`] gave to this upstream is over.
    pub(crate) fn end(&mut self, index: usize) {
        self.members[index].in_flight -= 1;
    }

    fn compare_loads(&self, a: usize, b: usize) -> Ordering {
        let (a, b) = (&self.members[a], &self.members[b]);
        let load = (a.in_flight * b.weight).cmp(&(b.in_flight * a.weight));
        load.then_with(|| a.due.max(self.now).cmp(&b.due.max(self.now)))
            // Behind time, both are due now: who waits for longer goes first.
            .then_with(|| a.due.cmp(&b.due))
    }

    fn first_for(&self, key: u64, candidates: &[usize]) -> Option<usize> {
        let members = || candidates.iter().map(|&index| &self.members[index]);
        let weights: u64 = members().map(|member| member.weight).sum();
        let with_this_one = 1 + members().map(|member| member.in_flight).sum::<u64>();
        let has_room = |member: &Member| {
            let share = BOUND_NUMERATOR * with_this_one * member.weight;
            member.in_flight < share.div_ceil(BOUND_DENOMINATOR * weights)
        };
        let score = |index: usize| score(key, &self.members[index]);
        let with_room = candidates
            .iter()
            .copied()
            .filter(|&index| has_room(&self.members[index]));
        with_room.max_by(|&a, &b| score(a).total_cmp(&score(b)))
    }
}

/// The weighted rendezvous score: among keys, each upstream has the highest as often as its weight says.
fn score(key: u64, member: &Member) -> f64 {
    // The upper 53 bits are a number between 0 and 1, neither included.
    let uniform = ((hash(&(key, member.id)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -(member.weight as f64) / uniform.ln()
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 3] = ["a", "b", "c"];

    fn balancer(weights: [u32; 3]) -> Balancer {
        Balancer::new(NAMES.into_iter().zip(weights))
    }

    fn all(_: usize) -> bool {
        true
    }

    /// Where requests go that are each over before the next.
    fn one_by_one(balancer: &mut Balancer, count: usize) -> Vec<usize> {
        let mut chosen = Vec::new();
        for _ in 0..count {
            let index = balancer.begin(None, all).expect("a candidate");
            balancer.end(index);
            chosen.push(index);
        }
        chosen
    }

    #[test]
    fn idle_upstreams_take_turns() {
        assert_eq!(one_by_one(&mut balancer([1, 1, 1]), 6), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn idle_upstreams_get_as_many_turns_as_they_weigh() {
        let chosen = one_by_one(&mut balancer([1, 2, 5]), 80);
        let count = |index| chosen.iter().filter(|&&chosen| chosen == index).count();
        assert_eq!([count(0), count(1), count(2)], [10, 20, 50]);
    }

    #[test]
    fn a_request_goes_where_the_fewest_are_in_flight_for_the_weight() {
        let mut balancer = balancer([1, 1, 2]);
        let chosen: Vec<_> = (0..8).map(|_| balancer.begin(None, all)).collect();
        for (index, expect) in [(0, 2), (1, 2), (2, 4)] {
            let count = chosen.iter().filter(|&&chosen| chosen == Some(index));
            assert_eq!(count.count(), expect, "{chosen:?}");
        }
        balancer.end(1);
        assert_eq!(balancer.begin(None, all), Some(1));
    }

    #[test]
    fn one_that_comes_back_has_no_turns_to_catch_up_with() {
        let mut balancer = balancer([1, 1, 1]);
        for _ in 0..100 {
            let index = balancer.begin(None, |index| index != 0).expect("two");
            balancer.end(index);
        }
        let next = one_by_one(&mut balancer, 9);
        let count = next.iter().filter(|&&chosen| chosen == 0).count();
        assert!((3..=4).contains(&count), "{next:?}");
    }

    #[test]
    fn one_that_is_no_candidate_gets_nothing() {
        let mut balancer = balancer([1, 1, 1]);
        assert_eq!(balancer.begin(None, |index| index == 1), Some(1));
        assert_eq!(balancer.begin(Some(7), |index| index == 1), Some(1));
        assert_eq!(balancer.begin(None, |_| false), None);
        assert_eq!(balancer.begin(Some(7), |_| false), None);
    }

    #[test]
    fn a_key_goes_to_one_upstream_and_keys_go_to_all_by_weight() {
        let mut balancer = balancer([1, 1, 2]);
        let mut counts = [0u32; 3];
        for key in 0..4000 {
            let first = balancer.begin(Some(key), all).expect("a candidate");
            balancer.end(first);
            counts[first] += 1;
            let again = balancer.begin(Some(key), all).expect("a candidate");
            balancer.end(again);
            assert_eq!(first, again);
        }
        for (count, expect) in counts.into_iter().zip([1000, 1000, 2000]) {
            assert!(count.abs_diff(expect) < 100, "{counts:?}");
        }
    }

    #[test]
    fn the_loss_of_an_upstream_moves_its_own_keys_only() {
        let mut balancer = balancer([1, 1, 1]);
        for key in 0..300 {
            let with_all = balancer.begin(Some(key), all).expect("a candidate");
            balancer.end(with_all);
            let without = balancer.begin(Some(key), |index| index != 2).expect("two");
            balancer.end(without);
            assert!(with_all == without || with_all == 2, "key {key}");
        }
    }

    #[test]
    fn a_hot_prefix_spills_over_at_a_quarter_above_the_fair_share() {
        let mut balancer = balancer([1, 1, 1]);
        let mut counts = [0u64; 3];
        for total in 1..=300 {
            let index = balancer.begin(Some(42), all).expect("a candidate");
            counts[index] += 1;
            let bound = (5 * total as u64).div_ceil(12);
            assert!(counts.iter().all(|&count| count <= bound), "{counts:?}");
        }
        assert_eq!(counts.iter().max(), Some(&125));
    }
}
