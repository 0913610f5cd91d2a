//! How many recorded victims a replay puts through a policy in a minute, on one core.
//!
//! 262,144 single pages at seeded places of 1 GiB, next to a hot loop over 4,096 others, 60 us from one to the next. Ends
//! with 1 if any policy is below ten million a minute. That is the prediction at the recorded pace; the bounds that a
//! shorter log has beside it, in which the loop comes round after each victim, are as dear as the loop is long.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what a bench prints is its result")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use analysis::replay;
use experiment::choice::PolicyChoice;
use experiment::choice::fixture::label;
use experiment::events::{
    Announcement, Counted, Event, HostState, HotLoops, LayoutRun, Operation as OperationBegan, OperationEnd,
    Ranges, Refill, RefillRound, RowEvents, Setting, Step, Zapped, fixture,
};
use experiment::scenario::select::sparse_victims;
use guest_mem::PAGE_SIZE;
use notifier_bridge::Policy;

const PAGES: u64 = (1 << 30) / PAGE_SIZE;
const VICTIMS: u64 = 262_144;
const HOT: usize = 4_096;
/// Rounds of each policy; the median counts.
const ROUNDS: usize = 3;
const WANTED: f64 = 10e6;

fn main() -> ExitCode {
    let events = events();
    let mut rates = BTreeMap::new();
    println!("{VICTIMS} victims of 1 GiB, {HOT} hot pages; millions of victims a minute on one core");
    for &policy in Policy::ALL {
        let mut took: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let begun = Instant::now();
                let predicted = replay::row(&events, PolicyChoice::Announced(policy), None);
                let predicted = predicted.expect("the log is sound");
                assert!(predicted.row.invalidations.get() >= Some(VICTIMS));
                begun.elapsed().as_secs_f64()
            })
            .collect();
        took.sort_by(f64::total_cmp);
        let rate = VICTIMS as f64 / took[ROUNDS / 2] * 60.0;
        println!("{:>8} {:>10.1}", policy.name(), rate / 1e6);
        rates.insert(policy.name(), rate);
    }
    let slow: Vec<_> = rates.iter().filter(|(_, rate)| **rate < WANTED).collect();
    if slow.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("below {} million a minute: {slow:?}", WANTED / 1e6);
    ExitCode::FAILURE
}

/// All pages of the arena in a seeded order: the first are hot, the rest are taken.
fn events() -> RowEvents {
    let mut pages = sparse_victims(42, PAGES, PAGES);
    let hot: Vec<u32> = pages.drain(..HOT).map(|page| page as u32).collect();
    let victims: Vec<u64> = pages.iter().copied().cycle().take(VICTIMS as usize).collect();
    let label = label(["sparse", "4k", "kernel", "pageout", "none", "kernel"]);
    let round = |ns, faults| RefillRound { gap_ns: ns, ns, faults };
    let setting = Setting { began_ns: 0, ..fixture::setting_of(label, PAGES) };
    let hot = HotLoops { list: Some(hot), stride: None, writes: false, loops: 1 };
    let layout = vec![LayoutRun { pages: PAGES, state: HostState::MappedByPte }];
    let end = VICTIMS * 60_000;
    let step = |at_ns, step, within: Vec<Event>, ended_ns| {
        let mut events = vec![Event::StepBegan { at_ns, step }];
        events.extend(within);
        events.push(Event::StepEnded { at_ns: ended_ns, counted: Counted::default() });
        events
    };
    let taken = (0u64..).zip(&victims).flat_map(|(index, &page)| operation(index * 60_000, page)).collect();
    let events = [
        vec![Event::Trial(Box::new(setting))],
        step(0, Step::Fill, Vec::new(), 0),
        step(0, Step::Hot(hot), Vec::new(), 0),
        vec![Event::Touched { disturbed: false, touches: 12_000_000, ns: 1_000_000_000 }],
        step(0, Step::Reclaim(layout), taken, end),
        step(end, Step::Stop, Vec::new(), end),
        step(end, Step::Refault, Vec::new(), end),
        step(end, Step::Sweep, Vec::new(), end),
        vec![Event::Refill(Refill {
            rounds: vec![round(100_000, 10), round(500_000, 80)],
            around: vec![4_100],
            // So long that the line through the two gaps has the cost of a fault, and not the round.
            around_ns: vec![25_000_000],
        })],
    ];
    RowEvents { row: 0, events: events.concat() }
}

/// One page is taken.
fn operation(at_ns: u64, first_page: u64) -> [Event; 3] {
    let ranges = Ranges { ranges: 1, bytes: PAGE_SIZE };
    let announced = Announcement {
        sharing_calls: 1,
        zapped: Zapped::default(),
        zap_ns: 0,
        operation_ns: 20_000,
        end_ns: 0,
        ..fixture::announcement(at_ns, first_page)
    };
    let end = OperationEnd { evicted_bytes: PAGE_SIZE, expected: Some(ranges), ..OperationEnd::default() };
    [
        Event::OperationBegan(OperationBegan { at_ns, touches: 0, first_page, pages: 1 }),
        Event::Announced(announced),
        Event::OperationEnded(end),
    ]
}
