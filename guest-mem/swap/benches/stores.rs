//! What a page costs on its way into each store and out of it, by the kind of page; and the checksum and the look
//! for zeros beside them.
//!
//! Batches of 64 pages, one thread, time for the batch. The file store writes to `TMPDIR`: its rows measure that disk.
//! `put` frees what it put outside of the measured time.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what a bench prints is its result")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use guest_mem::{Page, is_zero_page};
use swap::{Codec, CompressedStore, FileStore, PageBuffer, Slot, Store, checksum};

const BATCH: usize = 64;
/// Pages that a store holds while it is measured: 32 MiB.
const PAGES: usize = 8192;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

type Fill = fn(&mut Page, &mut Random);

const KINDS: [(&str, Fill); 4] =
    [("text", text), ("pointers", pointers), ("half random", half_random), ("random", random)];

/// Words of a log, and zeros after them.
fn text(page: &mut Page, random: &mut Random) {
    const WORDS: [&[u8]; 8] =
        [b"kernel: ", b"page ", b"fault ", b"at ", b"0x7f", b"memory ", b"evicted\n", b"guest "];
    let mut at = 0;
    while at < 3000 {
        let word = WORDS[(random.next() % 8) as usize];
        page[at..at + word.len()].copy_from_slice(word);
        at += word.len();
    }
}

/// What a slab page holds: pointers into the same areas, small numbers, zeros.
fn pointers(page: &mut Page, random: &mut Random) {
    for (at, word) in page.chunks_exact_mut(8).enumerate() {
        let value = match at % 4 {
            0 => 0xffff_8880_0000_0000 + random.next() % 4096 * 64,
            1 => random.next() % 200,
            2 => 0,
            _ => 0x7f12_3456_0000 + random.next() % 65536 * 16,
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

fn half_random(page: &mut Page, random: &mut Random) {
    for word in page[..2048].chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
    page[2048..].fill(b'.');
}

fn random(page: &mut Page, random: &mut Random) {
    for word in page.chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
}

fn filled(fill: Fill) -> PageBuffer {
    let mut pages = PageBuffer::new(PAGES).expect("32 MiB");
    let mut random = Random(88_172_645_463_325_252);
    for page in pages.iter_mut() {
        fill(page, &mut random);
    }
    pages
}

fn stores() -> Vec<Box<dyn Store>> {
    let limit = 64 << 20;
    vec![
        Box::new(CompressedStore::new(Codec::Lz4, limit).expect("64 MiB")),
        Box::new(CompressedStore::new(Codec::Zstd, limit).expect("64 MiB")),
        Box::new(FileStore::new(&std::env::temp_dir(), limit).expect("a file of 64 MiB")),
    ]
}

/// Puts all pages, batch by batch, as often as it takes to have done `batches`; frees them outside of the time.
fn put(store: &dyn Store, pages: &[Page], batches: u64) -> Duration {
    let mut slots = vec![Slot::default(); PAGES];
    let mut spent = Duration::ZERO;
    let mut left = batches as usize;
    while left > 0 {
        let now = left.min(PAGES / BATCH) * BATCH;
        let start = Instant::now();
        for (pages, slots) in pages[..now].chunks(BATCH).zip(slots.chunks_mut(BATCH)) {
            store.put(pages, slots).expect("there is room");
        }
        spent += start.elapsed();
        store.free(&slots[..now]);
        left -= now / BATCH;
    }
    spent
}

fn bench_stores(c: &mut Criterion) {
    for (kind, fill) in KINDS {
        let pages = filled(fill);
        for store in stores() {
            let store = store.as_ref();
            let mut group = c.benchmark_group(format!("{} {kind}", store.name()));
            group.throughput(Throughput::Bytes((BATCH * size_of::<Page>()) as u64));
            group.bench_function("put", |b| b.iter_custom(|batches| put(store, &pages, batches)));
            let mut slots = vec![Slot::default(); PAGES];
            store.put(&pages, &mut slots).expect("there is room");
            let mut back = PageBuffer::new(BATCH).expect("64 pages");
            let mut batches = slots.chunks(BATCH).cycle();
            group.bench_function("get", |b| {
                b.iter(|| store.get(batches.next().expect("it cycles"), &mut back).expect("it is there"));
            });
            let usage = store.usage();
            eprintln!("{} {kind}: {usage:?}, {} bytes a page", store.name(), usage.held_bytes / PAGES as u64);
            store.free(&slots);
            group.finish();
        }
    }
}

fn bench_page(c: &mut Criterion) {
    let mut group = c.benchmark_group("page");
    let (zero, noise) = (Page::ZERO, filled(random)[0]);
    group.bench_function("checksum", |b| b.iter(|| checksum(black_box(&noise), 7)));
    group.bench_function("is_zero_page, zeros", |b| b.iter(|| is_zero_page(black_box(&zero))));
    group.bench_function("is_zero_page, random", |b| b.iter(|| is_zero_page(black_box(&noise))));
    group.finish();
}

criterion_group!(benches, bench_stores, bench_page);
criterion_main!(benches);
