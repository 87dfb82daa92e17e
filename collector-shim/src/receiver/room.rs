//! Room in memory for the requests being read, shared by both ports and counted in bytes.
//!
//! In bytes and not in requests: a place held by a sender that sends nothing would be a place less
//! for the others, and a place for the largest request allowed is too much for nearly all.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::intake::Refusal;

/// What one request holds; given back when dropped.
#[derive(Debug)]
pub(crate) struct Room {
    bytes: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl Room {
    pub(super) fn none_yet(bytes: &Arc<Semaphore>) -> Room {
        Room {
            bytes: Arc::clone(bytes),
            held: None,
        }
    }

    /// Takes room for `more_bytes`. Whoever finds none comes back later: two that waited with half a
    /// request each could wait for one another.
    pub(super) fn take(&mut self, more_bytes: usize) -> Result<(), Refusal> {
        let permit = u32::try_from(more_bytes)
            .ok()
            .and_then(|bytes| Arc::clone(&self.bytes).try_acquire_many_owned(bytes).ok());
        let Some(permit) = permit else {
            let reason = "too many bytes of requests are being read at once";
            return Err(Refusal::unavailable(reason));
        };
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_bounded_over_all_requests_and_given_back() {
        let bytes = Arc::new(Semaphore::new(10));
        let mut first = Room::none_yet(&bytes);
        let mut second = Room::none_yet(&bytes);
        assert_eq!((first.take(4), first.take(4)), (Ok(()), Ok(())));
        assert!(matches!(second.take(3), Err(Refusal::Unavailable { .. })));
        assert_eq!(second.take(2), Ok(()));
        drop(first);
        assert_eq!(second.take(8), Ok(()));
    }
}
