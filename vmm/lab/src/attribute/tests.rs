use guest_mem::Hva;

use super::*;
use tap::{Call as Syscall, What, Work};

const US: u32 = 100;
const WORKER: u32 = 101;
const VCPU: u32 = 102;
const KSWAPD: u32 = 50;
const OTHER: u32 = 900;

fn range(page: u64, pages: u64) -> HvaRange {
    HvaRange::with_len(Hva::new(page << 12), pages << 12).unwrap()
}

fn tasks() -> Vec<Task> {
    let task = |tid, pid, comm: &str, kernel| Task { tid, pid: Some(pid), comm: comm.to_owned(), kernel };
    vec![
        task(KSWAPD, KSWAPD, "kswapd0", true),
        task(WORKER, US, "zapscope", false),
        task(VCPU, US, "vcpu0", false),
        task(OTHER, 800, "qemu", false),
    ]
}

fn event(time_ns: u64, tid: u32, what: What) -> Event {
    let pid = match tid {
        WORKER | VCPU => US,
        OTHER => 800,
        other => other,
    };
    Event { time_ns, pid, tid, what }
}

fn announced(time_ns: u64, tid: u32, pages: HvaRange) -> Event {
    event(time_ns, tid, What::Range(pages))
}

/// One call from 100 to 200.
fn calls(certainty: Certainty) -> Calls {
    let mut calls = Calls::of_thread(WORKER);
    calls.note(100, 200, certainty);
    calls
}

fn causes(events: &[Event], calls: &Calls) -> Vec<(u64, By, Option<usize>)> {
    let mut causes = Vec::new();
    attribute(events, calls, &tasks(), US, |at, _, cause, call| causes.push((at, cause, call)));
    causes
}

#[test]
fn a_range_is_a_steps_by_thread_and_time() {
    let events = [
        announced(99, WORKER, range(1, 1)),
        announced(100, WORKER, range(1, 1)),
        announced(150, KSWAPD, range(7, 1)),
        announced(160, VCPU, range(8, 2)),
        announced(170, OTHER, range(9, 1)),
        announced(175, 12345, range(9, 1)),
        announced(200, WORKER, range(3, 1)),
        announced(201, WORKER, range(3, 1)),
    ];
    assert_eq!(
        causes(&events, &calls(Certainty::Exact)),
        [
            (99, By::Zap, None),
            (100, By::Step, Some(0)),
            (150, By::Kswapd, None),
            (160, By::GuestFault, None),
            (170, By::AnotherProcess, None),
            (175, By::Unattributed, None),
            (200, By::Step, Some(0)),
            (201, By::Zap, None),
        ]
    );
}

#[test]
fn what_a_thread_is_at_is_the_cause() {
    let events = [
        event(110, WORKER, What::Begin(Work::DirectReclaim)),
        announced(120, WORKER, range(30, 1)),
        event(130, WORKER, What::End(Work::DirectReclaim)),
        announced(140, WORKER, range(1, 1)),
        event(150, VCPU, What::Begin(Work::Call(Syscall::Madvise(4)))),
        event(151, VCPU, What::Begin(Work::Compaction)),
        event(152, VCPU, What::Begin(Work::Migration)),
        announced(153, VCPU, range(31, 1)),
        event(154, VCPU, What::End(Work::Migration)),
        announced(155, VCPU, range(31, 1)),
        event(156, VCPU, What::End(Work::Compaction)),
        announced(157, VCPU, range(31, 1)),
        event(158, VCPU, What::End(Work::Call(Syscall::Madvise(0)))),
        announced(160, WORKER, range(3, 1)),
    ];
    assert_eq!(
        causes(&events, &calls(Certainty::Exact)),
        [
            (120, By::DirectReclaim, None),
            (140, By::Step, Some(0)),
            (153, By::Migration, None),
            (155, By::Compaction, None),
            (157, By::GuestFault, None),
            (160, By::Step, Some(0)),
        ]
    );
}

#[test]
fn reclaim_that_a_step_asks_for_is_the_steps() {
    let events = [
        event(110, WORKER, What::Begin(Work::MemcgReclaim)),
        announced(120, WORKER, range(30, 1)),
        event(130, WORKER, What::End(Work::MemcgReclaim)),
    ];
    assert_eq!(causes(&events, &calls(Certainty::Reclaim)), [(120, By::Step, Some(0))]);
    assert_eq!(causes(&events, &calls(Certainty::Unknown)), [(120, By::MemcgReclaim, None)]);
    assert!(!Certainty::Reclaim.is_compared() && !Certainty::Unknown.is_compared());
    assert!(Certainty::Exact.is_compared() && Certainty::AtLeast.is_compared());
}
