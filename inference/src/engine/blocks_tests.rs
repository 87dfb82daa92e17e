use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;

const B: usize = KV_BLOCK_TOKENS;

/// Tokens that differ from block to block.
fn text(tokens: usize) -> Vec<u32> {
    (0..tokens as u32).collect()
}

/// Runs a sequence to its end: as the scheduler would, with all its blocks named.
fn run(pool: &mut BlockPool, tokens: &[u32]) -> BlockTable {
    let prefix = pool.find(tokens);
    assert!(prefix.needed_blocks(tokens.len()) <= pool.free());
    let mut table = pool.hold(prefix);
    pool.extend(&mut table, tokens.len());
    pool.name(&mut table, tokens, tokens.len());
    table
}

#[test]
fn a_prefix_is_found_while_it_is_held_and_after() {
    let mut pool = BlockPool::new(8, true);
    let tokens = text(3 * B + 5);
    let table = run(&mut pool, &tokens);
    assert_eq!(pool.free(), 4);
    let found = pool.find(&tokens);
    assert_eq!(
        (found.tokens(), found.needed_blocks(tokens.len())),
        (3 * B, 1)
    );
    pool.release(table);
    let found = pool.find(&tokens);
    assert_eq!(
        (found.tokens(), found.needed_blocks(tokens.len())),
        (3 * B, 4)
    );
    assert_eq!(pool.free(), 8);
}

#[test]
fn one_token_is_always_left_to_be_run() {
    let mut pool = BlockPool::new(8, true);
    let tokens = text(2 * B);
    let table = run(&mut pool, &tokens);
    assert_eq!(pool.find(&tokens).tokens(), B);
    assert_eq!(pool.find(&text(2 * B + 1)).tokens(), 2 * B);
    pool.release(table);
}

#[test]
fn the_same_tokens_after_others_are_another_content() {
    let mut pool = BlockPool::new(8, true);
    let tokens = text(2 * B + 1);
    let table = run(&mut pool, &tokens);
    let second_alone = &tokens[B..];
    assert_eq!(pool.find(second_alone).tokens(), 0);
    let mut other = tokens.clone();
    other[B] += 1;
    assert_eq!(pool.find(&other).tokens(), B);
    pool.release(table);
}

#[test]
fn what_was_left_longest_ago_is_forgotten_first_and_a_prefix_from_its_end() {
    let mut pool = BlockPool::new(4, true);
    let first = text(2 * B + 1);
    let second: Vec<u32> = (1000..1000 + B as u32 + 1).collect();
    let table = run(&mut pool, &first[..2 * B]);
    pool.release(table);
    let table = run(&mut pool, &second[..B]);
    pool.release(table);
    let mut others = BlockTable::default();
    pool.extend(&mut others, B); // never had a content
    assert_eq!(
        (pool.find(&first).tokens(), pool.find(&second).tokens()),
        (2 * B, B)
    );
    pool.extend(&mut others, 2 * B);
    assert_eq!(
        (pool.find(&first).tokens(), pool.find(&second).tokens()),
        (B, B)
    );
    pool.extend(&mut others, 3 * B);
    assert_eq!(
        (pool.find(&first).tokens(), pool.find(&second).tokens()),
        (0, B)
    );
    pool.release(others);
}

#[test]
fn a_pool_that_remembers_nothing_finds_nothing() {
    let mut pool = BlockPool::new(8, false);
    let tokens = text(3 * B);
    let table = run(&mut pool, &tokens);
    pool.release(table);
    assert_eq!(pool.find(&tokens).tokens(), 0);
}

impl BlockPool {
    /// Checks that each block is in as many tables as it says, or in the list, and that names lead back.
    pub(crate) fn check<'a>(&self, tables: impl IntoIterator<Item = &'a BlockTable>) {
        let mut holders = vec![0; self.end()];
        for table in tables {
            for &block in &table.blocks {
                holders[block as usize] += 1;
            }
        }
        let mut listed = 0;
        let mut block = self.blocks[self.end()].next as usize;
        while block != self.end() {
            assert_eq!(holders[block], 0, "a block in the list is held");
            listed += 1;
            block = self.blocks[block].next as usize;
        }
        assert_eq!(listed, self.free, "all free blocks are in the list");
        let held = holders.iter().filter(|holders| **holders > 0).count();
        assert_eq!(held + self.free, self.end(), "no block is lost");
        for (block, holders) in self.blocks.iter().zip(holders) {
            assert_eq!(block.holders, holders);
        }
        for (name, (block, _)) in &self.contents {
            assert_eq!(self.blocks[*block as usize].name.as_ref(), Some(name));
        }
        let named = self.blocks.iter().filter(|block| block.name.is_some());
        assert_eq!(named.count(), self.contents.len());
    }
}

/// A sequence that comes, or one that goes.
#[derive(Debug, Clone)]
enum Action {
    Come {
        /// Of a few, so that much is shared.
        first: u32,
        tokens: usize,
        /// How many of them are computed, if it is below.
        computed: usize,
    },
    Go(usize),
}

fn action() -> impl Strategy<Value = Action> {
    let come = (0..4u32, 1..120usize, 0..120usize);
    prop_oneof![
        come.prop_map(|(first, tokens, computed)| Action::Come {
            first,
            tokens,
            computed
        }),
        (0..24usize).prop_map(Action::Go),
    ]
}

#[test]
fn blocks_are_conserved_by_ten_thousand_who_come_and_ten_thousand_who_go() {
    const MANY: usize = 10_000;
    const BLOCKS: usize = 24;
    let (came, went) = (Cell::new(0), Cell::new(0));
    let config = ProptestConfig {
        cases: 64,
        source_file: Some(file!()),
        ..ProptestConfig::default()
    };
    let actions = proptest::collection::vec(action(), 500);
    let checked = TestRunner::new(config).run(&actions, |actions| {
        let mut pool = BlockPool::new(BLOCKS, true);
        let mut tables = Vec::new();
        for action in actions {
            match action {
                Action::Come {
                    first,
                    tokens,
                    computed,
                } => {
                    let tokens: Vec<u32> = (first..first + tokens as u32).collect();
                    let prefix = pool.find(&tokens);
                    if prefix.needed_blocks(tokens.len()) <= pool.free() {
                        let computed = computed.clamp(prefix.tokens(), tokens.len());
                        let mut table = pool.hold(prefix);
                        pool.extend(&mut table, tokens.len());
                        pool.name(&mut table, &tokens, computed);
                        tables.push(table);
                        came.set(came.get() + 1);
                    }
                }
                Action::Go(which) if !tables.is_empty() => {
                    let table = tables.swap_remove(which % tables.len());
                    pool.release(table);
                    went.set(went.get() + 1);
                }
                Action::Go(_) => {}
            }
            pool.check(&tables);
        }
        went.set(went.get() + tables.len());
        tables.drain(..).for_each(|table| pool.release(table));
        pool.check(&[]);
        prop_assert_eq!(pool.free(), BLOCKS);
        Ok(())
    });
    checked.unwrap_or_else(|failed| panic!("{failed}"));
    assert!(
        came.get() >= MANY && went.get() >= MANY,
        "{came:?} {went:?}"
    );
}
