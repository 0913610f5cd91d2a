//! Tells the remove events of the swapper's own drops from those of others.

use std::sync::{Mutex, PoisonError};

use guest_mem::HvaRange;

use crate::away::outside;

/// Ranges whose removal was begun here and not yet reported by the kernel.
///
/// The kernel reports a range in as many pieces as it has mappings at that moment, and other code may have cut them, so an
/// event is matched page by page. If there are two events for the same page, either may be matched: the page is forgotten
/// once.
#[derive(Debug)]
pub(crate) struct OwnDrops {
    /// `None` where the kernel sends no events. The ranges never overlap: a page is dropped by one evictor at a time.
    expected: Option<Mutex<Vec<HvaRange>>>,
}

impl OwnDrops {
    /// None yet.
    pub fn new(events: bool) -> Self {
        Self { expected: events.then(Mutex::default) }
    }

    /// A removal is about to begin.
    pub fn expect(&self, range: HvaRange) {
        self.with(|expected| expected.push(range));
    }

    /// The removal is over, and all its events were acted on: the kernel reports no more of it.
    pub fn is_over(&self, range: HvaRange) {
        self.foreign(range);
    }

    /// The parts of a removed range that were not removed here. The rest is not expected any more.
    pub fn foreign(&self, removed: HvaRange) -> Vec<HvaRange> {
        let mut foreign = vec![removed];
        self.with(|expected| {
            for own in expected.iter().filter(|own| own.overlaps(removed)) {
                foreign = foreign.iter().flat_map(|&part| outside(part, *own)).collect();
            }
            *expected = expected.iter().flat_map(|&own| outside(own, removed)).collect();
        });
        foreign
    }

    fn with(&self, act: impl FnOnce(&mut Vec<HvaRange>)) {
        if let Some(expected) = &self.expected {
            act(&mut expected.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_mem::Hva;

    fn range(start: u64, end: u64) -> HvaRange {
        HvaRange::new(Hva::new(start), Hva::new(end)).unwrap()
    }

    #[test]
    fn events_are_matched_page_by_page_and_once() {
        let drops = OwnDrops::new(true);
        assert_eq!(drops.foreign(range(0, 4)), [range(0, 4)]);
        drops.expect(range(0, 8));
        assert_eq!(drops.foreign(range(0, 4)), [], "a mapping was cut: half of it first");
        assert_eq!(drops.foreign(range(4, 12)), [range(8, 12)], "another's, that reaches further");
        assert_eq!(drops.foreign(range(4, 8)), [range(4, 8)], "the second for these pages");
        drops.expect(range(0, 8));
        drops.is_over(range(0, 8));
        assert_eq!(drops.foreign(range(2, 3)), [range(2, 3)]);
        assert_eq!(OwnDrops::new(false).foreign(range(2, 3)), [range(2, 3)]);
    }
}
