//! The pages in the balloon.

use std::ops::Range;

/// A set of page frame numbers below a bound: one bit each, so that it never takes more than a 32,768th of the guest's
/// address space, however scattered the pages are. Parts of it that were never used are never touched.
#[derive(Debug)]
pub(super) struct PageSet {
    words: Vec<u64>,
    len: u64,
}

impl PageSet {
    /// An empty set for PFNs in `0..bound`.
    pub(super) fn up_to(bound: u64) -> Self {
        Self { words: vec![0; bound.div_ceil(64) as usize], len: 0 }
    }

    /// How many pages it has.
    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// Adds a page; false if it is there, or beyond the bound.
    pub(super) fn insert(&mut self, pfn: u64) -> bool {
        let added = self.word(pfn).is_some_and(|word| {
            let before = std::mem::replace(word, *word | bit(pfn));
            before & bit(pfn) == 0
        });
        self.len += u64::from(added);
        added
    }

    /// Takes a page out; false if it is not there.
    pub(super) fn remove(&mut self, pfn: u64) -> bool {
        let removed = self.word(pfn).is_some_and(|word| {
            let before = std::mem::replace(word, *word & !bit(pfn));
            before & bit(pfn) != 0
        });
        self.len -= u64::from(removed);
        removed
    }

    /// Whether any page of a range is there.
    pub(super) fn intersects(&self, pfns: Range<u64>) -> bool {
        if self.len == 0 || pfns.is_empty() {
            return false;
        }
        let (first, last) = (pfns.start / 64, (pfns.end - 1) / 64);
        let bound = self.words.len() as u64;
        (first..=last.min(bound.saturating_sub(1))).any(|index| {
            let mut mask = u64::MAX;
            if index == first {
                mask &= u64::MAX << (pfns.start % 64);
            }
            if index == last {
                mask &= u64::MAX >> (63 - (pfns.end - 1) % 64);
            }
            self.words[index as usize] & mask != 0
        })
    }

    /// Takes all out.
    pub(super) fn clear(&mut self) {
        if self.len > 0 {
            self.words = vec![0; self.words.len()];
            self.len = 0;
        }
    }

    fn word(&mut self, pfn: u64) -> Option<&mut u64> {
        self.words.get_mut(usize::try_from(pfn / 64).ok()?)
    }
}

const fn bit(pfn: u64) -> u64 {
    1 << (pfn % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const BOUND: u64 = 256;

    proptest! {
        #[test]
        fn it_agrees_with_a_set(steps in prop::collection::vec((any::<bool>(), 0..BOUND + 70), 0..200), a in 0..BOUND + 70, len in 0..200u64) {
            let (mut pages, mut set) = (PageSet::up_to(BOUND), BTreeSet::new());
            for (insert, pfn) in steps {
                if insert {
                    prop_assert_eq!(pages.insert(pfn), pfn < BOUND && set.insert(pfn));
                } else {
                    prop_assert_eq!(pages.remove(pfn), set.remove(&pfn));
                }
            }
            prop_assert_eq!(pages.len(), set.len() as u64);
            prop_assert_eq!(pages.intersects(a..a + len), (a..a + len).any(|pfn| set.contains(&pfn)));
            pages.clear();
            prop_assert_eq!((pages.len(), pages.intersects(0..BOUND)), (0, false));
        }
    }
}
