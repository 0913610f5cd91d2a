//! The balloon, driven by an honest driver and by hostile ones.

use std::collections::BTreeSet;
use std::sync::Mutex;

use guest_mem::Gpa;
use proptest::prelude::*;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_INT_CONFIG};

use super::*;
use crate::lock;
use crate::virtio::testing::driver::{ALL, DATA, PLAIN, RAM, interrupt};
use crate::virtio::testing::hostile::{cheat, run_cheat, run_vandal, vandal};
use crate::virtio::testing::{Driver, memory, readable, writable};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// The queue that Linux uses for reporting, and the specification's.
const REPORTING: [usize; 2] = [2, 4];

/// Pages of the first region of RAM and of the second.
const PAGES: [std::ops::Range<u32>; 2] = [0..256, 512..768];

type Taken = Arc<Mutex<Vec<(GpaRange, Cause)>>>;

/// Remembers what it is handed, and refuses what begins at one address.
struct Recorder {
    taken: Taken,
    refuses: Gpa,
}

impl Reclaimer for Recorder {
    fn reclaim(&mut self, range: GpaRange, cause: Cause) -> Result<(), ReclaimError> {
        lock(&self.taken).push((range, cause));
        if range.start() == self.refuses {
            return Err(ReclaimError { range, source: "it is busy".into() });
        }
        Ok(())
    }
}

struct Bench {
    driver: Driver,
    handle: BalloonHandle,
    taken: Taken,
}

fn bench() -> Bench {
    let (memory, interrupt, taken) = (memory(), interrupt(), Taken::default());
    let recorder = Recorder { taken: taken.clone(), refuses: Gpa::new(0x7000) };
    let (balloon, handle) = Balloon::new(&memory, Box::new(recorder), interrupt.clone());
    let mut driver = Driver::new(Box::new(balloon), memory, interrupt);
    driver.set_up(ALL);
    Bench { driver, handle, taken }
}

impl Bench {
    /// Sends PFNs through a queue.
    fn send(&mut self, queue: usize, pfns: &[u32]) {
        let bytes: Vec<u8> = pfns.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
        self.driver.put(DATA, &bytes);
        assert_eq!(self.driver.transact(queue, &[readable(DATA, bytes.len() as u32)]), 0);
    }

    fn taken(&self) -> Vec<(u64, u64, Cause)> {
        lock(&self.taken).drain(..).map(|(range, cause)| (range.start().get(), range.len(), cause)).collect()
    }
}

#[test]
fn inflated_pages_are_reclaimed_in_maximal_runs() {
    let mut bench = bench();
    bench.send(INFLATE, &[12, 10, 600, 11, 255, 3, 256 - 2]);
    let runs = [(3 << 12, 1 << 12), (10 << 12, 3 << 12), (254 << 12, 2 << 12), (600 << 12, 1 << 12)];
    assert_eq!(bench.taken(), runs.map(|(start, len)| (start, len, Cause::Balloon)));
    let counts = bench.handle.counts();
    assert_eq!((counts.pages, counts.inflated, counts.runs), (7, 7, 4));
    bench.send(DEFLATE, &[11, 600]);
    assert_eq!(bench.taken(), [], "nothing is reclaimed when pages come back");
    assert_eq!((bench.handle.counts().pages, bench.handle.counts().deflated), (5, 2));
    bench.send(INFLATE, &[11]);
    assert_eq!(bench.taken(), [(11 << 12, 1 << 12, Cause::Balloon)]);
}

#[test]
fn pages_that_are_not_the_guests_to_give_are_refused_and_the_rest_is_taken() {
    let mut bench = bench();
    // The hole, beyond the end, beyond everything; twice in one buffer; then once more.
    bench.send(INFLATE, &[256, 5, 511, 768, u32::MAX, 5]);
    assert_eq!(bench.taken(), [(5 << 12, 1 << 12, Cause::Balloon)]);
    bench.send(INFLATE, &[5, 6]);
    assert_eq!(bench.taken(), [(6 << 12, 1 << 12, Cause::Balloon)]);
    bench.send(DEFLATE, &[100, u32::MAX, 5, 5]);
    let counts = bench.handle.counts();
    assert_eq!((counts.pages, counts.inflated, counts.deflated), (1, 2, 1));
    assert_eq!((counts.refused_outside, counts.refused_duplicate, counts.refused_absent), (4, 2, 3));
}

