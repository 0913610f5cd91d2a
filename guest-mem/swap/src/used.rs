//! The pages that were used since they were last watched.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A bit for each page: whether it was used since it was last watched.
#[derive(Debug)]
pub(crate) struct Used {
    bits: Box<[AtomicU64]>,
    /// Whether a clock watches: then one fault brings back one page.
    watched: AtomicBool,
}

impl Used {
    pub fn new(pages: u64) -> Self {
        let words = pages.div_ceil(u64::BITS.into());
        Self { bits: (0..words).map(|_| AtomicU64::new(0)).collect(), watched: AtomicBool::new(false) }
    }

    pub fn mark(&self, page: u64) {
        self.bits[(page / 64) as usize].fetch_or(1 << (page % 64), Ordering::Relaxed);
    }

    pub fn clear(&self, pages: Range<u64>) {
        pages.for_each(|page| {
            self.bits[(page / 64) as usize].fetch_and(!(1 << (page % 64)), Ordering::Relaxed);
        });
    }

    pub fn any(&self, mut pages: Range<u64>) -> bool {
        pages.any(|page| self.bits[(page / 64) as usize].load(Ordering::Relaxed) >> (page % 64) & 1 == 1)
    }

    pub fn begin_to_watch(&self) {
        self.watched.store(true, Ordering::Relaxed);
    }

    pub fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The bits are those of a set.
        #[test]
        fn used_pages_are_a_set(steps in prop::collection::vec((0u64..300, 1u64..70, any::<bool>()), 1..60)) {
            let (used, mut model) = (Used::new(370), std::collections::BTreeSet::new());
            for (first, len, mark) in steps {
                let pages = first..first + len;
                prop_assert_eq!(used.any(pages.clone()), model.range(pages.clone()).next().is_some());
                if mark {
                    pages.clone().for_each(|page| used.mark(page));
                    model.extend(pages);
                } else {
                    used.clear(pages.clone());
                    model.retain(|page| !pages.contains(page));
                }
            }
        }
    }
}
