//! The segment that is written to, and the one that the next is made of.
//!
//! A delivered segment is not removed but kept as a spare, and its blocks are written over by the next
//! segment. New blocks cost more than the copy into them: each has to be found, mapped and freed again,
//! and its place written down at every sync. What a spare holds is of no meaning under its new name:
//! the checksums of its records began from another salt.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::record::Header;
use super::segment::{END_MARK, SegmentName};
use super::writing;
use crate::queue::Payload;

pub(super) const SPARE_FILE: &str = "spare";
/// Payloads from this size on are written from where they are, smaller ones together.
const COPIED_BYTES: usize = 64 * 1024;

/// The last segment of the list.
#[derive(Debug)]
pub(super) struct Active {
    file: File,
    salt: u32,
    /// Up to where it was written and synced.
    end: u64,
    /// How long the file is: a former spare is longer than what is written.
    file_bytes: u64,
}

impl Active {
    /// Makes the file of `name`, of `spare` if there is one.
    pub(super) fn create(dir: &Path, name: SegmentName, spare: &mut Spare) -> io::Result<Active> {
        let path = name.path(dir);
        let (file, file_bytes) = match spare.take_as(&path)? {
            Some(taken) => taken,
            None => (writing().create_new(true).open(path)?, 0),
        };
        // Otherwise a power cut could take the file with all that was synced into it.
        File::open(dir)?.sync_all()?;
        Ok(Active {
            file,
            salt: name.salt,
            end: 0,
            file_bytes,
        })
    }

    /// Writes and syncs `payloads`, numbered from `seq` on; the number after the last one's. After an
    /// error nothing more is to be written here.
    pub(super) fn append<'p>(
        &mut self,
        payloads: impl Iterator<Item = &'p Payload>,
        mut seq: u64,
        buffer: &mut Vec<u8>,
    ) -> io::Result<u64> {
        buffer.clear();
        for payload in payloads {
            let header = Header::new(seq, payload)
                .ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
            buffer.extend_from_slice(&header.encode(self.salt));
            if payload.bytes.len() < COPIED_BYTES {
                buffer.extend_from_slice(&payload.bytes);
            }
            if buffer.len() >= COPIED_BYTES || payload.bytes.len() >= COPIED_BYTES {
                self.write(buffer)?;
                buffer.clear();
            }
            if payload.bytes.len() >= COPIED_BYTES {
                self.write(&payload.bytes)?;
            }
            seq += 1;
        }
        self.write(buffer)?;
        let left = self.spare_bytes().min(END_MARK.len() as u64) as usize;
        self.file.write_all_at(&END_MARK[..left], self.end)?;
        self.file.sync_data()?;
        // Whoever removed it has taken what was written now as well.
        if self.file.metadata()?.nlink() == 0 {
            return Err(io::Error::other("the segment's file was removed"));
        }
        Ok(seq)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.end)?;
        self.end += bytes.len() as u64;
        self.file_bytes = self.file_bytes.max(self.end);
        Ok(())
    }

    /// What the file holds that is still to be written over.
    pub(super) fn spare_bytes(&self) -> u64 {
        self.file_bytes - self.end
    }

    /// Gives up what is not written over.
    pub(super) fn trim(&mut self) -> io::Result<()> {
        if self.spare_bytes() > 0 {
            self.file.set_len(self.end)?;
            self.file_bytes = self.end;
        }
        Ok(())
    }

    /// Frees what lies beyond the first `bytes`.
    pub(super) fn cut_off(self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }
}

/// A segment's file that has been delivered.
#[derive(Debug)]
pub(super) struct Spare {
    path: PathBuf,
    /// None when there is none.
    bytes: Option<u64>,
}

impl Spare {
    /// There is none in `dir` yet: [`remove_old`] has seen to that.
    pub(super) fn none(dir: &Path) -> Spare {
        let path = dir.join(SPARE_FILE);
        Spare { path, bytes: None }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.unwrap_or(0)
    }

    pub(super) fn is_there(&self) -> bool {
        self.bytes.is_some()
    }

    /// Keeps the file at `path`, which is of so many `bytes`, where there is none yet.
    pub(super) fn keep(&mut self, path: &Path, bytes: u64) -> io::Result<()> {
        fs::rename(path, &self.path)?;
        self.bytes = Some(bytes);
        Ok(())
    }

    pub(super) fn remove(&mut self) -> io::Result<()> {
        match self.bytes.take() {
            Some(_) => fs::remove_file(&self.path),
            None => Ok(()),
        }
    }

    /// Moves it to `path`, if it is there. The file, and how long it is.
    fn take_as(&mut self, path: &Path) -> io::Result<Option<(File, u64)>> {
        let Some(bytes) = self.bytes.take() else {
            return Ok(None);
        };
        let opened = writing().open(&self.path);
        let moved = opened.and_then(|file| fs::rename(&self.path, path).map(|()| file));
        match moved {
            // Somebody else has removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            moved => moved.map(|file| Some((file, bytes))),
        }
    }
}

/// Removes what an earlier run has left.
pub(super) fn remove_old(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(SPARE_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
