//! Where in the pages of a CPU the numbers of a head are: as the panels that products take.
//!
//! A block of one head's keys is one panel, (D, tokens): a vector has a column of all its tokens. Of its values 16
//! columns are a panel, (tokens, 16), and what is left of D a narrower one.

use super::super::number::Number;
use crate::ops::packed::PANEL_ROWS;
use crate::ops::{Heads, KV_BLOCK_TOKENS};

// A vector of scores has one for each token of a block.
const _: () = assert!(KV_BLOCK_TOKENS == PANEL_ROWS);

/// Where a block of one head starts, of keys as of values.
pub(super) fn block_start(block: usize, head: usize, heads: Heads) -> usize {
    (block * heads.keys + head) * KV_BLOCK_TOKENS * heads.dim
}

/// Puts a head's key, (D), into a slot.
pub(super) fn put_key<T: Number>(
    key: &[f32],
    (slot, head): (usize, usize),
    heads: Heads,
    pages: &mut [T],
) {
    let (block, token) = (slot / KV_BLOCK_TOKENS, slot % KV_BLOCK_TOKENS);
    let block = &mut pages[block_start(block, head, heads)..];
    let columns = block.chunks_exact_mut(KV_BLOCK_TOKENS);
    for (column, number) in columns.zip(key) {
        column[token] = T::narrow(*number);
    }
}

/// Puts a head's value, (D), into a slot.
pub(super) fn put_value<T: Number>(
    value: &[T],
    (slot, head): (usize, usize),
    heads: Heads,
    pages: &mut [T],
) {
    let (block, token) = (slot / KV_BLOCK_TOKENS, slot % KV_BLOCK_TOKENS);
    let mut block = &mut pages[block_start(block, head, heads)..];
    for part in value.chunks(PANEL_ROWS) {
        let (panel, rest) = block.split_at_mut(KV_BLOCK_TOKENS * part.len());
        panel[token * part.len()..][..part.len()].copy_from_slice(part);
        block = rest;
    }
}
