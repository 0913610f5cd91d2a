//! Every rule against a hand-computed example, and against an oracle that applies the rule's words to each
//! page of a small address space.

use guest_mem::{MapLevel, Order, PAGES_PER_PMD};
use proptest::prelude::*;

use super::*;
use crate::doubles::{folio_at, pages, range, slots};

const MIB: u64 = 1 << 20;

/// Two runs of slots: 4..8 MiB in slots of 1 MiB, and 12..13 MiB in one.
fn two_runs() -> SlotTable {
    slots(&[(0, 4 * MIB, 4 * MIB, MIB), (16 * MIB, 12 * MIB, MIB, MIB)])
}

fn told(policy: Policy, victim: &Victim, vma: HvaRange, slots: &SlotTable) -> Vec<Call> {
    policy.calls(victim, vma, slots).collect()
}

/// An anonymous order-1 folio, 12 KiB below a 2 MiB boundary.
fn example() -> (Victim, HvaRange, SlotTable) {
    (folio_at(6 * MIB - 0x3000, 1), range(4 * MIB, 4 * MIB), two_runs())
}

fn announced_bytes(policy: Policy, victim: &Victim, vma: HvaRange, slots: &SlotTable) -> u64 {
    policy.ranges(victim, vma, slots).map(HvaRange::len).sum()
}

/// What a policy says of its ranges is true of them.
#[test]
fn a_policys_ranges_are_the_folio_or_slots_where_it_says_so() {
    let (victim, vma, slots) = example();
    for &policy in Policy::ALL {
        let ranges: Vec<HvaRange> = policy.ranges(&victim, vma, &slots).collect();
        let ends_with_slots = |range: &HvaRange| {
            let covering = slots.covering(*range);
            covering.first().map(|slot| slot.hva_range().start()) == Some(range.start())
                && covering.last().map(|slot| slot.hva_range().end()) == Some(range.end())
        };
        assert_eq!(policy.is_the_folio(), ranges == [victim.pages], "{policy}");
        assert_eq!(policy.is_of_slots(), ranges.iter().all(ends_with_slots), "{policy}");
    }
}

#[test]
fn page_tells_each_page_after_the_operation() {
    let (victim, vma, slots) = example();
    let calls = told(Policy::Page, &victim, vma, &slots);
    let (first, second) = (range(0x5f_d000, 0x1000), range(0x5f_e000, 0x1000));
    assert_eq!(calls, [Call::Operation, Call::InvalidatePage(first), Call::InvalidatePage(second)]);
}

#[test]
fn pmd_rounds_the_end_up_and_not_the_start_down() {
    let (victim, vma, slots) = example();
    let bracket = range(0x5f_d000, 0x3000);
    assert_eq!(
        told(Policy::Pmd, &victim, vma, &slots),
        [
            Call::Start(bracket),
            Call::Operation,
            Call::InvalidateRange(range(0x5f_d000, 0x1000)),
            Call::InvalidateRange(range(0x5f_e000, 0x1000)),
            Call::InvalidateRangeAgain(bracket),
            Call::End(bracket),
        ]
    );
}

#[test]
fn folio_makes_the_double_call_and_modern_does_not() {
    let (victim, vma, slots) = example();
    let bracket = range(0x5f_d000, 0x2000);
    assert_eq!(
        told(Policy::Folio, &victim, vma, &slots),
        [
            Call::Start(bracket),
            Call::Operation,
            Call::InvalidateRange(range(0x5f_d000, 0x1000)),
            Call::InvalidateRange(range(0x5f_e000, 0x1000)),
            Call::InvalidateRangeAgain(bracket),
            Call::End(bracket),
        ]
    );
    assert_eq!(
        told(Policy::Modern, &victim, vma, &slots),
        [Call::Start(bracket), Call::Operation, Call::InvalidateRange(bracket), Call::End(bracket)]
    );
}

#[test]
fn slot_and_vm_tell_whole_slots_and_flush_the_victim_only() {
    let (victim, vma, slots) = example();
    let (slot, first, second) = (range(5 * MIB, MIB), range(4 * MIB, 4 * MIB), range(12 * MIB, MIB));
    let flush = Call::InvalidateRange(victim.pages);
    assert_eq!(
        told(Policy::Slot, &victim, vma, &slots),
        [Call::Start(slot), Call::Operation, flush, Call::End(slot)]
    );
    assert_eq!(
        told(Policy::Vm, &victim, vma, &slots),
        [
            Call::Start(first),
            Call::Start(second),
            Call::Operation,
            flush,
            Call::End(second),
            Call::End(first)
        ]
    );
}

#[test]
fn a_page_of_a_file_is_not_told_inside_the_walk() {
    let (victim, vma, slots) = example();
    let victim = Victim { anonymous: false, ..victim };
    let bracket = range(0x5f_d000, 0x2000);
    assert_eq!(
        told(Policy::Folio, &victim, vma, &slots),
        [Call::Start(bracket), Call::Operation, Call::InvalidateRangeAgain(bracket), Call::End(bracket)]
    );
}

