//! How many recorded victims a replay puts through a policy in a minute, on one core.
//!
//! 262,144 single pages at seeded places of 1 GiB, next to a hot loop over 4,096 others, 60 us from one to the next. Ends
//! with 1 if any policy is below ten million a minute. That is the prediction at the recorded pace; the bounds that a
//! shorter log has beside it, in which the loop comes round after each victim, are as dear as the loop is long.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what a bench prints is its result")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use guest_mem::{Backing, MapLevel, Operation, Order, PAGE_SIZE};
use notifier_bridge::{Cause, Policy};
use vmm::choice::{Combination, Granule, Listener, PolicyChoice, Reclaim, Zap};
use vmm::events::{
    Announcement, HostState, LayoutRun, OperationEvent, Refill, RefillRound, RowEvents, RowHeader,
    SecondaryMmu, SlotRun, Span, StepEvent,
};
use vmm::record::{Row, RowLabel};
use vmm::replay;
use vmm::scenario::select::sparse_victims;

const PAGES: u64 = (1 << 30) / PAGE_SIZE;
const VICTIMS: u64 = 262_144;
const HOT: usize = 4_096;
/// Rounds of each policy; the median counts.
const ROUNDS: usize = 3;
const WANTED: f64 = 10e6;

fn main() -> ExitCode {
    let events = events();
    let recorded = Row::could_not_run(events.header.label.clone(), "");
    let mut rates = BTreeMap::new();
    println!("{VICTIMS} victims of 1 GiB, {HOT} hot pages; millions of victims a minute on one core");
    for &policy in Policy::ALL {
        let mut took: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let begun = Instant::now();
                let asked = replay::question(PolicyChoice::Announced(policy), None);
                let predicted = replay::row(&events, &recorded, asked).expect("the log is sound");
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
    let tried = Combination {
        backing: Backing::Base4k,
        policy: PolicyChoice::Kernel,
        reclaim: Reclaim::By(Operation::PageOut),
        granule: Granule::DEFAULT,
        zap: Zap::Nothing,
    };
    let label = RowLabel { case: "sparse".to_owned(), tried, listener: Listener::Kernel };
    let arena = Span { hva: 0x7f00_0000_0000, gpa: 0x4000_0000, bytes: PAGES * PAGE_SIZE };
    let round = |ns, faults| RefillRound { gap_ns: ns, ns, faults };
    let header = RowHeader {
        row: 0,
        label,
        mmu: SecondaryMmu::Shadow,
        guest: "bare".to_owned(),
        processors: 2,
        large_guest_pages: true,
        slot_zap_drops_all: false,
        arena,
        slots: vec![SlotRun { span: arena, granule: 2 << 20 }],
        seamed: false,
        began_ns: 0,
        steps: vec![
            StepEvent::Fill,
            StepEvent::Hot { list: Some(0), stride: None, writes: false, loops: 1 },
            StepEvent::Reclaim { layout: 0, operations: VICTIMS as u32, ended_ns: VICTIMS * 60_000 },
            StepEvent::Stop,
            StepEvent::Refault,
            StepEvent::Sweep,
        ],
        step_times: Vec::new(),
        undisturbed: Some((12_000_000, 1_000_000_000)),
        refill: Some(Refill {
            rounds: vec![round(100_000, 10), round(500_000, 80)],
            around: vec![4_100],
            around_ns: vec![500_000],
        }),
        causes: vec![Cause::PageOut.name().to_owned()],
        lists: 1,
        layouts: 1,
        operations: VICTIMS as u32,
        stalls: 0,
        stalls_left_out: 0,
        clock_uncertain_ns: 0,
        range_causes: Vec::new(),
        ranges: 0,
        ranges_left_out: None,
        lost: 0,
    };
    let operation = |(index, &first_page): (u64, &u64)| OperationEvent {
        began_ns: index * 60_000,
        touches: 700,
        first_page,
        pages: 1,
        evicted: 1,
        announcements: 1,
    };
    let announcement = |&first_page: &u64| Announcement {
        first_page,
        pages: 1,
        order: Order::BASE,
        level: MapLevel::Pte,
        anonymous: true,
        cause: Cause::PageOut,
        began_ns: 0,
        zap_ns: 0,
        operation_ns: 20_000,
        end_ns: 0,
    };
    RowEvents {
        header,
        lists: vec![hot],
        layouts: vec![vec![LayoutRun { pages: PAGES, state: HostState::MappedByPte }]],
        operations: (0u64..).zip(&victims).map(operation).collect(),
        announcements: victims.iter().map(announcement).collect(),
        stalls: Vec::new(),
        ranges: Vec::new(),
    }
}
