//! A batch for a backend of several places: each part is tried again for itself, since what one place
//! has must not come twice because another is away.

use std::time::Duration;

use super::{Answer, Batch, Exporter, Final, Payload};
use crate::exporter::retry::Backoff;

impl Exporter {
    /// Sends `batch` in parts until each has its answer.
    pub(super) async fn deliver_shares(&self, batch: &Batch) {
        let mut left = batch.payloads().to_vec();
        let mut backoff = Backoff::default();
        // It is another one once the TLS files have changed.
        while let Some(share) = self.outlet().share() {
            let answers = self.outlet().send_shares(share, left).await;
            left = Vec::new();
            let mut wait = None;
            for (part, answer) in answers {
                wait = wait.max(self.account_for_part(part, answer, &mut left).await);
            }
            if left.is_empty() {
                break;
            }
            if !self.outlet().takes(left[0].signal) {
                self.account(&left, Final::Unsent).await;
                break;
            }
            tokio::time::sleep(backoff.next_delay(wait)).await;
        }
        self.leave_queue(batch.payloads());
    }

    /// Counts what became of `part`, or keeps it in `left`; for how long, if its place says so.
    async fn account_for_part(
        &self,
        part: Payload,
        answer: Answer,
        left: &mut Vec<Payload>,
    ) -> Option<Duration> {
        let answer = match answer {
            Answer::Later { reason, after } => {
                self.tell_of_retry(&reason);
                left.push(part);
                return after;
            }
            Answer::Accepted(accepted) => Final::Accepted(accepted),
            Answer::Refused(rejection) => Final::Refused(rejection),
        };
        self.account(&[part], answer).await;
        None
    }
}
