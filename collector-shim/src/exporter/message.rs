//! The bytes of one request, in the pieces that they lie in: requests that leave as one are not copied
//! together for it.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

/// See the module.
#[derive(Debug)]
pub(super) struct Message {
    /// None of them empty.
    pieces: VecDeque<Bytes>,
    bytes: usize,
}

impl FromIterator<Bytes> for Message {
    fn from_iter<I: IntoIterator<Item = Bytes>>(pieces: I) -> Message {
        let pieces = pieces.into_iter().filter(|piece| !piece.is_empty());
        let pieces: VecDeque<Bytes> = pieces.collect();
        let bytes = pieces.iter().map(Bytes::len).sum();
        Message { pieces, bytes }
    }
}

impl From<Bytes> for Message {
    fn from(bytes: Bytes) -> Message {
        std::iter::once(bytes).collect()
    }
}

impl Buf for Message {
    fn remaining(&self) -> usize {
        self.bytes
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |first| first)
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.bytes, "as far as there is something");
        self.bytes -= count;
        let mut left = count;
        while left > 0 {
            let first = &mut self.pieces[0];
            let step = left.min(first.len());
            first.advance(step);
            left -= step;
            if first.is_empty() {
                self.pieces.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_are_read_as_if_they_were_one(
            pieces in vec(vec(any::<u8>(), 0..20), 0..8),
            steps in vec(0..30_usize, 0..20),
        ) {
            let mut whole = Bytes::from(pieces.concat());
            let mut message: Message = pieces.into_iter().map(Bytes::from).collect();
            for step in steps {
                prop_assert_eq!(message.remaining(), whole.remaining());
                prop_assert_eq!(message.chunk().is_empty(), whole.is_empty());
                prop_assert!(whole.starts_with(message.chunk()));
                let step = step.min(whole.len());
                whole.advance(step);
                message.advance(step);
            }
            prop_assert_eq!(message.copy_to_bytes(message.remaining()), whole);
        }
    }
}
