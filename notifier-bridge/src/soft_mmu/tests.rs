//! The software MMU against a primary MMU whose every change makes frames that never were before.
//!
//! - `cases`: each rule once, by hand, with what happens where the rule is broken;
//! - `model`: every interleaving of fault phases, brackets and changes that proptest generates, in one thread;
//! - `stress`: the same with real threads, and an access that must never see a stale frame.

mod cases;
mod model;
mod stress;

use std::sync::Arc;

use guest_mem::{Gpa, Hva, HvaRange, PAGE_SIZE, SlotTable};

use super::fault::{Installed, SoftFault};
use super::*;
use crate::doubles::{FakePrimary, Pfn, slots};
use crate::event::Cause;

const MIB: u64 = 1 << 20;
/// Where the memory begins, in host addresses.
const BASE: u64 = 4 * MIB;
/// Pages of memory: two regions of 2 MiB.
const PAGES: u64 = 1024;
/// Page 768 on lies in a slot where guest and host addresses disagree modulo 2 MiB.
const ODD_SLOT: u64 = 768;

type Mmu = Arc<SoftMmu<FakePrimary>>;

/// 3 MiB that begin on a 2 MiB boundary, so that one whole region may be large, and 1 MiB that may not.
fn layout() -> Arc<SlotTable> {
    Arc::new(slots(&[(0, BASE, 3 * MIB, 4 * MIB), (16 * MIB + PAGE_SIZE, BASE + 3 * MIB, MIB, MIB)]))
}

fn mmu() -> Mmu {
    Arc::new(SoftMmu::new(FakePrimary::new(Hva::new(BASE), 2), layout()))
}

/// `count` pages of the memory from `page` on.
fn memory(page: u64, count: u64) -> HvaRange {
    crate::doubles::range(BASE + page * PAGE_SIZE, count * PAGE_SIZE)
}

fn gpa(page: u64) -> Gpa {
    match page {
        ODD_SLOT.. => Gpa::new(16 * MIB + PAGE_SIZE + (page - ODD_SLOT) * PAGE_SIZE),
        _ => Gpa::new(page * PAGE_SIZE),
    }
}

fn frame_of(worker: &mut Worker<FakePrimary>, page: u64) -> Pfn {
    worker.access(gpa(page), true, |frame, _| frame).unwrap()
}

/// What the shadow table says of a page, without faulting.
fn shadow_of(mmu: &Mmu, page: u64) -> Option<Pfn> {
    let slot = mmu.slots.find_gpa(gpa(page)).unwrap();
    let spte = mmu.table.look_up(slot, gpa(page).gfn());
    spte.is_present().then(|| Pfn(spte.pfn()))
}

fn fault(mmu: &Mmu, page: u64) -> SoftFault<'_, FakePrimary> {
    let slot = *mmu.slots.find_gpa(gpa(page)).unwrap();
    SoftFault { mmu, slot, gfn: gpa(page).gfn(), write: true }
}

/// Pages whose translation is not what the primary MMU says now.
fn stale_pages(mmu: &Mmu) -> Vec<u64> {
    let stale = |page: &u64| {
        let now = mmu.primary.current(memory(*page, 1).start());
        shadow_of(mmu, *page).is_some_and(|frame| frame != now)
    };
    (0..PAGES).filter(stale).collect()
}
