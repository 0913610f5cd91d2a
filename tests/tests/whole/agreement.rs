//! The secondary MMU agrees: what KVM's statistics say is gone is what the range covered and the guest had
//! mapped.
//!
//! The tests run with the guest idle, so the counts are exact. The guest maps its arena by 2 MiB pages and
//! touches every page first, so each 4 KiB page of host memory has exactly one leaf.

use std::sync::Arc;

use guest_abi::layout::{ARENA_GPA, PAGE_SIZE};
use guest_abi::order::Access;
use guest_mem::{Backing, HvaRange, MapLevel, Operation, Order, Victim};
use machine::{Accounting, KvmSlots, VmConfig, ZapMethod};
use notifier_bridge::{Bridge, Cause, Invalidation, Policy};
use tests::machine::{Bare, config};
use tests::naive;

crate::tests! {
    a_memslot_goes_whole_and_alone: [Kvm, SlotZap],
    with_the_quirk_one_slot_takes_everything: [Kvm],
    a_toggle_takes_exactly_its_range: [Kvm, SlotZap],
    without_a_seam_a_toggle_takes_its_block: [Kvm, SlotZap],
    unmapping_shared_memory_takes_exactly_its_range: [Kvm, SlotZap],
    a_part_of_a_huge_page_takes_its_one_leaf: [Kvm, SlotZap],
    every_policy_drops_what_it_announces: [Kvm, SlotZap],
    collateral_faults_are_pages_that_were_zapped_and_never_left: [Kvm, SlotZap],
}

/// Pages under a PMD entry.
const BLOCK: u64 = 512;

/// A guest that has written every page of its arena: every page has a leaf.
fn touched(config: VmConfig) -> Bare {
    let bare = Bare::start(config);
    bare.fill(1);
    bare.touch_all(Access::Write, u64::MAX);
    bare
}

fn slots(bare: &Bare, method: ZapMethod) -> KvmSlots {
    KvmSlots::new(bare.machine.core().clone(), method, Accounting::On)
}

/// Leaves that a zap dropped: by the difference around it, and by the listener's own account.
fn dropped(bare: &Bare, zap: &KvmSlots, range: HvaRange) -> ((u64, u64), (u64, u64)) {
    let before = bare.leaves();
    let zapped = zap.zap(range);
    let after = bare.leaves();
    let told = (zapped.sptes_4k.get().unwrap(), zapped.sptes_2m.get().unwrap());
    ((before.0 - after.0, before.1 - after.1), told)
}

fn a_memslot_goes_whole_and_alone() {
    let bare = touched(config(1, 16, Backing::Base4k));
    let zap = slots(&bare, ZapMethod::Memslot);
    let (gone, told) = dropped(&bare, &zap, bare.pages(3 * BLOCK + 7, 1));
    assert_eq!((gone, told), ((BLOCK, 0), (BLOCK, 0)), "one slot of 2 MiB");
    let (gone, _) = dropped(&bare, &zap, bare.pages(4 * BLOCK - 1, 2));
    assert_eq!(gone, (BLOCK, 0), "two slots, of which one was empty by then");
    assert_eq!(bare.verify(1).wrong_pages, 0);
}

fn with_the_quirk_one_slot_takes_everything() {
    let quirk = VmConfig { slot_zap_all_quirk: true, ..config(1, 16, Backing::Base4k) };
    let bare = touched(quirk);
    let zap = slots(&bare, ZapMethod::Memslot);
    let zapped = zap.zap(bare.pages(0, 1));
    assert_eq!(bare.leaves(), (0, 0));
    assert_eq!(zapped.slots, 1);
    assert_eq!(zapped.bytes, bare.machine.core().slots.as_slice().iter().map(|slot| slot.len()).sum::<u64>());
}

fn a_toggle_takes_exactly_its_range() {
    for backing in [Backing::Base4k, Backing::Memfd] {
        let bare = Bare::start(config(1, 8, backing));
        let arena = bare.machine.core().arena();
        arena.seam(arena.range()).unwrap();
        bare.fill(1);
        bare.touch_all(Access::Write, u64::MAX);
        let zap = slots(&bare, ZapMethod::Protect);
        for (first, count) in [(5, 1), (0, 1), (BLOCK - 1, 2), (BLOCK + 3, 64), (2 * BLOCK, BLOCK)] {
            let (gone, told) = dropped(&bare, &zap, bare.pages(first, count));
            assert_eq!((gone, told), ((count, 0), (count, 0)), "{backing}: {count} pages from {first}");
            bare.touch_all(Access::Write, u64::MAX);
        }
        assert_eq!(bare.verify(1).wrong_pages, 0, "{backing}");
    }
}

/// The trap that the seams are for, kept as a test so that a kernel without it is noticed.
fn without_a_seam_a_toggle_takes_its_block() {
    let bare = touched(config(1, 4, Backing::Base4k));
    let before = bare.leaves().0;
    guest_mem::perform(bare.machine.core().arena(), Operation::Protect, bare.pages(5, 1)).unwrap();
    assert_eq!(before - bare.leaves().0, BLOCK);
}

