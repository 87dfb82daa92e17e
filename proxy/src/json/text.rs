//! The text of a JSON string. <https://www.rfc-editor.org/rfc/rfc8259#section-7>

use std::borrow::Cow;

use memchr::memchr;

/// The text that stands between two quotes as `raw`. What is broken becomes U+FFFD or, at the end of a
/// text that was cut, nothing.
pub(super) fn unescape(raw: &[u8]) -> Cow<'_, str> {
    if memchr(b'\\', raw).is_none() {
        // The common case by the faster of the two.
        return str::from_utf8(raw).map_or_else(|_| String::from_utf8_lossy(raw), Cow::Borrowed);
    }
    let mut text = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = memchr(b'\\', rest) {
        text.extend_from_slice(&rest[..at]);
        rest = &rest[at + 1..];
        let Some((character, length)) = escape(rest) else {
            rest = &[];
            break;
        };
        let mut utf8 = [0; 4];
        text.extend_from_slice(character.encode_utf8(&mut utf8).as_bytes());
        rest = &rest[length..];
    }
    text.extend_from_slice(rest);
    Cow::Owned(String::from_utf8_lossy(&text).into_owned())
}

/// The character of the escape that goes on with `rest` behind its backslash, and the escape's length.
fn escape(rest: &[u8]) -> Option<(char, usize)> {
    let character = match rest.first()? {
        b'n' => '\n',
        b't' => '\t',
        b'r' => '\r',
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        &plain @ (b'"' | b'\\' | b'/') => char::from(plain),
        b'u' => return code_point(&rest[1..]).map(|(character, length)| (character, 1 + length)),
        _ => char::REPLACEMENT_CHARACTER,
    };
    Some((character, 1))
}

/// The character of `XXXX`, or of the surrogates `XXXX\uXXXX`.
fn code_point(rest: &[u8]) -> Option<(char, usize)> {
    let first = code_unit(rest)?;
    let second = rest[4..]
        .strip_prefix(b"\\u")
        .filter(|_| (0xd800..0xdc00).contains(&first))
        .and_then(code_unit);
    let both = second.and_then(|second| char::decode_utf16([first, second]).next());
    if let Some(Ok(character)) = both {
        return Some((character, 10));
    }
    let alone = char::from_u32(u32::from(first)).unwrap_or(char::REPLACEMENT_CHARACTER);
    Some((alone, 4))
}

fn code_unit(rest: &[u8]) -> Option<u16> {
    let digits = str::from_utf8(rest.get(..4)?).ok()?;
    u16::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_become_their_characters() {
        for (raw, text) in [
            ("", ""),
            ("plain äöü", "plain äöü"),
            (r#"\"\\\/\b\f\n\r\t"#, "\"\\/\u{8}\u{c}\n\r\t"),
            (r"\u0041\u00e4\u20AC", "Aä€"),
            (r"a\ud83d\ude00b", "a😀b"),
            (r"\ud83d", "\u{fffd}"),
            (r"\ud83dx", "\u{fffd}x"),
            (r"\ud83d\u0041", "\u{fffd}A"),
            (r"\ude00\ud83d", "\u{fffd}\u{fffd}"),
            (r"a\", "a"),
            (r"a\u00", "a"),
            (r"\q", "\u{fffd}"),
        ] {
            assert_eq!(unescape(raw.as_bytes()), text, "{raw}");
        }
    }
}
