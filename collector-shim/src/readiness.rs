//! Whether it makes sense to send to this shim now: what `/readyz` and gRPC's health check say.

use crate::intake::Sink;

/// A queue as full as this share of its bound, in percent, is given time: balancers that ask then send
/// elsewhere before requests have to be refused.
const FULL_PERCENT: usize = 90;

/// Why nothing should be sent now; None when all is well.
pub(crate) fn obstacle(sink: &Sink) -> Option<String> {
    let (held_bytes, max_bytes) = match sink {
        Sink::Queue(queue) => (queue.held_bytes(), queue.max_bytes()),
        Sink::Direct(direct) => (direct.held_bytes(), direct.max_bytes()),
        Sink::Store(_) => return None,
    };
    is_full(held_bytes, max_bytes)
        .then(|| format!("{held_bytes} of {max_bytes} bytes are waiting for the backend"))
}

fn is_full(held_bytes: usize, max_bytes: usize) -> bool {
    held_bytes >= max_bytes / 100 * FULL_PERCENT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_full_before_it_refuses() {
        assert!(!is_full(0, 1_000));
        assert!(!is_full(899, 1_000));
        assert!(is_full(900, 1_000));
        assert!(!is_full(usize::MAX / 2, usize::MAX));
    }
}
