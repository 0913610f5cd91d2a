//! Slot look-up among 32,000 slots, by host range and by guest frame, for uniformly random queries.
//!
//! A listener does one look-up for each announced range, so this is on the path of every invalidation. Target:
//! below 100 ns.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use guest_mem::{Gpa, Hva, HvaRange, PAGE_SIZE, PMD_SIZE, SlotTable, SlotTableBuilder};

const SLOTS: u64 = 32_000;
const BASE: u64 = 0x7f00_0000_0000;

fn table() -> SlotTable {
    let mut builder = SlotTableBuilder::new(32_764);
    let all = HvaRange::with_len(Hva::new(BASE), SLOTS * PMD_SIZE).expect("far below 2^64");
    builder.add_region(Gpa::new(0), all, PMD_SIZE).expect("within the limit");
    builder.build().expect("no overlap")
}

/// A generator good enough for uniform queries, and cheap enough not to be what is measured.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn slots(c: &mut Criterion) {
    let table = table();
    let pages = SLOTS * PMD_SIZE / PAGE_SIZE;
    let mut group = c.benchmark_group("32000 slots");
    let mut random = Random(1);
    group.bench_function("covering one page", |b| {
        b.iter_batched(
            || Hva::new(BASE + random.below(pages) * PAGE_SIZE),
            |at| {
                let range = HvaRange::with_len(at, PAGE_SIZE).expect("far below 2^64");
                black_box(table.covering(range).len())
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("covering 2 MiB across two slots", |b| {
        b.iter_batched(
            || Hva::new(BASE + random.below(pages - 512) * PAGE_SIZE),
            |at| {
                let range = HvaRange::with_len(at, PMD_SIZE).expect("far below 2^64");
                black_box(table.covering(range).len())
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("find_gpa", |b| {
        b.iter_batched(
            || Gpa::new(random.below(pages) * PAGE_SIZE),
            |gpa| black_box(table.find_gpa(gpa).map(|slot| slot.id())),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, slots);
criterion_main!(benches);
