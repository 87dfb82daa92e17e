//! The receivers' parsers for the fuzz targets: see [`crate::fuzzing`].

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::grpc::{Frame, frame_length};
use super::room::Room;
use super::{body, grpc, json};
use crate::coding::Coding;
use crate::signal::Signal;

/// OTLP/JSON as protobuf.
pub fn json_to_protobuf(json: &[u8]) -> Result<Bytes, String> {
    json::to_protobuf(Signal::Traces, json).map_err(|error| error.to_string())
}

/// The message of a unary call and whether it is compressed; and the length that its header announces.
pub fn unframe(framed: &Bytes) -> (Option<usize>, Result<(Bytes, bool), String>) {
    let message = match grpc::unframe(framed) {
        Ok(Frame::Plain(message)) => Ok((message, false)),
        Ok(Frame::Compressed(message)) => Ok((message, true)),
        Err(refusal) => Err(refusal.to_string()),
    };
    (frame_length(framed), message)
}

/// What `compressed` holds, if that is at most `max_bytes` and there is room for it.
///
/// # Panics
///
/// When there is so much of it that a server would have another thread do it.
pub fn gunzip(compressed: Bytes, max_bytes: usize, room_bytes: usize) -> Result<Bytes, String> {
    let room = Room::none_yet(&Arc::new(Semaphore::new(room_bytes)));
    let work = pin!(body::decompress(Coding::Gzip, compressed, max_bytes, room));
    match work.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(plain)) => Ok(plain.bytes),
        Poll::Ready(Err(refusal)) => Err(refusal.to_string()),
        Poll::Pending => panic!("too much to be decompressed at once"),
    }
}