#[test]
fn buffers_that_are_no_lists_of_pages_are_refused_whole() {
    let mut bench = bench();
    bench.driver.put(DATA, &[1, 0, 0, 0, 2, 0, 0, 0]);
    let most = MOST_PFNS as u32 * 4;
    let bad = [
        &[readable(DATA, 7)][..],
        &[readable(DATA, 0)],
        &[writable(DATA, 8)],
        &[readable(DATA, u32::MAX - 3)],
        &[readable(DATA, most), readable(DATA, 4)],
        &[readable(DATA, 4), readable(0x10_0000, 4)],
    ];
    for (index, chain) in bad.into_iter().enumerate() {
        for queue in [INFLATE, DEFLATE] {
            assert_eq!(bench.driver.transact(queue, chain), 0);
        }
        assert_eq!(bench.handle.counts().refused_malformed, index as u64 * 2 + 2);
    }
    assert_eq!(bench.taken(), []);
    assert_eq!(bench.handle.counts().pages, 0);
    // The same PFNs in pieces that cut one are a list.
    bench.driver.transact(INFLATE, &[readable(DATA, 3), readable(DATA + 3, 5)]);
    assert_eq!(bench.taken(), [(1 << 12, 2 << 12, Cause::Balloon)]);
}

#[test]
fn what_the_host_cannot_take_is_counted_and_stays_in_the_balloon() {
    let mut bench = bench();
    bench.send(INFLATE, &[7, 8, 20]);
    assert_eq!(bench.taken().len(), 2, "the failure of one run does not keep the next");
    assert_eq!((bench.handle.counts().failed, bench.handle.counts().pages), (1, 3));
    let error = bench.handle.take_error().unwrap();
    assert_eq!(error.to_string(), "cannot reclaim guest memory [0x7000, 0x9000)");
    assert!(bench.handle.take_error().is_none());
}

#[test]
fn a_target_reaches_the_driver_by_a_config_interrupt() {
    let mut bench = bench();
    bench.driver.take_interrupt();
    let generation = bench.driver.read(VIRTIO_MMIO_CONFIG_GENERATION);
    bench.handle.set_target(300).unwrap();
    assert_eq!(bench.driver.take_interrupt(), (true, VIRTIO_MMIO_INT_CONFIG));
    assert_ne!(bench.driver.read(VIRTIO_MMIO_CONFIG_GENERATION), generation);
    assert_eq!(bench.driver.read(0x100), 300);
    // The driver says how far it has come, and cannot change the target.
    bench.driver.write(0x104, 299);
    bench.driver.write(0x100, 1);
    assert_eq!((bench.handle.actual(), bench.driver.read(0x104), bench.driver.read(0x100)), (299, 299, 300));
    let error = bench.handle.set_target(513).unwrap_err().to_string();
    assert_eq!(error, "a balloon of 513 pages does not fit into a guest of 512 pages");
    assert_eq!(bench.driver.read(0x100), 300);
}

#[test]
fn free_pages_are_reclaimed_as_reported() {
    for queue in REPORTING {
        let mut bench = bench();
        bench.send(INFLATE, &[0x90]);
        bench.taken();
        let chain = [
            writable(0x5_0000, 0x2_0000),
            writable(0x20_0000, 0x1000),
            // Over the edge, in the hole, not whole pages, nothing, with a page of the balloon.
            writable(0xf_f000, 0x2000),
            writable(0x18_0000, 0x1000),
            writable(0x6_0800, 0x1000),
            writable(0x6_0000, 0x800),
            writable(0x6_0000, 0),
            writable(0x8_f000, 0x2000),
        ];
        assert_eq!(bench.driver.transact(queue, &chain), 0);
        let free = |start, len| (start, len, Cause::FreePageReport);
        assert_eq!(bench.taken(), [free(0x5_0000, 0x2_0000), free(0x20_0000, 0x1000)]);
        // All of the address space; and a readable buffer reports nothing.
        bench.driver.transact(queue, &[writable(0, 0xffff_f000)]);
        bench.driver.transact(queue, &[readable(0x5_0000, 0x1000)]);
        assert_eq!(bench.taken(), []);
        let counts = bench.handle.counts();
        assert_eq!(counts.reported_bytes, 0x2_1000);
        assert_eq!((counts.refused_outside, counts.refused_duplicate, counts.refused_malformed), (3, 1, 4));
    }
}

