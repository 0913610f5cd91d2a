//! Rows made by hand.

use guest_mem::{MapLevel, Order, PAGE_SIZE};
use notifier_bridge::Cause;

use crate::events::{
    Announcement, HostState, LayoutRun, OperationEvent, RangeEvent, RowEvents, RowHeader, SecondaryMmu,
    SlotRun, Span, StallEvent, StepEvent, StepTime,
};
use crate::record::fixture;
use crate::tap::RangeCause;

const PAGES: u64 = 1024;

/// An operation of one bracket of 1000 ns: zap 300, kernel 600, end 100.
pub fn bracket(began_ns: u64, cause: Cause) -> (OperationEvent, Announcement) {
    let operation =
        OperationEvent { began_ns, touches: 0, first_page: 3, pages: 1, evicted: 1, announcements: 1 };
    let announcement = Announcement {
        first_page: 3,
        pages: 1,
        order: Order::BASE,
        level: MapLevel::Pte,
        anonymous: true,
        cause,
        began_ns: 0,
        zap_ns: 300,
        operation_ns: 600,
        end_ns: 100,
    };
    (operation, announcement)
}

/// vCPU 0 stands still on page 7.
pub fn stall(began_ns: u64, ns: u64) -> StallEvent {
    StallEvent { began_ns, ns, vcpu: 0, page: Some(7) }
}

/// The kernel announces pages from page 3 on.
pub fn range(at_ns: u64, pages: u64, cause: RangeCause) -> RangeEvent {
    RangeEvent { at_ns, first_page: 3, pages, cause }
}

/// A row that filled its memory, took some of it in the first 10,000 ns, and read that again.
pub fn row(brackets: &[(OperationEvent, Announcement)]) -> RowEvents {
    let arena = Span { hva: 0x7f00_0000_0000, gpa: 0x4000_0000, bytes: PAGES * PAGE_SIZE };
    let operations = brackets.len() as u32;
    let time = |began_ns, ended_ns| StepTime { began_ns, ended_ns, ..StepTime::default() };
    let header = RowHeader {
        row: 0,
        label: fixture::label(["sparse", "4k", "pmd", "pageout", "protect", "kvm-slots"]),
        mmu: SecondaryMmu::Shadow,
        guest: "bare".to_owned(),
        processors: 2,
        large_guest_pages: true,
        slot_zap_drops_all: false,
        arena,
        slots: vec![SlotRun { span: arena, granule: 2 << 20 }],
        seamed: false,
        began_ns: 5_000_000_000,
        steps: vec![
            StepEvent::Fill,
            StepEvent::Reclaim { layout: 0, operations, ended_ns: 10_000 },
            StepEvent::Refault,
        ],
        step_times: vec![
            time(-9_000, -100),
            StepTime { faults: Some(8), retries: Some(1), ..time(0, 10_000) },
            time(10_000, 30_000),
        ],
        undisturbed: None,
        refill: None,
        causes: Vec::new(),
        lists: 0,
        layouts: 1,
        operations,
        stalls: 0,
        stalls_left_out: 0,
        clock_uncertain_ns: 0,
        range_causes: Vec::new(),
        ranges: 0,
        ranges_left_out: Some(0),
        lost: 0,
    };
    RowEvents {
        header,
        lists: Vec::new(),
        layouts: vec![vec![LayoutRun { pages: PAGES, state: HostState::MappedByPte }]],
        operations: brackets.iter().map(|(operation, _)| *operation).collect(),
        announcements: brackets.iter().map(|(_, announcement)| *announcement).collect(),
        stalls: Vec::new(),
        ranges: Vec::new(),
    }
}
