//! The announcements and system calls of an operation, before they go into the stream: nothing is encoded inside a bracket.

use guest_mem::{HvaRange, Order, PAGE_SIZE, Planned, Region};
use notifier_bridge::InvalidationRecord;

use super::journal::Journal;
use crate::attribute::Calls;
use experiment::events::{
    Announcement, Called, Certainty, Event, Expected, ExpectedKind, Leaves, OperationEnd, Ranges, Zapped,
};

/// A system call as it was made.
#[derive(Clone, Debug)]
struct Call {
    begin_ns: u64,
    end_ns: u64,
    certainty: Certainty,
    expected: Vec<Expected>,
}

/// The notes of the operation in progress.
#[derive(Debug, Default)]
pub struct Notes {
    pub records: Vec<InvalidationRecord>,
    calls: Vec<Call>,
    /// The calls of the step so far, where the kernel's account of it is kept.
    of_step: Option<Calls>,
}

impl Notes {
    /// A reclaim step begins of which the kernel's account is kept: system calls are noted, by this thread.
    pub fn begin_step(&mut self) {
        self.of_step = Some(Calls::of_thread(rustix::thread::gettid().as_raw_nonzero().get() as u32));
    }

    /// It is over: its system calls.
    pub fn end_step(&mut self) -> Option<Calls> {
        self.of_step.take()
    }

    /// Whether system calls are noted.
    pub const fn calls_are_noted(&self) -> bool {
        self.of_step.is_some()
    }

    /// A system call was made at these times, each from begin to end. It was to announce `planned` in `region`; if it was made
    /// more than once, the ranges that each of the calls announces are not known beforehand.
    pub fn called(
        &mut self,
        made: &[(u64, u64)],
        certainty: Certainty,
        (region, planned): (&Region, &[Planned]),
    ) {
        let Some(of_step) = &mut self.of_step else { return };
        let certainty = if made.len() > 1 { Certainty::Unknown } else { certainty };
        let compared = if certainty.is_compared() { planned } else { &[] };
        for &(begin_ns, end_ns) in made {
            of_step.note(begin_ns, end_ns, certainty);
            let expected = compared.iter().filter_map(|planned| expected(region.range(), planned)).collect();
            self.calls.push(Call { begin_ns, end_ns, certainty, expected });
        }
    }

    /// The operation is over.
    pub fn end(&mut self, arena: HvaRange, end: &OperationEnd, journal: &mut Journal) {
        for record in self.records.drain(..) {
            let announced = announcement(arena, journal.at(record.start_ns), &record);
            journal.push(&Event::Announced(announced));
        }
        for Call { begin_ns, end_ns, certainty, expected } in self.calls.drain(..) {
            let (at_ns, ns) = (journal.at(begin_ns), end_ns.saturating_sub(begin_ns));
            journal.push(&Event::Called(Called { at_ns, ns, certainty, expected }));
        }
        journal.push(&Event::OperationEnded(*end));
    }
}

/// The ranges planned for one operation.
pub fn planned_ranges(planned: &[Planned]) -> Ranges {
    let bytes = planned.iter().map(|planned| planned.range().len()).sum();
    Ranges { ranges: planned.len() as u64, bytes }
}

fn expected(arena: HvaRange, planned: &Planned) -> Option<Expected> {
    let kind = match planned {
        Planned::SplitPmd(_) | Planned::SplitFolio(_) => ExpectedKind::Split,
        Planned::Take(victim) if victim.order > Order::BASE => ExpectedKind::Folio(victim.order),
        Planned::Take(_) | Planned::Exact(_) => ExpectedKind::Once,
    };
    let range = planned.range();
    let offset = range.start().get().checked_sub(arena.start().get())?;
    Some(Expected { first_page: offset / PAGE_SIZE, pages: range.page_count(), kind })
}

fn announcement(arena: HvaRange, at_ns: u64, record: &InvalidationRecord) -> Announcement {
    let offset = record.victim.start().get().saturating_sub(arena.start().get());
    let leaves = record.zapped.sptes_4k.get().zip(record.zapped.sptes_2m.get());
    Announcement {
        at_ns,
        first_page: offset / PAGE_SIZE,
        pages: record.victim.page_count(),
        order: record.order,
        level: record.level,
        anonymous: record.anonymous,
        cause: record.cause,
        ranges: Ranges { ranges: record.ranges, bytes: record.invalidated_bytes },
        sharing_calls: record.sharing_calls,
        double_calls: record.double_calls,
        zapped: Zapped {
            slots: record.zapped.slots,
            bytes: record.zapped.bytes,
            leaves: leaves.map(|(small, large)| Leaves { small, large }),
        },
        zap_ns: record.zap_ns,
        operation_ns: record.operation_ns,
        end_ns: record.end_ns,
    }
}
