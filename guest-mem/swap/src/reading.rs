//! Orders the reading of events against faults and claims: after an event was read, no other thread may act on the state
//! before it.
//!
//! ```text
//!   reader     ├─ read ── forget ─┤            exclusive: the kernel lets the event's thread go on inside `read`
//!   return     ├─ look at the state ── fill ─┤  shared: no event is read between the look and the fill
//!   claim      ├┤                             waits for a reader at work: all events read before have been acted on
//! ```
//!
//! A thread that discards or moves memory waits until the event is read, and then goes on. If the reader had not yet
//! forgotten the pages, a fault that another handler serves would bring back discarded content; a claim would store new
//! content under an old state that is about to be forgotten; and of two events that two handlers have read, the second
//! could be acted on first.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};
use std::time::Duration;

use guest_mem::waits::{Overdue, Patience, WAKE};

/// `None` if the kernel sends no events: there is nothing to order then.
#[derive(Debug)]
pub(crate) struct Reading(Option<Order>);

#[derive(Debug, Default)]
struct Order {
    lock: RwLock<()>,
    /// Odd while a reader is at work.
    readings: AtomicU64,
}

/// A reader at work.
#[derive(Debug)]
pub(crate) struct AtWork<'a> {
    order: &'a Order,
    _exclusive: RwLockWriteGuard<'a, ()>,
}

/// Another handler reads, or pages are coming back.
#[derive(Debug)]
pub(crate) struct NotNow;

/// Whether a reader waits for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It waits.
    Waits,
    /// It does not wait, and tries again later. Several readers that wait in a loop would keep out the faults they read for.
    ComesAgain,
}

impl Reading {
    /// Without a reader.
    pub fn new(events: bool) -> Self {
        Self(events.then(Order::default))
    }

    /// Begins a reading. Keep the result until the messages are acted on. No block may be locked. `Err` if it is not this
    /// reader's turn.
    pub fn begin(&self, turn: Turn) -> Result<Option<AtWork<'_>>, NotNow> {
        let Some(order) = &self.0 else { return Ok(None) };
        let exclusive = match (turn, order.lock.try_write()) {
            (_, Ok(exclusive)) => exclusive,
            (_, Err(TryLockError::Poisoned(poisoned))) => poisoned.into_inner(),
            (Turn::ComesAgain, Err(TryLockError::WouldBlock)) => return Err(NotNow),
            (Turn::Waits, Err(TryLockError::WouldBlock)) => {
                order.lock.write().unwrap_or_else(PoisonError::into_inner)
            }
        };
        order.readings.fetch_add(1, Ordering::SeqCst);
        Ok(Some(AtWork { order, _exclusive: exclusive }))
    }

    /// Keeps events from being read; all that were read have been acted on. No block may be locked.
    pub fn hold_off(&self) -> Option<RwLockReadGuard<'_, ()>> {
        self.0.as_ref().map(|order| order.lock.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns when all events that were read have been acted on.
    ///
    /// # Errors
    /// A handler has read an event and does not act on it.
    pub fn settle(&self) -> Result<(), Overdue> {
        self.settle_within(WAKE)
    }

    fn settle_within(&self, patience: Duration) -> Result<(), Overdue> {
        let Some(Order { readings, .. }) = &self.0 else { return Ok(()) };
        let seen = readings.load(Ordering::SeqCst);
        let mut patience = Patience::new(patience);
        while seen % 2 == 1 && readings.load(Ordering::SeqCst) == seen {
            if let Some(waited) = patience.over() {
                return Err(Overdue::new("a fault handler to act on the events that it has read", waited));
            }
        }
        Ok(())
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.order.readings.fetch_add(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_for_a_reader_that_does_not_act_ends() {
        let reading = Reading::new(true);
        assert_eq!(reading.settle(), Ok(()));
        let at_work = reading.begin(Turn::Waits).unwrap();
        let overdue = reading.settle_within(Duration::from_millis(20)).unwrap_err().to_string();
        assert!(
            overdue.contains("a fault handler to act on the events that it has read, in vain"),
            "{overdue}"
        );
        drop(at_work);
        assert_eq!(reading.settle(), Ok(()));
    }
}
