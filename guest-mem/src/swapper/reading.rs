//! Between the reading of an event and acting on it nobody else may act on what was true before.
//!
//! ```text
//!   reader     ├─ read ── forget ─┤            exclusive: the kernel lets the event's thread go on inside `read`
//!   return     ├─ look at the fate ── fill ─┤  shared: no event is read between the look and the fill
//!   claim      ├┤                             shared: what was read before it has been acted on
//! ```
//!
//! Whoever discards or moves memory waits until the event is read, and goes on then, whatever the reader does next. If
//! the reader had not yet forgotten the pages, a fault that another handler serves would bring back what was discarded;
//! a claim would store new content under an old fate that is about to be forgotten; and of two events that two handlers
//! have read, the second could be acted on first.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// `None` where the kernel sends no events: there is nothing to keep apart then.
#[derive(Debug)]
pub(super) struct Reading(Option<RwLock<()>>);

impl Reading {
    /// Nobody reads yet.
    pub fn new(events: bool) -> Self {
        Self(events.then(RwLock::default))
    }

    /// To be called before messages are read, and kept until they are acted on. Before any block is locked.
    pub fn begin(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        self.0.as_ref().map(|lock| lock.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// While this is kept, no event is read, and all that were are acted on. Before any block is locked.
    pub fn hold_off(&self) -> Option<RwLockReadGuard<'_, ()>> {
        self.0.as_ref().map(|lock| lock.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns when all that was read is acted on.
    pub fn settle(&self) {
        drop(self.hold_off());
    }
}
