//! Real threads. An access looks at the primary MMU on the way in and on the way out: if its frame is not the
//! page's own at both moments, the translation was stale.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::bridge::Bridge;
use crate::doubles::folio_at;
use crate::event::Invalidation;
use crate::policy::Policy;
use crate::record::InvalidationRecord;

/// A small random number generator (splitmix64): every run of the test does the same.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// Accesses random pages until told to stop. Returns how often it saw a stale frame.
fn device(mmu: &Mmu, seed: u64, stop: &AtomicBool) -> u64 {
    let (mut worker, mut random, mut stale) = (mmu.worker(), Random(seed), 0);
    while !stop.load(Ordering::Relaxed) {
        let page = random.below(PAGES);
        let hva = memory(page, 1).start();
        let spins = random.below(64);
        let seen = worker.access(gpa(page), true, |frame, _| {
            let before = mmu.primary.current(hva) == frame;
            (0..spins).for_each(|_| std::hint::spin_loop());
            before && mmu.primary.current(hva) == frame
        });
        stale += u64::from(!seen.unwrap());
    }
    stale
}

/// Takes `count` random folios under `policy`; every 50th time it maps a region anew.
fn reclaim(mmu: &Mmu, policy: Policy, seed: u64, count: u64) -> Vec<InvalidationRecord> {
    let bridge = Bridge::new(policy, layout()).shadowing(mmu.clone());
    let (mut records, mut random) = (Vec::new(), Random(seed));
    for turn in 0..count {
        let order = if turn % 50 == 0 { 9 } else { random.below(5) as u8 };
        let page = (random.below(PAGES) >> order) << order;
        let victim = folio_at(BASE + page * PAGE_SIZE, order);
        let out = Invalidation { cause: Cause::PageOut, victim, vma: memory(0, PAGES) };
        bridge.invalidate(&mut records, &out, || match order {
            9 => mmu.primary.collapse(page / 512),
            _ => mmu.primary.change(victim.pages),
        });
    }
    records
}

#[test]
fn an_access_never_sees_a_stale_frame() {
    let mmu = mmu();
    let stop = AtomicBool::new(false);
    let stale = AtomicU64::new(0);
    let policies = [Policy::Modern, Policy::Pmd, Policy::Slot];
    let records: Vec<Vec<InvalidationRecord>> = std::thread::scope(|scope| {
        for seed in 0..2 {
            let (mmu, stop, stale) = (&mmu, &stop, &stale);
            scope.spawn(move || stale.fetch_add(device(mmu, seed, stop), Ordering::Relaxed));
        }
        let mmu = &mmu;
        let reclaimers: Vec<_> =
            policies.iter().map(|&p| scope.spawn(move || reclaim(mmu, p, p as u64, 4000))).collect();
        // Devices are told to stop even if a reclaimer panicked: a failure must not hang.
        let joined: Vec<_> = reclaimers.into_iter().map(|thread| thread.join()).collect();
        stop.store(true, Ordering::Relaxed);
        joined.into_iter().map(Result::unwrap).collect()
    });
    assert_eq!(stale.into_inner(), 0);
    assert!(stale_pages(&mmu).is_empty());
    assert_eq!(mmu.sequence.in_progress(), 0, "every start had its end");

    let stats = mmu.stats();
    let workers = stats.workers;
    assert_eq!(workers.pf_taken, workers.pf_fixed + workers.pf_spurious);
    assert!(workers.accesses > 0 && stats.remote_tlb_flushes > 0, "{stats:?}");
    let records: u64 = records.iter().map(|records| records.len() as u64).sum();
    assert_eq!(records, 3 * 4000);
}

#[test]
fn the_same_device_does_see_a_change_that_nobody_announced() {
    let mmu = mmu();
    frame_of(&mut mmu.worker(), 600);
    let seen = mmu.worker().access(gpa(600), true, |frame, _| {
        mmu.primary.change(memory(600, 1));
        frame == mmu.primary.current(memory(600, 1).start())
    });
    assert_eq!(seen, Ok(false), "else the stress above could not fail");
}
