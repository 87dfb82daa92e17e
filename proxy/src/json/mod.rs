//! A streaming scanner of JSON: reports the values at wanted places of a document and skips the
//! rest, as its bytes pass by in pieces of any size.
//!
//! The alternatives lost. A copy for serde costs what the body costs, and a prompt may have
//! megabytes; a bound on that copy would leave the largest requests without a model, for it may
//! stand behind the prompt. serde on each event of a stream parses every token's text to throw it
//! away. Here a byte is looked at once, most of them by SIMD (`memchr` in strings, [`plain`]
//! elsewhere), and what is kept is one key or one wanted scalar of at most [`MAX_TEXT_BYTES`], and a
//! stack as deep as the tree of wanted values.
//!
//! It reads what is valid as serde_json does and is no validator: broken JSON is noticed where it
//! matters, which ends the scan; what was reported until then stands.

mod text;

use std::borrow::Cow;

use memchr::{memchr, memchr2};

use text::unescape;

/// Longest key, string or number that is looked at, in bytes between its quotes. A longer string is
/// cut, a longer key or number is none that anybody wants.
pub(crate) const MAX_TEXT_BYTES: usize = 256;

/// How many bytes [`plain`] looks at together: the compiler makes one or two vectors of them.
const LANE_BYTES: usize = 32;

/// What is wanted of a value: itself, or something in it.
pub(crate) struct Node<F: 'static> {
    /// What a scalar here, or the end of an object or array here, is reported as.
    pub(crate) field: Option<F>,
    /// The members of an object that are wanted.
    pub(crate) members: Members<F>,
    /// What is wanted of each item of an array.
    pub(crate) items: Option<&'static Node<F>>,
}

/// Keys of an object and what is wanted of their values.
pub(crate) type Members<F> = &'static [(&'static str, Node<F>)];

impl<F> Node<F> {
    /// A scalar.
    pub(crate) const fn value(field: F) -> Self {
        Self {
            field: Some(field),
            members: &[],
            items: None,
        }
    }

    /// An object of which only members are wanted.
    pub(crate) const fn object(members: Members<F>) -> Self {
        Self {
            field: None,
            members,
            items: None,
        }
    }

    /// An array of which only items are wanted.
    pub(crate) const fn array(items: &'static Node<F>) -> Self {
        Self {
            field: None,
            members: &[],
            items: Some(items),
        }
    }
}

/// A value that was found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    /// Finite; also an integer that is out of the range of [`Value::Int`].
    Double(f64),
    Text(&'a str),
    /// An object or array that something is wanted of is over.
    End,
}

/// The state between two bytes of a document.
pub(crate) struct Scanner<F: 'static> {
    root: &'static Node<F>,
    state: State,
    /// The objects and arrays around the current byte that something is wanted of.
    open: Vec<Container<F>>,
    /// What is wanted of the value that comes next or is being read.
    node: Option<&'static Node<F>>,
    /// The key, string, number or literal that is being read.
    text: Vec<u8>,
    /// Whether `text` has lost its end.
    clipped: bool,
}

struct Container<F: 'static> {
    node: &'static Node<F>,
    is_object: bool,
}

#[derive(Clone, Copy)]
enum State {
    /// A value comes; in an array perhaps its end.
    Value,
    /// A key or the end of the object comes.
    Key,
    Colon,
    /// A comma or the end of the container comes.
    Next,
    /// Within a string that is kept; `escaped`: its next byte follows a backslash.
    Text {
        is_key: bool,
        escaped: bool,
    },
    /// Within a number or literal.
    Bare,
    /// Within `depth` containers that nothing is wanted of.
    Skip {
        depth: u32,
    },
    /// Within a string that nothing is wanted of; at depth 0 it is itself the skipped value.
    SkipText {
        depth: u32,
        escaped: bool,
    },
    /// The document is over; `complete`: and was not cut short by what is no JSON.
    Over {
        complete: bool,
    },
}

impl<F: Copy> Scanner<F> {
    pub(crate) fn new(root: &'static Node<F>) -> Self {
        Self {
            root,
            state: State::Value,
            open: Vec::new(),
            node: Some(root),
            text: Vec::new(),
            clipped: false,
        }
    }

    /// Begins another document.
    pub(crate) fn restart(&mut self) {
        self.state = State::Value;
        self.open.clear();
        self.node = Some(self.root);
    }

    /// Whether the document's last byte has been seen.
    pub(crate) fn is_complete(&self) -> bool {
        matches!(self.state, State::Over { complete: true })
    }

    /// The string that is being read and that something is wanted of, as far as it has come.
    pub(crate) fn unfinished_text(&self) -> Option<(F, Cow<'_, str>)> {
        match self.state {
            State::Text { is_key: false, .. } => Some((self.field()?, unescape(&self.text))),
            _ => None,
        }
    }

