//! What recording costs, measured beside its own absence.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use guest_mem::{Hva, HvaRange, MapLevel, Order, PAGE_SIZE, PMD_SIZE, SlotTableBuilder, Victim};
use notifier_bridge::{Bridge, Cause, Invalidation, Policy, Recorder, monotonic_ns};

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
    let bridge = Bridge::builder(Policy::Modern, Arc::new(slots)).build();
    let mut recorder = Recorder::with_capacity((ROUNDS * BATCHES) as usize);
    let vma = HvaRange::with_len(Hva::new(PMD_SIZE), PMD_SIZE).expect("far from the end");
    let pages = HvaRange::with_len(vma.start(), PAGE_SIZE).expect("far from the end");
    let victim = Victim { pages, order: Order::BASE, level: MapLevel::Pte, anonymous: true };
    let invalidation = Invalidation::hook(Cause::PageOut, victim, vma);
    fastest(|| {
        // Without listeners nobody refuses.
        let _ = black_box(bridge.invalidate(&mut recorder, black_box(&invalidation), || ()));
    })
}

fn fastest(mut round: impl FnMut()) -> f64 {
    let batch = |_| {
        let begun = Instant::now();
        (0..ROUNDS).for_each(|_| round());
        begun.elapsed().as_nanos() as f64 / f64::from(ROUNDS)
    };
    (0..BATCHES).map(batch).fold(f64::INFINITY, f64::min)
}
