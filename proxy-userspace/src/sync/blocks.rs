//! Free space in `SLOTS`.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::abi::Frontend;

/// Consecutive entries of `SLOTS`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Block {
    pub(super) first: u32,
    pub(super) len: u32,
}

impl Block {
    /// The block that a frontend names: both of its sets.
    pub(super) fn of(frontend: &Frontend) -> Self {
        let cluster_end = frontend.cluster_offset.saturating_add(frontend.n_cluster);
        Self {
            first: frontend.first_slot,
            len: frontend.n_local.max(cluster_end),
        }
    }

    /// Index after the last entry.
    pub(super) fn end(self) -> u32 {
        self.first.saturating_add(self.len)
    }

    /// The block's entries in a copy of the map.
    pub(super) fn of_slots(self, slots: &[u32]) -> Option<&[u32]> {
        slots.get(self.first as usize..self.end() as usize)
    }
}

/// The free runs of entries. Best fit, the lowest of equals: large runs stay whole, and what is
/// in use stays near the map's beginning. Neighbours are joined when they become free.
#[derive(Debug)]
pub(super) struct Blocks {
    len_by_first: BTreeMap<u32, u32>,
    by_len: BTreeSet<(u32, u32)>,
    n_free: usize,
    /// Freed, but a program that still runs may read them.
    resting: Vec<Block>,
}

impl Blocks {
    /// Everything below `capacity` that is not in `used`, which is in order and without overlap.
    /// It rests: who was here before may have freed it a moment ago.
    pub(super) fn new(capacity: u32, used: &[Block]) -> Self {
        let ends = std::iter::once(0).chain(used.iter().map(|block| block.end()));
        let starts = used
            .iter()
            .map(|block| block.first)
            .chain(std::iter::once(capacity));
        let resting = ends
            .zip(starts)
            .filter(|(first, end)| first < end)
            .map(|(first, end)| Block {
                first,
                len: end - first,
            })
            .collect();
        Self {
            len_by_first: BTreeMap::new(),
            by_len: BTreeSet::new(),
            n_free: 0,
            resting,
        }
    }

    /// Takes a run of `len` entries and yields the index of the first; any index if `len` is 0.
    pub(super) fn take(&mut self, len: u32) -> Option<u32> {
        if len == 0 {
            return Some(0);
        }
        let &(found, first) = self.by_len.range((len, 0)..).next()?;
        self.remove(Block { first, len: found });
        if found > len {
            self.insert(Block {
                first: first + len,
                len: found - len,
            });
        }
        Some(first)
    }

    /// Takes a block back that no frontend ever named.
    pub(super) fn put_back(&mut self, block: Block) {
        if block.len == 0 {
            return;
        }
        let mut joined = block;
        if let Some((&first, &len)) = self.len_by_first.range(..block.first).next_back()
            && first + len == block.first
        {
            self.remove(Block { first, len });
            joined = Block {
                first,
                len: len + joined.len,
            };
        }
        if let Some(&len) = self.len_by_first.get(&block.end()) {
            self.remove(Block {
                first: block.end(),
                len,
            });
            joined.len += len;
        }
        self.insert(joined);
    }

    /// Takes a block back that programs may read until the next grace period.
    pub(super) fn rest(&mut self, block: Block) {
        if block.len > 0 {
            self.resting.push(block);
        }
    }

    /// Whether a grace period would free any.
    pub(super) fn is_resting(&self) -> bool {
        !self.resting.is_empty()
    }

    /// A grace period has passed.
    pub(super) fn settle(&mut self) {
        for block in std::mem::take(&mut self.resting) {
            self.put_back(block);
        }
    }

    /// How many entries are in no block, or in one that rests.
    pub(super) fn free(&self) -> u32 {
        let resting = self.resting.iter().map(|block| block.len);
        self.len_by_first.values().copied().chain(resting).sum()
    }

    /// Length of the longest free run.
    pub(super) fn longest(&self) -> u32 {
        self.by_len.last().map_or(0, |&(len, _)| len)
    }

    /// Entries that may be taken.
    pub(super) const fn n_free(&self) -> usize {
        self.n_free
    }

    /// Entries that a grace period would free.
    pub(super) fn n_resting(&self) -> usize {
        self.resting.iter().map(|block| block.len as usize).sum()
    }

    fn insert(&mut self, block: Block) {
        self.n_free += block.len as usize;
        self.len_by_first.insert(block.first, block.len);
        self.by_len.insert((block.len, block.first));
    }

    fn remove(&mut self, block: Block) {
        self.n_free -= block.len as usize;
        self.len_by_first.remove(&block.first);
        self.by_len.remove(&(block.len, block.first));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settled(capacity: u32, used: &[Block]) -> Blocks {
        let mut blocks = Blocks::new(capacity, used);
        blocks.settle();
        blocks
    }

    #[test]
    fn the_best_fit_is_taken_and_the_lowest_of_equals() {
        let used = [(4, 1), (8, 1), (11, 1), (15, 1)].map(|(first, len)| Block { first, len });
        let mut blocks = settled(100, &used);
        assert_eq!(blocks.take(2), Some(9));
        assert_eq!(blocks.take(3), Some(5));
        assert_eq!(blocks.take(3), Some(12));
        assert_eq!(blocks.take(5), Some(16));
        assert_eq!(blocks.longest(), 79);
        assert_eq!(blocks.take(80), None);
    }

    #[test]
    fn what_rests_is_not_taken_before_it_settled() {
        let mut blocks = settled(4, &[]);
        assert_eq!(blocks.take(4), Some(0));
        blocks.rest(Block { first: 0, len: 4 });
        assert!(blocks.is_resting());
        assert_eq!(blocks.take(1), None);
        blocks.settle();
        assert_eq!(blocks.take(4), Some(0));
    }

    #[test]
    fn nothing_takes_no_room() {
        let mut blocks = settled(0, &[]);
        assert_eq!(blocks.take(0), Some(0));
        blocks.put_back(Block { first: 0, len: 0 });
        assert_eq!((blocks.longest(), blocks.is_resting()), (0, false));
    }

    proptest! {
        /// Blocks in use never overlap, and once all are back the space is one run again.
        #[test]
        fn space_is_neither_given_twice_nor_lost(
            steps in proptest::collection::vec((0_u32..9, any::<prop::sample::Index>()), 1..200)
        ) {
            let mut blocks = settled(64, &[]);
            let mut held: Vec<Block> = Vec::new();
            for (len, which) in steps {
                if len == 0 && !held.is_empty() {
                    blocks.put_back(held.swap_remove(which.index(held.len())));
                } else if let Some(first) = blocks.take(len.max(1)) {
                    held.push(Block { first, len: len.max(1) });
                }
                let mut used = [false; 64];
                for index in held.iter().flat_map(|block| block.first..block.end()) {
                    prop_assert!(!std::mem::replace(&mut used[index as usize], true));
                }
                let n_used = used.iter().filter(|used| **used).count();
                prop_assert_eq!(blocks.free() as usize, 64 - n_used);
            }
            for block in held {
                blocks.put_back(block);
            }
            prop_assert_eq!((blocks.longest(), blocks.n_free()), (64, 64));
        }
    }
}
