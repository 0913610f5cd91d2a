//! Eviction to the LZ4 store against `MADV_PAGEOUT` to a zram device with LZ4; and what a page takes to come back.
//!
//! The same data for both, pages of this program's own file; one thread each; memory that the guest has mapped. The
//! kernel's turn is that of memory without a userfaultfd, in a guest of its own, since a registration changes what the
//! kernel does with a mapping.

use std::time::{Duration, Instant};

use guest_mem::{Backing, HvaRange, Operation, PAGE_SIZE, PageScanner, Region, drain_lru, perform};
use swap::{Evictor, FaultAround};

use super::ROUNDS;
use super::guest::{ARENA, Guest, Order};
use super::handlers::{Ours, Plain, lz4};
use super::rounds::Rounds;

/// What is evicted in a round, and what of it comes back to be timed: each a stall in the guest's ring.
const LEN: u64 = ARENA;
const BACK: u64 = 4 << 20;

/// The pages of this program's file, over and over.
struct Data(Vec<u64>);

impl Data {
    fn read() -> Self {
        let file = std::fs::read("/proc/self/exe").expect("a running program has a file");
        let whole = file.len() / PAGE_SIZE as usize * PAGE_SIZE as usize;
        let words = file[..whole].chunks_exact(8);
        Self(words.map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes"))).collect())
    }

    /// Puts it into a range.
    fn write(&self, region: &Region, range: HvaRange) {
        let mut words = self.0.iter().cycle();
        for page in range.pages() {
            for word in (0..PAGE_SIZE).step_by(8) {
                let at =
                    region.hva_at(region.offset_of(page.start()).expect("inside") + word).expect("inside");
                region.write_u64(at, *words.next().expect("it never ends")).expect("inside");
            }
        }
    }
}

/// New content, mapped by the guest, off the LRU batches.
fn refill(guest: &Guest, data: &Data, range: HvaRange) {
    guest.empty();
    data.write(guest.arena(), range);
    guest.read(range.len(), Order::Sequential);
    let _ = drain_lru();
}

/// Both parts.
pub fn evict() {
    let data = Data::read();
    for backing in [Backing::Base4k, Backing::Thp] {
        match test_memory::ZramSwap::create(2 * ARENA, Some("lz4")) {
            Ok(_zram) => rates(&data, backing),
            Err(error) => eprintln!("SKIPPED: eviction against zram: {error}"),
        }
    }
    latencies(&data);
}

fn rates(data: &Data, backing: Backing) {
    let guest = Guest::start(1, backing);
    let range = guest.first(LEN);
    let mut scanner = PageScanner::new().expect("pagemap opens");
    // Both live through all rounds.
    let store = lz4();
    let mut left = [0u64; 2];
    let rounds = Rounds::<2>::run(ROUNDS, LEN >> 20, |who| {
        refill(&guest, data, range);
        if who == 0 {
            let begun = Instant::now();
            perform(guest.arena(), Operation::PageOut, range).expect("it takes the range");
            let took = begun.elapsed();
            let counts = scanner.counts(guest.arena(), range).expect("pagemap reads");
            left[0] = counts.resident();
            return took;
        }
        let ours = Ours::start(&guest, FaultAround::Fixed(1), store.clone());
        let mut evictor = Evictor::new(&ours.swapper).expect("a buffer");
        let begun = Instant::now();
        let evicted = evictor.evict(range).expect("it evicts");
        let took = begun.elapsed();
        left[1] = range.page_count() - evicted.pages;
        drop(evictor);
        // The store gives the room back, as the device does when the arena is emptied.
        ours.swapper.discard(range).expect("it is ours");
        ours.stop();
        took
    });
    let rate = |who| 1e6 / rounds.of(who);
    println!(
        "eviction of {} MiB, {backing}: MADV_PAGEOUT to zram {:.0} MiB/s, ours to LZ4 {:.0} MiB/s, ours/kernel {} \
         (bound 1); pages that stayed {left:?}",
        LEN >> 20,
        rate(0),
        rate(1),
        rounds.compared(0, 1),
    );
}

/// The median touch of pages that come one by one.
fn latencies(data: &Data) {
    let guest = Guest::start(1, Backing::Base4k);
    let range = guest.first(BACK);
    // Its ring of stalls has every page in place after one use.
    guest.stalls(BACK);
    let rounds = Rounds::<2>::run(ROUNDS, 1, |who| {
        refill(&guest, data, range);
        if who == 0 {
            guest.empty();
            let bare = Plain::bare(&guest, PAGE_SIZE);
            let median = guest.stalls(BACK);
            bare.stop();
            return median;
        }
        let ours = Ours::start(&guest, FaultAround::Fixed(1), lz4());
        let evicted = Evictor::new(&ours.swapper).expect("a buffer").evict(range).expect("it evicts");
        assert_eq!(evicted.pages, range.page_count());
        let median: Duration = guest.stalls(BACK);
        let (faults, pages) = ours.stop();
        assert_eq!((faults, pages), (range.page_count(), range.page_count()));
        median
    });
    println!(
        "return of one page, p50: a bare copy and a fault's delivery {:.1} us, ours from LZ4 {:.1} us, ours/bare {} \
         (bound 1.5)\n",
        rounds.of(0),
        rounds.of(1),
        rounds.compared(1, 0),
    );
}
