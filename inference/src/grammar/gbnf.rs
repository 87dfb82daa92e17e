//! Grammars in llama.cpp's notation (GBNF, `root ::= ...`), which vLLM's users send too, in that of llguidance (Lark).
//!
//! The library cuts text into terminals before it parses: a rule that refers to no other but such rules becomes a
//! terminal, as whole as it can be, and only what is recursive stays a rule.

use std::collections::HashMap;
use std::fmt::Write as _;

/// Where a grammar begins.
const ROOT: &str = "root";
const DEFINES: &str = "::=";
/// How deep parentheses nest and rules refer to one another: each takes a place on the stack.
const MAX_DEPTH: usize = 256;

/// True if some line begins as a rule of this notation does; no line of Lark's can.
pub(super) fn is_gbnf(text: &str) -> bool {
    text.lines().any(|line| {
        let line = line.trim_start();
        let name = line.find(|letter| !is_name(letter)).unwrap_or(line.len());
        name > 0 && line[name..].trim_start().starts_with(DEFINES)
    })
}

/// The same grammar in Lark's notation; or what is wrong with it, and where.
pub(super) fn to_lark(text: &str) -> Result<String, String> {
    let tokens = tokens(text)?;
    let mut parser = Parser { tokens, at: 0 };
    let mut rules = Vec::new();
    while parser.at < parser.tokens.len() {
        rules.push(parser.rule()?);
    }
    Rules::new(rules)?.lark()
}

fn is_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_')
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Name(String),
    Defines,
    /// What is between quotes.
    Text(String),
    /// A regular expression for one character.
    Class(String),
    Open,
    Close,
    Bar,
    /// As Lark has it too.
    Repeat(String),
}

/// All tokens, each with its line.
fn tokens(text: &str) -> Result<Vec<(Token, usize)>, String> {
    let mut tokens = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let at_line = |problem: String| format!("line {number}: {problem}");
        let mut rest = line;
        loop {
            rest = rest.trim_start();
            let Some(first) = rest.chars().next().filter(|first| *first != '#') else {
                break;
            };
            let (token, length) = token(first, rest).map_err(at_line)?;
            tokens.push((token, number));
            rest = &rest[length..];
        }
    }
    Ok(tokens)
}

/// The token that `rest` begins with, and its length.
fn token(first: char, rest: &str) -> Result<(Token, usize), String> {
    let end = |found: Option<usize>| found.unwrap_or(rest.len());
    Ok(match first {
        '"' => {
            let (text, length) = quoted(rest)?;
            (Token::Text(text), length)
        }
        '[' => {
            let (class, length) = class(rest)?;
            (Token::Class(class), length)
        }
        '.' => (Token::Class(r"[\x{0}-\x{10FFFF}]".to_owned()), 1),
        '(' => (Token::Open, 1),
        ')' => (Token::Close, 1),
        '|' => (Token::Bar, 1),
        '*' | '+' | '?' => (Token::Repeat(first.to_string()), 1),
        '{' => {
            let length = end(rest.find('}').map(|at| at + 1));
            (Token::Repeat(times(&rest[..length])?), length)
        }
        _ if rest.starts_with(DEFINES) => (Token::Defines, DEFINES.len()),
        _ if is_name(first) => {
            let length = end(rest.find(|letter| !is_name(letter)));
            (Token::Name(rest[..length].to_owned()), length)
        }
        other => return Err(format!("'{other}' is not understood")),
    })
}

/// `{m}`, `{m,}` and `{m,n}`.
fn times(braces: &str) -> Result<String, String> {
    let inner = braces.strip_prefix('{').and_then(|it| it.strip_suffix('}'));
    let inner = inner.map(|inner| inner.replace(' ', ""));
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let known = |inner: &String| match inner.split_once(',') {
        None => number(inner),
        Some((least, most)) => number(least) && (most.is_empty() || number(most)),
    };
    match inner.filter(known) {
        Some(inner) => Ok(format!("{{{inner}}}")),
        None => Err(format!("{braces} is not {{m}}, {{m,}} or {{m,n}}")),
    }
}

/// A text in quotes, and its length with them.
fn quoted(rest: &str) -> Result<(String, usize), String> {
    let mut text = String::new();
    let mut letters = Letters { rest, at: 1 };
    loop {
        match letters.next("a quote")? {
            ('"', false) => return Ok((text, letters.at)),
            (letter, _) => text.push(letter),
        }
    }
}

