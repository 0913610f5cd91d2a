//! Predictions against the bridge itself, and against a model that looks at every page.

use std::sync::Arc;

use guest_mem::{Hva, Operation};
use notifier_bridge::{Bridge, Recorder};
use proptest::prelude::*;

use super::*;
use crate::choice::ZapChoice;
use crate::events::{HostState, LayoutRun, Refill, RefillRound, RowHeader, SlotRun, Span};
use crate::record::fixture;

const PAGES: u64 = 4 * 512;
const HVA: u64 = 0x7f00_0000_0000;
const LOW: u64 = 0x7e00_0000_0000;

fn header(mmu: SecondaryMmu) -> RowHeader {
    let mut label = fixture::label(["a", "4k", "kernel", "pageout", "none", "kernel"]);
    label.tried.granule = Granule::new(1 << 20).unwrap();
    let arena = Span { hva: HVA, gpa: 0x4000_0000, bytes: PAGES * PAGE_SIZE };
    let low = Span { hva: LOW, gpa: 0, bytes: 4 << 20 };
    RowHeader {
        row: 0,
        label,
        mmu,
        guest: "bare".to_owned(),
        processors: 2,
        large_guest_pages: true,
        slot_zap_drops_all: false,
        arena,
        slots: vec![SlotRun { span: low, granule: 4 << 20 }, SlotRun { span: arena, granule: 1 << 20 }],
        seamed: false,
        began_ns: 0,
        steps: Vec::new(),
        step_times: Vec::new(),
        undisturbed: None,
        refill: None,
        causes: Vec::new(),
        lists: 0,
        layouts: 1,
        operations: 0,
        stalls: 0,
        stalls_left_out: 0,
        clock_uncertain_ns: 0,
        range_causes: Vec::new(),
        ranges: 0,
        ranges_left_out: None,
        lost: 0,
    }
}

/// A row of single pages taken from memory mapped by PTEs, with or without a hot loop over `hot`.
fn row(mmu: SecondaryMmu, victims: &[u64], hot: &[u32]) -> RowEvents {
    let announcement = |page: u64| Announcement {
        first_page: page,
        pages: 1,
        order: Order::BASE,
        level: MapLevel::Pte,
        anonymous: true,
        cause: Cause::PageOut,
        began_ns: 0,
        zap_ns: 0,
        operation_ns: 1_000,
        end_ns: 0,
    };
    let operation = |(index, &page): (u64, &u64)| OperationEvent {
        began_ns: index * 100_000,
        touches: 0,
        first_page: page,
        pages: 1,
        evicted: 1,
        announcements: 1,
    };
    let mut header = header(mmu);
    header.steps = vec![
        StepEvent::Fill,
        StepEvent::Hot { list: Some(0), stride: None, writes: false, loops: 1 },
        StepEvent::Reclaim {
            layout: 0,
            operations: victims.len() as u32,
            ended_ns: victims.len() as u64 * 100_000,
        },
        StepEvent::Stop,
        StepEvent::Refault,
        StepEvent::Sweep,
    ];
    RowEvents {
        header,
        lists: vec![hot.to_vec()],
        layouts: vec![vec![LayoutRun { pages: PAGES, state: HostState::MappedByPte }]],
        operations: (0u64..).zip(victims).map(operation).collect(),
        announcements: victims.iter().map(|&page| announcement(page)).collect(),
        stalls: Vec::new(),
        ranges: Vec::new(),
    }
}

fn distinct(pages: Vec<u64>) -> Vec<u64> {
    let mut seen = std::collections::BTreeSet::new();
    pages.into_iter().filter(|page| seen.insert(*page)).collect()
}