fn unmapping_shared_memory_takes_exactly_its_range() {
    let bare = touched(config(1, 8, Backing::Memfd));
    let zap = slots(&bare, ZapMethod::Unmap);
    for (first, count) in [(5, 1), (BLOCK - 1, 2), (2 * BLOCK, BLOCK)] {
        let (gone, told) = dropped(&bare, &zap, bare.pages(first, count));
        assert_eq!((gone, told), ((count, 0), (count, 0)), "{count} pages from {first}");
    }
    assert_eq!(bare.verify(1).wrong_pages, 0, "the pages stayed in the page cache");
}

fn a_part_of_a_huge_page_takes_its_one_leaf() {
    let bare = touched(config(1, 8, Backing::Thp));
    let (_, large) = bare.leaves();
    assert_eq!(large, 4, "the guest and the host both map by 2 MiB");
    let zap = slots(&bare, ZapMethod::Protect);
    let (gone, _) = dropped(&bare, &zap, bare.pages(BLOCK + 9, 1));
    assert_eq!(gone, (0, 1), "there is nothing smaller to drop");
    bare.touch_all(Access::Write, u64::MAX);
    let (gone, _) = dropped(&bare, &zap, bare.pages(BLOCK + 9, 1));
    assert_eq!(gone, (1, 0), "now that the mapping is broken, there is");
}

fn every_policy_drops_what_it_announces() {
    for policy in [Policy::Folio, Policy::Modern, Policy::Pmd, Policy::Page, Policy::Slot] {
        let bare = Bare::start(config(1, 8, Backing::Base4k));
        let core = bare.machine.core();
        let arena = core.arena();
        arena.seam(arena.range()).unwrap();
        bare.fill(1);
        bare.touch_all(Access::Write, u64::MAX);
        let method = if policy == Policy::Slot { ZapMethod::Memslot } else { ZapMethod::Protect };
        let listener = Arc::new(slots(&bare, method));
        let bridge = Bridge::new(policy, core.slots.clone()).shadowing(listener);
        let mut records = Vec::with_capacity(16);
        for page in [0, 77, BLOCK - 1, BLOCK, 3 * BLOCK + 200, 4 * BLOCK - 1] {
            let pages = bare.pages(page, 1);
            let victim = Victim { pages, order: Order::BASE, level: MapLevel::Pte, anonymous: true };
            let invalidation = Invalidation { cause: Cause::PageOut, victim, vma: arena.range() };
            let before = bare.leaves().0;
            bridge.invalidate(&mut records, &invalidation, || ());
            let lost = naive::pages_lost(&policy.to_string(), page * PAGE_SIZE, arena.range().len(), 2 << 20);
            assert_eq!(before - bare.leaves().0, lost, "{policy}, page {page}");
            let record = records.last().unwrap();
            assert_eq!(record.zapped.sptes_4k.get(), Some(lost), "{policy}, page {page}");
            assert_eq!(record.invalidated_bytes, lost * PAGE_SIZE, "{policy}, page {page}");
            bare.touch_all(Access::Write, u64::MAX);
        }
        assert_eq!(bare.verify(1).wrong_pages, 0);
    }
}

fn collateral_faults_are_pages_that_were_zapped_and_never_left() {
    let bare = touched(config(1, 8, Backing::Base4k));
    let arena = bare.machine.core().arena();
    arena.seam(arena.range()).unwrap();
    bare.touch_all(Access::Write, u64::MAX);
    let (first, count) = (BLOCK + 100, BLOCK - 100);
    // An access that faults takes many times what one that hits does, whatever that is on this host.
    let mut hits: Vec<u64> = bare.touch_all(Access::Read, 1).iter().map(|stall| stall.cycles).collect();
    hits.sort_unstable();
    let threshold = 2 * hits[hits.len() * 99 / 100];
    slots(&bare, ZapMethod::Protect).zap(bare.pages(first, count));
    let before = bare.machine.fault_counts().unwrap().fixed;
    let stalls = bare.touch_all(Access::Read, threshold);
    let faults = bare.machine.fault_counts().unwrap().fixed - before;
    let zapped = |gpa: u64| (first..first + count).contains(&((gpa - ARENA_GPA) / PAGE_SIZE));
    // The shadow MMU installs the resident neighbours of a page along with it, in aligned groups of eight
    // (`direct_pte_prefetch`); the TDP MMU installs the page alone.
    let groups = (first + count).div_ceil(8) - first / 8;
    let expected = if tests::host::tdp_mmu() { count } else { groups };
    assert_eq!(faults, expected, "for {count} pages");
    let inside = stalls.iter().filter(|stall| zapped(stall.gpa)).count() as u64;
    let outside = stalls.len() as u64 - inside;
    assert!(inside >= faults, "{inside} stalls, {faults} faults");
    // What stalls outside is an interrupt: the clock ticks a few hundred times a second.
    assert!(
        outside <= 1 + bare.config.arena / PAGE_SIZE / 50,
        "{outside} stalls on pages that kept their leaf"
    );
}
