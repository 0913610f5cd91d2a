//! The record of one invalidation, of fixed size.

use guest_mem::{HvaRange, MapLevel, Order, Victim};

use crate::event::{Cause, Invalidation};
use crate::listener::Zapped;

/// The ranges, drops and times of one invalidation.
///
/// ```text
///  start_ns
///  ├────── starts ──────┼──── operation ────┼── page and range calls ──┼── repeats and ends ──┤
///  └─ zap_ns, first part ┘└─ operation_ns ──┘└── zap_ns, the rest ─────┘└────── end_ns ───────┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidationRecord {
    /// Its begin, in nanoseconds of `CLOCK_MONOTONIC`.
    pub start_ns: u64,
    /// The operation that took the pages.
    pub cause: Cause,
    /// The pages taken.
    pub victim: HvaRange,
    /// The victim folio's order.
    pub order: Order,
    /// How the primary MMU mapped the victim.
    pub level: MapLevel,
    /// Whether the victim is anonymous.
    pub anonymous: bool,
    /// Ranges told to shadowing listeners, however many listeners there are.
    pub ranges: u64,
    /// Bytes that the operation had to cover, see [`Invalidation::needed_bytes`].
    pub needed_bytes: u64,
    /// Bytes of all ranges told.
    pub invalidated_bytes: u64,
    /// Calls to sharing listeners, however many listeners there are.
    pub sharing_calls: u64,
    /// Those of them that only repeated an earlier one.
    pub double_calls: u64,
    /// The translations that shadowing listeners dropped, summed over them.
    pub zapped: Zapped,
    /// Time in starts and in page and range calls.
    pub zap_ns: u64,
    /// Time in the operation itself.
    pub operation_ns: u64,
    /// Time in ends, the repeated range calls included.
    pub end_ns: u64,
}

/// Three cache lines. Do not add a field that makes it four.
const _: () = assert!(size_of::<InvalidationRecord>() <= 192);

impl InvalidationRecord {
    /// The record at the moment an invalidation begins.
    pub(crate) fn begun(invalidation: &Invalidation, start_ns: u64) -> Self {
        let Victim { pages, order, level, anonymous } = invalidation.victim;
        Self {
            start_ns,
            cause: invalidation.cause,
            victim: pages,
            order,
            level,
            anonymous,
            ranges: 0,
            needed_bytes: invalidation.needed_bytes(),
            invalidated_bytes: 0,
            sharing_calls: 0,
            double_calls: 0,
            zapped: Zapped::NOTHING,
            zap_ns: 0,
            operation_ns: 0,
            end_ns: 0,
        }
    }

    /// Notes one range told to shadowing listeners.
    pub(crate) fn tell(&mut self, range: HvaRange) {
        self.ranges += 1;
        self.invalidated_bytes += range.len();
    }
}
