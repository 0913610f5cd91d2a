//! Logs come back as they were written, and damaged ones are refused with the place.

use guest_mem::{Hva, HvaRange, MapLevel, Order, PAGE_SIZE, PageRun, PageState};
use notifier_bridge::Cause;
use proptest::prelude::*;

use super::section::PREAMBLE;
use super::*;
use crate::record::fixture;

const PAGES: u64 = 1024;
const HVA: u64 = 0x7f00_0000_0000;

fn header() -> RowHeader {
    let label = fixture::label(["sparse", "4k", "kernel", "pageout", "none", "kernel"]);
    let arena = Span { hva: HVA, gpa: 0x4000_0000, bytes: PAGES * PAGE_SIZE };
    RowHeader {
        row: 3,
        label,
        mmu: SecondaryMmu::Shadow,
        guest: "bare".to_owned(),
        processors: 2,
        large_guest_pages: true,
        slot_zap_drops_all: false,
        arena,
        slots: vec![SlotRun { span: arena, granule: 2 << 20 }],
        seamed: true,
        began_ns: 17,
        steps: vec![
            StepEvent::Fill,
            StepEvent::Hot { list: Some(0), stride: None, writes: false, loops: 1 },
            StepEvent::Reclaim { layout: 0, operations: 2, ended_ns: 9_000 },
            StepEvent::Sweep,
        ],
        step_times: vec![
            StepTime { began_ns: -900, ended_ns: -500, ..StepTime::default() },
            StepTime { began_ns: -500, ended_ns: -40, ..StepTime::default() },
            StepTime { began_ns: -40, ended_ns: 9_000, faults: Some(7), retries: Some(2), flushes: None },
            StepTime { began_ns: 9_000, ended_ns: 12_000, ..StepTime::default() },
        ],
        undisturbed: Some((1_000, 80_000)),
        refill: Some(Refill {
            rounds: vec![RefillRound { gap_ns: 1, ns: 2, faults: 3 }],
            around: vec![4],
            around_ns: vec![5],
        }),
        causes: vec!["page-out".to_owned()],
        lists: 1,
        layouts: 1,
        operations: 2,
        stalls: 2,
        stalls_left_out: 9,
        clock_uncertain_ns: 40,
        range_causes: vec!["step".to_owned(), "khugepaged".to_owned()],
        ranges: 2,
        ranges_left_out: Some(0),
        lost: 5,
    }
}

fn announcement(first_page: u64) -> Announcement {
    Announcement {
        first_page,
        pages: 1,
        order: Order::BASE,
        level: MapLevel::Pte,
        anonymous: true,
        cause: Cause::PageOut,
        began_ns: 850,
        zap_ns: 12_000,
        operation_ns: 7,
        end_ns: 0,
    }
}

fn operation(began_ns: u64, first_page: u64, announcements: u32) -> OperationEvent {
    OperationEvent { began_ns, touches: 99, first_page, pages: 1, evicted: 1, announcements }
}

fn body() -> BodyWriter {
    let mut body = BodyWriter::default();
    body.list([7, 3, 1023].into_iter());
    let run = |start: u64, pages: u64, state| PageRun {
        range: HvaRange::with_len(Hva::new(HVA + start * PAGE_SIZE), pages * PAGE_SIZE).unwrap(),
        state,
    };
    let mapped = |level| PageState::Mapped { level, file: false };
    body.layout(&[run(0, 512, mapped(MapLevel::Pmd)), run(512, 512, mapped(MapLevel::Pte))]);
    body.operation(&operation(0, 700, 1), [announcement(700)].into_iter());
    body.operation(&operation(40_000, 2, 2), [announcement(2), announcement(1)].into_iter());
    stalls().iter().for_each(|stall| body.stall(stall));
    ranges().iter().for_each(|range| body.range(range));
    body
}

fn stalls() -> [StallEvent; 2] {
    let stall = |began_ns, page| StallEvent { began_ns, ns: 3_100, vcpu: 1, page };
    [stall(10, Some(0)), stall(41_000, None)]
}

fn ranges() -> [RangeEvent; 2] {
    let range = |at_ns, first_page, pages, cause| RangeEvent { at_ns, first_page, pages, cause };
    [range(5, 700, 1, RangeCause::Step), range(7, 512, 512, RangeCause::Khugepaged)]
}

/// A section that makes sense.
pub(super) fn section() -> Section {
    Section::new(&header(), &body()).unwrap()
}

/// A log of so many of them.
pub(super) fn written(sections: usize) -> Vec<u8> {
    log_of(&section(), sections)
}

fn log_of(section: &Section, sections: usize) -> Vec<u8> {
    [&PREAMBLE[..], &section.bytes().repeat(sections)].concat()
}

