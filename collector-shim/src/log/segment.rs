//! A segment: a file of records, and the reading of one, damaged or not.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::record::{HEADER_BYTES, Header, find_header};
use crate::queue::Payload;

const EXTENSION: &str = ".segment";
/// Read at once, unless a record is longer. The record that does not end in it is read once more; larger
/// chunks cost as much again in pages that have to be had anew.
const CHUNK_BYTES: u64 = 1024 * 1024;
/// Stands after the last record where the file goes on: what follows was there before.
pub(super) const END_MARK: [u8; HEADER_BYTES] = [0; HEADER_BYTES];

/// What a segment's file name says. It is kept there, and not in the file, so that no flipped bit
/// of the file can hide it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SegmentName {
    /// Grows by one with each segment.
    pub(super) number: u64,
    /// The sequence number of its first record.
    pub(super) base_seq: u64,
    /// What header checksums start from.
    pub(super) salt: u32,
}

impl SegmentName {
    pub(super) fn path(&self, dir: &Path) -> PathBuf {
        dir.join(self.file_name())
    }

    pub(super) fn file_name(&self) -> String {
        let SegmentName {
            number,
            base_seq,
            salt,
        } = self;
        format!("{number:016x}-{base_seq:016x}-{salt:08x}{EXTENSION}")
    }

    pub(super) fn parse(file_name: &str) -> Option<SegmentName> {
        let mut parts = file_name.strip_suffix(EXTENSION)?.split('-');
        let mut part = || u64::from_str_radix(parts.next()?, 16).ok();
        let name = SegmentName {
            number: part()?,
            base_seq: part()?,
            salt: u32::try_from(part()?).ok()?,
        };
        parts.next().is_none().then_some(name)
    }
}

/// A record whose header is sound.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) seq: u64,
    /// None when its bytes are damaged.
    pub(super) payload: Option<Payload>,
}

/// Reads the records of one segment in order and steps over what is damaged.
#[derive(Debug)]
pub(super) struct Scanner {
    file: File,
    salt: u32,
    /// The lowest sequence number that the next record can have.
    next_seq: u64,
    /// Where the next segment begins. A crash or a failed write may leave records behind that were
    /// never acknowledged and whose numbers were then given again.
    limit_seq: u64,
    offset: u64,
    end: u64,
    /// Where the last record ends that was written whole, and the number after its own.
    sound_end: u64,
    sound_seq: u64,
    chunk: Bytes,
    chunk_at: u64,
}

impl Scanner {
    pub(super) fn open(dir: &Path, name: SegmentName, limit_seq: u64) -> io::Result<Scanner> {
        Ok(Scanner {
            file: File::open(name.path(dir))?,
            salt: name.salt,
            next_seq: name.base_seq,
            limit_seq,
            offset: 0,
            end: 0,
            sound_end: 0,
            sound_seq: name.base_seq,
            chunk: Bytes::new(),
            chunk_at: 0,
        })
    }

    /// The file is read up to `end`.
    pub(super) fn read_to(&mut self, end: u64) {
        self.end = end;
    }

    /// After the last record: where it ends, and the number of the next.
    pub(super) fn sound_end(&self) -> (u64, u64) {
        (self.sound_end, self.sound_seq)
    }

    /// What lies behind the last record, unless it was there before the records were.
    pub(super) fn torn_bytes(&self) -> io::Result<u64> {
        let is_the_end = self.ends_at(self.sound_end)?;
        Ok(if is_the_end {
            0
        } else {
            self.end - self.sound_end
        })
    }

    /// Whether nothing was written from `at` on, as far as can be told.
    fn ends_at(&self, at: u64) -> io::Result<bool> {
        let mut next = END_MARK;
        let left = self.end.saturating_sub(at).min(next.len() as u64);
        let next = &mut next[..left as usize];
        self.file.read_exact_at(next, at)?;
        Ok(END_MARK.starts_with(next))
    }

    /// The next record with a sound header.
    pub(super) fn next(&mut self) -> io::Result<Option<Found>> {
        while self.load(HEADER_BYTES)? {
            match Header::decode(self.ahead(), self.salt) {
                Some(header)
                    if self.is_expected(&header) && self.load(header.record_bytes())? =>
                {
                    return self.step_over(&header).map(Some);
                }
                _ => self.skip_damage(),
            }
        }
        self.chunk = Bytes::new();
        Ok(None)
    }

    fn is_expected(&self, header: &Header) -> bool {
        (self.next_seq..self.limit_seq).contains(&header.seq)
    }

    fn step_over(&mut self, header: &Header) -> io::Result<Found> {
        let start = self.position();
        let bytes = self
            .chunk
            .slice(start + HEADER_BYTES..start + header.record_bytes());
        self.offset += header.record_bytes() as u64;
        self.next_seq = header.seq + 1;
        let payload = header.payload(bytes);
        // One that breaks off may be followed by what was there before.
        if payload.is_some() || self.ends_at(self.offset)? {
            (self.sound_end, self.sound_seq) = (self.offset, self.next_seq);
        }
        let seq = header.seq;
        Ok(Found { seq, payload })
    }

    /// Goes to the next sound header, or as far as no header begins.
    fn skip_damage(&mut self) {
        let rest = &self.ahead()[1..];
        let step = match find_header(rest, self.salt) {
            Some(at) => 1 + at,
            // The last bytes may be the beginning of a header, unless there is no more to read.
            None if self.chunk_at + (self.chunk.len() as u64) < self.end => {
                (1 + rest.len()).saturating_sub(HEADER_BYTES - 1).max(1)
            }
            None => 1 + rest.len(),
        };
        self.offset += step as u64;
    }

    fn position(&self) -> usize {
        (self.offset - self.chunk_at) as usize
    }

    fn ahead(&self) -> &[u8] {
        &self.chunk[self.position()..]
    }

    /// Sees to it that `count` bytes from the offset are in memory; false when the file has fewer.
    fn load(&mut self, count: usize) -> io::Result<bool> {
        let left = self.end.saturating_sub(self.offset);
        let count = count as u64;
        if count > left {
            return Ok(false);
        }
        let chunk_end = self.chunk_at + self.chunk.len() as u64;
        if self.offset < self.chunk_at || self.offset + count > chunk_end {
            self.chunk = self.read(count.max(CHUNK_BYTES).min(left))?.into();
            self.chunk_at = self.offset;
        }
        Ok(true)
    }

    /// So many bytes from the offset on, into memory that is not cleared for them first.
    fn read(&mut self, count: u64) -> io::Result<Vec<u8>> {
        let mut chunk = Vec::with_capacity(count as usize);
        self.file.seek(SeekFrom::Start(self.offset))?;
        (&self.file).take(count).read_to_end(&mut chunk)?;
        if (chunk.len() as u64) < count {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(chunk)
    }
}
