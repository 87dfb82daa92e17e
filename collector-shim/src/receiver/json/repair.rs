//! Text that JSON forbids and senders send all the same: half a surrogate pair where an emoji was
//! cut, and bytes that are no UTF-8. One such string must not lose the batch that it is in.

const REPLACEMENT: &[u8] = br"\ufffd";

/// `json` with what is broken in its text replaced, byte for byte; none when nothing was.
pub(super) fn repaired(json: &[u8]) -> Option<Vec<u8>> {
    let mut clean = json.to_vec();
    crate::wire::replace_invalid(&mut clean);
    let mut at = 0;
    while at < clean.len() {
        at += match (clean[at], unit(&clean[at..])) {
            (b'\\', None) => 2,
            (_, None) => 1,
            (_, Some(0xd800..0xdc00))
                if matches!(unit(&clean[at + REPLACEMENT.len()..]), Some(0xdc00..0xe000)) =>
            {
                2 * REPLACEMENT.len()
            }
            (_, Some(0xd800..0xe000)) => {
                clean[at..at + REPLACEMENT.len()].copy_from_slice(REPLACEMENT);
                REPLACEMENT.len()
            }
            (_, Some(_)) => REPLACEMENT.len(),
        };
    }
    (clean != json).then_some(clean)
}

/// The UTF-16 unit that `text` begins with as an escape.
fn unit(text: &[u8]) -> Option<u16> {
    let digits = text.strip_prefix(br"\u")?.get(..4)?;
    digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}
