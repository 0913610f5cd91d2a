//! A set of addresses, as ranges, which several threads change.

use std::sync::{Mutex, MutexGuard, PoisonError};

use guest_mem::{Hva, HvaRange};
use rangemap::RangeSet;

#[derive(Debug, Default)]
pub(crate) struct AddressSet(Mutex<RangeSet<Hva>>);

impl AddressSet {
    /// Adds a range.
    pub fn insert(&self, range: HvaRange) {
        if !range.is_empty() {
            self.lock().insert(range.start()..range.end());
        }
    }

    /// Removes a range. Returns the parts of it that were not in the set.
    pub fn remove(&self, range: HvaRange) -> Vec<HvaRange> {
        let mut set = self.lock();
        let gaps = gaps_of(&set, range);
        if !range.is_empty() {
            set.remove(range.start()..range.end());
        }
        gaps
    }

    /// The parts of a range that are not in the set.
    pub fn gaps(&self, range: HvaRange) -> Vec<HvaRange> {
        gaps_of(&self.lock(), range)
    }

    fn lock(&self) -> MutexGuard<'_, RangeSet<Hva>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn gaps_of(set: &RangeSet<Hva>, range: HvaRange) -> Vec<HvaRange> {
    let outer = range.start()..range.end();
    let gaps = set.gaps(&outer).filter_map(|gap| HvaRange::new(gap.start, gap.end));
    gaps.filter(|gap| !gap.is_empty()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn range(start: u64, end: u64) -> HvaRange {
        HvaRange::new(Hva::new(start), Hva::new(end)).unwrap()
    }

    #[test]
    fn a_range_that_was_added_is_left_out_until_it_is_removed() {
        let set = AddressSet::default();
        assert_eq!(set.gaps(range(0, 10)), [range(0, 10)]);
        set.insert(range(2, 4));
        set.insert(range(6, 8));
        set.insert(range(9, 9));
        assert_eq!(set.gaps(range(0, 10)), [range(0, 2), range(4, 6), range(8, 10)]);
        assert_eq!(set.gaps(range(2, 4)), []);
        assert_eq!(set.remove(range(2, 3)), []);
        assert_eq!(set.gaps(range(0, 8)), [range(0, 3), range(4, 6)]);
        assert_eq!(set.remove(range(0, 10)), [range(0, 3), range(4, 6), range(8, 10)]);
        assert_eq!(set.gaps(range(0, 10)), [range(0, 10)]);
        assert_eq!(set.remove(range(5, 5)), []);
    }
}
