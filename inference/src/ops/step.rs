//! One step's rows: plain data on the host, from which each [`super::Ops`] uploads what it needs.

use std::ops::Range;

use super::KV_BLOCK_TOKENS;

/// One step's tokens, those of all sequences one after another: T rows in all.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct StepInputs {
    /// Token ids, (T). Those named in `carried` are to be replaced.
    pub tokens: Vec<u32>,
    /// Place of each token in its own sequence, (T).
    pub positions: Vec<u32>,
    /// Where each token's keys and values go: block * [`KV_BLOCK_TOKENS`] + place in it, (T).
    pub slots: Vec<u32>,
    /// Which rows are whose, in order and without gaps, (S).
    pub spans: Vec<Span>,
    /// The block tables of all spans, one after another.
    pub blocks: Vec<u32>,
    /// Rows whose logits are wanted, in order, (R).
    pub wanted: Vec<WantedRow>,
    /// Rows whose token was chosen on the device and has not come to the host yet, in order.
    pub carried: Vec<Carried>,
    /// Tokens that wanted rows are not to take as their logits say, those of all rows one after another.
    pub penalized: Vec<Penalized>,
}

/// The rows of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First row.
    pub start: usize,
    /// Number of rows; at least 1.
    pub len: usize,
    /// Tokens of the sequence whose keys and values are in its pages already.
    pub context: usize,
    /// Where in `blocks` its table starts; as long as `context + len` tokens take.
    pub table: usize,
}

/// A row whose logits are wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct WantedRow {
    /// Which.
    pub row: u32,
    /// What for.
    pub choice: Choice,
    /// Which of `penalized` are its.
    pub penalized: Range<usize>,
}

/// Who chooses the token after a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Choice {
    /// The host: logits are handed back.
    Host,
    /// The device, or the host as well: logits may be handed back.
    Device(Sampling),
}

impl Choice {
    /// The best token, by logits alone.
    pub const GREEDY: Self = Self::Device(Sampling {
        penalties: Penalties::NONE,
        draw: None,
        logprobs: None,
    });
}

/// How a token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// What the row's `penalized` tokens lose.
    pub penalties: Penalties,
    /// A draw from what is left; `None`: the best one.
    pub draw: Option<Draw>,
    /// Log probabilities are wanted too, of the token and of so many best ones: [`MAX_TOP_LOGPROBS`] at most. They are
    /// of the distribution that the logits say, before penalties.
    pub logprobs: Option<u32>,
}

/// The most best tokens whose log probabilities a device gives.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// What tokens that have occurred lose, as vLLM has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Penalties {
    /// Divides logits above 0 and multiplies others.
    pub repetition: f32,
    /// For each time in the output.
    pub frequency: f32,
    /// For any time in the output.
    pub presence: f32,
}

impl Penalties {
    /// Nothing.
    pub const NONE: Self = Self {
        repetition: 1.0,
        frequency: 0.0,
        presence: 0.0,
    };

    /// The logit of a token that has occurred, so many times in the output.
    pub fn applied(&self, logit: f32, times: u32) -> f32 {
        let repeated = if logit > 0.0 {
            logit / self.repetition
        } else {
            logit * self.repetition
        };
        let presence = if times > 0 { self.presence } else { 0.0 };
        repeated - (times as f32 * self.frequency + presence)
    }
}

/// A token that a row is not to take as its logit says; each is named once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Penalized {
    /// Its id.
    pub token: u32,
    /// How often it is in the output, [`Penalized::NEVER`] if it must not be taken. A token that the device has chosen
    /// and the row carries is to be counted there.
    pub times: u32,
}

impl Penalized {
    /// In place of `times`.
    pub const NEVER: u32 = u32::MAX;
}

/// How a token is drawn: as likely as its logit, divided by the temperature, says, among those that `min_p`, then
/// `top_k`, then `top_p` leave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Above 0.
    pub temperature: f32,
    /// At least so likely as this times the best one; in [0, 1].
    pub min_p: f32,
    /// The so many best ones, and equals of the last; 0: all.
    pub top_k: u32,
    /// The fewest best ones that together have this share, and equals of the last; in (0, 1].
    pub top_p: f32,
    /// Chance itself: draws of equal keys are equal.
    pub key: u64,
}

/// A row that takes its token from the step launched before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// Row of this step.
    pub row: u32,
    /// Index in `wanted` of the step before.
    pub from: u32,
}

impl StepInputs {
    /// Appends the next `tokens` of a sequence of which `context` tokens are in the pages; `blocks` is its
    /// table, at least as long as all of these take.
    pub fn push(&mut self, tokens: &[u32], context: usize, blocks: &[u32]) {
        let end = context + tokens.len();
        let span = Span {
            start: self.tokens.len(),
            len: tokens.len(),
            context,
            table: self.blocks.len(),
        };
        self.tokens.extend_from_slice(tokens);
        for position in context..end {
            self.positions.push(position as u32);
            let block = blocks[position / KV_BLOCK_TOKENS] as usize;
            let slot = block * KV_BLOCK_TOKENS + position % KV_BLOCK_TOKENS;
            self.slots.push(slot as u32);
        }
        self.blocks
            .extend_from_slice(&blocks[..end.div_ceil(KV_BLOCK_TOKENS)]);
        self.spans.push(span);
    }

    /// Makes the row pushed last take the token of this wanted row of the step launched before.
    pub fn carry_last(&mut self, from: u32) {
        let row = self.tokens.len() as u32 - 1;
        self.carried.push(Carried { row, from });
    }

    /// Asks for the logits of the row pushed last.
    pub fn want_last(&mut self, choice: Choice) {
        self.want_last_without(choice, &[], &[]);
    }

    /// The same, for a choice in which tokens are `penalized` and some `banned`.
    pub fn want_last_without(&mut self, choice: Choice, penalized: &[Penalized], banned: &[u32]) {
        let start = self.penalized.len();
        let is_taken = |it: &&Penalized| !banned.contains(&it.token);
        self.penalized.extend(penalized.iter().filter(is_taken));
        let times = Penalized::NEVER;
        self.penalized
            .extend(banned.iter().map(|&token| Penalized { token, times }));
        self.wanted.push(WantedRow {
            row: self.tokens.len() as u32 - 1,
            choice,
            penalized: start..self.penalized.len(),
        });
    }

    /// The block table of a span.
    pub fn table(&self, span: &Span) -> &[u32] {
        let blocks = (span.context + span.len).div_ceil(KV_BLOCK_TOKENS);
        &self.blocks[span.table..span.table + blocks]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_go_to_the_slots_that_their_table_names() {
        let mut step = StepInputs::default();
        step.push(&[7, 8, 9], KV_BLOCK_TOKENS - 1, &[5, 2, 9]);
        step.push(&[4], 0, &[3]);
        step.want_last(Choice::Host);
        assert_eq!(step.positions, [15, 16, 17, 0]);
        assert_eq!(step.slots, [5 * 16 + 15, 2 * 16, 2 * 16 + 1, 3 * 16]);
        assert_eq!(
            step.table(&step.spans[0]),
            [5, 2],
            "no block that is not needed"
        );
        assert_eq!(step.table(&step.spans[1]), [3]);
        assert_eq!(step.wanted[0].row, 3);
    }
}
