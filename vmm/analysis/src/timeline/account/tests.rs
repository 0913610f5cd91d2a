//! Sums over rows made by hand.

use notifier_bridge::Cause;
use proptest::prelude::*;

use super::*;
use experiment::events::fixture::{bracket, range, row, row_until, stall};

#[test]
fn a_stall_is_held_inside_and_repaired_outside() {
    // The brackets are [0, 1000) and [5000, 6000).
    let mut row = row(vec![bracket(0, Cause::PageOut), bracket(5_000, Cause::PageOut)]);
    row.events.extend([stall(900, 300), stall(2_000, 70), stall(5_100, 200), stall(20_000, 11)]);
    let time = RowTime::of(&row);
    let [cause] = time.causes.as_slice() else { panic!("{time:?}") };
    assert_eq!((cause.announcements, cause.zap_ns, cause.operation_ns, cause.end_ns), (2, 600, 1_200, 200));
    assert_eq!(cause.held, Stalled { stalls: 2, ns: 100 + 200 });
    assert_eq!(time.steps.reclaim.stalled, Stalled { stalls: 2, ns: 200 + 70 });
    assert_eq!(time.steps.refault.stalled, Stalled { stalls: 1, ns: 11 });
    assert_eq!(
        (time.steps.reclaim.ns, time.counted.faults, time.counted.retries),
        (10_000, Some(8), Some(1))
    );
    assert_eq!(time.steps.sweep, Phase::default());
}

#[test]
fn a_stall_across_brackets_is_one() {
    // The brackets are [0, 1000), [1000, 2000) and [5000, 6000).
    let mut row = row(vec![
        bracket(0, Cause::PageOut),
        bracket(1_000, Cause::PageOut),
        bracket(5_000, Cause::FolioSplit),
    ]);
    row.events.extend([stall(500, 5_000)]);
    let time = RowTime::of(&row);
    let held: Vec<_> = time.causes.iter().map(|cause| cause.held).collect();
    assert_eq!(held, [Stalled { stalls: 1, ns: 1_500 }, Stalled { stalls: 1, ns: 500 }]);
    assert_eq!(time.steps.reclaim.stalled, Stalled { stalls: 1, ns: 3_000 });
}

#[test]
fn causes_are_told_apart_and_strangers_too() {
    let mut row = row(vec![bracket(0, Cause::FolioSplit), bracket(2_000, Cause::PageOut)]);
    row.events.extend([
        range(100, 1, By::Step),
        range(2_100, 1, By::Step),
        range(2_200, 1, By::Step),
        range(2_300, 512, By::Khugepaged),
        range(9_000, 1, By::Step),
    ]);
    let time = RowTime::of(&row);
    let counted: Vec<_> =
        time.causes.iter().map(|cause| (cause.cause.as_str(), cause.kernel_ranges)).collect();
    assert_eq!(counted, [(Cause::FolioSplit.name(), Some(1)), (Cause::PageOut.name(), Some(2))]);
    let others: Vec<_> =
        time.others.iter().map(|other| (other.cause.as_str(), other.ranges, other.pages)).collect();
    assert_eq!(others, [("khugepaged", 1, 512), ("step", 1, 1)]);
}

#[test]
fn without_the_kernels_account_its_ranges_are_not_known() {
    let mut row = row(vec![bracket(0, Cause::PageOut)]);
    row.events.push(Event::NoAccount("it was not wanted".to_owned()));
    assert_eq!(RowTime::of(&row).causes[0].kernel_ranges, None);
}

proptest! {
    /// No nanosecond of a stall is counted twice, and none of one that began in a step is lost.
    #[test]
    fn time_is_neither_made_nor_lost(
        gaps in prop::collection::vec(0u64..3_000, 0..20),
        stalls in prop::collection::vec((0u64..9_999, 1u64..4_000), 0..40),
    ) {
        let mut at = 0;
        // A stall that begins before the first operation is none of its doing: it begins at 0.
        let brackets: Vec<_> = gaps
            .iter()
            .map(|gap| {
                let gap = if at == 0 { 0 } else { *gap };
                at += gap + 1_000;
                bracket(at - 1_000, Cause::PageOut)
            })
            .collect();
        let mut row = row_until(at + 20_000, brackets);
        let all: u64 = stalls.iter().map(|(_, ns)| ns).sum();
        row.events.extend(stalls.iter().map(|&(began, ns)| stall(began, ns)));
        let time = RowTime::of(&row);
        let held: u64 = time.causes.iter().map(|cause| cause.held.ns).sum();
        prop_assert_eq!(held + time.steps.reclaim.stalled.ns, all);
    }
}