proptest! {
    /// What a run would have recorded: the same victims through a bridge of the same policy.
    #[test]
    fn ranges_are_those_of_the_bridge(
        victims in prop::collection::vec((0u64..PAGES, 0u8..10, any::<bool>(), 0usize..3), 1..40),
    ) {
        let mut row = row(SecondaryMmu::Shadow, &victims.iter().map(|v| v.0).collect::<Vec<_>>(), &[]);
        // A backing whose VMAs are cut alike under every policy.
        row.header.label.tried.backing = Backing::Thp;
        for (one, &(page, order, anonymous, kind)) in row.announcements.iter_mut().zip(&victims) {
            let order = Order::new(order).unwrap();
            one.first_page = page / order.pages() * order.pages();
            (one.order, one.anonymous) = (order, anonymous);
            (one.pages, one.cause) = match kind {
                0 => (order.pages(), Cause::PageOut),
                1 => (order.pages().min(PAGES - one.first_page), Cause::FolioSplit),
                _ => (1.max((PAGES - one.first_page).min(3)), Cause::DontNeed),
            };
        }
        for &policy in Policy::ALL {
            let replay = Replay::new(&row, None).unwrap();
            let choice = PolicyChoice::Announced(policy);
            let found = replay.predict(choice, ZapChoice::Auto.under(choice), Running::Around);
            let bridge = Bridge::builder(policy, Arc::new(row.header.slot_table(None).unwrap())).build();
            let mut recorder = Recorder::with_capacity(0);
            for one in &row.announcements {
                let start = Hva::new(HVA + one.first_page * PAGE_SIZE);
                let pages = HvaRange::with_len(start, one.pages * PAGE_SIZE).unwrap();
                let victim = Victim { pages, order: one.order, level: one.level, anonymous: one.anonymous };
                let vma = row.header.arena.range().unwrap();
                bridge.invalidate(&mut recorder, &Invalidation::hook(one.cause, victim, vma), || ()).unwrap();
            }
            let totals = recorder.totals().sum(|_| true);
            prop_assert_eq!(found.invalidations, totals.invalidations, "{}", policy);
            prop_assert_eq!(found.invalidated_bytes, totals.invalidated_bytes, "{}", policy);
            prop_assert_eq!(found.needed_bytes, totals.needed_bytes, "{}", policy);
            prop_assert_eq!(found.sharing_calls, totals.sharing_calls, "{}", policy);
            prop_assert_eq!(found.double_calls, totals.double_calls, "{}", policy);
        }
    }

    /// Without neighbours, who faults is a matter of sets.
    #[test]
    fn faults_agree_with_sets_of_pages(
        victims in prop::collection::vec(0u64..PAGES, 1..30), hot in prop::collection::vec(0u64..PAGES, 0..40),
        writes: bool,
    ) {
        let victims = distinct(victims);
        let hot: Vec<u64> = distinct(hot).into_iter().filter(|page| !victims.contains(page)).collect();
        let list: Vec<u32> = hot.iter().map(|&page| page as u32).collect();
        let mut row = row(SecondaryMmu::Tdp, &victims, &list);
        if let Some(StepEvent::Hot { writes: of_loop, .. }) = row.header.steps.get_mut(1) {
            *of_loop = writes;
        }
        for (policy, width) in [(Policy::Folio, 1), (Policy::Pmd, 512), (Policy::Slot, 256), (Policy::Vm, PAGES)] {
            let choice = PolicyChoice::Announced(policy);
            let found = Replay::new(&row, None).unwrap().predict(choice, ZapChoice::Auto.under(choice), Running::Around);
            let (mut there, mut faults, mut dropped) = (vec![true; PAGES as usize], 0u64, 0u64);
            let mut at = 0;
            // The loop goes on to its next fault. Whether there is one.
            let mut go_on = |there: &mut [bool]| {
                let round = (0..hot.len()).map(|further| (at + further) % hot.len());
                let missing = round.clone().find(|&place| !there[hot[place] as usize]);
                if let Some(place) = missing {
                    there[hot[place] as usize] = true;
                    at = (place + 1) % hot.len();
                    faults += 1;
                }
                missing.is_some()
            };
            for &victim in &victims {
                let end = (victim / width + 1) * width;
                let start = if matches!(policy, Policy::Slot | Policy::Vm) { end - width } else { victim };
                for page in start..end {
                    dropped += u64::from(std::mem::replace(&mut there[page as usize], false));
                }
                // Between the two announcements of a toggle a loop that reads gets one fault through, for nothing.
                if ZapChoice::Auto.under(choice) == Zap::Protect && !writes {
                    go_on(&mut there);
                    there[start as usize..end as usize].fill(false);
                }
                while go_on(&mut there) {}
            }
            let others = (0..PAGES).filter(|page| !victims.contains(page));
            let swept = others.filter(|&page| !there[page as usize]).count() as u64;
            prop_assert_eq!(found.zapped.dropped.small, dropped, "{}", policy);
            prop_assert_eq!(found.refaults(), victims.len() as u64, "{}", policy);
            prop_assert_eq!(found.collateral_faults(), faults + swept, "{}", policy);
        }
    }
}

