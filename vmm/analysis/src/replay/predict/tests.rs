//! Predictions against the bridge itself, and against a model that looks at every page.

use std::sync::Arc;

use guest_mem::{MapLevel, Order};
use notifier_bridge::{Bridge, Cause};
use proptest::prelude::*;

use super::play::recut;
use super::*;
use experiment::choice::ZapChoice;
use experiment::choice::fixture;
use experiment::events::{
    HostState, HotLoops, LayoutRun, OperationEnd, Ranges, Refill, RefillRound, SlotRun, Span, Step,
};
use experiment::record::Row;

const PAGES: u64 = 4 * 512;
const HVA: u64 = 0x7f00_0000_0000;
const LOW: u64 = 0x7e00_0000_0000;

fn setting(mmu: SecondaryMmu) -> Setting {
    let mut label = fixture::label(["a", "4k", "kernel", "pageout", "none", "kernel"]);
    label.tried.granule = Granule::new(1 << 20).unwrap();
    let arena = Span { hva: HVA, gpa: 0x4000_0000, bytes: PAGES * PAGE_SIZE };
    let low = Span { hva: LOW, gpa: 0, bytes: 4 << 20 };
    Setting {
        label,
        mmu,
        guest: GuestKind::Bare,
        processors: 2,
        large_guest_pages: true,
        slot_zap_drops_all: false,
        arena,
        slots: vec![SlotRun { span: low, granule: 4 << 20 }, SlotRun { span: arena, granule: 1 << 20 }],
        seamed: false,
        began_ns: 0,
    }
}

/// A row made by hand.
#[derive(Clone)]
struct Made {
    setting: Setting,
    state: HostState,
    hot: HotLoops,
    /// What each operation announces, 100 us after the one before.
    operations: Vec<Vec<Announcement>>,
    undisturbed: Option<(u64, u64)>,
    refill: Option<Refill>,
}

fn announcement(first_page: u64) -> Announcement {
    Announcement {
        zapped: experiment::events::Zapped::default(),
        zap_ns: 0,
        operation_ns: 1_000,
        end_ns: 0,
        ..experiment::events::fixture::announcement(0, first_page)
    }
}

/// A row of single pages taken from memory mapped by PTEs, with or without a hot loop over `hot`.
fn row(mmu: SecondaryMmu, victims: &[u64], hot: &[u32]) -> Made {
    Made {
        setting: setting(mmu),
        state: HostState::MappedByPte,
        hot: HotLoops { list: Some(hot.to_vec()), stride: None, writes: false, loops: 1 },
        operations: victims.iter().map(|&page| vec![announcement(page)]).collect(),
        undisturbed: None,
        refill: None,
    }
}

impl Made {
    fn announced(&mut self) -> impl Iterator<Item = &mut Announcement> {
        self.operations.iter_mut().flatten()
    }

    fn events(&self) -> RowEvents {
        let mut events = vec![Event::Trial(Box::new(self.setting.clone()))];
        let step = |events: &mut Vec<Event>, at_ns, step, within: Vec<Event>, ended_ns| {
            events.push(Event::StepBegan { at_ns, step });
            events.extend(within);
            events.push(Event::StepEnded { at_ns: ended_ns, counted: Default::default() });
        };
        step(&mut events, 0, Step::Fill, Vec::new(), 0);
        step(&mut events, 0, Step::Hot(self.hot.clone()), Vec::new(), 0);
        if let Some((touches, ns)) = self.undisturbed {
            events.push(Event::Touched { disturbed: false, touches, ns });
        }
        let mut within = Vec::new();
        for (index, announced) in (0u64..).zip(&self.operations) {
            let last = announced.last().unwrap();
            let at_ns = index * 100_000;
            within.push(Event::OperationBegan(Operation {
                at_ns,
                touches: 0,
                first_page: last.first_page,
                pages: 1,
            }));
            within.extend(announced.iter().map(|one| Event::Announced(Announcement { at_ns, ..*one })));
            let expected = Some(Ranges { ranges: announced.len() as u64, bytes: PAGE_SIZE });
            let end = OperationEnd { evicted_bytes: PAGE_SIZE, expected, ..OperationEnd::default() };
            within.push(Event::OperationEnded(end));
        }
        let ended = self.operations.len() as u64 * 100_000;
        let layout = vec![LayoutRun { pages: PAGES, state: self.state }];
        step(&mut events, 0, Step::Reclaim(layout), within, ended);
        for kind in [Step::Stop, Step::Refault, Step::Sweep] {
            step(&mut events, ended, kind, Vec::new(), ended);
        }
        events.extend(self.refill.clone().map(Event::Refill));
        RowEvents { row: 0, events }
    }

