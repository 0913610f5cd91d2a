//! What is remembered of one invalidation: a fixed-size record, the same type whatever the source.

use guest_mem::{Hva, HvaRange, MapLevel, Order, Victim};

use crate::count::Count;
use crate::event::{Cause, Invalidation, Source};
use crate::listener::Zapped;
use crate::policy::Policy;

/// How an invalidation went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Announced, performed, ended.
    Performed,
    /// A listener refused a non-blockable start: the operation was not performed.
    Refused,
}

/// One invalidation, as it went.
///
/// ```text
///  start_ns
///  ├────── starts ──────┼──── operation ────┼── page and range calls ──┼── repeats and ends ──┤
///  └─ zap_ns, first part ┘└─ operation_ns ──┘└── zap_ns, the rest ─────┘└────── end_ns ───────┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidationRecord {
    /// Which [`Recorder`](crate::Recorder) of the ledger made it. 0 until they are merged.
    pub recorder: u32,
    /// Its number within its recorder, from 0, gapless but for what was lost.
    pub number: u64,
    /// When it began: `CLOCK_MONOTONIC`, nanoseconds.
    pub start_ns: u64,
    /// Who says so.
    pub source: Source,
    /// What the pages were taken for.
    pub cause: Cause,
    /// The rule for the range; `None` where the kernel chose it.
    pub policy: Option<Policy>,
    /// Whether the operation was performed.
    pub outcome: Outcome,
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
    /// What the operation had to cover, see [`Invalidation::needed_bytes`]; 0 if it was refused.
    pub needed_bytes: u64,
    /// Bytes of all ranges told.
    pub invalidated_bytes: u64,
    /// Calls to sharing listeners, however many listeners there are.
    pub sharing_calls: u64,
    /// Those of them that only repeated an earlier one.
    pub double_calls: u64,
    /// What shadowing listeners really dropped, summed over them.
    pub zapped: Zapped,
    /// Time in starts and in page and range calls.
    pub zap_ns: u64,
    /// Time in the operation itself.
    pub operation_ns: u64,
    /// Time in ends, the repeated range calls included.
    pub end_ns: u64,
}

/// Three cache lines: a field that would make it four should be worth one.
const _: () = assert!(size_of::<InvalidationRecord>() <= 192);

impl InvalidationRecord {
    /// What a recorder fills its buffer with before there is anything to record.
    pub(crate) fn blank() -> Self {
        Self {
            recorder: 0,
            number: 0,
            start_ns: 0,
            source: Source::Hook,
            cause: Cause::Unknown,
            policy: None,
            outcome: Outcome::Performed,
            victim: HvaRange::empty(Hva::new(0)),
            order: Order::BASE,
            level: MapLevel::Pte,
            anonymous: true,
            ranges: 0,
            needed_bytes: 0,
            invalidated_bytes: 0,
            sharing_calls: 0,
            double_calls: 0,
            zapped: Zapped::NOTHING,
            zap_ns: 0,
            operation_ns: 0,
            end_ns: 0,
        }
    }

    /// An invalidation of which nothing more than the event is known yet: what a source that only watches
    /// begins from, filling in what it knows. One range, as wide as the victim, nothing known of SPTEs.
    pub fn observed(invalidation: &Invalidation, start_ns: u64) -> Self {
        let bytes = invalidation.victim.pages.len();
        let zapped = Zapped { sptes_4k: Count::UNKNOWN, sptes_2m: Count::UNKNOWN, ..Zapped::NOTHING };
        Self { ranges: 1, invalidated_bytes: bytes, zapped, ..Self::begun(invalidation, None, start_ns) }
    }

    /// A fault that userfaultfd reported: it takes nothing from anybody, so there is no range and nothing needed.
    pub fn fault(fault: &Invalidation, start_ns: u64) -> Self {
        Self { ranges: 0, invalidated_bytes: 0, needed_bytes: 0, ..Self::observed(fault, start_ns) }
    }

    /// The record at the moment an invalidation begins.
    pub(crate) fn begun(invalidation: &Invalidation, policy: Option<Policy>, start_ns: u64) -> Self {
        let Victim { pages, order, level, anonymous } = invalidation.victim;
        Self {
            start_ns,
            source: invalidation.source,
            cause: invalidation.cause,
            policy,
            victim: pages,
            order,
            level,
            anonymous,
            needed_bytes: invalidation.needed_bytes(),
            ..Self::blank()
        }
    }

    /// Notes one range told to shadowing listeners.
    pub(crate) fn tell(&mut self, range: HvaRange) {
        self.ranges += 1;
        self.invalidated_bytes += range.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No field is what a blank record has.
    fn invalidation(cause: Cause) -> Invalidation {
        let pages = HvaRange::with_len(Hva::new(0x40_0000), 0x20_0000).expect("small numbers");
        let victim = Victim { pages, order: Order::PMD, level: MapLevel::Pmd, anonymous: false };
        Invalidation { source: Source::Kernel, ..Invalidation::hook(cause, victim, pages) }
    }

    #[test]
    fn what_was_watched_is_one_range_and_nothing_is_known_of_entries() {
        let seen = invalidation(Cause::PageOut);
        let unknown = Zapped { sptes_4k: Count::UNKNOWN, sptes_2m: Count::UNKNOWN, ..Zapped::NOTHING };
        let expected = InvalidationRecord {
            start_ns: 7,
            source: Source::Kernel,
            cause: Cause::PageOut,
            victim: seen.victim.pages,
            order: Order::PMD,
            level: MapLevel::Pmd,
            anonymous: false,
            ranges: 1,
            needed_bytes: 0x20_0000,
            invalidated_bytes: 0x20_0000,
            zapped: unknown,
            ..InvalidationRecord::blank()
        };
        assert_eq!(InvalidationRecord::observed(&seen, 7), expected);
    }

    #[test]
    fn a_fault_takes_nothing() {
        let fault = InvalidationRecord::fault(&invalidation(Cause::MissingFault), 7);
        assert_eq!((fault.ranges, fault.invalidated_bytes, fault.needed_bytes), (0, 0, 0));
        assert_eq!((fault.cause, fault.start_ns), (Cause::MissingFault, 7));
    }

    #[test]
    fn what_is_announced_says_by_which_rule() {
        let begun = InvalidationRecord::begun(&invalidation(Cause::PageOut), Some(Policy::Pmd), 7);
        assert_eq!((begun.policy, begun.ranges, begun.zapped), (Some(Policy::Pmd), 0, Zapped::NOTHING));
    }
}