#[test]
fn slots_and_bytes_are_those_a_listener_reports() {
    let row = row(SecondaryMmu::Shadow, &[3, 700], &[]);
    let replay = Replay::new(&row, None).unwrap();
    let zapped = |policy| {
        let choice = PolicyChoice::Announced(policy);
        let zapped = replay.predict(choice, ZapChoice::Auto.under(choice), Running::Around).zapped;
        (zapped.slots, zapped.bytes)
    };
    assert_eq!(zapped(Policy::Folio), (0, 2 * PAGE_SIZE));
    assert_eq!(zapped(Policy::Slot), (2, 2 << 20));
    assert_eq!(zapped(Policy::Vm), (2 * 9, 2 * (12 << 20)), "eight slots and that of low memory, each time");
    let wider = Replay::new(&row, Granule::new(8 << 20)).unwrap();
    let choice = PolicyChoice::Announced(Policy::Slot);
    assert_eq!(wider.predict(choice, Zap::Memslot, Running::Around).zapped.bytes, 16 << 20);
}

/// A row of single pages in huge ones: the first block's is split for its first victim.
fn huge_row(victims: &[u64], hot: &[u32]) -> RowEvents {
    let mut row = row(SecondaryMmu::Shadow, victims, hot);
    row.header.label.tried.backing = Backing::Thp;
    row.header.label.tried.granule = Granule::DEFAULT;
    row.header.slots[1].granule = 2 << 20;
    row.layouts[0][0].state = HostState::MappedByPmd;
    let split = Announcement {
        first_page: 0,
        pages: 512,
        order: Order::PMD,
        level: MapLevel::Pmd,
        cause: Cause::PmdSplit,
        ..row.announcements[0]
    };
    row.announcements.insert(0, split);
    row.operations[0].announcements = 2;
    row
}

#[test]
fn a_stopped_loop_gets_on_between_two_brackets_only_where_it_shares_its_processor() {
    let mut row = huge_row(&[3], &[700]);
    let live = |row: &RowEvents, policy, zap| {
        let replay = Replay::new(row, None).unwrap();
        let found = replay.predict(PolicyChoice::Announced(policy), zap, Running::Around);
        (found.live.others, found.own_rounds)
    };
    assert_eq!(live(&row, Policy::Vm, Zap::Memslot), (1, 1), "once it is all over");
    assert_eq!(live(&row, Policy::Slot, Zap::Memslot), (0, 0), "its slot is another");
    row.header.processors = 1;
    assert_eq!(live(&row, Policy::Vm, Zap::Memslot), (2, 2), "after the split as well");
    // A toggle stops nobody.
    row.header.processors = 2;
    row.lists[0] = vec![7];
    let reads = live(&row, Policy::Folio, Zap::Protect);
    if let Some(StepEvent::Hot { writes, .. }) = row.header.steps.get_mut(1) {
        *writes = true;
    }
    let writes = live(&row, Policy::Folio, Zap::Protect);
    // After the split and after the seam; and between the split's own two announcements, to read.
    assert_eq!((reads, writes), ((3, 0), (2, 0)));
}

#[test]
fn a_toggle_in_a_huge_page_pays_for_its_seam_once() {
    let row = huge_row(&[3, 9], &[]);
    let replay = Replay::new(&row, None).unwrap();
    let kernel = replay.predict(PolicyChoice::Kernel, Zap::Nothing, Running::Around);
    assert_eq!((kernel.zapped.dropped.small, kernel.zapped.dropped.large), (0, 1), "nobody touched it again");
    assert_eq!((kernel.invalidations, kernel.needed_bytes), (3, (2 << 20) + 2 * PAGE_SIZE));
    let folio = replay.predict(PolicyChoice::Announced(Policy::Folio), Zap::Protect, Running::Around);
    assert_eq!(
        folio.zapped.bytes,
        (2 << 20) + (2 << 20) + PAGE_SIZE,
        "the split; a page and its seam; a page"
    );
}

