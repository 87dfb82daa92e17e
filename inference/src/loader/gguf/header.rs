//! The header of a GGUF, as candle reads it, but for what candle takes on trust.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use candle_core::quantized::gguf_file::Content;

use super::{GgufError, io_error, not_understood};
use crate::tensor_error::TensorError;

/// What tensors' places in the file are multiples of; candle divides by it.
const ALIGNMENT: &[u8] = b"general.alignment";

pub(super) fn read(path: &Path) -> Result<Content, GgufError> {
    let file = File::open(path).map_err(io_error(path))?;
    let mut watched = Watched {
        inner: BufReader::new(file),
        last: Last::Other,
    };
    Content::read(&mut watched).map_err(|error| not_understood(path, &TensorError::from(error)))
}

/// Stops at an alignment of 0.
struct Watched<R> {
    inner: R,
    last: Last,
}

/// What was read last: a value comes after its key and its type.
enum Last {
    Key,
    Type,
    Other,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer)
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.inner.read_exact(buffer)?;
        self.last = match self.last {
            Last::Key => Last::Type,
            Last::Type if buffer.iter().all(|byte| *byte == 0) => {
                return Err(io::Error::other("general.alignment is 0"));
            }
            _ if buffer == ALIGNMENT => Last::Key,
            _ => Last::Other,
        };
        Ok(())
    }
}

impl<R: Seek> Seek for Watched<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }

    /// Which keeps what is buffered; a seek does not.
    fn stream_position(&mut self) -> io::Result<u64> {
        self.inner.stream_position()
    }
}
