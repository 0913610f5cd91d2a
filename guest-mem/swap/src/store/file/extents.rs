//! The free pages of the file: extents, found by their length and merged by their place.

use std::collections::{BTreeMap, BTreeSet};

use super::page::{Extent, FilePage};

/// The free pages of a file, as extents that never touch.
#[derive(Debug)]
pub(super) struct Extents {
    /// The first page of each, and its length in pages.
    by_first: BTreeMap<FilePage, u64>,
    /// Length and first page.
    by_len: BTreeSet<(u64, FilePage)>,
    free: u64,
}

impl Extents {
    /// `pages` pages, all free.
    pub(super) fn new(pages: u64) -> Self {
        let mut extents = Self { by_first: BTreeMap::new(), by_len: BTreeSet::new(), free: 0 };
        extents.give(Extent { first: FilePage::FIRST, pages });
        extents
    }

    /// Takes `pages` pages: one extent if there is one as long, the shortest such; else from the longest ones down,
    /// as few as it takes. `None`, and nothing taken, if fewer are free.
    pub(super) fn take(&mut self, pages: u64) -> Option<Vec<Extent>> {
        if pages > self.free {
            return None;
        }
        let mut taken = Vec::with_capacity(1);
        let mut wanted = pages;
        while wanted > 0 {
            let fitting = self.by_len.range((wanted, FilePage::FIRST)..).next();
            let &(len, first) = fitting.or(self.by_len.last()).expect("as much is free");
            let (whole, part) = (Extent { first, pages: len }, Extent { first, pages: len.min(wanted) });
            self.remove(whole);
            self.insert(Extent::between(part.end(), whole.end()));
            wanted -= part.pages;
            taken.push(part);
        }
        Some(taken)
    }

    /// Gives pages back that are not free.
    pub(super) fn give(&mut self, extent: Extent) {
        let Extent { mut first, mut pages } = extent;
        let before = self.by_first.range(..first).next_back().map(|(&first, &pages)| Extent { first, pages });
        if let Some(before) = before.filter(|before| before.end() == first) {
            self.remove(before);
            first = before.first;
            pages += before.pages;
        }
        if let Some(&more) = self.by_first.get(&extent.end()) {
            self.remove(Extent { first: extent.end(), pages: more });
            pages += more;
        }
        self.insert(Extent { first, pages });
    }

    fn insert(&mut self, Extent { first, pages }: Extent) {
        if pages > 0 {
            self.by_first.insert(first, pages);
            self.by_len.insert((pages, first));
            self.free += pages;
        }
    }

    fn remove(&mut self, Extent { first, pages }: Extent) {
        self.by_first.remove(&first);
        self.by_len.remove(&(pages, first));
        self.free -= pages;
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
            let mut held: Vec<Extent> = Vec::new();
            for (put, pages, pick) in steps {
                if put {
                    let runs = free.split(|&is_free| !is_free).map(<[bool]>::len);
                    let (longest, all) = (runs.clone().max().unwrap_or(0) as u64, runs.sum::<usize>() as u64);
                    let taken = extents.take(pages);
                    prop_assert_eq!(taken.is_some(), pages <= all);
                    let taken = taken.unwrap_or_default();
                    prop_assert!(taken.len() <= 1 || pages > longest, "{} pages of a run of {}", pages, longest);
                    for page in taken.iter().flat_map(|extent| extent.each()) {
                        let was_free = std::mem::replace(&mut free[page.number() as usize], false);
                        prop_assert!(was_free, "page {} is taken twice", page.number());
                    }
                    held.extend(taken);
                } else if !held.is_empty() {
                    // Often a part of what was taken together.
                    let whole = held.swap_remove(pick % held.len());
                    let part = Extent { first: whole.first, pages: whole.pages.min(1 + pages) };
                    part.each().for_each(|page| free[page.number() as usize] = true);
                    extents.give(part);
                    let rest = Extent::between(part.end(), whole.end());
                    held.extend((rest.pages > 0).then_some(rest));
                }
                prop_assert_eq!(extents.free, free.iter().filter(|&&is_free| is_free).count() as u64);
                let runs = free.split(|&is_free| !is_free).filter(|run| !run.is_empty()).count();
                prop_assert_eq!((extents.by_first.len(), extents.by_len.len()), (runs, runs), "merged");
            }
        }
    }
}
