//! A record of the log: a fixed header, then one request's bytes.
//!
//! ```text
//! magic 4 | header CRC 4 | sequence 8 | items 6 | signal 1 | coding 1
//!   | payload length 4 | payload CRC 4 | payload
//! ```
//!
//! Integers are little-endian. The header has a checksum of its own, for two reasons: a damaged
//! payload is then skipped whole and its items are known, and the search for the next record after
//! a damaged header costs 32 bytes a candidate instead of a payload. That checksum starts from the
//! segment's salt, so that record-shaped bytes inside a request are not taken for a record.

use bytes::Bytes;
use crc32fast::Hasher;

use crate::coding::Coding;
use crate::queue::Payload;
use crate::signal::Signal;

const MAGIC: [u8; 4] = *b"LSR1";
pub(super) const HEADER_BYTES: usize = 32;
/// Where the part begins that the header's checksum covers.
const COVERED_FROM: usize = 8;
/// Six bytes of them.
const MAX_ITEMS: u64 = (1 << 48) - 1;

/// What a record says of its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) seq: u64,
    items: u64,
    signal: Signal,
    coding: Coding,
    payload_bytes: u32,
    payload_crc: u32,
}

impl Header {
    /// For `payload` at the place `seq`; none when it is more than a record can say.
    pub(super) fn new(seq: u64, payload: &Payload) -> Option<Header> {
        Some(Header {
            seq,
            items: Some(payload.items).filter(|items| *items <= MAX_ITEMS)?,
            signal: payload.signal,
            coding: payload.coding,
            payload_bytes: u32::try_from(payload.bytes.len()).ok()?,
            payload_crc: crc32fast::hash(&payload.bytes),
        })
    }

    pub(super) fn encode(&self, salt: u32) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.seq.to_le_bytes());
        let kind = (self.signal as u64) << 48 | (self.coding as u64) << 56;
        bytes[16..24].copy_from_slice(&(self.items | kind).to_le_bytes());
        bytes[24..28].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[28..].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = header_crc(&bytes, salt);
        bytes[4..COVERED_FROM].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header that `bytes` begin with, if it is sound.
    pub(super) fn decode(bytes: &[u8], salt: u32) -> Option<Header> {
        let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        if bytes[..4] != MAGIC || u32_at(bytes, 4) != header_crc(bytes, salt) {
            return None;
        }
        let kind = u64_at(bytes, 16);
        Some(Header {
            seq: u64_at(bytes, 8),
            items: kind & MAX_ITEMS,
            signal: *Signal::ALL.get((kind >> 48 & 0xff) as usize)?,
            coding: *Coding::ALL.get((kind >> 56) as usize)?,
            payload_bytes: u32_at(bytes, 24),
            payload_crc: u32_at(bytes, 28),
        })
    }

    /// Header and payload.
    pub(super) fn record_bytes(&self) -> usize {
        HEADER_BYTES + self.payload_bytes as usize
    }

    /// What the record holds, if `bytes` are what was written.
    pub(super) fn payload(&self, bytes: Bytes) -> Option<Payload> {
        (crc32fast::hash(&bytes) == self.payload_crc).then_some(Payload {
            signal: self.signal,
            coding: self.coding,
            bytes,
            items: self.items,
            seq: self.seq,
        })
    }
}

/// Where the next sound header begins in `bytes`.
pub(super) fn find_header(bytes: &[u8], salt: u32) -> Option<usize> {
    let candidates = bytes.windows(HEADER_BYTES).enumerate();
    candidates
        .filter(|(_, window)| window[0] == MAGIC[0])
        .find_map(|(at, window)| Header::decode(window, salt).map(|_| at))
}

fn header_crc(bytes: &[u8; HEADER_BYTES], salt: u32) -> u32 {
    let mut hasher = Hasher::new_with_initial(salt);
    hasher.update(&bytes[COVERED_FROM..]);
    hasher.finalize()
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(bytes: &'static [u8]) -> Payload {
        Payload {
            coding: Coding::Zstd,
            ..Payload::plain(Signal::Logs, Bytes::from_static(bytes), 512)
        }
    }

    #[test]
    fn a_header_is_read_back_and_no_flipped_bit_goes_unseen() {
        let header = Header::new(7, &payload(b"payload")).expect("short");
        let bytes = header.encode(9);
        assert_eq!(Header::decode(&bytes, 9), Some(header));
        for bit in 0..8 * HEADER_BYTES {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&flipped, 9), None, "bit {bit}");
        }
        let read = header.payload(Bytes::from_static(b"payload"));
        let expect = Payload {
            seq: 7,
            ..payload(b"payload")
        };
        assert_eq!(read, Some(expect));
        assert_eq!(header.payload(Bytes::from_static(b"paylaad")), None);
    }

    #[test]
    fn records_inside_a_payload_are_not_found() {
        let inner = Header::new(8, &payload(b"")).expect("short").encode(1);
        let mut bytes = vec![0; 5];
        bytes.extend(inner);
        assert_eq!(find_header(&bytes, 1), Some(5));
        assert_eq!(find_header(&bytes, 2), None);
    }
}
