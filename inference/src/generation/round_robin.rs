//! Takes turns among sources that run side by side.

use std::task::Poll;

/// Whose turn is next: the one after the last that was ready, so that none starves another.
#[derive(Debug, Default)]
pub(super) struct RoundRobin {
    next: usize,
}

impl RoundRobin {
    /// Polls `count` sources in turn until one is ready, which its number comes with. `None` when
    /// all of them have ended.
    pub(super) fn poll<T>(
        &mut self,
        count: usize,
        mut poll: impl FnMut(usize) -> Poll<Option<T>>,
    ) -> Poll<Option<(usize, T)>> {
        let mut ended = 0;
        for offset in 0..count {
            let at = (self.next + offset) % count;
            match poll(at) {
                Poll::Ready(Some(item)) => {
                    self.next = (at + 1) % count;
                    return Poll::Ready(Some((at, item)));
                }
                Poll::Ready(None) => ended += 1,
                Poll::Pending => {}
            }
        }
        if ended < count {
            Poll::Pending
        } else {
            Poll::Ready(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_has_its_turn_and_the_end_comes_when_all_have_ended() {
        let mut turns = RoundRobin::default();
        let mut left = [2, 0, 1];
        let mut poll = |left: &mut [i32; 3]| {
            turns.poll(3, |at| Poll::Ready((left[at] > 0).then(|| left[at] -= 1)))
        };
        assert_eq!(poll(&mut left), Poll::Ready(Some((0, ()))));
        assert_eq!(poll(&mut left), Poll::Ready(Some((2, ()))));
        assert_eq!(poll(&mut left), Poll::Ready(Some((0, ()))));
        assert_eq!(poll(&mut left), Poll::Ready(None));
        let waiting = turns.poll(2, |at| match at {
            0 => Poll::Ready(None::<()>),
            _ => Poll::Pending,
        });
        assert_eq!(waiting, Poll::Pending, "one has not ended");
    }
}
