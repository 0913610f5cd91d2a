//! Rows of a log made by hand, for tests.
#![allow(clippy::unwrap_used, reason = "for tests")]

use guest_mem::{MapLevel, Order, PAGE_SIZE};
use notifier_bridge::Cause;

use super::section::{checksum, preamble};
use super::stream::Stream;
use super::*;
use crate::choice::{RowLabel, fixture};
use notifier_bridge::By;

/// Pages of a trial.
pub const PAGES: u64 = 1024;

/// Where its memory begins.
pub const HVA: u64 = 0x7f00_0000_0000;

/// When the first operation begins.
pub const BEGIN: u64 = 100_000;

/// When the trial begins.
pub const BEGAN: u64 = 5_000_000_000;

/// A trial over 4 MiB.
pub fn setting() -> Setting {
    setting_of(fixture::label(["sparse", "4k", "pmd", "pageout", "protect", "kvm-slots"]), PAGES)
}

/// A trial of a row with this label, over so many pages.
pub fn setting_of(label: RowLabel, pages: u64) -> Setting {
    let arena = Span { hva: HVA, gpa: 0x4000_0000, bytes: pages * PAGE_SIZE };
    Setting {
        seamed: label.tried.is_seamed(),
        label,
        mmu: SecondaryMmu::Shadow,
        guest: GuestKind::Bare,
        processors: 2,
        large_guest_pages: true,
        slot_zap_drops_all: false,
        arena,
        slots: vec![SlotRun { span: arena, granule: 2 << 20 }],
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
        ranges: Ranges { ranges: 1, bytes: PAGE_SIZE },
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
pub fn range(after_ns: u64, pages: u64, cause: By) -> Event {
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

/// A step begins.
pub fn begun(at_ns: u64, step: Step) -> Event {
    Event::StepBegan { at_ns, step }
}

/// A step is over.
pub fn ended(at_ns: u64) -> Event {
    Event::StepEnded { at_ns, counted: Counted { faults: Some(7), retries: Some(2), flushes: None } }
}

/// An operation on one page, of a call that was announced and done as expected.
pub fn operation(at_ns: u64, page: u64) -> [Event; 4] {
    let expected = vec![Expected { first_page: page, pages: 1, kind: ExpectedKind::Folio(Order::PMD) }];
    let call = Called { at_ns: at_ns + 3, ns: 5, certainty: Certainty::Exact, expected };
    let expected = Some(Ranges { ranges: 1, bytes: PAGE_SIZE });
    let dropped = Dropped::ByKernel(Leaves { small: 1, large: 0 });
    let end = OperationEnd { evicted_bytes: PAGE_SIZE, expected, dropped, ..OperationEnd::default() };
    [
        Event::OperationBegan(Operation { at_ns, touches: 99, first_page: page, pages: 1 }),
        Event::Announced(announcement(at_ns + 2, page)),
        Event::Called(call),
        Event::OperationEnded(end),
    ]
}

/// One of each kind of event, in an order that makes sense.
pub fn one_of_each() -> Vec<Event> {
    let run = |pages, state| LayoutRun { pages, state };
    let layout = vec![run(512, HostState::MappedByPmd), run(512, HostState::MappedByPte)];
    let list = Some(vec![7, 3, 1023]);
    let mut events = vec![
        Event::Trial(Box::new(setting())),
        begun(1, Step::Fill),
        ended(2),
        begun(3, Step::Hot(HotLoops { list, stride: None, writes: false, loops: 1 })),
        ended(4),
        begun(5, Step::Baseline),
        Event::Touched { disturbed: false, touches: 1_000, ns: 80_000 },
        ended(6),
        begun(7, Step::Reclaim(layout)),
        Event::Asked { victims: 2, bytes: 2 * PAGE_SIZE },
    ];
    events.extend(operation(10, 700));
    events.extend(operation(40_000, 2));
    let range = |at_ns, start, cause, call| KernelRange { at_ns, start, bytes: PAGE_SIZE, cause, call };
    events.extend([
        Event::Reading { counter: Counter::RemoteTlbFlushes, count: None },
        Event::KernelRange(range(13, 700 << 12, By::Step, Some(0))),
        Event::KernelRange(range(14, -4096, By::Khugepaged, None)),
        Event::KernelSpan { lost: 3 },
        ended(50_000),
        begun(50_001, Step::Sweep),
        ended(50_002),
        Event::Verified { wrong: 0 },
        Event::Swapped(Swapped { faults: 1, ..Swapped::default() }),
        Event::GuestCounters([("pgfault".to_owned(), 7)].into()),
        Event::Device(DeviceCounts { entries_dropped: 1, empty_flushes: 2 }),
        Event::GivenBack(GivenBack::default()),
        Event::Refill(Refill {
            rounds: vec![RefillRound { gap_ns: 1, ns: 2, faults: 3 }],
            around: vec![4],
            around_ns: vec![5],
        }),
        Event::Stall(Stall { at_ns: Some(41_000), ns: 3_100, vcpu: 1, page: Some(0), on: StallOn::Taken }),
        Event::Stall(Stall { at_ns: None, ns: 1, vcpu: 0, page: None, on: StallOn::Other }),
        Event::Clock { uncertain_ns: 40 },
        Event::Warned("so it is".to_owned()),
        Event::NoAccount("it was not wanted".to_owned()),
    ]);
    events
}

/// A section of these events: row 3 of a log.
pub fn section(events: &[Event]) -> Section {
    let mut stream = Stream::default();
    events.iter().for_each(|event| stream.push(event));
    Section::new(3, &stream).unwrap()
}

/// A log of so many sections of one of each event.
pub fn log(sections: usize) -> Vec<u8> {
    [preamble(), section(&one_of_each()).bytes().repeat(sections)].concat()
}

/// A log of one section in which these bytes were changed. The checksum is right, so that what is behind it is tried.
pub fn damaged(changes: impl IntoIterator<Item = (usize, u8)>) -> Vec<u8> {
    const SECTION: usize = 16;
    const PAYLOAD: usize = SECTION + 12;
    let mut log = log(1);
    for (place, byte) in changes {
        let len = log.len() - PAYLOAD;
        log[PAYLOAD + place % len] = byte;
    }
    let sum = checksum(3, &log[PAYLOAD..]);
    log[SECTION + 8..PAYLOAD].copy_from_slice(&sum.to_le_bytes());
    log
}
