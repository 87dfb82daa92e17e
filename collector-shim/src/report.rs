//! One log line now and then for all that passed through, instead of one for each request.

use std::time::Duration;

use crate::counts::Counts;
use crate::handle::ShimHandle;
use crate::signal::Signal;

/// Tells every `interval` what has come and gone in it, if anything has. Ends when it is dropped.
pub(crate) async fn follow(handle: ShimHandle, interval: Duration) {
    let counts = || Signal::ALL.map(|signal| handle.counts_of(signal));
    let mut before = counts();
    loop {
        tokio::time::sleep(interval).await;
        let now = counts();
        for (signal, (before, now)) in Signal::ALL.into_iter().zip(before.iter().zip(&now)) {
            tell(signal, &since(before, now), interval);
        }
        before = now;
    }
}

fn tell(signal: Signal, passed: &Counts, interval: Duration) {
    let items = passed.received_spans
        + passed.delivered_spans
        + passed.refused_spans
        + passed.rejected_spans
        + passed.dropped_spans
        + passed.queued_spans;
    if items == 0 {
        return;
    }
    tracing::info!(
        %signal,
        received = passed.received_spans,
        delivered = passed.delivered_spans,
        refused = passed.refused_spans,
        rejected = passed.rejected_spans,
        dropped = passed.dropped_spans,
        queued = passed.queued_spans,
        queued_bytes = passed.queued_bytes,
        retries = passed.retries,
        "in the last {interval:?}"
    );
}

/// What was counted between two moments; what waits is as it is now.
fn since(before: &Counts, now: &Counts) -> Counts {
    Counts {
        received_spans: now.received_spans - before.received_spans,
        delivered_spans: now.delivered_spans - before.delivered_spans,
        refused_spans: now.refused_spans - before.refused_spans,
        rejected_spans: now.rejected_spans - before.rejected_spans,
        dropped_spans: now.dropped_spans - before.dropped_spans,
        retries: now.retries - before.retries,
        queued_spans: now.queued_spans,
        queued_bytes: now.queued_bytes,
        ..Counts::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_what_came_since_the_last_and_what_waits_now() {
        let before = Counts {
            received_spans: 10,
            delivered_spans: 4,
            queued_spans: 6,
            ..Counts::default()
        };
        let now = Counts {
            received_spans: 15,
            delivered_spans: 15,
            retries: 1,
            queued_spans: 0,
            ..before
        };
        let expect = Counts {
            received_spans: 5,
            delivered_spans: 11,
            retries: 1,
            ..Counts::default()
        };
        assert_eq!(since(&before, &now), expect);
        assert_eq!(since(&now, &now), Counts::default());
    }
}
