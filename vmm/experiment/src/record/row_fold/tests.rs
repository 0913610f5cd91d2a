//! Rows of events made by hand.

use super::*;
use crate::events::fixture;
use crate::events::{Counter, OperationEnd, Stall, StallOn};

fn trial(more: &[Event]) -> Vec<Event> {
    let mut events = vec![Event::Trial(Box::new(fixture::setting()))];
    events.extend(more.iter().cloned());
    events
}

fn ended(evicted_bytes: u64) -> Event {
    Event::OperationEnded(OperationEnd { evicted_bytes, ..OperationEnd::default() })
}

fn warned(row: &Row, text: &str) -> bool {
    row.warnings.iter().any(|warning| warning.text.contains(text))
}

#[test]
fn trials_pool_times_and_report_counts_that_differ() {
    let stall = |ns| Event::Stall(Stall { at_ns: None, ns, vcpu: 0, page: None, on: StallOn::Other });
    let touched = Event::Touched { disturbed: false, touches: 10, ns: 5 };
    let [first, second] = [&[stall(1_000)][..], &[stall(2_000), touched.clone()]].map(trial);
    let row = RowFold::of([first.clone(), second].concat());
    let times = row.collateral_ns.as_ref().unwrap();
    assert_eq!((row.trials, times.count, row.guest_touches_before.get()), (2, 2, Some(2e9)));
    assert!(!warned(&row, "differ"));
    let row = RowFold::of([first, trial(&[ended(4096), Event::Verified { wrong: 1 }])].concat());
    assert!(warned(&row, "counts differ between repetitions: evicted_bytes 0 and 4096"));
    assert_eq!(row.integrity_errors.get(), None, "the first trial was not looked at");
}

#[test]
fn a_count_that_nobody_made_is_null_and_one_of_nothing_is_not() {
    let unknown = Event::Reading { counter: Counter::Refaults, count: None };
    let known = |count| Event::Reading { counter: Counter::Refaults, count: Some(count) };
    let of = |events: &[Event]| RowFold::of(trial(events));
    assert_eq!(of(&[]).refaults.get(), Some(0));
    assert_eq!(of(&[known(3), known(4)]).refaults.get(), Some(7));
    let row = of(&[known(3), unknown]);
    assert_eq!((row.refaults.get(), row.unexplained()), (None, Vec::new()));
}

#[test]
fn who_knows_better_why_a_key_is_null_is_heard() {
    let mut fold = RowFold::default();
    trial(&[]).iter().for_each(|event| fold.add(event));
    let row = fold.row_because(|key| (key == "zap_ns").then(|| "so it is".to_owned()));
    assert!(warned(&row, "so it is") && warned(&row, "no operation by address was performed"));
    assert_eq!(row.unexplained(), Vec::<&str>::new());
}

/// Each of these is a sum beside others like it.
#[test]
fn bytes_of_events_go_to_their_own_keys() {
    use crate::events::{DeviceCounts, GivenBack, Ranges, Swapped};
    let ranges = |of| Ranges { ranges: of, bytes: 10 * of };
    let row = RowFold::of(trial(&[
        Event::Asked { victims: 1, bytes: 2 },
        Event::GivenBack(GivenBack { balloon: ranges(3), reported: ranges(4) }),
        Event::Swapped(Swapped { faults: 5, returned: 6, huge: 7, kept: 8, wakes: 9, events: ranges(11) }),
        Event::Device(DeviceCounts { entries_dropped: 12, empty_flushes: 13 }),
        Event::Verified { wrong: 14 },
        Event::Reading { counter: Counter::ReturnedBytes, count: Some(15) },
        Event::Reading { counter: Counter::RemoteTlbFlushes, count: Some(16) },
        Event::Reading { counter: Counter::CollateralFaults, count: Some(17) },
    ]));
    let keys = [
        (&row.victims, 1),
        (&row.victim_bytes, 2),
        (&row.balloon_invalidations, 3),
        (&row.balloon_bytes, 30),
        (&row.reported_invalidations, 4),
        (&row.reported_bytes, 40),
        (&row.uffd_faults, 5),
        (&row.uffd_returned, 6),
        (&row.uffd_huge_returns, 7),
        (&row.uffd_kept, 8),
        (&row.uffd_wakes, 9),
        (&row.uffd_invalidations, 11),
        (&row.uffd_bytes, 110),
        (&row.tlb_entries_dropped, 12),
        (&row.tlb_empty_flushes, 13),
        (&row.integrity_errors, 14),
        (&row.returned_bytes, 15),
        (&row.remote_tlb_flushes, 16),
        (&row.collateral_faults, 17),
    ];
    for (index, (value, expected)) in keys.into_iter().enumerate() {
        assert_eq!(value.get(), Some(expected), "number {index}");
    }
}