fn read(log: &[u8]) -> Result<Vec<RowEvents>, EventLogError> {
    EventLog::new(log)?.rows()
}

#[test]
fn a_log_comes_back_as_it_was_written() {
    let rows = read(&written(2)).unwrap();
    assert_eq!(rows.len(), 2);
    let row = &rows[1];
    assert_eq!(row.header, header());
    assert_eq!(row.lists, [[7, 3, 1023]]);
    assert_eq!(row.layouts[0].len(), 2);
    assert_eq!(row.layouts[0][0], LayoutRun { pages: 512, state: HostState::MappedByPmd });
    assert_eq!(row.operations, [operation(0, 700, 1), operation(40_000, 2, 2)]);
    assert_eq!(row.announcements, [announcement(700), announcement(2), announcement(1)]);
    assert_eq!((row.stalls.as_slice(), row.ranges.as_slice()), (&stalls()[..], &ranges()[..]));
}

#[test]
fn a_victim_takes_few_bytes() {
    let mut body = BodyWriter::default();
    for index in 0..16_384u64 {
        let page = index * 7919 % 16_384;
        body.operation(&operation(index * 60_000, page, 1), [announcement(page)].into_iter());
    }
    let bytes: usize = body.parts().iter().map(|part| part.len()).sum();
    assert!(bytes < 16_384 * 24, "{bytes}");
}

#[test]
fn every_cut_is_noticed() {
    let log = written(2);
    let section = (log.len() - 16) / 2;
    for len in 0..log.len() {
        match read(&log[..len]) {
            Err(EventLogError::NoLog) => assert!(len < 16),
            Err(EventLogError::Truncated { at }) => assert!([16, 16 + section as u64].contains(&at)),
            Ok(rows) => assert_eq!((rows.len() * section) + 16, len),
            Err(error) => panic!("{len}: {error}"),
        }
    }
}

#[test]
fn what_another_wrote_is_refused_by_name() {
    let mut log = written(2);
    log[8] = 1;
    assert!(matches!(read(&log), Err(EventLogError::Version(1))));
    log[0] = b'Z';
    assert!(matches!(read(&log), Err(EventLogError::NoLog)));
    let mut log = written(2);
    let last = log.len() - 1;
    log[last] ^= 1;
    assert!(matches!(read(&log), Err(EventLogError::Checksum { .. })));
    log[19] = 0xff;
    assert!(matches!(read(&log), Err(EventLogError::Large { at: 16, .. })));
}

#[test]
fn headers_that_contradict_themselves_are_refused() {
    let arena = header().arena;
    type Spoil = fn(&mut RowHeader);
    let senseless: [(&str, Spoil); 11] = [
        ("arena", |header| header.arena.bytes = u64::MAX),
        ("arena", |header| header.arena.hva = !0x1f_ffff),
        ("memslots", |header| header.slots[0].granule = 3),
        ("memslots", |header| header.slots[0].span.bytes = 1 << 60),
        ("layout", |header| header.layouts = 0),
        ("list", |header| header.lists = 0),
        ("vCPUs", |header| {
            header.steps[1] = StepEvent::Hot { list: None, stride: Some(1), writes: true, loops: u32::MAX };
        }),
        ("operations", |header| header.operations = 1),
        ("cause", |header| header.causes[0] = "whim".to_owned()),
        ("cause", |header| header.range_causes[1] = "whim".to_owned()),
        ("times", |header| header.step_times.truncate(3)),
    ];
    assert_eq!(arena.range().unwrap().len(), PAGES * PAGE_SIZE);
    for (word, spoil) in senseless {
        let mut header = header();
        spoil(&mut header);
        let log = log_of(&Section::new(&header, &body()).unwrap(), 2);
        let why = read(&log).unwrap_err().to_string();
        assert!(why.starts_with("byte 28: ") && why.contains(word), "{why}");
    }
}

#[test]
fn more_than_there_is_is_not_believed() {
    let header = RowHeader { lists: u32::MAX, layouts: u32::MAX, ..header() };
    let log = log_of(&Section::new(&header, &body()).unwrap(), 1);
    assert!(matches!(read(&log), Err(EventLogError::Body { .. })));
}

proptest! {
    /// The checksum keeps chance out; here it is made right again, so that what is behind it is tried.
    #[test]
    fn no_bytes_make_it_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut log = written(2);
        log.truncate(16 + (log.len() - 16) / 2);
        for (index, byte) in changes {
            let at = 28 + index.index(log.len() - 28);
            log[at] = byte;
        }
        let sum = crc32fast::hash(&log[28..]);
        log[24..28].copy_from_slice(&sum.to_le_bytes());
        if let Err(error) = read(&log) {
            prop_assert!(error.to_string().starts_with("byte "), "{}", error);
        }
    }
}
