//! The translations of the memory under test: a bit a page, a bit a 2 MiB block, and which blocks have any.
//!
//! A zap of everything must cost what there is to drop, not what there could be: most policies that are too wide find
//! most of their range empty already.

use std::ops::Range;

use experiment::events::Leaves;

/// Words of 64 pages in a block of 2 MiB.
const WORDS: usize = 8;
/// Pages in a block.
pub const BLOCK: u64 = 512;

/// A set of pages or of blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bits(pub Box<[u64]>);

impl Bits {
    /// None of `count`.
    pub fn none(count: u64) -> Self {
        Self(vec![0; count.div_ceil(64) as usize].into())
    }
    /// Whether one is in it.
    pub fn has(&self, index: u64) -> bool {
        self.0[(index / 64) as usize] >> (index % 64) & 1 != 0
    }
    /// Adds one, or takes it out.
    pub fn set(&mut self, index: u64, value: bool) {
        let (word, bit) = (&mut self.0[(index / 64) as usize], 1 << (index % 64));
        if value { *word |= bit } else { *word &= !bit }
    }
    /// Adds a range, or takes it out.
    pub fn set_range(&mut self, range: Range<u64>, value: bool) {
        for (word, mask) in words(range) {
            if value { self.0[word] |= mask } else { self.0[word] &= !mask }
        }
    }
    /// Whether any of a range is in it.
    pub fn any(&self, range: Range<u64>) -> bool {
        words(range).any(|(word, mask)| self.0[word] & mask != 0)
    }
}

/// The words that a range touches, and its part of each.
pub fn words(range: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let Range { start, end } = range;
    let of_words = if start < end { start / 64..end.div_ceil(64) } else { 0..0 };
    of_words.map(move |word| {
        let low = start.saturating_sub(64 * word).min(63);
        let high = (end - 64 * word).min(64);
        (word as usize, u64::MAX << low & u64::MAX >> (64 - high))
    })
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Sptes {
    small: Bits,
    large: Bits,
    /// Blocks with an entry of either kind.
    occupied: Bits,
    blocks: u64,
}

impl Sptes {
    /// Nothing is translated.
    pub fn none(pages: u64) -> Self {
        let blocks = pages.div_ceil(BLOCK);
        let small = Bits::none(blocks * BLOCK);
        Self { small, large: Bits::none(blocks), occupied: Bits::none(blocks), blocks }
    }

    /// Whether a page is translated.
    pub fn has(&self, page: u64) -> bool {
        self.small.has(page) || self.large.has(page / BLOCK)
    }

    /// The 64 pages of a word by entries of their own.
    pub fn small_word(&self, word: usize) -> u64 {
        self.small.0[word]
    }

    /// Installs entries of 4 KiB for the pages of `mask` in a word.
    pub fn install_small(&mut self, word: usize, mask: u64) {
        self.small.0[word] |= mask;
        self.occupied.set((word / WORDS) as u64, true);
    }

    /// Installs an entry of 2 MiB, in place of the smaller ones beneath.
    pub fn install_large(&mut self, block: u64) {
        self.small.set_range(block * BLOCK..(block + 1) * BLOCK, false);
        self.large.set(block, true);
        self.occupied.set(block, true);
    }

    /// Drops what translates any page of `pages`; an entry of 2 MiB goes whole. `gone` hears of each word of pages that
    /// lost theirs.
    pub fn drop_range(&mut self, pages: Range<u64>, mut gone: impl FnMut(usize, u64)) -> Leaves {
        let mut dropped = Leaves::default();
        if pages.is_empty() {
            return dropped;
        }
        let blocks = pages.start / BLOCK..pages.end.div_ceil(BLOCK).min(self.blocks);
        for (word, mask) in words(blocks) {
            let mut here = self.occupied.0[word] & mask;
            while here != 0 {
                let block = word as u64 * 64 + u64::from(here.trailing_zeros());
                here &= here - 1;
                self.drop_in_block(block, &pages, &mut dropped, &mut gone);
            }
        }
        dropped
    }

    fn drop_in_block(
        &mut self,
        block: u64,
        pages: &Range<u64>,
        dropped: &mut Leaves,
        gone: &mut impl FnMut(usize, u64),
    ) {
        let all = block * BLOCK..(block + 1) * BLOCK;
        if self.large.has(block) {
            self.large.set(block, false);
            dropped.large += 1;
            words(all.clone()).for_each(|(word, mask)| gone(word, mask));
        } else {
            let part = pages.start.max(all.start)..pages.end.min(all.end);
            for (word, mask) in words(part) {
                let there = self.small.0[word] & mask;
                if there != 0 {
                    self.small.0[word] &= !there;
                    dropped.small += u64::from(there.count_ones());
                    gone(word, there);
                }
            }
        }
        if !self.small.any(all) {
            self.occupied.set(block, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn dropping_agrees_with_a_set(
            steps in prop::collection::vec((0u8..3, 0u64..2048, 1u64..700), 1..60),
        ) {
            let mut sptes = Sptes::none(2048);
            let (mut small, mut large) = (BTreeSet::new(), BTreeSet::new());
            for (kind, page, len) in steps {
                match kind {
                    0 if !large.contains(&(page / BLOCK)) => {
                        sptes.install_small((page / 64) as usize, 1 << (page % 64));
                        small.insert(page);
                    }
                    1 => {
                        sptes.install_large(page / BLOCK);
                        small.retain(|p| p / BLOCK != page / BLOCK);
                        large.insert(page / BLOCK);
                    }
                    _ => {
                        let range = page..(page + len).min(2048);
                        let mut lost = BTreeSet::new();
                        let dropped = sptes.drop_range(range.clone(), |word, mask| {
                            lost.extend((0..64).filter(|bit| mask >> bit & 1 != 0).map(|bit| word as u64 * 64 + bit));
                        });
                        let blocks: BTreeSet<u64> =
                            large.iter().copied().filter(|b| b * BLOCK < range.end && (b + 1) * BLOCK > range.start).collect();
                        let pages: BTreeSet<u64> = small.range(range).copied().collect();
                        prop_assert_eq!(dropped, Leaves { small: pages.len() as u64, large: blocks.len() as u64 });
                        let of_blocks = blocks.iter().flat_map(|b| b * BLOCK..(b + 1) * BLOCK);
                        prop_assert_eq!(lost, pages.iter().copied().chain(of_blocks).collect::<BTreeSet<_>>());
                        small.retain(|page| !pages.contains(page));
                        large.retain(|block| !blocks.contains(block));
                    }
                }
                for page in (0..2048).step_by(37) {
                    prop_assert_eq!(sptes.has(page), small.contains(&page) || large.contains(&(page / BLOCK)));
                }
            }
        }
    }

    #[test]
    fn a_range_is_cut_into_words() {
        assert_eq!(words(3..3).count(), 0);
        assert_eq!(words(3..5).collect::<Vec<_>>(), [(0, 0b11000)]);
        assert_eq!(words(63..129).collect::<Vec<_>>(), [(0, 1 << 63), (1, u64::MAX), (2, 1)]);
    }
}
