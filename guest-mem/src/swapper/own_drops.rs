//! Which of the kernel's remove events are the swapper's own doing.

use std::sync::{Mutex, PoisonError};

use crate::range::HvaRange;

/// Ranges whose removal was begun here and not yet reported by the kernel. An event is matched by the range, which the
/// kernel repeats exactly; of two events for the same range it makes no difference which is taken for whose.
#[derive(Debug)]
pub(super) struct OwnDrops {
    /// `None` where the kernel sends no events.
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

    /// It failed before its event.
    pub fn take_back(&self, range: HvaRange) {
        self.is_own(range);
    }

    /// Whether the event is of a removal that was begun here. That one is not expected any more.
    pub fn is_own(&self, range: HvaRange) -> bool {
        self.with(|expected| {
            let found = expected.iter().position(|expected| *expected == range);
            found.map(|at| expected.swap_remove(at)).is_some()
        })
        .unwrap_or(false)
    }

    fn with<R>(&self, act: impl FnOnce(&mut Vec<HvaRange>) -> R) -> Option<R> {
        let mut expected = self.expected.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        Some(act(&mut expected))
    }
}