    /// Takes the next bytes of the document; `report` gets what is found in them.
    pub(crate) fn push(&mut self, bytes: &[u8], report: &mut impl FnMut(F, Value<'_>)) {
        let mut rest = bytes;
        while let Some(&byte) = rest.first() {
            let taken = match self.state {
                State::Over { .. } => rest.len(),
                State::Skip { depth } => self.skip(rest, depth),
                State::SkipText { depth, escaped } => self.skip_text(rest, depth, escaped),
                State::Text { is_key, escaped } => self.text(rest, is_key, escaped, report),
                State::Bare => self.bare(rest, report),
                State::Value | State::Key | State::Colon | State::Next => {
                    self.structure(byte, report)
                }
            };
            rest = &rest[taken..];
        }
    }

    /// One byte between values. Like all below it returns how many bytes it took.
    fn structure(&mut self, byte: u8, report: &mut impl FnMut(F, Value<'_>)) -> usize {
        match (self.state, byte) {
            (_, b' ' | b'\n' | b'\r' | b'\t') => {}
            (State::Value, b'"') if self.field().is_none() => {
                self.state = State::SkipText {
                    depth: 0,
                    escaped: false,
                };
            }
            (State::Value, b'"') => self.begin_text(false),
            (State::Key, b'"') => self.begin_text(true),
            (State::Colon, b':') => self.state = State::Value,
            (State::Next, b',') => self.next(),
            (State::Value, b'{' | b'[') => self.enter(byte == b'{'),
            (State::Value, b']') | (State::Key, b'}') | (State::Next, b']' | b'}') => {
                self.leave(byte == b'}', report);
            }
            (State::Value, byte) if is_bare(byte) => {
                self.forget_text();
                self.state = State::Bare;
                return 0;
            }
            _ => self.state = State::Over { complete: false },
        }
        1
    }

    fn field(&self) -> Option<F> {
        self.node.and_then(|node| node.field)
    }

    fn begin_text(&mut self, is_key: bool) {
        self.forget_text();
        self.state = State::Text {
            is_key,
            escaped: false,
        };
    }

    /// Behind a comma.
    fn next(&mut self) {
        let Some(container) = self.open.last() else {
            return;
        };
        if container.is_object {
            self.state = State::Key;
        } else {
            self.node = container.node.items;
            self.state = State::Value;
        }
    }

    fn enter(&mut self, is_object: bool) {
        let wanted = self.node.filter(|node| {
            if is_object {
                !node.members.is_empty()
            } else {
                node.items.is_some()
            }
        });
        let Some(node) = wanted else {
            self.state = State::Skip { depth: 1 };
            return;
        };
        self.open.push(Container { node, is_object });
        if is_object {
            self.state = State::Key;
        } else {
            self.node = node.items;
        }
    }

    fn leave(&mut self, is_object: bool, report: &mut impl FnMut(F, Value<'_>)) {
        match self.open.pop() {
            Some(container) if container.is_object == is_object => {
                if let Some(field) = container.node.field {
                    report(field, Value::End);
                }
                self.value_ended();
            }
            _ => self.state = State::Over { complete: false },
        }
    }

    fn value_ended(&mut self) {
        self.state = if self.open.is_empty() {
            State::Over { complete: true }
        } else {
            State::Next
        };
    }

    /// In a string that is kept.
    fn text(
        &mut self,
        rest: &[u8],
        is_key: bool,
        mut escaped: bool,
        report: &mut impl FnMut(F, Value<'_>),
    ) -> usize {
        let end = closing_quote(rest, &mut escaped);
        let piece = &rest[..end.unwrap_or(rest.len())];
        let Some(end) = end else {
            self.keep(piece);
            self.state = State::Text { is_key, escaped };
            return rest.len();
        };
        if self.text.is_empty() && piece.len() <= MAX_TEXT_BYTES {
            // It came in one piece, as nearly all do, and need not be copied.
            self.text_ended(piece, is_key, report);
        } else {
            self.keep(piece);
            let text = std::mem::take(&mut self.text);
            self.text_ended(&text, is_key, report);
            self.text = text;
        }
        end + 1
    }

    fn text_ended(&mut self, raw: &[u8], is_key: bool, report: &mut impl FnMut(F, Value<'_>)) {
        if is_key {
            self.node = self.member(raw);
            self.state = State::Colon;
            return;
        }
        if let Some(field) = self.field() {
            let text = unescape(raw);
            // A character that was cut in two is no character.
            let cut = self.clipped.then(|| text.trim_end_matches('\u{fffd}'));
            let text = cut.unwrap_or(&text);
            // Each broken byte has become three.
            let end = text.floor_char_boundary(MAX_TEXT_BYTES);
            report(field, Value::Text(&text[..end]));
        }
        self.value_ended();
    }

    /// What is wanted of the member with this key.
    fn member(&self, raw: &[u8]) -> Option<&'static Node<F>> {
        if self.clipped {
            return None;
        }
        let members = self.open.last()?.node.members;
        let find = |key: &[u8]| members.iter().find(|(name, _)| name.as_bytes() == key);
        let unescaped = || memchr(b'\\', raw).and_then(|_| find(unescape(raw).as_bytes()));
        let found = find(raw).or_else(unescaped);
        found.map(|(_, node)| node)
    }

    fn bare(&mut self, rest: &[u8], report: &mut impl FnMut(F, Value<'_>)) -> usize {
        let end = rest.iter().position(|&byte| !is_bare(byte));
        let taken = end.unwrap_or(rest.len());
        let field = self.field();
        if field.is_some() {
            self.keep(&rest[..taken]);
        }
        if end.is_some() {
            if let (Some(field), Some(value)) = (field, self.scalar()) {
                report(field, value);
            }
            self.value_ended();
        }
        taken
    }

    /// The number or literal that has just been read, if it is one.
    fn scalar(&self) -> Option<Value<'static>> {
        if self.clipped {
            return None;
        }
        match str::from_utf8(&self.text).ok()? {
            "null" => Some(Value::Null),
            "true" => Some(Value::Bool(true)),
            "false" => Some(Value::Bool(false)),
            number => match number.parse() {
                Ok(int) => Some(Value::Int(int)),
                Err(_) => number
                    .parse()
                    .ok()
                    .filter(|double: &f64| double.is_finite())
                    .map(Value::Double),
            },
        }
    }

    fn skip(&mut self, rest: &[u8], depth: u32) -> usize {
        let at = plain(rest);
        let Some(&byte) = rest.get(at) else {
            return rest.len();
        };
        match byte {
            b'"' => {
                self.state = State::SkipText {
                    depth,
                    escaped: false,
                };
            }
            b'{' | b'[' => {
                self.state = State::Skip {
                    depth: depth.saturating_add(1),
                };
            }
            _ => self.skipped_to(depth - 1),
        }
        at + 1
    }

    fn skip_text(&mut self, rest: &[u8], depth: u32, mut escaped: bool) -> usize {
        let Some(end) = closing_quote(rest, &mut escaped) else {
            self.state = State::SkipText { depth, escaped };
            return rest.len();
        };
        self.skipped_to(depth);
        end + 1
    }

    fn skipped_to(&mut self, depth: u32) {
        if depth == 0 {
            self.value_ended();
        } else {
            self.state = State::Skip { depth };
        }
    }

    fn forget_text(&mut self) {
        self.text.clear();
        self.clipped = false;
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = MAX_TEXT_BYTES - self.text.len();
        self.clipped |= bytes.len() > room;
        self.text.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

/// Where the string ends that `bytes` is the next piece of; `escaped` is carried from piece to piece.
fn closing_quote(bytes: &[u8], escaped: &mut bool) -> Option<usize> {
    let mut from = usize::from(std::mem::take(escaped));
    while let Some(at) = memchr2(b'"', b'\\', &bytes[from..]) {
        let at = from + at;
        if bytes[at] == b'"' {
            return Some(at);
        }
        if at + 1 == bytes.len() {
            *escaped = true;
            return None;
        }
        from = at + 2;
    }
    None
}

/// How many bytes come before the next quote, brace or bracket. Mostly that is near; but embeddings and
/// token ids are long arrays without any, so behind the first it looks at whole lanes, which the
/// compiler vectorises.
fn plain(bytes: &[u8]) -> usize {
    let near = bytes.len().min(LANE_BYTES);
    if let Some(at) = bytes[..near].iter().position(|&byte| is_mark(byte)) {
        return at;
    }
    let lanes = bytes
        .chunks_exact(LANE_BYTES)
        .take_while(|lane| !lane.iter().fold(false, |any, &byte| any | is_mark(byte)))
        .count();
    let from = lanes * LANE_BYTES;
    let rest = &bytes[from..];
    from + rest
        .iter()
        .position(|&byte| is_mark(byte))
        .unwrap_or(rest.len())
}

fn is_mark(byte: u8) -> bool {
    // A bracket is a brace without the bit 0x20.
    byte == b'"' || byte | 0x20 == b'{' || byte | 0x20 == b'}'
}

/// Whether a byte may be in a number or literal.
fn is_bare(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.')
}

#[cfg(test)]
mod tests;