#[test]
fn a_reset_empties_the_balloon_and_keeps_the_target() {
    let mut bench = bench();
    bench.handle.set_target(9).unwrap();
    bench.send(INFLATE, &[1, 2, 3]);
    bench.driver.write(0x104, 3);
    bench.driver.set_up(PLAIN);
    assert_eq!((bench.handle.counts().pages, bench.handle.actual(), bench.driver.read(0x100)), (0, 0, 9));
    bench.taken();
    bench.send(INFLATE, &[1, 2, 3]);
    assert_eq!(bench.taken().len(), 1, "the pages may go into the next driver's balloon");
}

/// Pages of RAM and around it.
fn pfn() -> impl Strategy<Value = u32> {
    prop_oneof![6 => 0u32..40, 2 => 240u32..270, 2 => 500u32..520, 1 => 760u32..780, 1 => any::<u32>()]
}

fn in_ram(pfn: u32) -> bool {
    PAGES.iter().any(|region| region.contains(&pfn))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Against a set of page numbers, and runs found by looking at each page's neighbour.
    #[test]
    fn the_balloon_agrees_with_a_set(steps in prop::collection::vec((any::<bool>(), prop::collection::vec(pfn(), 1..60)), 1..12)) {
        let mut bench = bench();
        let mut balloon = BTreeSet::new();
        for (inflate, pfns) in steps {
            bench.send(if inflate { INFLATE } else { DEFLATE }, &pfns);
            let mut expected = Vec::<(u64, u64, Cause)>::new();
            if inflate {
                let new: BTreeSet<u32> = pfns.iter().copied().filter(|&pfn| in_ram(pfn) && !balloon.contains(&pfn)).collect();
                for &pfn in &new {
                    let before = pfn.checked_sub(1).is_some_and(|before| new.contains(&before));
                    match expected.last_mut().filter(|_| before) {
                        Some((_, len, _)) => *len += PAGE_SIZE,
                        None => expected.push((u64::from(pfn) * PAGE_SIZE, PAGE_SIZE, Cause::Balloon)),
                    }
                }
                balloon.extend(new);
            } else {
                balloon.retain(|pfn| !pfns.contains(pfn));
            }
            prop_assert_eq!(bench.taken(), expected);
            prop_assert_eq!(bench.handle.counts().pages, balloon.len() as u64);
        }
    }

    #[test]
    fn a_cheat_gives_away_nothing_but_ram(attack in cheat(5)) {
        hostile(|driver| run_cheat(driver, &attack));
    }

    #[test]
    fn a_vandal_breaks_nothing(attack in vandal(5)) {
        hostile(|driver| run_vandal(driver, &attack));
    }
}

/// Whatever was handed on lies in RAM, in whole pages; and the balloon works again.
fn hostile(attack: impl FnOnce(&mut Driver)) {
    let mut bench = bench();
    attack(&mut bench.driver);
    for (start, len, _) in bench.taken() {
        assert!(len > 0 && start % PAGE_SIZE == 0 && len % PAGE_SIZE == 0);
        assert!(
            RAM.iter().any(|&(at, size)| at <= start && start + len <= at + size as u64),
            "{start:#x} {len:#x}"
        );
    }
    assert!(bench.handle.counts().pages <= 512);
    bench.driver.set_up(ALL);
    assert_eq!(bench.handle.counts().pages, 0);
    bench.send(INFLATE, &[20, 21, 600]);
    assert_eq!(bench.taken(), [(20 << 12, 2 << 12, Cause::Balloon), (600 << 12, 1 << 12, Cause::Balloon)]);
    bench.send(DEFLATE, &[20, 21, 600]);
    assert_eq!(bench.handle.counts().pages, 0);
    bench.driver.transact(REPORTING[0], &[writable(0x5_0000, 0x1000)]);
    assert_eq!(bench.taken(), [(0x5_0000, 0x1000, Cause::FreePageReport)]);
}