    /// What is predicted of it, and as a row.
    fn predict(&self, policy: PolicyChoice, zap: Zap, running: Running) -> (Prediction, Row) {
        let events = self.events();
        let mut found = Replay::new(&events, None).unwrap().predict(policy, zap, running);
        let row = std::mem::take(&mut found.fold).row();
        (found, row)
    }

    fn pace(&self) -> Option<Pace> {
        Replay::new(&self.events(), None).unwrap().hot.pace()
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
        row.setting.label.tried.backing = guest_mem::Backing::Thp;
        for (one, &(page, order, anonymous, kind)) in row.announced().zip(&victims) {
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
            let choice = PolicyChoice::Announced(policy);
            let (_, found) = row.predict(choice, ZapChoice::Auto.under(choice), Running::Around);
            let bridge = Bridge::new(policy, Arc::new(row.setting.slot_table(None).unwrap()));
            let (arena, mut records) = (row.setting.arena.range().unwrap(), Vec::new());
            for one in row.clone().announced() {
                bridge.invalidate(&mut records, &one.invalidation(arena), || ());
            }
            let sum = |of: fn(&notifier_bridge::InvalidationRecord) -> u64| Some(records.iter().map(of).sum::<u64>());
            prop_assert_eq!(found.invalidations.get(), sum(|one| one.ranges), "{}", policy);
            prop_assert_eq!(found.invalidated_bytes.get(), sum(|one| one.invalidated_bytes), "{}", policy);
            prop_assert_eq!(found.needed_bytes.get(), sum(|one| one.needed_bytes), "{}", policy);
            prop_assert_eq!(found.sharing_calls.get(), sum(|one| one.sharing_calls), "{}", policy);
            prop_assert_eq!(found.double_calls.get(), sum(|one| one.double_calls), "{}", policy);
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
        row.hot.writes = writes;
        for (policy, width) in [(Policy::Folio, 1), (Policy::Pmd, 512), (Policy::Slot, 256), (Policy::Vm, PAGES)] {
            let choice = PolicyChoice::Announced(policy);
            let (_, found) = row.predict(choice, ZapChoice::Auto.under(choice), Running::Around);
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
            prop_assert_eq!(found.sptes_zapped_4k.get(), Some(dropped), "{}", policy);
            prop_assert_eq!(found.refaults.get(), Some(victims.len() as u64), "{}", policy);
            prop_assert_eq!(found.collateral_faults.get(), Some(faults + swept), "{}", policy);
        }
    }
}

#[test]
fn slots_and_bytes_are_those_a_listener_reports() {
    let row = row(SecondaryMmu::Shadow, &[3, 700], &[]);
    let zapped = |policy| {
        let choice = PolicyChoice::Announced(policy);
        let (_, row) = row.predict(choice, ZapChoice::Auto.under(choice), Running::Around);
        (row.slots_zapped.get().unwrap(), row.zapped_bytes.get().unwrap())
    };
    assert_eq!(zapped(Policy::Folio), (0, 2 * PAGE_SIZE));
    assert_eq!(zapped(Policy::Slot), (2, 2 << 20));
    assert_eq!(zapped(Policy::Vm), (2 * 9, 2 * (12 << 20)), "eight slots and that of low memory, each time");
    let events = row.events();
    let wider = Replay::new(&events, Granule::new(8 << 20)).unwrap();
    let found = wider.predict(PolicyChoice::Announced(Policy::Slot), Zap::Memslot, Running::Around);
    assert_eq!(found.fold.row().zapped_bytes.get(), Some(16 << 20));
}

/// A row of single pages in huge ones: the first block's is split for its first victim.
fn huge_row(victims: &[u64], hot: &[u32]) -> Made {
    let mut row = row(SecondaryMmu::Shadow, victims, hot);
    row.setting.label.tried.backing = guest_mem::Backing::Thp;
    row.setting.label.tried.granule = Granule::DEFAULT;
    row.setting.slots[1].granule = 2 << 20;
    row.state = HostState::MappedByPmd;
    let split = Announcement {
        first_page: 0,
        pages: 512,
        order: Order::PMD,
        level: MapLevel::Pmd,
        cause: Cause::PmdSplit,
        ..row.operations[0][0]
    };
    row.operations[0].insert(0, split);
    row
}

#[test]
fn a_stopped_loop_gets_on_between_two_brackets_only_where_it_shares_its_processor() {
    let mut row = huge_row(&[3], &[700]);
    let live = |row: &Made, policy, zap| {
        let (found, _) = row.predict(PolicyChoice::Announced(policy), zap, Running::Around);
        (found.live.others, found.own_rounds)
    };
    assert_eq!(live(&row, Policy::Vm, Zap::Memslot), (1, 1), "once it is all over");
    assert_eq!(live(&row, Policy::Slot, Zap::Memslot), (0, 0), "its slot is another");
    row.setting.processors = 1;
    assert_eq!(live(&row, Policy::Vm, Zap::Memslot), (2, 2), "after the split as well");
    // A toggle stops nobody.
    row.setting.processors = 2;
    row.hot.list = Some(vec![7]);
    let reads = live(&row, Policy::Folio, Zap::Protect);
    row.hot.writes = true;
    let writes = live(&row, Policy::Folio, Zap::Protect);
    // After the split and after the seam; and between the split's own two announcements, to read.
    assert_eq!((reads, writes), ((3, 0), (2, 0)));
}

#[test]
fn a_toggle_in_a_huge_page_pays_for_its_seam_once() {
    let row = huge_row(&[3, 9], &[]);
    let (_, kernel) = row.predict(PolicyChoice::Kernel, Zap::Nothing, Running::Around);
    let dropped = (kernel.sptes_zapped_4k.get(), kernel.sptes_zapped_2m.get());
    assert_eq!(dropped, (Some(0), Some(1)), "nobody touched it again");
    let announced = (kernel.invalidations.get(), kernel.needed_bytes.get());
    assert_eq!(announced, (Some(3), Some((2 << 20) + 2 * PAGE_SIZE)));
    let (_, folio) = row.predict(PolicyChoice::Announced(Policy::Folio), Zap::Protect, Running::Around);
    assert_eq!(
        folio.zapped_bytes.get(),
        Some((2 << 20) + (2 << 20) + PAGE_SIZE),
        "the split; a page and its seam; a page"
    );
}

#[test]
fn a_slow_loop_faults_less_than_one_that_comes_round() {
    let hot: Vec<u32> = (0..512).map(|page| page * 4 + 1).collect();
    let victims: Vec<u64> = (0..64).map(|page| page * 32).collect();
    let mut row = row(SecondaryMmu::Shadow, &victims, &hot);
    row.undisturbed = Some((1_000_000, 100_000_000));
    // 10 us a fault, 20 us before the first: 8 in the 100 us from one victim to the next.
    let round = |ns, faults| RefillRound { gap_ns: ns, ns, faults };
    row.refill = Some(Refill {
        rounds: vec![round(120_000, 10), round(520_000, 50)],
        around: Vec::new(),
        around_ns: Vec::new(),
    });
    let vm = |running| row.predict(PolicyChoice::Announced(Policy::Vm), Zap::Memslot, running).0;
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
    row.undisturbed = Some((1_000_000, 100_000_000));
    let round = |ns, faults| RefillRound { gap_ns: ns, ns, faults };
    let rounds = vec![round(100_000, 64), round(500_000, 64)];
    row.refill = Some(Refill { rounds, around: vec![64, 0, 64], around_ns: Vec::new() });
    assert!(row.pace().is_none(), "nothing says when it came round");
    let with_times = |around_ns: Vec<u64>| {
        let mut row = row.clone();
        row.refill.as_mut().unwrap().around_ns = around_ns;
        row.pace().map(|pace| (pace.touch, pace.fault))
    };
    // 100 ns a touch, and twice round 64 pages: 12.8 us of the 76.8.
    assert_eq!(with_times(vec![900_000, 1, 76_800]), Some((100.0, 1_000.0)));
    // What the gaps say is believed as far as coming round does not say that a fault costs less.
    row.refill.as_mut().unwrap().rounds = vec![round(100_000, 10), round(500_000, 11)];
    let slow = row.pace().unwrap().fault;
    assert_eq!(slow, 400_000.0);
    row.refill.as_mut().unwrap().around_ns = vec![76_800, 76_800, 76_800];
    assert_eq!(row.pace().unwrap().fault, 1_000.0);
}

#[test]
fn a_call_over_a_range_is_cut_where_the_row_has_its_seams() {
    let one = Announcement { pages: 4, cause: Cause::DontNeed, ..announcement(510) };
    let spans = |announced: &[Announcement]| -> Vec<(u64, u64)> {
        announced.iter().map(|one| (one.first_page, one.pages)).collect()
    };
    let cut = recut(&[one], true);
    assert_eq!(spans(&cut), [(510, 2), (512, 1), (513, 1)]);
    assert_eq!(spans(&recut(&cut, false)), [(510, 4)]);
    let taken = Announcement { cause: Cause::PageOut, ..one };
    assert_eq!(spans(&recut(&[taken], true)), [(510, 4)], "the reverse map goes by folios");
}
