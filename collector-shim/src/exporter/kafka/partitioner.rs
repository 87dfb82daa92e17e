//! Which partition a record goes to.
//!
//! As Kafka's own client does it, so that records of a trace meet whichever producer of that kind sends
//! them: murmur2 of the key, its sign dropped, modulo the number of partitions.
//! <https://github.com/apache/kafka/blob/3.9/clients/src/main/java/org/apache/kafka/common/utils/Utils.java>

const SEED: u32 = 0x9747_b28c;
const FACTOR: u32 = 0x5bd1_e995;
const SHIFT: u32 = 24;

/// The place of `key` among so many partitions, of which there are some.
pub(super) fn partition_of(key: &[u8], partitions: usize) -> usize {
    (murmur2(key) & 0x7fff_ffff) as usize % partitions
}

fn murmur2(data: &[u8]) -> u32 {
    // As Java has it, lengths wrap.
    let mut hash = SEED ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let word = u32::from_le_bytes(*word).wrapping_mul(FACTOR);
        let word = (word ^ (word >> SHIFT)).wrapping_mul(FACTOR);
        hash = hash.wrapping_mul(FACTOR) ^ word;
    }
    if !rest.is_empty() {
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        hash = (hash ^ u32::from_le_bytes(last)).wrapping_mul(FACTOR);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(FACTOR);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_where_kafkas_own_client_has_them() {
        // What kafka-clients 3.9.1 says: `Utils.murmur2`, and the partition of twelve.
        for (key, hash, partition) in [
            ("", 275_646_681, 9),
            ("21", -973_932_308, 0),
            ("foobar", -790_332_482, 6),
            ("abc", 479_470_107, 3),
            ("a-little-bit-long-string", -985_981_536, 8),
            ("a-little-bit-longer-string", -1_486_304_829, 11),
            (
                "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
                5,
            ),
            ("4bf92f3577b34da6a3ce929d0e0e4736", 407_517_338, 2),
            ("00000000000000000000000000000001", 391_407_718, 10),
            ("ffffffffffffffffffffffffffffffff", -145_913_985, 11),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
            assert_eq!(partition_of(key.as_bytes(), 12), partition, "{key}");
        }
    }
}
