//! Tells the remove events of the swapper's own drops from those of others.

use guest_mem::HvaRange;

use crate::address_set::AddressSet;

/// Ranges whose removal was begun here and not yet reported by the kernel.
///
/// The kernel reports a range in as many pieces as it has mappings at that moment, and other code may have cut them, so an
/// event is matched page by page. If there are two events for the same page, either may be matched: the page is forgotten
/// once.
#[derive(Debug)]
pub(crate) struct OwnDrops {
    /// `None` where the kernel sends no events.
    expected: Option<AddressSet>,
}

impl OwnDrops {
    /// None yet.
    pub fn new(events: bool) -> Self {
        Self { expected: events.then(AddressSet::default) }
    }

    /// A removal is about to begin. No other one has pages of the range: a page is dropped by one evictor at a time.
    pub fn expect(&self, range: HvaRange) {
        if let Some(expected) = &self.expected {
            expected.insert(range);
        }
    }

    /// The removal is over, and all its events were acted on: the kernel reports no more of it.
    pub fn is_over(&self, range: HvaRange) {
        self.foreign(range);
    }

    /// The parts of a removed range that were not removed here. The rest is not expected any more.
    pub fn foreign(&self, removed: HvaRange) -> Vec<HvaRange> {
        self.expected.as_ref().map_or(vec![removed], |expected| expected.remove(removed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address_set::tests::range;

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
