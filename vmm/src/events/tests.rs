//! Logs come back as they were written, and damaged ones are refused with the place.

use guest_mem::{Gpa, Hva, MapLevel, Order, PAGE_SIZE};
use notifier_bridge::Cause;
use proptest::prelude::*;

use super::section::PREAMBLE;
use super::*;
use crate::record::fixture;
use crate::tap::RangeCause;

const PAGES: u64 = 1024;
const HVA: u64 = 0x7f00_0000_0000;

fn setting() -> Setting {
    let label = fixture::label(["sparse", "4k", "kernel", "pageout", "none", "kernel"]);
    let arena = Span { hva: HVA, gpa: 0x4000_0000, bytes: PAGES * PAGE_SIZE };
    Setting {
        label,
        mmu: SecondaryMmu::Shadow,
        guest: GuestKind::Bare,
        processors: 2,
        large_guest_pages: true,
        slot_zap_drops_all: false,
        arena,
        slots: vec![SlotRun { span: arena, granule: 2 << 20 }],
        seamed: true,
        began_ns: 17,
    }
}

fn announcement(at_ns: u64, first_page: u64) -> Announcement {
    Announcement {
        at_ns,
        first_page,
        pages: 1,
        order: Order::BASE,
        level: MapLevel::Pte,
        anonymous: true,
        cause: Cause::PageOut,
        told: Ranges { ranges: 1, bytes: PAGE_SIZE },
        sharing_calls: 1,
        double_calls: 0,
        zapped: Zapped { slots: 0, bytes: 0, leaves: Some(Leaves { small: 1, large: 0 }) },
        zap_ns: 12_000,
        operation_ns: 7,
        end_ns: 0,
    }
}

fn step(at_ns: u64, step: Step) -> Event {
    Event::StepBegan { at_ns, step }
}

fn ended(at_ns: u64) -> Event {
    Event::StepEnded { at_ns, counted: Counted { faults: Some(7), retries: Some(2), flushes: None } }
}

