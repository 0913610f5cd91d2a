//! From hook to record: what an invalidation costs whose operation and listeners do nothing.
//!
//! The target is 250 ns. Beside it stands what no implementation can avoid: the clock reads that separate
//! zap, operation and end. A share of the rest is the record itself, three cache lines written once.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use guest_mem::{Gpa, Hva, HvaRange, MapLevel, Order, SlotTable, SlotTableBuilder, Victim};
use notifier_bridge::{
    Bridge, Cause, Invalidation, Listener, Policy, Shadowing, ShadowingMmu, SoftMmu, Zapped, monotonic_ns,
};

struct NoOp;

impl Listener for NoOp {
    type Kind = Shadowing;
}
impl ShadowingMmu for NoOp {
    fn invalidate_range_start(&self, _: HvaRange) -> Zapped {
        Zapped::NOTHING
    }
    fn invalidate_range_end(&self, _: HvaRange) {}
}

/// 1 GiB of guest memory that is never touched, in slots of 2 MiB.
const RAM: (u64, u64) = (1 << 40, 1 << 30);

fn ram() -> HvaRange {
    HvaRange::with_len(Hva::new(RAM.0), RAM.1).expect("below the end of the space")
}

fn slots() -> Arc<SlotTable> {
    let mut builder = SlotTableBuilder::new(1024);
    builder.add_region(Gpa::new(0), ram(), 2 << 20).expect("a valid layout");
    Arc::new(builder.build().expect("one region does not overlap"))
}

fn page_out(page: u64) -> Invalidation {
    let pages = HvaRange::with_len(Hva::new(RAM.0 + (page << 12)), 4096).expect("inside");
    let victim = Victim { pages, order: Order::BASE, level: MapLevel::Pte, anonymous: true };
    Invalidation { cause: Cause::PageOut, victim, vma: ram() }
}

fn clock(c: &mut Criterion) {
    c.bench_function("clock/one read", |b| b.iter(monotonic_ns));
    c.bench_function("clock/the four reads of an invalidation", |b| {
        b.iter(|| (0..4).map(|_| black_box(monotonic_ns())).sum::<u64>())
    });
}

fn hook(c: &mut Criterion) {
    for &policy in Policy::ALL {
        let bridge = Bridge::new(policy, slots()).shadowing(Arc::new(NoOp));
        // Large enough for any run to stay a run of stores into memory, as in use.
        let mut records = Vec::with_capacity(1 << 16);
        let mut page = 0;
        c.bench_function(&format!("hook to ledger/{policy}"), |b| {
            b.iter(|| {
                page = (page + 7919) & 0x3_ffff;
                if records.len() == records.capacity() {
                    records.clear();
                }
                bridge.invalidate(&mut records, &page_out(page), || black_box(()))
            })
        });
    }
}

/// A primary MMU that always has the page.
struct Identity;

impl notifier_bridge::PrimaryMmu for Identity {
    type Frame = Hva;

    fn resolve(
        &self,
        hva: Hva,
        _write: bool,
    ) -> Result<notifier_bridge::Mapping<Hva>, notifier_bridge::ResolveError> {
        Ok(notifier_bridge::Mapping { frame: hva, level: MapLevel::Pte, writable: true })
    }
}

fn soft_mmu(c: &mut Criterion) {
    let mmu = Arc::new(SoftMmu::new(Identity, slots()));
    let mut worker = mmu.worker();
    let touch = |worker: &mut notifier_bridge::Worker<Identity>| {
        worker.access(Gpa::new(0x7123), true, |frame, offset| black_box((frame, offset)))
    };
    c.bench_function("soft mmu/access, translated", |b| b.iter(|| touch(&mut worker)));
    let bridge = Bridge::new(Policy::Modern, slots()).shadowing(mmu.clone());
    let mut records = Vec::with_capacity(1);
    c.bench_function("soft mmu/invalidate one page, fault it back", |b| {
        b.iter(|| {
            records.clear();
            bridge.invalidate(&mut records, &page_out(7), || black_box(()));
            touch(&mut worker)
        })
    });
}

criterion_group!(benches, clock, hook, soft_mmu);
criterion_main!(benches);