#[test]
fn every_bracket_is_clipped_at_the_end_of_the_vma() {
    let slots = two_runs();
    // The mapped half of an order-9 folio that the VMA cuts.
    let victim =
        Victim { pages: range(4 * MIB, MIB), order: Order::PMD, level: MapLevel::Pte, anonymous: true };
    let vma = range(4 * MIB, MIB);
    for policy in [Policy::Pmd, Policy::Folio, Policy::Modern] {
        let ranges: Vec<_> = policy.ranges(&victim, vma, &slots).collect();
        assert_eq!(ranges, [vma], "{policy}");
    }
    // The kernel never asks this; the answer is an empty range, not one that runs backwards.
    let elsewhere = range(0, MIB);
    assert_eq!(announced_bytes(Policy::Pmd, &victim, elsewhere, &slots), 0);
}

#[test]
fn pmd_under_covers_what_crosses_a_2_mib_boundary() {
    let slots = slots(&[]);
    let vma = range(0, 4 << 30);
    // A PMD-sized folio that mremap moved off its alignment.
    let moved = folio_at(3 * MIB, 9);
    let pmd: Vec<_> = Policy::Pmd.ranges(&moved, vma, &slots).collect();
    assert_eq!(pmd, [range(3 * MIB, MIB)]);
    assert_eq!(announced_bytes(Policy::Folio, &moved, vma, &slots), 2 * MIB);
    assert!(!pmd[0].covers(moved.pages));
    // A 1 GiB page.
    let giant = folio_at(1 << 30, 18);
    assert_eq!(announced_bytes(Policy::Pmd, &giant, vma, &slots), 2 * MIB);
    assert_eq!(announced_bytes(Policy::Folio, &giant, vma, &slots), 1 << 30);
}

#[test]
fn a_random_page_costs_pmd_a_mebibyte_on_average() {
    let (slots, vma) = (slots(&[]), range(0, 4 * MIB));
    let bytes: u64 =
        (0..512).map(|p| announced_bytes(Policy::Pmd, &folio_at(p * PAGE_SIZE, 0), vma, &slots)).sum();
    assert_eq!(bytes / 512, MIB + PAGE_SIZE / 2);
}

#[test]
fn a_range_operation_is_announced_exactly_in_every_era() {
    let slots = two_runs();
    let wide =
        Victim { pages: range(5 * MIB, MIB), order: Order::BASE, level: MapLevel::Pte, anonymous: true };
    let vma = range(4 * MIB, 4 * MIB);
    for policy in [Policy::Page, Policy::Pmd, Policy::Folio] {
        let again = Call::InvalidateRangeAgain(wide.pages);
        let (start, end) = (Call::Start(wide.pages), Call::End(wide.pages));
        let flush = Call::InvalidateRange(wide.pages);
        assert_eq!(told(policy, &wide, vma, &slots), [start, Call::Operation, flush, again, end], "{policy}");
    }
    assert_eq!(announced_bytes(Policy::Modern, &wide, vma, &slots), MIB);
}

#[test]
fn a_victim_that_no_slot_covers_is_still_announced() {
    let slots = two_runs();
    let (outside, partly) = (folio_at(10 * MIB, 0), folio_at(7 * MIB, 9));
    let vma = range(0, 64 * MIB);
    let ranges = |policy: Policy, victim| policy.ranges(victim, vma, &slots).collect::<Vec<_>>();
    assert_eq!(ranges(Policy::Slot, &outside), [outside.pages]);
    assert_eq!(ranges(Policy::Slot, &partly), [range(7 * MIB, 2 * MIB)]);
    let runs = [range(4 * MIB, 4 * MIB), range(12 * MIB, MIB)];
    assert_eq!(ranges(Policy::Vm, &outside), [outside.pages, runs[0], runs[1]]);
    assert_eq!(ranges(Policy::Vm, &partly), [partly.pages, runs[0], runs[1]]);
    assert_eq!(ranges(Policy::Vm, &folio_at(4 * MIB, 9)), runs, "and only then");
}

#[test]
fn starts_balance_ends_wherever_one_stops() {
    let slots = two_runs();
    for policy in Policy::ALL {
        let mut calls = policy.calls(&folio_at(10 * MIB, 2), range(0, 64 * MIB), &slots);
        let mut open = Vec::new();
        loop {
            let owed: Vec<_> = calls.unwind().collect();
            assert!(owed.iter().eq(open.iter().rev()), "{policy}: {owed:?} owed, {open:?} open");
            match calls.next() {
                Some(Call::Start(range)) => open.push(range),
                Some(Call::End(range)) => assert_eq!(open.pop(), Some(range), "{policy}: ends nest"),
                Some(_) => {}
                None => break,
            }
        }
        assert!(open.is_empty() && calls.next().is_none());
    }
}

/// Pages of the small space the oracle enumerates: four regions of 2 MiB.
const SPACE: u64 = 4 * PAGES_PER_PMD;

/// A folio of up to 1024 pages anywhere (mremap may have moved it), in a VMA that holds its start.
#[derive(Debug, Clone, Copy)]
struct Case {
    victim: Victim,
    vma: HvaRange,
}

