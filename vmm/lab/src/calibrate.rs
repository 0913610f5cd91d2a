//! The cost of recording, measured against the same without it.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use guest_mem::{
    Backing, Hva, HvaRange, MapLevel, Operation, Order, PAGE_SIZE, PMD_SIZE, Region, SlotTableBuilder,
    Victim, perform,
};
use kvm_ioctls::VmFd;
use machine::Kvm;
use notifier_bridge::{Bridge, Cause, Invalidation, Policy, monotonic_ns};

/// Rounds of each batch; the fastest of [`BATCHES`] counts, since what disturbs only ever adds.
const ROUNDS: u32 = 2_000;
const BATCHES: u32 = 5;

/// Nanoseconds of one reading of the clock.
pub fn clock_read_ns() -> f64 {
    fastest(|| {
        black_box(monotonic_ns());
    })
}

/// Nanoseconds of one invalidation through a bridge without listeners: announced, nothing done, recorded.
pub fn empty_invalidation_ns() -> f64 {
    let slots = SlotTableBuilder::new(0).build().expect("no slots overlap");
    let bridge = Bridge::new(Policy::Modern, Arc::new(slots));
    let mut records = Vec::with_capacity(1);
    let vma = HvaRange::with_len(Hva::new(PMD_SIZE), PMD_SIZE).expect("far from the end");
    let pages = HvaRange::with_len(vma.start(), PAGE_SIZE).expect("far from the end");
    let victim = Victim { pages, order: Order::BASE, level: MapLevel::Pte, anonymous: true };
    let invalidation = Invalidation { cause: Cause::PageOut, victim, vma };
    fastest(|| {
        records.clear();
        // Without listeners nothing is refused.
        bridge.invalidate(&mut records, black_box(&invalidation), || ());
    })
}

/// Announces a range to a KVM of this process, as the kernel does when memory goes, and times it.
pub struct Announcer {
    /// Even a VM without memory is notified.
    _vm: VmFd,
    region: Region,
}

impl Announcer {
    /// One of its own; `None` where there is no VM or no memory.
    pub fn new(kvm: &Kvm) -> Option<Self> {
        let vm = kvm.create_vm().ok()?;
        let region = Region::map(PMD_SIZE, Backing::Base4k).ok()?;
        Some(Self { _vm: vm, region })
    }

    /// The range that it announces.
    pub fn range(&self) -> HvaRange {
        self.region.range()
    }

    /// Nanoseconds of one range that takes nothing: the system call and the announcement.
    pub fn range_ns(&self) -> f64 {
        let page = self.region.slice(0, PAGE_SIZE).expect("the region has a page");
        fastest(|| {
            // Of nothing there is nothing to refuse.
            let _ = black_box(perform(&self.region, Operation::DontNeed, black_box(page)));
        })
    }
}

fn fastest(mut round: impl FnMut()) -> f64 {
    let batch = |_| {
        let begun = Instant::now();
        (0..ROUNDS).for_each(|_| round());
        begun.elapsed().as_nanos() as f64 / f64::from(ROUNDS)
    };
    (0..BATCHES).map(batch).fold(f64::INFINITY, f64::min)
}
