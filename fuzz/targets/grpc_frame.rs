//! The framing of a unary call.
#![no_main]

use bytes::Bytes;
use lantern_shim::fuzzing::unframe;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (announced, message) = unframe(&Bytes::copy_from_slice(data));
    let expected = data.split_at_checked(5).map(|(head, message)| {
        (
            head[0],
            u32::from_be_bytes([head[1], head[2], head[3], head[4]]),
            message,
        )
    });
    assert_eq!(announced, expected.map(|(_, length, _)| length as usize));
    match expected {
        Some((flag @ (0 | 1), length, body)) if length as usize == body.len() => {
            assert_eq!(message, Ok((Bytes::copy_from_slice(body), flag == 1)));
        }
        _ => assert!(message.is_err()),
    }

    // What any client frames is taken apart again.
    let mut framed = vec![0];
    framed.extend((data.len() as u32).to_be_bytes());
    framed.extend(data);
    let (_, message) = unframe(&framed.into());
    assert_eq!(message, Ok((Bytes::copy_from_slice(data), false)));
});
