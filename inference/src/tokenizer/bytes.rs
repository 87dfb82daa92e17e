//! The bytes that each token stands for, which its text alone does not tell: half a character has no text.

use tokenizers::DecoderWrapper;

use super::Tokenizer;

/// SentencePiece's sign for a space.
const SPACE: char = '\u{2581}';

/// How a vocabulary writes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writing {
    /// GPT-2's: a letter for each byte.
    ByteLevel,
    /// SentencePiece's: text, and `<0x0A>` for bytes that are none.
    ByteFallback,
}

/// What a token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenBytes {
    /// A piece of text, which may begin or end inside a character.
    Text(Vec<u8>),
    /// No text: a special token, by its name.
    Special(String),
}

impl Tokenizer {
    /// What each token below `size` stands for, where there is one; `None` for a vocabulary that is not written in
    /// bytes.
    pub fn token_bytes(&self, size: usize) -> Option<Vec<Option<TokenBytes>>> {
        let writing = writing(self.inner.get_decoder()?)?;
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let token = |id: u32| {
            let name = self.inner.id_to_token(id)?;
            Some(match added.get(&id) {
                Some(token) if token.special => TokenBytes::Special(name),
                Some(token) => TokenBytes::Text(token.content.clone().into_bytes()),
                None => TokenBytes::Text(writing.bytes(&name)),
            })
        };
        let ids = 0..u32::try_from(size).ok()?;
        Some(ids.map(token).collect())
    }
}

fn writing(decoder: &DecoderWrapper) -> Option<Writing> {
    match decoder {
        DecoderWrapper::ByteLevel(_) => Some(Writing::ByteLevel),
        DecoderWrapper::ByteFallback(_) | DecoderWrapper::Metaspace(_) => {
            Some(Writing::ByteFallback)
        }
        DecoderWrapper::Sequence(steps) => steps.get_decoders().iter().find_map(writing),
        _ => None,
    }
}

impl Writing {
    fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => {
                let bytes: Option<Vec<u8>> = token.chars().map(letter_byte).collect();
                // A token that no merge can make: it stands for itself.
                bytes.unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Self::ByteFallback => match escaped_byte(token) {
                Some(byte) => vec![byte],
                None => token.replace(SPACE, " ").into_bytes(),
            },
        }
    }
}

/// GPT-2's letters: printable bytes are themselves, the others in order the letters from U+0100 on.
fn letter_byte(letter: char) -> Option<u8> {
    let printable = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let code = u32::from(letter);
    if code < 256 {
        return u8::try_from(code).ok().filter(printable);
    }
    let mut others = (0..=255).filter(|byte| !printable(byte));
    others.nth((code - 256) as usize)
}

/// The byte of `<0x0A>`.
fn escaped_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2)
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_of_gpt2_are_bytes() {
        assert_eq!(
            Writing::ByteLevel.bytes("\u{120}caf\u{c3}\u{a9}"),
            " caf\u{e9}".as_bytes()
        );
        assert_eq!(Writing::ByteLevel.bytes("\u{10a}\u{143}"), [b'\n', 173]);
        let mut all: Vec<u8> = (33..=0x143)
            .filter_map(char::from_u32)
            .filter_map(letter_byte)
            .collect();
        all.sort_unstable();
        assert_eq!(all, (0..=255).collect::<Vec<u8>>(), "each byte once");
    }

    #[test]
    fn pieces_of_sentence_piece_are_text_or_one_byte() {
        let bytes = |token| Writing::ByteFallback.bytes(token);
        assert_eq!(bytes("\u{2581}the"), b" the");
        assert_eq!(bytes("<0xE2>"), [0xe2]);
        assert_eq!(bytes("<0xZZ>"), b"<0xZZ>");
    }
}
