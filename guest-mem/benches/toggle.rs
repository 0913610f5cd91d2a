//! What an exact protection toggle costs, against the two bare mprotect calls it is made of.
//!
//! Four ways, each over pages of a region of its own: the toggle with its checks and seams; the bare pair on a
//! region seamed in the same way (the same VMAs, so the difference is this crate's own overhead); and the bare
//! pair and [`Operation::Protect`] on regions without seams, where every call splits and merges a VMA
//! that spans its 2 MiB.
//!
//! The four take turns, call by call, and each row counts only its own: whatever else the machine does falls
//! on all of them alike. No secondary MMU is attached: what a listener does with the announced range comes on
//! top.

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use guest_mem::{Backing, HvaRange, Operation, PAGE_SIZE, PMD_SIZE, Region, perform, toggle_protection};

const LEN: u64 = 64 * PMD_SIZE;

fn populated(seamed: bool) -> Region {
    let region = Region::map(LEN, Backing::Base4k).expect("128 MiB of address space");
    region.populate(region.range()).expect("128 MiB of memory");
    if seamed {
        region.seam(region.range()).expect("128 VMAs");
    }
    region
}

fn bare(range: HvaRange) {
    for flags in [libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE] {
        // SAFETY: one page of the bench's own region, to which no reference exists.
        let done = unsafe { libc::mprotect(range.start().as_ptr(), range.len() as usize, flags) };
        assert_eq!(done, 0);
    }
}

type Way = (&'static str, bool, fn(&Region, HvaRange));

const WAYS: [Way; 4] = [
    ("toggle_protection", true, |region, page| toggle_protection(region, page).expect("inside")),
    ("two mprotect calls, seamed", true, |_, page| bare(page)),
    ("two mprotect calls, no seams", false, |_, page| bare(page)),
    ("operation protect", false, |region, page| perform(region, Operation::Protect, page).expect("inside")),
];

/// Times way `counted` over `rounds` rounds in which all four take their turn on the same page.
fn take_turns(regions: &[Region], at: &mut u64, counted: usize, rounds: u64) -> Duration {
    let mut spent = Duration::ZERO;
    for _ in 0..rounds {
        // Far from the last one, and never a block's first page, which is a VMA of its own where seamed.
        *at = (*at + 7919) % (LEN / PAGE_SIZE);
        let page = if at.is_multiple_of(512) { *at + 1 } else { *at };
        for (index, (_, _, way)) in WAYS.iter().enumerate() {
            let range = regions[index].slice(page * PAGE_SIZE, PAGE_SIZE).expect("inside");
            let begun = Instant::now();
            way(&regions[index], range);
            if index == counted {
                spent += begun.elapsed();
            }
        }
    }
    spent
}

fn toggle(c: &mut Criterion) {
    let regions = WAYS.map(|(_, seamed, _)| populated(seamed));
    let mut at = 0;
    let mut group = c.benchmark_group("one 4 KiB page");
    for (counted, (name, _, _)) in WAYS.iter().enumerate() {
        group.bench_function(*name, |b| {
            b.iter_custom(|rounds| take_turns(&regions, &mut at, counted, rounds));
        });
    }
    group.finish();
}

criterion_group!(benches, toggle);
criterion_main!(benches);
