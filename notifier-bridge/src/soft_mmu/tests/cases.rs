use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use guest_mem::{MapLevel, Order, Victim};

use super::*;
use crate::bridge::Bridge;
use crate::event::Invalidation;
use crate::policy::Policy;
use crate::primary::{Mapping, PrimaryMmu};

#[test]
fn an_access_faults_once_and_a_large_mapping_serves_its_neighbours() {
    let mmu = mmu();
    let mut worker = mmu.worker();
    let first = frame_of(&mut worker, 3);
    assert_eq!(frame_of(&mut worker, 5).0, first.0 + 2, "frames of one PMD are consecutive");
    assert_eq!(worker.access(Gpa::new(0x3123), false, |_, offset| offset), Ok(0x123));
    let stats = worker.stats();
    assert_eq!((stats.accesses, stats.pf_taken, stats.pf_fixed, stats.retries), (3, 1, 1, 0));
    assert_eq!((mmu.stats().pages_2m, mmu.stats().pages_4k), (1, 0));
}

#[test]
fn where_alignment_or_the_slot_forbid_it_no_large_entry_is_made() {
    let mmu = mmu();
    let mut worker = mmu.worker();
    for page in [ODD_SLOT, ODD_SLOT - 1] {
        assert_eq!(frame_of(&mut worker, page), mmu.primary.current(memory(page, 1).start()));
    }
    assert_eq!((mmu.stats().pages_2m, mmu.stats().pages_4k), (0, 2));
}

#[test]
fn no_slot_is_an_error() {
    let gpa = Gpa::new(8 * MIB);
    assert_eq!(mmu().worker().access(gpa, false, |_, _| ()), Err(AccessError::NoSlot(gpa)));
}

#[test]
fn a_page_of_a_large_mapping_takes_the_whole_entry_and_says_so() {
    let mmu = mmu();
    frame_of(&mut mmu.worker(), 3);
    let zapped = mmu.invalidate_range_start(memory(7, 1));
    let whole = Zapped { slots: 1, bytes: 2 * MIB, sptes_4k: Count::of(0), sptes_2m: Count::of(1) };
    assert_eq!(zapped, whole);
    mmu.invalidate_range_end(memory(7, 1));
    assert_eq!(mmu.invalidate_range_start(memory(7, 1)), Zapped::NOTHING);
    mmu.invalidate_range_end(memory(7, 1));
    let stats = mmu.stats();
    assert_eq!((stats.pages_2m, stats.sptes_zapped_2m, stats.remote_tlb_flushes), (0, 1, 1));
}

#[test]
fn where_nothing_was_dropped_nobody_is_waited_for() {
    let mmu = mmu();
    let mut worker = mmu.worker();
    frame_of(&mut worker, ODD_SLOT);
    assert_eq!((mmu.stats().pages_2m, mmu.stats().pages_4k), (0, 1));
    let neighbour = memory(ODD_SLOT + 1, 1);
    assert_eq!(mmu.invalidate_range_start(neighbour), Zapped::NOTHING);
    mmu.invalidate_range_end(neighbour);
    assert_eq!(mmu.stats().remote_tlb_flushes, 0);
}

#[test]
fn a_range_outside_every_slot_opens_no_bracket() {
    let mmu = mmu();
    let elsewhere = crate::doubles::range(0, PAGE_SIZE);
    assert_eq!(mmu.invalidate_range_start(elsewhere), Zapped::NOTHING);
    assert_eq!(mmu.sequence.in_progress(), 0);
    mmu.invalidate_range_end(elsewhere);
}

#[test]
fn a_fault_overtaken_by_an_invalidation_installs_nothing() {
    let mmu = mmu();
    let resolved = fault(&mmu, 600).snapshot().resolve().unwrap();
    mmu.invalidate_range_start(memory(600, 1));
    mmu.primary.change(memory(600, 1));
    mmu.invalidate_range_end(memory(600, 1));
    assert_eq!(resolved.install(), Installed::Retry);
    assert_eq!(shadow_of(&mmu, 600), None);
}

#[test]
fn inside_the_bracket_its_pages_wait_and_others_do_not() {
    let mmu = mmu();
    mmu.invalidate_range_start(memory(600, 1));
    assert!(fault(&mmu, 600).snapshot().is_hopeless());
    assert_eq!(fault(&mmu, 600).snapshot().resolve().unwrap().install(), Installed::Retry);
    assert!(!fault(&mmu, 601).snapshot().is_hopeless());
    assert_eq!(fault(&mmu, 601).snapshot().resolve().unwrap().install(), Installed::Fixed);
    mmu.invalidate_range_end(memory(600, 1));
    assert_eq!(fault(&mmu, 600).snapshot().resolve().unwrap().install(), Installed::Fixed);
}

#[test]
fn a_large_entry_is_not_made_over_a_page_in_progress() {
    let mmu = mmu();
    // The look-up still finds the PMD; one page under it is then invalidated, and a check of the faulting
    // page alone would let the large entry cover it.
    let resolved = fault(&mmu, 3).snapshot().resolve().unwrap();
    mmu.invalidate_range_start(memory(7, 1));
    assert_eq!(resolved.install(), Installed::Fixed);
    assert_eq!((mmu.stats().pages_2m, mmu.stats().pages_4k), (0, 1));
    mmu.primary.change(memory(7, 1));
    mmu.invalidate_range_end(memory(7, 1));
    assert!(stale_pages(&mmu).is_empty());
}