/// A class of characters in brackets as a regular expression, and its length there.
fn class(rest: &str) -> Result<(String, usize), String> {
    let mut regex = "[".to_owned();
    let mut letters = Letters { rest, at: 1 };
    if rest[1..].starts_with('^') {
        regex.push('^');
        letters.at += 1;
    }
    let empty = regex.len();
    loop {
        let (letter, escaped) = letters.next("a bracket")?;
        match letter {
            ']' if !escaped && regex.len() == empty => return Err("[] is empty".to_owned()),
            ']' if !escaped => return Ok((regex + "]", letters.at)),
            // Between two others it makes a range of them.
            '-' if !escaped && regex.len() > empty && !rest[letters.at..].starts_with(']') => {
                regex.push('-');
            }
            _ => {
                // A string takes whatever is written to it.
                let _ = write!(regex, "\\x{{{:X}}}", u32::from(letter));
            }
        }
    }
}

/// Characters within quotes or brackets.
struct Letters<'a> {
    rest: &'a str,
    at: usize,
}

impl Letters<'_> {
    /// The next one, and whether it was escaped; `open` is what ends with the line otherwise.
    fn next(&mut self, open: &str) -> Result<(char, bool), String> {
        let mut letters = self.rest[self.at..].chars();
        let ends = || format!("{open} is not closed");
        let letter = letters.next().ok_or_else(ends)?;
        self.at += letter.len_utf8();
        if letter != '\\' {
            return Ok((letter, false));
        }
        let kind = letters.next().ok_or_else(ends)?;
        self.at += kind.len_utf8();
        let digits = match kind {
            'n' => return Ok(('\n', true)),
            'r' => return Ok(('\r', true)),
            't' => return Ok(('\t', true)),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ if kind.is_ascii_alphanumeric() => return Err(format!("\\{kind} is not known")),
            _ => return Ok((kind, true)),
        };
        let code = self.rest.get(self.at..self.at + digits);
        self.at += digits;
        let code = code.and_then(|code| u32::from_str_radix(code, 16).ok());
        let letter = code.and_then(char::from_u32);
        let letter = letter.ok_or_else(|| format!("\\{kind} needs {digits} digits of a character"));
        Ok((letter?, true))
    }
}

/// Alternatives of sequences.
type Choices = Vec<Vec<Item>>;

#[derive(Debug)]
struct Item {
    node: Node,
    /// How often, if not once.
    repeat: Option<String>,
}

#[derive(Debug)]
enum Node {
    Text(String),
    Class(String),
    Name(String, usize),
    Group(Choices),
}

#[derive(Debug)]
struct Rule {
    name: String,
    line: usize,
    choices: Choices,
}

struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
}

impl Parser {
    fn rule(&mut self) -> Result<Rule, String> {
        let line = self.tokens[self.at].1;
        let Some(name) = self.begun() else {
            return Err(format!(
                "line {line}: a rule begins with its name and {DEFINES}"
            ));
        };
        self.at += 2;
        let choices = self.choices(0)?;
        Ok(Rule {
            name,
            line,
            choices,
        })
    }

    /// The name of the rule that begins here.
    fn begun(&self) -> Option<String> {
        match self.tokens.get(self.at..self.at + 2)? {
            [(Token::Name(name), _), (Token::Defines, _)] => Some(name.clone()),
            _ => None,
        }
    }

    /// Up to the end of the rule, or of the parenthesis that is the `depth`th.
    fn choices(&mut self, depth: usize) -> Result<Choices, String> {
        let mut choices: Choices = vec![Vec::new()];
        while let Some((token, line)) = self.tokens.get(self.at).cloned() {
            let last = choices.last_mut().expect("there is always one");
            let node = match token {
                Token::Close => break,
                Token::Name(_) if self.begun().is_some() => break,
                Token::Bar => {
                    choices.push(Vec::new());
                    self.at += 1;
                    continue;
                }
                Token::Repeat(times) => {
                    let item = last.last_mut().filter(|item| item.repeat.is_none());
                    let item =
                        item.ok_or_else(|| format!("line {line}: {times} repeats nothing"))?;
                    item.repeat = Some(times);
                    self.at += 1;
                    continue;
                }
                Token::Text(text) => Node::Text(text),
                Token::Class(class) => Node::Class(class),
                Token::Name(name) => Node::Name(name, line),
                Token::Defines => return Err(format!("line {line}: {DEFINES} follows no name")),
                Token::Open if depth == MAX_DEPTH => {
                    return Err(format!(
                        "line {line}: parentheses nest more than {MAX_DEPTH} deep"
                    ));
                }
                Token::Open => {
                    self.at += 1;
                    let inner = self.choices(depth + 1)?;
                    if !matches!(self.tokens.get(self.at), Some((Token::Close, _))) {
                        return Err(format!("line {line}: a parenthesis is not closed"));
                    }
                    Node::Group(inner)
                }
            };
            last.push(Item { node, repeat: None });
            self.at += 1;
        }
        Ok(choices)
    }
}

