//! Blocks of KV cache: who holds them, and which prefixes of sequences they remember.
//!
//! Pure: numbers of blocks, no tensors. A full block is named by its tokens and by the content before them:
//! names are chained, and compared and not only hashed, so that no two prefixes are ever taken for each other.
//! A block that nobody holds keeps its content until it is needed, the one that was left longest ago first
//! (and of one sequence the last first: what is left of a prefix is always its beginning).

use std::collections::HashMap;

use crate::ops::KV_BLOCK_TOKENS;

/// Tokens of a full block.
type BlockTokens = [u32; KV_BLOCK_TOKENS];

/// Names what a full block and all before it contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Content(u64);

/// What comes before the first block.
const NOTHING: Content = Content(0);

/// One block.
#[derive(Debug, Clone)]
struct Block {
    /// Tables that it is in.
    holders: usize,
    /// Its content, if it can be found by it.
    name: Option<(Content, BlockTokens)>,
    /// Neighbours in the list of blocks that nobody holds.
    previous: u32,
    next: u32,
}

/// All blocks.
#[derive(Debug)]
pub(crate) struct BlockPool {
    /// One more than there are: the last one holds the ends of the list, taken from at its `next`.
    blocks: Vec<Block>,
    free: usize,
    /// Blocks by content, and what their own content is called.
    contents: HashMap<(Content, BlockTokens), (u32, Content)>,
    next_content: u64,
    remembers: bool,
}

/// One sequence's blocks, in order.
#[derive(Debug)]
pub(crate) struct BlockTable {
    blocks: Vec<u32>,
    /// Full blocks named so far.
    named: usize,
    /// The content of those.
    content: Content,
}

impl Default for BlockTable {
    fn default() -> Self {
        Self {
            blocks: Vec::new(),
            named: 0,
            content: NOTHING,
        }
    }
}

impl BlockTable {
    /// Places of its blocks in the pages.
    pub(crate) fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Blocks that it lacks for so many tokens.
    pub(crate) fn missing(&self, tokens: usize) -> usize {
        let blocks = tokens.div_ceil(KV_BLOCK_TOKENS);
        blocks.saturating_sub(self.blocks.len())
    }
}

/// A prefix that some blocks remember.
#[derive(Debug)]
pub(crate) struct Prefix {
    table: BlockTable,
    /// Of its blocks, those that nobody holds.
    unheld: usize,
}

impl Prefix {
    /// Its length.
    pub(crate) fn tokens(&self) -> usize {
        self.table.blocks.len() * KV_BLOCK_TOKENS
    }

    /// Blocks to be free for a sequence of so many tokens that begins with it.
    pub(crate) fn needed_blocks(&self, tokens: usize) -> usize {
        self.table.missing(tokens) + self.unheld
    }
}

impl BlockPool {
    /// So many blocks, all free. Without `remembers` none is found again.
    pub(crate) fn new(blocks: usize, remembers: bool) -> Self {
        let end = blocks as u32;
        let neighbour = |index: u32| if index > end { 0 } else { index };
        let block = |index: u32| Block {
            holders: 0,
            name: None,
            previous: index.checked_sub(1).unwrap_or(end),
            next: neighbour(index + 1),
        };
        Self {
            blocks: (0..=end).map(block).collect(),
            free: blocks,
            contents: HashMap::new(),
            next_content: NOTHING.0 + 1,
            remembers,
        }
    }

    /// Blocks that nobody holds.
    pub(crate) fn free(&self) -> usize {
        self.free
    }

    /// The longest remembered beginning of `tokens` that leaves at least one of them to be run.
    pub(crate) fn find(&self, tokens: &[u32]) -> Prefix {
        let mut prefix = Prefix {
            table: BlockTable::default(),
            unheld: 0,
        };
        let runnable = tokens.len().saturating_sub(1);
        let (full, _) = tokens[..runnable].as_chunks::<KV_BLOCK_TOKENS>();
        for tokens in full {
            let name = (prefix.table.content, *tokens);
            let Some(&(block, content)) = self.contents.get(&name) else {
                break;
            };
            prefix.unheld += usize::from(self.blocks[block as usize].holders == 0);
            prefix.table.blocks.push(block);
            prefix.table.named += 1;
            prefix.table.content = content;
        }
        prefix
    }

    /// A table that begins with the blocks of `prefix`, found since the pool was last changed.
    pub(crate) fn hold(&mut self, prefix: Prefix) -> BlockTable {
        for &block in &prefix.table.blocks {
            if self.blocks[block as usize].holders == 0 {
                self.unlink(block);
            }
            self.blocks[block as usize].holders += 1;
        }
        prefix.table
    }

    /// Adds the blocks to a table that it lacks for so many tokens; as many must be free.
    pub(crate) fn extend(&mut self, table: &mut BlockTable, tokens: usize) {
        let count = table.missing(tokens);
        assert!(
            count <= self.free,
            "blocks are counted before they are taken"
        );
        for _ in 0..count {
            let block = self.blocks[self.end()].next;
            self.unlink(block);
            let taken = &mut self.blocks[block as usize];
            taken.holders = 1;
            if let Some(name) = taken.name.take() {
                self.contents.remove(&name);
            }
            table.blocks.push(block);
        }
    }

    /// Remembers the full blocks among the first `computed` of a sequence's `tokens`.
    pub(crate) fn name(&mut self, table: &mut BlockTable, tokens: &[u32], computed: usize) {
        if !self.remembers {
            return;
        }
        let (full, _) = tokens[..computed].as_chunks::<KV_BLOCK_TOKENS>();
        for tokens in &full[table.named..] {
            let name = (table.content, *tokens);
            let block = table.blocks[table.named];
            let new = Content(self.next_content);
            // Where another block has the same content already, that one is found and this one is not.
            let (found, content) = *self.contents.entry(name).or_insert((block, new));
            if found == block {
                self.blocks[block as usize].name = Some(name);
                self.next_content += 1;
            }
            table.content = content;
            table.named += 1;
        }
    }

    /// Takes a sequence's blocks back.
    pub(crate) fn release(&mut self, table: BlockTable) {
        for block in table.blocks.into_iter().rev() {
            let holders = &mut self.blocks[block as usize].holders;
            *holders -= 1;
            if *holders == 0 {
                self.link(block);
            }
        }
    }

    fn end(&self) -> usize {
        self.blocks.len() - 1
    }

    /// Appends a block to the list of those that nobody holds; one without content goes to its front.
    fn link(&mut self, block: u32) {
        let end = self.end();
        let (previous, next) = if self.blocks[block as usize].name.is_some() {
            (self.blocks[end].previous, end as u32)
        } else {
            (end as u32, self.blocks[end].next)
        };
        self.blocks[previous as usize].next = block;
        self.blocks[next as usize].previous = block;
        let linked = &mut self.blocks[block as usize];
        (linked.previous, linked.next) = (previous, next);
        self.free += 1;
    }

    fn unlink(&mut self, block: u32) {
        let Block { previous, next, .. } = self.blocks[block as usize];
        self.blocks[previous as usize].next = next;
        self.blocks[next as usize].previous = previous;
        self.free -= 1;
    }
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
