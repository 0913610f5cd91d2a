//! The free pages of the file: extents, found by their length and merged by their place.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The free pages of a file of so many, as extents that never touch.
#[derive(Debug)]
pub(super) struct Extents {
    /// Start to end.
    by_start: BTreeMap<u64, u64>,
    /// Length and start.
    by_len: BTreeSet<(u64, u64)>,
    free: u64,
}

impl Extents {
    /// `pages` pages, all free.
    pub(super) fn new(pages: u64) -> Self {
        let mut extents = Self { by_start: BTreeMap::new(), by_len: BTreeSet::new(), free: 0 };
        extents.give(0..pages);
        extents
    }

    /// Takes `pages` pages: one extent if there is one as long, the shortest such; else from the longest ones down,
    /// as few as it takes. `None`, and nothing taken, if fewer are free.
    pub(super) fn take(&mut self, pages: u64) -> Option<Vec<Range<u64>>> {
        if pages > self.free {
            return None;
        }
        let mut taken = Vec::with_capacity(1);
        let mut wanted = pages;
        while wanted > 0 {
            let fitting = self.by_len.range((wanted, 0)..).next();
            let &(len, start) = fitting.or(self.by_len.last()).expect("as much is free");
            let part = start..start + len.min(wanted);
            self.remove(start, len);
            self.insert(part.end..start + len);
            wanted -= part.end - part.start;
            taken.push(part);
        }
        Some(taken)
    }

    /// Gives pages back that are not free.
    pub(super) fn give(&mut self, pages: Range<u64>) {
        let Range { mut start, mut end } = pages;
        if let Some((&before, &its_end)) = self.by_start.range(..start).next_back()
            && its_end == start
        {
            self.remove(before, its_end - before);
            start = before;
        }
        if let Some(&its_end) = self.by_start.get(&end) {
            self.remove(end, its_end - end);
            end = its_end;
        }
        self.insert(start..end);
    }

    fn insert(&mut self, pages: Range<u64>) {
        if !pages.is_empty() {
            let len = pages.end - pages.start;
            self.by_start.insert(pages.start, pages.end);
            self.by_len.insert((len, pages.start));
            self.free += len;
        }
    }

    fn remove(&mut self, start: u64, len: u64) {
        self.by_start.remove(&start);
        self.by_len.remove(&(len, start));
        self.free -= len;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against an array with one flag a page.
        #[test]
        fn it_agrees_with_a_flag_a_page(steps in prop::collection::vec((any::<bool>(), 0u64..40, any::<usize>()), 1..80)) {
            const PAGES: u64 = 200;
            let mut extents = Extents::new(PAGES);
            let mut free = [true; PAGES as usize];
            let mut held: Vec<Range<u64>> = Vec::new();
            for (put, pages, pick) in steps {
                if put {
                    let runs = free.split(|&is_free| !is_free).map(<[bool]>::len);
                    let (longest, all) = (runs.clone().max().unwrap_or(0) as u64, runs.sum::<usize>() as u64);
                    let taken = extents.take(pages);
                    prop_assert_eq!(taken.is_some(), pages <= all);
                    let taken = taken.unwrap_or_default();
                    prop_assert!(taken.len() <= 1 || pages > longest, "{} pages of a run of {}", pages, longest);
                    for page in taken.iter().flat_map(Clone::clone) {
                        prop_assert!(std::mem::replace(&mut free[page as usize], false), "page {} is taken twice", page);
                    }
                    held.extend(taken);
                } else if !held.is_empty() {
                    // Often a part of what was taken together.
                    let whole = held.swap_remove(pick % held.len());
                    let end = whole.end.min(whole.start + 1 + pages);
                    free[whole.start as usize..end as usize].fill(true);
                    extents.give(whole.start..end);
                    held.extend((end < whole.end).then_some(end..whole.end));
                }
                prop_assert_eq!(extents.free, free.iter().filter(|&&is_free| is_free).count() as u64);
                let runs = free.split(|&is_free| !is_free).filter(|run| !run.is_empty()).count();
                prop_assert_eq!((extents.by_start.len(), extents.by_len.len()), (runs, runs), "merged");
            }
        }
    }
}