#[test]
fn a_slow_loop_faults_less_than_one_that_comes_round() {
    let hot: Vec<u32> = (0..512).map(|page| page * 4 + 1).collect();
    let victims: Vec<u64> = (0..64).map(|page| page * 32).collect();
    let mut row = row(SecondaryMmu::Shadow, &victims, &hot);
    row.header.undisturbed = Some((1_000_000, 100_000_000));
    // 10 us a fault, 20 us before the first: 8 in the 100 us from one victim to the next.
    let round = |ns, faults| RefillRound { gap_ns: ns, ns, faults };
    row.header.refill = Some(Refill {
        rounds: vec![round(120_000, 10), round(520_000, 50)],
        around: Vec::new(),
        around_ns: Vec::new(),
    });
    let replay = Replay::new(&row, None).unwrap();
    let vm = |running| replay.predict(PolicyChoice::Announced(Policy::Vm), Zap::Memslot, running);
    let (never, recorded, around) = (vm(Running::Never), vm(Running::Recorded), vm(Running::Around));
    assert_eq!(never.live.all(), 0);
    assert!((6 * 64..=8 * 64).contains(&recorded.live.all()), "{recorded:?}");
    // Two hot pages stand in each group of eight, and one fault brings both; but not where a victim is the group's first.
    assert_eq!(around.live.all(), 64 * 256 + (1..=64).sum::<u64>());
}

/// Where the loops come round in the shorter gap already, the two gaps say nothing of what a fault costs, and coming round
/// says the most.
#[test]
fn a_loop_that_comes_round_at_once_is_known_to_be_fast() {
    let hot: Vec<u32> = (0..64).map(|page| page * 8 + 1).collect();
    let mut row = row(SecondaryMmu::Tdp, &[0, 512], &hot);
    row.header.undisturbed = Some((1_000_000, 100_000_000));
    let round = |ns, faults| RefillRound { gap_ns: ns, ns, faults };
    let rounds = vec![round(100_000, 64), round(500_000, 64)];
    row.header.refill = Some(Refill { rounds, around: vec![64, 0, 64], around_ns: Vec::new() });
    assert!(!Replay::new(&row, None).unwrap().knows_pace(), "nothing says when it came round");
    let with_times = |around_ns: Vec<u64>| {
        let mut row = row.clone();
        row.header.refill.as_mut().unwrap().around_ns = around_ns;
        let replay = Replay::new(&row, None).unwrap();
        replay.pace().map(|pace| (pace.touch, pace.fault))
    };
    // 100 ns a touch, and twice round 64 pages: 12.8 us of the 76.8.
    assert_eq!(with_times(vec![900_000, 1, 76_800]), Some((100.0, 1_000.0)));
    // What the gaps say is believed as far as coming round does not say that a fault costs less.
    row.header.refill.as_mut().unwrap().rounds = vec![round(100_000, 10), round(500_000, 11)];
    let slow = Replay::new(&row, None).unwrap().pace().unwrap().fault;
    assert_eq!(slow, 400_000.0);
    row.header.refill.as_mut().unwrap().around_ns = vec![76_800, 76_800, 76_800];
    assert_eq!(Replay::new(&row, None).unwrap().pace().unwrap().fault, 1_000.0);
}

#[test]
fn a_call_over_a_range_is_cut_where_the_row_has_its_seams() {
    let one = Announcement {
        first_page: 510,
        pages: 4,
        order: Order::BASE,
        level: MapLevel::Pte,
        anonymous: true,
        cause: Cause::DontNeed,
        began_ns: 0,
        zap_ns: 0,
        operation_ns: 0,
        end_ns: 0,
    };
    let spans = |announced: &[Announcement]| -> Vec<(u64, u64)> {
        announced.iter().map(|one| (one.first_page, one.pages)).collect()
    };
    let cut = recut(&[one], true);
    assert_eq!(spans(&cut), [(510, 2), (512, 1), (513, 1)]);
    assert_eq!(spans(&recut(&cut, false)), [(510, 4)]);
    let taken = Announcement { cause: Cause::PageOut, ..one };
    assert_eq!(spans(&recut(&[taken], true)), [(510, 4)], "the reverse map goes by folios");
    assert!(Operation::DontNeed.refused_on(Backing::Base4k).is_none());
}
