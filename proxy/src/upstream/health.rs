//! Whether an upstream gets requests: what checks and connects have shown of it. Pure, but for the clock
//! that it is handed.

use std::time::Instant;

use super::Health;

/// What is known of one upstream.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Whether the checks have taken it out.
    is_down: bool,
    failed_checks: usize,
    good_checks: usize,
    failed_connects: usize,
    ejected_until: Option<Instant>,
}

/// What an event has changed, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    None,
    Down,
    Up,
    Ejected,
}

impl State {
    pub(crate) fn gets_requests(&self, now: Instant) -> bool {
        !self.is_down && self.ejected_until.is_none_or(|until| until <= now)
    }

    pub(crate) fn checked(&mut self, health: &Health, is_good: bool) -> Change {
        if is_good {
            self.failed_checks = 0;
            self.good_checks += 1;
        } else {
            self.good_checks = 0;
            self.failed_checks += 1;
        }
        if self.is_down && self.good_checks >= health.healthy_after {
            // It answers, so what its connects were like before is of no more use.
            *self = Self::default();
            Change::Up
        } else if !self.is_down && self.failed_checks >= health.unhealthy_after {
            self.is_down = true;
            Change::Down
        } else {
            Change::None
        }
    }

    pub(crate) fn connected(&mut self) {
        self.failed_connects = 0;
        self.ejected_until = None;
    }

    pub(crate) fn connect_failed(&mut self, health: &Health, now: Instant) -> Change {
        self.failed_connects += 1;
        if self.failed_connects < health.eject_after {
            return Change::None;
        }
        let was_in = self.ejected_until.is_none_or(|until| until <= now);
        // Once it is in again, one failure more is enough.
        self.ejected_until = now.checked_add(health.eject_for);
        if was_in {
            Change::Ejected
        } else {
            Change::None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn policy() -> Health {
        Health {
            path: None,
            interval: Duration::from_secs(5),
            unhealthy_after: 3,
            healthy_after: 2,
            eject_after: 2,
            eject_for: Duration::from_secs(10),
        }
    }

    #[test]
    fn checks_in_a_row_take_an_upstream_out_and_in_again() {
        let (mut state, policy, now) = (State::default(), policy(), Instant::now());
        let mut check = |is_good| {
            let change = state.checked(&policy, is_good);
            (change, state.gets_requests(now))
        };
        assert_eq!(check(false), (Change::None, true));
        assert_eq!(check(false), (Change::None, true));
        assert_eq!(check(true), (Change::None, true));
        assert_eq!(check(false), (Change::None, true));
        assert_eq!(check(false), (Change::None, true));
        assert_eq!(check(false), (Change::Down, false));
        assert_eq!(check(false), (Change::None, false));
        assert_eq!(check(true), (Change::None, false));
        assert_eq!(check(false), (Change::None, false));
        assert_eq!(check(true), (Change::None, false));
        assert_eq!(check(true), (Change::Up, true));
    }

    #[test]
    fn failed_connects_in_a_row_take_an_upstream_out_for_a_while() {
        let (mut state, policy, now) = (State::default(), policy(), Instant::now());
        assert_eq!(state.connect_failed(&policy, now), Change::None);
        state.connected();
        assert_eq!(state.connect_failed(&policy, now), Change::None);
        assert!(state.gets_requests(now));
        assert_eq!(state.connect_failed(&policy, now), Change::Ejected);
        assert!(!state.gets_requests(now));
        let later = now + policy.eject_for;
        assert!(state.gets_requests(later));
        assert_eq!(state.connect_failed(&policy, later), Change::Ejected);
        assert!(!state.gets_requests(later));
        state.connected();
        assert!(state.gets_requests(later));
    }
}
