//! Logs come back as they were written, and damaged ones are refused with the place.

use guest_mem::{Gpa, Hva};

use super::fixture::{
    HVA, PAGES, announcement, begun, ended, log as written, one_of_each, operation, section, setting,
};
use super::section::preamble;
use super::*;
use notifier_bridge::By;

fn read(log: &[u8]) -> Result<Vec<RowEvents>, EventLogError> {
    EventLog::new(log)?.rows()
}

#[test]
fn a_log_comes_back_as_it_was_written() {
    let rows = read(&written(2)).unwrap();
    assert_eq!(rows, vec![RowEvents { row: 3, events: one_of_each() }; 2]);
    assert_eq!(rows[1].setting(), &setting());
    let mut stream = Stream::default();
    one_of_each().iter().for_each(|event| stream.push(event));
    assert!(stream.events().eq(one_of_each()));
}

#[test]
fn a_rows_first_trial_ends_where_the_second_begins() {
    let once = one_of_each();
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
    read(&[preamble(), section(events).bytes().repeat(2)].concat()).unwrap_err().to_string()
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
        let (mut events, mut setting) = (one_of_each(), setting());
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
        let mut events = one_of_each();
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
        ("before any fill", before(begun(1, Step::Reclaim(small.clone())))),
        ("outside the arena", [one_of_each()[..3].to_vec(), vec![begun(1, Step::Reclaim(small))]].concat()),
        ("leaves pages out", [one_of_each()[..3].to_vec(), vec![begun(1, Step::Reclaim(vec![]))]].concat()),
        ("step inside another", in_reclaim(begun(1, Step::Fill))),
        ("trial in the middle", in_reclaim(Event::Trial(Box::new(setting())))),
        ("middle of a step", in_reclaim(began)),
        ("stride of 0", before(begun(1, hot(None, Some(0), 1)))),
        ("vCPUs", before(begun(1, hot(None, Some(1), u32::MAX)))),
        ("outside the arena", before(begun(1, hot(Some(vec![PAGES as u32]), None, 1)))),
    ] {
        let why = refused(&events);
        assert!(why.contains(word), "{word}: {why}");
    }
}

#[test]
fn a_case_has_steps_without_end_nowhere() {
    let steps = (0..5_000).flat_map(|_| [begun(1, Step::Baseline), ended(2)]);
    let events: Vec<Event> = std::iter::once(Event::Trial(Box::new(setting()))).chain(steps).collect();
    assert!(refused(&events).contains("more steps"));
}

#[test]
fn a_range_lies_where_it_meets_the_arena() {
    let pages =
        |start, bytes| KernelRange { at_ns: 0, start, bytes, cause: By::Step, call: None }.pages(PAGES);
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
