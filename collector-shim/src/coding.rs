//! How the bytes of a request are compressed, and getting at what is inside, in bounded memory.

use std::io::{self, Read};

use flate2::bufread::{GzDecoder, MultiGzDecoder};
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

/// The content codings of OTLP that are spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Coding {
    #[default]
    Identity,
    Gzip,
    Zstd,
}

/// How much is decompressed before there must be room for more.
const CHUNK_BYTES: u64 = 64 * 1024;
/// How many times as long as its bytes a request is thought to be, and how much is set aside for that
/// at most: what is then wrong costs a copy, or room that is not used.
const USUAL_RATIO: usize = 8;
const MAX_FIRST_CAPACITY_BYTES: usize = 1024 * 1024;
/// The window of a zstd stream, as a power of two: 8 MiB, what RFC 8878 asks decoders to take.
const MAX_ZSTD_WINDOW_LOG: u32 = 23;

impl Coding {
    pub(crate) const ALL: [Coding; 3] = [Coding::Identity, Coding::Gzip, Coding::Zstd];
    /// All but none at all, as a header that tells what is accepted lists them.
    pub(crate) const ACCEPTED: &str = "gzip,zstd";
    /// The same for gRPC.
    pub(crate) const GRPC_ACCEPTED: &str = "identity,gzip,zstd";

    /// Its name in both protocols' headers.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Coding::Identity => "identity",
            Coding::Gzip => "gzip",
            Coding::Zstd => "zstd",
        }
    }

    /// The coding that a header names; no name is none.
    pub(crate) fn named(name: &str) -> Option<Coding> {
        let name = name.trim();
        if name.is_empty() {
            return Some(Coding::Identity);
        }
        let mut all = Coding::ALL.into_iter();
        all.find(|coding| name.eq_ignore_ascii_case(coding.as_str()))
    }
}

/// Why bytes were not decompressed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError<R> {
    #[error("{0}")]
    Broken(#[from] io::Error),
    #[error("more than {max_bytes} bytes once decompressed")]
    TooLarge { max_bytes: usize },
    #[error("no room for what is decompressed")]
    NoRoom(R),
}

/// What came out of a decompression.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decompressed {
    pub(crate) plain: Vec<u8>,
    /// Whether every reader finds the same in the compressed bytes. Of gzip with several members some
    /// take the first for all.
    pub(crate) is_unambiguous: bool,
}

/// Decompresses `compressed`, which may be several members or frames, into at most `max_bytes`.
/// `take` is asked for room, before there is more in memory.
pub(crate) fn decompress<R>(
    coding: Coding,
    compressed: &[u8],
    max_bytes: usize,
    take: impl FnMut(usize) -> Result<(), R>,
) -> Result<Decompressed, DecodeError<R>> {
    let capacity = compressed.len().saturating_mul(USUAL_RATIO);
    let capacity = capacity.min(MAX_FIRST_CAPACITY_BYTES).min(max_bytes);
    let read = |decoder: &mut dyn Read| read(decoder, capacity, max_bytes, take);
    let mut is_unambiguous = true;
    let plain = match coding {
        Coding::Identity => read(&mut &compressed[..]),
        Coding::Gzip => {
            let mut members = Members {
                first: GzDecoder::new(compressed),
                others: None,
            };
            let plain = read(&mut members);
            is_unambiguous = members.others.is_none();
            plain
        }
        Coding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(compressed)?;
            decoder.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
            read(&mut decoder)
        }
    };
    Ok(Decompressed {
        plain: plain?,
        is_unambiguous,
    })
}

/// Reads gzip, and tells whether there is more than one member.
struct Members<'a> {
    first: GzDecoder<&'a [u8]>,
    others: Option<MultiGzDecoder<&'a [u8]>>,
}

impl Read for Members<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if let Some(others) = &mut self.others {
            return others.read(into);
        }
        let came = self.first.read(into)?;
        let rest = *self.first.get_ref();
        if came > 0 || into.is_empty() || rest.is_empty() {
            return Ok(came);
        }
        self.others.insert(MultiGzDecoder::new(rest)).read(into)
    }
}

