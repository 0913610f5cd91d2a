//! Rows made by hand.

use guest_mem::{MapLevel, Order, PAGE_SIZE};
use notifier_bridge::Cause;

use crate::events::{
    Announcement, Counted, Event, GuestKind, HostState, KernelRange, LayoutRun, Leaves, Operation,
    OperationEnd, Ranges, RowEvents, SecondaryMmu, Setting, SlotRun, Span, Stall, StallOn, Step, Zapped,
};
use crate::record::fixture;
use crate::tap::RangeCause;

const PAGES: u64 = 1024;

/// When the first operation begins.
pub const BEGIN: u64 = 100_000;

/// When the trial begins.
pub const BEGAN: u64 = 5_000_000_000;

/// A trial over 4 MiB.
pub fn setting() -> Setting {
    setting_of(PAGES)
}

/// A trial over so many pages.
pub fn setting_of(pages: u64) -> Setting {
    let arena = Span { hva: 0x7f00_0000_0000, gpa: 0x4000_0000, bytes: pages * PAGE_SIZE };
    Setting {
        label: fixture::label(["sparse", "4k", "pmd", "pageout", "protect", "kvm-slots"]),
        mmu: SecondaryMmu::Shadow,
        guest: GuestKind::Bare,
        processors: 2,
        large_guest_pages: true,
        slot_zap_drops_all: false,
        arena,
        slots: vec![SlotRun { span: arena, granule: 2 << 20 }],
        seamed: false,
        began_ns: BEGAN,
    }
}

/// A bracket over one page, of 1000 ns: zap 300, kernel 600, end 100.
pub fn announcement(at_ns: u64, first_page: u64) -> Announcement {
    Announcement {
        at_ns,
        first_page,
        pages: 1,
        order: Order::BASE,
        level: MapLevel::Pte,
        anonymous: true,
        cause: Cause::PageOut,
        told: Ranges { ranges: 1, bytes: PAGE_SIZE },
        sharing_calls: 0,
        double_calls: 0,
        zapped: Zapped { slots: 0, bytes: PAGE_SIZE, leaves: Some(Leaves { small: 1, large: 0 }) },
        zap_ns: 300,
        operation_ns: 600,
        end_ns: 100,
    }
}

/// An operation of one bracket, so long after the first.
pub fn bracket(after_ns: u64, cause: Cause) -> Vec<Event> {
    let at_ns = BEGIN + after_ns;
    let expected = Some(Ranges { ranges: 1, bytes: PAGE_SIZE });
    vec![
        Event::OperationBegan(Operation { at_ns, touches: 0, first_page: 3, pages: 1 }),
        Event::Announced(Announcement { cause, ..announcement(at_ns, 3) }),
        Event::OperationEnded(OperationEnd { evicted_bytes: PAGE_SIZE, expected, ..OperationEnd::default() }),
    ]
}

/// vCPU 0 stands still on page 7, so long after the first operation began.
pub fn stall(after_ns: u64, ns: u64) -> Event {
    Event::Stall(Stall { at_ns: Some(BEGIN + after_ns), ns, vcpu: 0, page: Some(7), on: StallOn::Other })
}

/// The kernel announces pages from page 3 on.
pub fn range(after_ns: u64, pages: u64, cause: RangeCause) -> Event {
    let (at_ns, start) = (BEGIN + after_ns, 3 * PAGE_SIZE as i64);
    Event::KernelRange(KernelRange { at_ns, start, bytes: pages * PAGE_SIZE, cause, call: None })
}

/// A step from one time to another, after the first operation's begin, and what happened in it.
pub fn step([began_ns, ended_ns]: [i64; 2], step: Step, counted: Counted, within: Vec<Event>) -> Vec<Event> {
    let at = |after: i64| BEGIN.saturating_add_signed(after);
    let mut events = vec![Event::StepBegan { at_ns: at(began_ns), step }];
    events.extend(within);
    events.push(Event::StepEnded { at_ns: at(ended_ns), counted });
    events
}

/// A row that filled its memory, took some of it until `taken_ns` after the first operation began, and read that again.
pub fn row_until(taken_ns: u64, brackets: Vec<Vec<Event>>) -> RowEvents {
    let taken = taken_ns as i64;
    let layout = vec![LayoutRun { pages: PAGES, state: HostState::MappedByPte }];
    let counted = Counted { faults: Some(8), retries: Some(1), flushes: None };
    let events = [
        vec![Event::Trial(Box::new(setting()))],
        step([-9_000, -100], Step::Fill, Counted::default(), Vec::new()),
        step([0, taken], Step::Reclaim(layout), counted, brackets.concat()),
        step([taken, taken + 20_000], Step::Refault, Counted::default(), Vec::new()),
        vec![Event::KernelSpan { lost: 0 }],
    ];
    RowEvents { row: 0, events: events.concat() }
}

/// The same in the first 10,000 ns.
pub fn row(brackets: Vec<Vec<Event>>) -> RowEvents {
    row_until(10_000, brackets)
}