fn operation(at_ns: u64, page: u64) -> [Event; 4] {
    let expected = vec![Expected { first_page: page, pages: 1, kind: ExpectedKind::Folio(Order::PMD) }];
    let call = Called { at_ns: at_ns + 3, ns: 5, promise: Promise::Exact, expected };
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
fn events() -> Vec<Event> {
    let run = |pages, state| LayoutRun { pages, state };
    let layout = vec![run(512, HostState::MappedByPmd), run(512, HostState::MappedByPte)];
    let list = Some(vec![7, 3, 1023]);
    let mut events = vec![
        Event::Trial(Box::new(setting())),
        step(1, Step::Fill),
        ended(2),
        step(3, Step::Hot(HotLoops { list, stride: None, writes: false, loops: 1 })),
        ended(4),
        step(5, Step::Baseline),
        Event::Touched { disturbed: false, touches: 1_000, ns: 80_000 },
        ended(6),
        step(7, Step::Reclaim(layout)),
        Event::Asked { victims: 2, bytes: 2 * PAGE_SIZE },
    ];
    events.extend(operation(10, 700));
    events.extend(operation(40_000, 2));
    let range = |at_ns, start, cause, call| KernelRange { at_ns, start, bytes: PAGE_SIZE, cause, call };
    events.extend([
        Event::Reading { counter: Counter::RemoteTlbFlushes, count: None },
        Event::KernelRange(range(13, 700 << 12, RangeCause::Step, Some(0))),
        Event::KernelRange(range(14, -4096, RangeCause::Khugepaged, None)),
        Event::KernelSpan { lost: 3 },
        ended(50_000),
        step(50_001, Step::Sweep),
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

fn stream(events: &[Event]) -> Stream {
    let mut stream = Stream::default();
    events.iter().for_each(|event| stream.push(event));
    stream
}

/// A section that makes sense.
pub(super) fn section() -> Section {
    Section::new(3, &stream(&events())).unwrap()
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
    assert_eq!(rows, vec![RowEvents { row: 3, events: events() }; 2]);
    assert_eq!(rows[1].setting(), &setting());
    assert!(stream(&events()).events().eq(events()));
}

#[test]
fn a_rows_first_trial_ends_where_the_second_begins() {
    let once = events();
    let twice = RowEvents { row: 0, events: [once.clone(), once.clone()].concat() };
    assert_eq!(twice.first_trial(), once);
    assert_eq!(RowEvents { row: 0, events: once.clone() }.first_trial(), once);
}

#[test]
fn a_victim_takes_few_bytes() {
    let mut stream = Stream::default();
    for index in 0..16_384u64 {
        operation(index * 60_000, index * 7919 % 16_384).iter().for_each(|event| stream.push(event));
    }
    assert!(stream.bytes().len() < 16_384 * 80, "{}", stream.bytes().len());
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
    for byte in [16, 28, written(1).len() - 1] {
        let mut log = written(1);
        log[byte] ^= 1;
        assert!(matches!(read(&log), Err(EventLogError::Checksum { at: 16, .. })), "{byte}");
    }
    let mut log = written(2);
    log[23] = 0xff;
    assert!(matches!(read(&log), Err(EventLogError::Large { at: 16, .. })));
}

fn refused(events: &[Event]) -> String {
    read(&log_of(&Section::new(0, &stream(events)).unwrap(), 2)).unwrap_err().to_string()
}

#[test]
fn a_setting_that_no_vm_has_is_refused() {
    type Spoil = fn(&mut Setting);
    let senseless: [(&str, Spoil); 6] = [
        ("arena", |setting| setting.arena.bytes = u64::MAX),
        ("arena", |setting| setting.arena.hva = !0x1f_ffff),
        ("arena", |setting| setting.arena.gpa = 7),
        ("memslots", |setting| setting.slots[0].granule = 3),
        ("memslots", |setting| setting.slots[0].span.bytes = 1 << 60),
        ("memslots", |setting| setting.slots = vec![setting.slots[0]; 65]),
    ];
    for (word, spoil) in senseless {
        let (mut events, mut setting) = (events(), setting());
        spoil(&mut setting);
        events[0] = Event::Trial(Box::new(setting));
        let why = refused(&events);
        assert!(why.starts_with("byte 28: ") && why.contains(word), "{why}");
    }
}

#[test]
fn events_out_of_order_or_out_of_the_arena_are_refused() {
    let hot = |list, stride, loops| Step::Hot(HotLoops { list, stride, writes: true, loops });
    let small = vec![LayoutRun { pages: PAGES, state: HostState::Absent }; 2];
    let stall = Stall { at_ns: None, ns: 1, vcpu: 0, page: Some(PAGES), on: StallOn::Other };
    let [began, _, _, over] = operation(1, 1);
    let [far, ..] = operation(1, PAGES);
    let before = |more: Event| [vec![Event::Trial(Box::new(setting()))], vec![more]].concat();
    let in_reclaim = |more: Event| {
        let mut events = events();
        events.truncate(10);
        events.push(more);
        events
    };
    for (word, events) in [
        ("before the setting", vec![Event::Verified { wrong: 0 }]),
        ("no trial", vec![]),
        ("end of no step", before(ended(1))),
        ("end of no operation", before(over)),
        ("outside of any reclaim step", before(began.clone())),
        ("outside of any operation", in_reclaim(Event::Announced(announcement(1, 1)))),
        ("outside of any operation", in_reclaim(operation(1, 1)[2].clone())),
        ("outside the arena", in_reclaim(far)),
        ("outside the arena", before(Event::Stall(stall))),
        ("before any fill", before(step(1, Step::Reclaim(small.clone())))),
        ("outside the arena", [events()[..3].to_vec(), vec![step(1, Step::Reclaim(small))]].concat()),
        ("leaves pages out", [events()[..3].to_vec(), vec![step(1, Step::Reclaim(vec![]))]].concat()),
        ("step inside another", in_reclaim(step(1, Step::Fill))),
        ("trial in the middle", in_reclaim(Event::Trial(Box::new(setting())))),
        ("middle of a step", in_reclaim(began)),
        ("stride of 0", before(step(1, hot(None, Some(0), 1)))),
        ("vCPUs", before(step(1, hot(None, Some(1), u32::MAX)))),
        ("outside the arena", before(step(1, hot(Some(vec![PAGES as u32]), None, 1)))),
    ] {
        let why = refused(&events);
        assert!(why.contains(word), "{word}: {why}");
    }
}

#[test]
fn a_case_has_steps_without_end_nowhere() {
    let steps = (0..5_000).flat_map(|_| [step(1, Step::Baseline), ended(2)]);
    let events: Vec<Event> = std::iter::once(Event::Trial(Box::new(setting()))).chain(steps).collect();
    assert!(refused(&events).contains("more steps"));
}

#[test]
fn a_range_lies_where_it_meets_the_arena() {
    let pages = |start, bytes| {
        KernelRange { at_ns: 0, start, bytes, cause: RangeCause::Step, call: None }.pages(PAGES)
    };
    assert_eq!(pages(4096, 8192), Some((1, 2)));
    assert_eq!(pages(-4096, 8192), Some((0, 1)));
    assert_eq!(pages(-8192, 4096), None);
    assert_eq!(pages(i64::MIN, u64::MAX), Some((0, PAGES)));
    assert_eq!(pages(1, 1), Some((0, 1)), "a part of a page is that page");
    assert_eq!(pages(((PAGES - 1) << 12) as i64, 1 << 30), Some((PAGES - 1, 1)));
}

#[test]
fn slots_come_back_from_their_runs() {
    let setting = Setting { slots: vec![SlotRun { granule: 1 << 20, ..setting().slots[0] }], ..setting() };
    let table = setting.slot_table(None).unwrap();
    assert_eq!((table.as_slice().len(), slot_runs(&table)), (4, setting.slots.clone()));
    let slot = table.as_slice()[1];
    assert_eq!(slot.hva_range().start(), Hva::new(HVA + (1 << 20)));
    assert_eq!(slot.gpa_range().start(), Gpa::new(0x4010_0000));
    let wider = setting.slot_table(crate::choice::Granule::new(4 << 20)).unwrap();
    assert_eq!(wider.as_slice().len(), 1);
}

proptest! {
    /// The checksum keeps chance out; here it is made right again, so that what is behind it is tried.
    #[test]
    fn no_bytes_make_it_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut log = written(1);
        for (index, byte) in changes {
            let at = 28 + index.index(log.len() - 28);
            log[at] = byte;
        }
        let sum = crc32fast::hash(&[&log[16..20], &log[28..]].concat());
        log[24..28].copy_from_slice(&sum.to_le_bytes());
        match read(&log) {
            Err(error) => prop_assert!(error.to_string().starts_with("byte "), "{}", error),
            // What makes sense is folded, replayed and timed, whatever it says.
            Ok(rows) => for row in rows {
                crate::fold::RowFold::of(row.events.clone());
                crate::timeline::RowTime::of(&row);
                let _ = crate::replay::row(&row, crate::replay::question("vm".parse().unwrap(), None));
            }
        }
    }
}