fn read<R>(
    mut decoder: &mut dyn Read,
    capacity: usize,
    max_bytes: usize,
    mut take: impl FnMut(usize) -> Result<(), R>,
) -> Result<Vec<u8>, DecodeError<R>> {
    let mut plain = Vec::with_capacity(capacity);
    loop {
        let came = (&mut decoder).take(CHUNK_BYTES).read_to_end(&mut plain)?;
        if plain.len() > max_bytes {
            return Err(DecodeError::TooLarge { max_bytes });
        }
        if came == 0 {
            return Ok(plain);
        }
        take(came).map_err(DecodeError::NoRoom)?;
    }
}

/// Compresses with gzip.
pub(crate) fn gzip(plain: &[u8]) -> Vec<u8> {
    use std::io::Write as _;

    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder
        .write_all(plain)
        .expect("a vector takes what is written");
    encoder.finish().expect("a vector takes what is written")
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn compress(coding: Coding, plain: &[u8]) -> Vec<u8> {
        match coding {
            Coding::Identity => plain.to_vec(),
            Coding::Gzip => gzip(plain),
            Coding::Zstd => zstd::encode_all(plain, 1).expect("compressed"),
        }
    }

    fn unbounded(
        coding: Coding,
        compressed: &[u8],
    ) -> Result<Decompressed, DecodeError<Infallible>> {
        decompress(coding, compressed, usize::MAX, |_| Ok(()))
    }

    #[test]
    fn what_is_compressed_comes_back_also_from_several_streams_in_a_row() {
        for coding in Coding::ALL {
            let one = compress(coding, b"first ");
            let both = [&one[..], &compress(coding, b"second")].concat();
            let check = |compressed: &[u8], plain: &[u8], is_unambiguous| {
                let expect = Decompressed {
                    plain: plain.to_vec(),
                    is_unambiguous,
                };
                assert_eq!(unbounded(coding, compressed).expect("sound"), expect);
            };
            check(&one, b"first ", true);
            check(&both, b"first second", coding != Coding::Gzip);
        }
    }

    #[test]
    fn a_bomb_ends_at_the_bound_and_has_asked_for_no_more_room() {
        let plain = vec![0; 10_000_000];
        for coding in [Coding::Gzip, Coding::Zstd] {
            let bomb = compress(coding, &plain);
            assert!(bomb.len() < 20_000);
            let mut taken = 0;
            let result = decompress(coding, &bomb, 100_000, |more| {
                taken += more;
                Ok::<_, Infallible>(())
            });
            assert!(matches!(result, Err(DecodeError::TooLarge { .. })));
            assert!(taken <= 100_000, "{taken}");
            let refused = decompress(coding, &bomb, usize::MAX, |_| Err("full"));
            assert!(matches!(refused, Err(DecodeError::NoRoom("full"))));
        }
    }

    #[test]
    fn what_is_cut_off_or_something_else_is_refused() {
        for coding in [Coding::Gzip, Coding::Zstd] {
            let whole = compress(coding, b"some text that is long enough");
            assert!(unbounded(coding, &whole[..whole.len() - 1]).is_err());
            assert!(unbounded(coding, b"something else").is_err());
            let trailing = [&whole[..], b"something else"].concat();
            assert!(unbounded(coding, &trailing).is_err(), "{coding:?}");
        }
    }

    #[test]
    fn codings_are_known_by_name_in_any_case() {
        for (name, expect) in [
            ("", Some(Coding::Identity)),
            ("identity", Some(Coding::Identity)),
            (" GZIP ", Some(Coding::Gzip)),
            ("zstd", Some(Coding::Zstd)),
            ("br", None),
            ("gzip, gzip", None),
        ] {
            assert_eq!(Coding::named(name), expect, "{name:?}");
        }
    }
}