/// What is known of a rule while terminals are found.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Unknown,
    /// Being looked at: whoever comes here again is recursive.
    Open,
    Terminal,
    Rule,
}

struct Rules {
    rules: Vec<Rule>,
    places: HashMap<String, usize>,
    kinds: Vec<Kind>,
}

impl Rules {
    fn new(rules: Vec<Rule>) -> Result<Self, String> {
        let mut places = HashMap::new();
        for (place, rule) in rules.iter().enumerate() {
            if places.insert(rule.name.clone(), place).is_some() {
                let Rule { name, line, .. } = rule;
                return Err(format!("line {line}: there are two rules '{name}'"));
            }
        }
        let kinds = vec![Kind::Unknown; rules.len()];
        Ok(Self {
            rules,
            places,
            kinds,
        })
    }

    fn lark(mut self) -> Result<String, String> {
        let root = *self.places.get(ROOT).ok_or("there is no rule 'root'")?;
        let mut kinds = std::mem::take(&mut self.kinds);
        for place in 0..self.rules.len() {
            self.find_kind(place, &mut kinds, 0)?;
        }
        self.kinds = kinds;
        let mut lark = format!("start: {}\n", self.name(root));
        for (place, rule) in self.rules.iter().enumerate() {
            lark.push_str(&self.name(place));
            lark.push_str(": ");
            self.write(&rule.choices, &mut lark);
            lark.push('\n');
        }
        Ok(lark)
    }

    fn find_kind(&self, place: usize, kinds: &mut [Kind], depth: usize) -> Result<Kind, String> {
        match kinds[place] {
            Kind::Unknown => {}
            Kind::Open => return Ok(Kind::Rule),
            known => return Ok(known),
        }
        let Rule {
            name,
            line,
            choices,
        } = &self.rules[place];
        if depth > MAX_DEPTH {
            return Err(format!(
                "line {line}: '{name}' is more than {MAX_DEPTH} rules and parentheses deep"
            ));
        }
        kinds[place] = Kind::Open;
        let kind = self.kind_of(choices, kinds, depth + 1)?;
        kinds[place] = kind;
        Ok(kind)
    }

    fn kind_of(&self, choices: &Choices, kinds: &mut [Kind], depth: usize) -> Result<Kind, String> {
        let mut kind = Kind::Terminal;
        for item in choices.iter().flatten() {
            let own = match &item.node {
                Node::Text(_) | Node::Class(_) => Kind::Terminal,
                Node::Group(inner) => self.kind_of(inner, kinds, depth + 1)?,
                Node::Name(name, line) => match self.places.get(name) {
                    Some(&place) => self.find_kind(place, kinds, depth)?,
                    None => return Err(format!("line {line}: there is no rule '{name}'")),
                },
            };
            if own == Kind::Rule {
                kind = Kind::Rule;
            }
        }
        Ok(kind)
    }

    /// Terminals are in capitals; the number keeps apart what was told apart by its case.
    fn name(&self, place: usize) -> String {
        let name = self.rules[place].name.replace('-', "_");
        if self.kinds[place] == Kind::Terminal {
            format!("T{place}_{}", name.to_ascii_uppercase())
        } else {
            format!("r{place}_{}", name.to_ascii_lowercase())
        }
    }

    fn write(&self, choices: &Choices, lark: &mut String) {
        for (index, sequence) in choices.iter().enumerate() {
            if index > 0 {
                lark.push_str(" | ");
            }
            if sequence.is_empty() {
                lark.push_str("\"\"");
            }
            for (index, Item { node, repeat }) in sequence.iter().enumerate() {
                if index > 0 {
                    lark.push(' ');
                }
                match node {
                    Node::Text(text) => write_text(text, lark),
                    Node::Class(class) => lark.extend(["/", class, "/"]),
                    Node::Name(name, _) => lark.push_str(&self.name(self.places[name])),
                    Node::Group(inner) => {
                        lark.push('(');
                        self.write(inner, lark);
                        lark.push(')');
                    }
                }
                lark.push_str(repeat.as_deref().unwrap_or_default());
            }
        }
    }
}

/// In quotes, with JSON's escapes.
fn write_text(text: &str, lark: &mut String) {
    lark.push('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => lark.extend(['\\', letter]),
            '\0'..' ' | '\x7f' => {
                // A string takes whatever is written to it.
                let _ = write!(lark, "\\u{:04x}", u32::from(letter));
            }
            _ => lark.push(letter),
        }
    }
    lark.push('"');
}

#[cfg(test)]
mod tests;