fn case() -> impl Strategy<Value = Case> {
    (0u8..=10, 0..SPACE, 0u64..64, 0u64..SPACE, any::<bool>()).prop_map(
        |(order, at, below, above, anonymous)| {
            let order = Order::new(order).unwrap();
            let vma_end = (at + 1 + above).min(SPACE);
            let mapped = order.pages().min(vma_end - at);
            let victim = Victim { pages: pages(at, mapped), order, level: MapLevel::Pte, anonymous };
            Case { victim, vma: pages(at.saturating_sub(below), vma_end - at.saturating_sub(below)) }
        },
    )
}

fn slot_layout() -> impl Strategy<Value = SlotTable> {
    (0u64..900, 1u64..300, 0u64..200, 1u64..300, 0u32..10).prop_map(|(first, low, gap, high, granule)| {
        let granule = PAGE_SIZE << granule;
        let second = first + low + gap;
        slots(&[
            (0, first * PAGE_SIZE, low * PAGE_SIZE, granule),
            (1 << 32, second * PAGE_SIZE, high * PAGE_SIZE, granule),
        ])
    })
}

/// Whether the rule's words take page `p` in. Written from the table, a page at a time, without ranges.
fn takes_in(policy: Policy, case: &Case, slots: &SlotTable, p: u64) -> bool {
    let a = case.victim.pages.start().get() >> 12;
    let taken = |page: u64| case.victim.pages.contains(Hva::new(page << 12));
    let before_vma_end = p << 12 < case.vma.end().get();
    let slot_of = |page: u64| slots.as_slice().iter().find(|s| s.hva_range().contains(Hva::new(page << 12)));
    match policy {
        Policy::Page => taken(p),
        Policy::Pmd => p >= a && p / 512 == a / 512 && before_vma_end,
        Policy::Folio | Policy::Modern => p >= a && p < a + (1 << case.victim.order.get()) && before_vma_end,
        Policy::Slot => {
            let shared = |slot: &guest_mem::Memslot| {
                (0..SPACE).any(|v| taken(v) && slot.hva_range().contains(Hva::new(v << 12)))
            };
            taken(p) || slot_of(p).is_some_and(shared)
        }
        Policy::Vm => {
            let sticks_out = || (0..SPACE).any(|v| taken(v) && slot_of(v).is_none());
            slot_of(p).is_some() || (taken(p) && sticks_out())
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_rule_agrees_with_the_page_by_page_oracle(case in case(), slots in slot_layout()) {
        for &policy in Policy::ALL {
            let ranges: Vec<_> = policy.ranges(&case.victim, case.vma, &slots).collect();
            for p in 0..SPACE {
                let announced = ranges.iter().any(|range| range.contains(Hva::new(p << 12)));
                prop_assert_eq!(announced, takes_in(policy, &case, &slots, p), "{} page {}", policy, p);
            }
            // In whole pages, so that asking each page's first byte was enough.
            prop_assert!(ranges.iter().all(|r| r.start().is_aligned(4096) && r.end().is_aligned(4096)));
        }
    }
}

proptest! {
    #[test]
    fn folio_lies_inside_pmd_inside_one_region_and_only_there(case in case()) {
        let none = slots(&[]);
        let folio = Policy::Folio.ranges(&case.victim, case.vma, &none).next().unwrap();
        let pmd = Policy::Pmd.ranges(&case.victim, case.vma, &none).next().unwrap();
        let last_page = folio.end().get() - 1;
        let in_one_region = folio.start().get() / PMD_SIZE == last_page / PMD_SIZE;
        prop_assert_eq!(pmd.covers(folio), in_one_region);
    }

    #[test]
    fn every_rule_but_pmd_covers_its_victim(case in case(), slots in slot_layout()) {
        for &policy in Policy::ALL.iter().filter(|&&policy| policy != Policy::Pmd) {
            let ranges: Vec<_> = policy.ranges(&case.victim, case.vma, &slots).collect();
            let covered = |page: HvaRange| ranges.iter().any(|range| range.covers(page));
            prop_assert!(case.victim.pages.pages().all(covered), "{}", policy);
        }
    }

    #[test]
    fn each_sequence_operates_once_balances_and_repeats_only_its_own_brackets(
        case in case(), slots in slot_layout(),
    ) {
        for &policy in Policy::ALL {
            let calls = told(policy, &case.victim, case.vma, &slots);
            let operation = calls.iter().position(|call| *call == Call::Operation).unwrap();
            prop_assert_eq!(calls.iter().filter(|call| **call == Call::Operation).count(), 1);
            prop_assert!(calls[..operation].iter().all(|call| matches!(call, Call::Start(_))));
            let starts = calls[..operation].iter().map(|call| match call { Call::Start(r) => *r, _ => unreachable!() });
            let ends: Vec<_> =
                calls.iter().filter_map(|call| match call { Call::End(r) => Some(*r), _ => None }).collect();
            prop_assert!(starts.eq(ends.iter().rev().copied()));
            for pair in calls.windows(2) {
                if let Call::InvalidateRangeAgain(range) = pair[0] {
                    prop_assert_eq!(pair[1], Call::End(range));
                }
            }
        }
    }
}