#[test]
fn a_second_fault_on_the_same_page_is_spurious() {
    let mmu = mmu();
    let (first, second) = (fault(&mmu, 600).snapshot(), fault(&mmu, 600).snapshot());
    assert_eq!(first.resolve().unwrap().install(), Installed::Fixed);
    assert_eq!(second.resolve().unwrap().install(), Installed::Spurious);
}

#[test]
fn without_a_bracket_a_stale_translation_survives_and_is_seen() {
    let mmu = mmu();
    frame_of(&mut mmu.worker(), 600);
    mmu.primary.change(memory(600, 1));
    assert_eq!(stale_pages(&mmu), [600]);
}

/// A folio of 2 MiB that mremap moved to where it crosses a 2 MiB boundary, mapped by PTEs and in the shadow
/// table, then taken under `policy`.
fn take_moved_folio(policy: Policy) -> usize {
    let mmu = mmu();
    let victim = Victim { pages: memory(256, 512), order: Order::PMD, level: MapLevel::Pte, anonymous: true };
    mmu.primary.change(memory(0, PAGES));
    let mut worker = mmu.worker();
    for page in 256..768 {
        frame_of(&mut worker, page);
    }
    let bridge = Bridge::new(policy, layout()).shadowing(mmu.clone());
    let out = Invalidation { cause: Cause::PageOut, victim, vma: memory(0, PAGES) };
    bridge.invalidate(&mut Vec::new(), &out, || mmu.primary.change(victim.pages));
    stale_pages(&mmu).len()
}

#[test]
fn the_first_2017_range_leaves_half_a_moved_folio_behind() {
    assert_eq!(take_moved_folio(Policy::Pmd), 256);
    for policy in [Policy::Page, Policy::Folio, Policy::Modern, Policy::Slot, Policy::Vm] {
        assert_eq!(take_moved_folio(policy), 0, "{policy}");
    }
}

#[test]
fn a_start_waits_for_the_access_it_would_pull_the_page_from() {
    let mmu = mmu();
    let left = AtomicBool::new(false);
    let (inside, entered) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            mmu.worker().access(gpa(600), true, |_, _| {
                inside.send(()).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(20));
                left.store(true, Ordering::SeqCst);
            })
        });
        entered.recv().unwrap();
        mmu.invalidate_range_start(memory(600, 1));
        assert!(left.load(Ordering::SeqCst), "the start returned with a worker inside");
        mmu.invalidate_range_end(memory(600, 1));
    });
}

#[test]
fn a_worker_that_panics_in_an_access_has_left_it() {
    let mmu = mmu();
    let mut worker = mmu.worker();
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        worker.access(gpa(600), true, |_, _| panic!("in the access"))
    }));
    assert!(unwound.is_err());
    mmu.invalidate_range_start(memory(600, 1));
    mmu.invalidate_range_end(memory(600, 1));
}

#[test]
fn a_worker_that_is_gone_leaves_its_counts() {
    let mmu = mmu();
    frame_of(&mut mmu.worker(), 600);
    frame_of(&mut mmu.worker(), 600);
    let workers = mmu.stats().workers;
    assert_eq!((workers.accesses, workers.pf_taken, workers.pf_fixed), (2, 1, 1));
    assert!(mmu.sequence.lock().workers.is_empty(), "no invalidation waits for them any more");
}

/// Read-only by PMDs; writable by PTEs, if at all.
struct SplitOnWrite {
    writable: bool,
}

impl PrimaryMmu for SplitOnWrite {
    type Frame = Pfn;

    fn resolve(&self, hva: Hva, write: bool) -> Result<Mapping<Pfn>, ResolveError> {
        let level = if write { MapLevel::Pte } else { MapLevel::Pmd };
        let frame = Pfn(hva.get() / PAGE_SIZE);
        Ok(Mapping { frame, level, writable: write && self.writable })
    }
}

#[test]
fn a_write_to_a_read_only_entry_faults_and_a_split_entry_is_still_waited_for() {
    let mmu = Arc::new(SoftMmu::new(SplitOnWrite { writable: true }, layout()));
    let mut worker = mmu.worker();
    worker.access(gpa(3), false, |_, _| ()).unwrap();
    worker.access(gpa(3), true, |_, _| ()).unwrap();
    let stats = mmu.stats();
    assert_eq!((stats.pages_2m, stats.pages_4k, stats.workers.pf_fixed), (0, 1, 2));
    // Page 5 has no entry any more, but a worker may be inside an access through the old one.
    assert_eq!(mmu.invalidate_range_start(memory(5, 1)), Zapped::NOTHING);
    mmu.invalidate_range_end(memory(5, 1));
    assert_eq!(mmu.stats().remote_tlb_flushes, 1);
}

#[test]
fn memory_that_cannot_be_written_is_an_error_and_not_an_endless_fault() {
    let mmu = Arc::new(SoftMmu::new(SplitOnWrite { writable: false }, layout()));
    let read_only = ResolveError::ReadOnly(memory(3, 1).start());
    assert_eq!(mmu.worker().access(gpa(3), true, |_, _| ()), Err(AccessError::Resolve(read_only)));
}
