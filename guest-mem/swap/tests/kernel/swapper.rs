//! The swapper on real memory, with threads of this process in a guest's place.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use guest_mem::{
    Backing, HvaRange, Operation, PAGE_SIZE, PMD_SIZE, PageCounts, PageScanner, Region, perform,
};
use swap::{
    Codec, CompressedStore, Evictor, FaultAround, Handlers, Lost, LostWhy, Observer, Options, Served, Store,
    SwapState, Swapper,
};
use test_memory::Need;
use uffd::{Event, PageFault};

use crate::support::{self, Spoiler, assert_lost};

test_memory::tests! {
    what_leaves_comes_back_the_same: [Userfault],
    what_the_store_has_spoiled_does_not_come_back: [Userfault],
    a_huge_page_comes_back_as_one: [Userfault, Has(Backing::Thp)],
    a_page_that_is_written_to_on_its_way_stays: [Userfault],
    what_strangers_discard_is_zero: [Userfault],
    memory_that_moves_and_comes_back_keeps_its_pages: [Userfault],
    no_write_is_lost_in_a_storm: [Userfault] within 600,
    handlers_with_a_processor_each_serve_every_fault_once: [Userfault],
}

/// A region that owns itself.
struct Owner(Region);

impl AsRef<Region> for Owner {
    fn as_ref(&self) -> &Region {
        &self.0
    }
}

/// Counts the reports of the handlers; a lost page fails the test.
#[derive(Clone, Debug, Default)]
struct Counter {
    faults: Arc<AtomicU64>,
    kept: Arc<AtomicU64>,
    events: Arc<AtomicU64>,
}

impl Observer for Counter {
    fn fault(&mut self, _fault: &PageFault, served: Served) {
        self.faults.fetch_add(1, Ordering::Relaxed);
        self.kept.fetch_add(u64::from(served == Served::Kept), Ordering::Relaxed);
    }
    fn event(&mut self, _event: &Event) {
        self.events.fetch_add(1, Ordering::Relaxed);
    }
    fn lost(&mut self, lost: Lost) {
        panic!("{lost}: {}", lost.why);
    }
}

struct Rig {
    swapper: Arc<Swapper>,
    handlers: Handlers,
    reports: Counter,
}

fn lz4() -> Arc<dyn Store> {
    Arc::new(CompressedStore::new(Codec::Lz4, 1 << 30).unwrap())
}

fn rig(blocks: u64, backing: Backing, around: FaultAround, events: bool, handlers: usize) -> Rig {
    let memory = Arc::new(Owner(Region::map(blocks * PMD_SIZE, backing).unwrap()));
    let swapper = Arc::new(Swapper::attach(memory, Options { store: lz4(), around, events }).unwrap());
    let reports = Counter::default();
    let observers = (0..handlers).map(|_| (reports.clone(), None)).collect();
    let handlers = Handlers::start(&swapper, observers).unwrap();
    Rig { swapper, handlers, reports }
}

impl Rig {
    fn region(&self) -> &Region {
        self.swapper.region()
    }
    fn pages(&self) -> u64 {
        self.region().range().page_count()
    }
    fn page(&self, page: u64) -> HvaRange {
        self.region().slice(page * PAGE_SIZE, PAGE_SIZE).unwrap()
    }
    /// A page's own word, and one at its end.
    fn write(&self, page: u64, value: u64) {
        let offset = page * PAGE_SIZE;
        for at in [0, PAGE_SIZE - 8] {
            self.region().write_u64(self.region().hva_at(offset + at).unwrap(), value ^ at).unwrap();
        }
    }
    fn read(&self, page: u64) -> u64 {
        let offset = page * PAGE_SIZE;
        let [first, last] = [0, PAGE_SIZE - 8]
            .map(|at| self.region().read_u64(self.region().hva_at(offset + at).unwrap()).unwrap() ^ at);
        if first == 0 && last == PAGE_SIZE - 8 {
            return 0;
        }
        assert_eq!(first, last, "page {page} is torn");
        first
    }
    fn first_word(&self, page: u64) -> u64 {
        self.region().read_u64(self.page(page).start()).unwrap()
    }
    fn counts(&self) -> PageCounts {
        PageScanner::new().unwrap().counts(self.region(), self.region().range()).unwrap()
    }
    fn count(&self, state: fn(SwapState) -> bool) -> u64 {
        self.swapper.count(state)
    }
}

/// The processors this test may run on, over and over.
fn processors() -> impl Iterator<Item = usize> {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let processors = (0..rustix::thread::CpuSet::MAX_CPU).filter(move |&one| allowed.is_set(one));
    processors.collect::<Vec<_>>().into_iter().cycle()
}

const BACKINGS: [Backing; 4] = [Backing::Base4k, Backing::Thp, Backing::Memfd, Backing::MemfdThp];

/// A value for a page that is neither zero nor another's.
fn value(page: u64, generation: u64) -> u64 {
    ((page + 1) << 32) | (generation + 1)
}

fn what_leaves_comes_back_the_same() {
    for backing in BACKINGS {
        for around in [FaultAround::Fixed(1), FaultAround::Fixed(16), FaultAround::Adaptive] {
            for events in [false, true] {
                let rig = rig(3, backing, around, events, 2);
                // Every seventh page stays zero.
                for page in (0..rig.pages()).filter(|page| page % 7 != 0) {
                    rig.write(page, value(page, 0));
                }
                let mut evictor = Evictor::new(&rig.swapper).unwrap();
                let evicted = evictor.evict(rig.region().range()).unwrap();
                let resident = rig.counts().resident();
                assert_eq!(resident, 0, "{backing} {around}: {evicted:?}");
                assert_eq!(rig.swapper.store().usage().pages, evicted.pages - evicted.zeros);
                assert_eq!(rig.count(SwapState::is_out), evicted.pages);
                for page in 0..rig.pages() {
                    let expected = if page % 7 == 0 { 0 } else { value(page, 0) };
                    assert_eq!(rig.read(page), expected, "page {page} of {backing}, {around}");
                }
                let reports = rig.handlers.stop().unwrap();
                assert_eq!(rig.swapper.store().usage().pages, 0, "{backing} {around}");
                assert_eq!(rig.reports.events.load(Ordering::Relaxed), 0, "its own drops make no events");
                let returned: u64 = reports.iter().map(|report| report.returned).sum();
                assert_eq!(returned, evicted.pages, "{backing} {around}: {reports:?}");
            }
        }
    }
}

/// A page whose content is not what was evicted is lost: it is reported, and no thread gets it. Its neighbours
/// come back when the store is right again.
fn what_the_store_has_spoiled_does_not_come_back() {
    for backing in BACKINGS {
        for around in [FaultAround::Fixed(1), FaultAround::Fixed(16), FaultAround::Adaptive] {
            let store = Spoiler::new(lz4());
            let rig = support::rig(1, backing, store.clone(), around, false);
            (0..32).for_each(|page| rig.write(page, value(page, 0)));
            assert_eq!(rig.evict(0, 32), 32);
            store.spoils.store(true, Ordering::SeqCst);
            let why = assert_lost(&rig, 5);
            assert!(matches!(why, LostWhy::Checksum { .. }), "{backing} {around}: {why}");
            store.spoils.store(false, Ordering::SeqCst);
            (0..32).filter(|page| *page != 5).for_each(|page| assert_eq!(rig.read(page), value(page, 0)));
        }
    }
}

fn a_huge_page_comes_back_as_one() {
    let memory = Arc::new(Owner(Region::map(4 * PMD_SIZE, Backing::Thp).unwrap()));
    // Filled before it is watched, so by huge pages.
    let range = memory.0.range();
    memory.0.populate(range).unwrap();
    if PageScanner::new().unwrap().counts(&memory.0, range).unwrap().pmd_mapped != range.page_count() {
        harness::could_not_run(Need::Has(Backing::Thp), "not all of four");
    }
    let options = Options { store: lz4(), around: FaultAround::Fixed(1), events: false };
    let swapper = Arc::new(Swapper::attach(memory, options).unwrap());
    let handlers = Handlers::start(&swapper, vec![(Counter::default(), None)]).unwrap();
    let rig = Rig { swapper, handlers, reports: Counter::default() };
    (0..rig.pages()).for_each(|page| rig.write(page, value(page, 0)));
    let evicted = Evictor::new(&rig.swapper).unwrap().evict(range).unwrap();
    assert_eq!((evicted.pages, rig.counts().resident()), (rig.pages(), 0));
    (0..rig.pages()).for_each(|page| assert_eq!(rig.read(page), value(page, 0)));
    assert_eq!(rig.counts().pmd_mapped, rig.pages(), "all of it by PMD again");
    let report = rig.handlers.stop().unwrap()[0];
    assert_eq!(
        (report.faults, report.huge, report.returned),
        (4, 4, rig.swapper.region().range().page_count())
    );
}

fn a_page_that_is_written_to_on_its_way_stays() {
    for backing in BACKINGS {
        let rig = rig(1, backing, FaultAround::Fixed(1), false, 1);
        (0..8).for_each(|page| rig.write(page, value(page, 0)));
        let mut evictor = Evictor::new(&rig.swapper).unwrap();
        let eight = rig.region().slice(0, 8 * PAGE_SIZE).unwrap();
        let claimed = evictor.claim(eight).unwrap();
        assert_eq!(claimed.len(), 8);
        rig.write(2, value(2, 1));
        let packed = claimed.store().unwrap();
        assert_eq!(rig.read(5), value(5, 0), "reading takes nothing");
        rig.write(4, value(4, 1));
        // Discarded and written anew: not the page that was claimed.
        rig.swapper.discard(rig.page(6)).unwrap();
        perform(rig.region(), drop_of(backing), rig.page(6)).unwrap();
        rig.write(6, value(6, 1));
        let evicted = packed.drop_pages().unwrap();
        assert_eq!((evicted.pages, evicted.stayed), (5, 3), "{backing}");
        assert_eq!(rig.swapper.store().usage().pages, 5);
        for page in 0..8 {
            assert_eq!(
                rig.read(page),
                value(page, u64::from([2, 4, 6].contains(&page))),
                "{page} of {backing}"
            );
        }
        // Given up half-way: as if nothing had been.
        drop(evictor.claim(eight).unwrap().store().unwrap());
        assert_eq!(rig.swapper.store().usage().pages, 0);
        (0..8).for_each(|page| rig.write(page, value(page, 2)));
        assert_eq!(evictor.evict(eight).unwrap().pages, 8);
        let report = rig.handlers.stop().unwrap()[0];
        assert_eq!((report.kept, rig.reports.kept.load(Ordering::Relaxed)), (2, 2), "{backing}");
    }
}

fn drop_of(backing: Backing) -> Operation {
    if backing.is_shared() { Operation::Fallocate } else { Operation::DontNeed }
}

fn what_strangers_discard_is_zero() {
    for backing in [Backing::Base4k, Backing::Thp] {
        let rig = rig(1, backing, FaultAround::Fixed(1), true, 1);
        (0..16).for_each(|page| rig.write(page, value(page, 0)));
        let sixteen = rig.region().slice(0, 16 * PAGE_SIZE).unwrap();
        Evictor::new(&rig.swapper).unwrap().evict(rig.region().slice(0, 8 * PAGE_SIZE).unwrap()).unwrap();
        perform(rig.region(), Operation::DontNeed, sixteen).unwrap();
        (0..16).for_each(|page| assert_eq!(rig.read(page), 0, "page {page} of {backing}"));
        assert_eq!(rig.swapper.store().usage().pages, 0);
        assert_eq!(rig.reports.events.load(Ordering::Relaxed), 1);
    }
}

fn memory_that_moves_and_comes_back_keeps_its_pages() {
    let rig = rig(1, Backing::Base4k, FaultAround::Fixed(1), true, 1);
    (0..16).for_each(|page| rig.write(page, value(page, 0)));
    let (eight, sixteen) = (rig.region().slice(0, 8 * PAGE_SIZE), rig.region().slice(0, 16 * PAGE_SIZE));
    Evictor::new(&rig.swapper).unwrap().evict(eight.unwrap()).unwrap();
    perform(rig.region(), Operation::Remap, sixteen.unwrap()).unwrap();
    (0..16).for_each(|page| assert_eq!(rig.read(page), value(page, 0), "page {page}"));
    assert_eq!(Evictor::new(&rig.swapper).unwrap().evict(sixteen.unwrap()).unwrap().pages, 16);
    (0..16).for_each(|page| assert_eq!(rig.read(page), value(page, 0), "page {page}"));
}

/// How long a storm may take to bring about what it is made for; a second as a rule.
const STORM: Duration = Duration::from_secs(120);
/// The longest pause after a discard.
const PAUSE: Duration = Duration::from_millis(1);

/// Threads that write to, evict and discard the same two blocks. The first block is written to; in the second, pages are
/// discarded now and then.
struct Storm<'a> {
    rig: &'a Rig,
    stop: &'a AtomicBool,
    writes: AtomicU64,
    evictions: AtomicU64,
}

impl Storm<'_> {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Counts its own pages up: of the first block every second one, from page `writer` on.
    fn write(&self, writer: u64) {
        let rig = self.rig;
        let mut written = [0u64; 256];
        let mut random = fastrand(writer);
        while self.goes_on() {
            let index = random() as usize % 256;
            let page = index as u64 * 2 + writer;
            let expected = if written[index] == 0 { 0 } else { value(page, written[index]) };
            assert_eq!(rig.read(page), expected, "page {page} of {}", rig.region().backing());
            written[index] += 1;
            rig.write(page, value(page, written[index]));
            self.writes.fetch_add(1, Ordering::Relaxed);
            // Only its first word is read: a discard may come between the two words.
            let discarded = 512 + page;
            let other = rig.first_word(discarded);
            assert!(other == 0 || other == value(discarded, 0), "page {discarded} holds {other:#x}");
            rig.write(discarded, value(discarded, 0));
        }
    }

    fn evict(&self, seed: u64) {
        let mut random = fastrand(seed);
        let mut evictor = Evictor::new(&self.rig.swapper).unwrap();
        while self.goes_on() {
            let first = random() % 1024;
            let len = (1 + random() % 200).min(1024 - first);
            let range = self.rig.region().slice(first * PAGE_SIZE, len * PAGE_SIZE).unwrap();
            evictor.evict(range).unwrap();
            self.evictions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Discards some pages of the second block.
    fn discard(&self, random: u64) {
        let first = 512 + random % 500;
        let range = self.rig.region().slice(first * PAGE_SIZE, 12 * PAGE_SIZE).unwrap();
        self.rig.swapper.discard(range).unwrap();
        perform(self.rig.region(), drop_of(self.rig.region().backing()), range).unwrap();
        // No page comes back while a mapping changes: without a pause no thread would make progress.
        let (before, discarded) = (self.writes.load(Ordering::Relaxed), Instant::now());
        while self.writes.load(Ordering::Relaxed) == before && discarded.elapsed() < PAUSE {
            std::thread::yield_now();
        }
    }

    fn is_enough(&self) -> bool {
        let raced = self.rig.reports.kept.load(Ordering::Relaxed) > 0;
        let (writes, evictions) =
            (self.writes.load(Ordering::Relaxed), self.evictions.load(Ordering::Relaxed));
        evictions >= 1500 && writes >= 3000 && raced
    }
}

/// No count ever goes back, whatever is evicted and discarded meanwhile.
fn no_write_is_lost_in_a_storm() {
    for backing in BACKINGS {
        let rig = rig(2, backing, FaultAround::Adaptive, !backing.is_shared(), 2);
        let stop = AtomicBool::new(false);
        let storm = Storm { rig: &rig, stop: &stop, writes: AtomicU64::new(0), evictions: AtomicU64::new(0) };
        std::thread::scope(|scope| {
            let _stop = Stopping(&stop);
            let storm = &storm;
            let writers = [0, 1].map(|writer| scope.spawn(move || storm.write(writer)));
            let evictors = [2, 3].map(|seed| scope.spawn(move || storm.evict(seed)));
            let mut random = fastrand(9);
            let begun = Instant::now();
            while !storm.is_enough() {
                let failed = writers.iter().chain(&evictors).any(|thread| thread.is_finished());
                assert!(!failed, "a thread has failed");
                let late = begun.elapsed() > STORM;
                let Storm { writes, evictions, .. } = storm;
                assert!(
                    !late,
                    "{backing}: {writes:?} writes, {evictions:?} evictions, {:?} after {STORM:?}",
                    rig.reports
                );
                storm.discard(random());
            }
        });
        rig.handlers.stop().unwrap();
    }
}

/// Stops the other threads, also when this one panics.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A generator of its own for each thread.
fn fastrand(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 11
    }
}

fn handlers_with_a_processor_each_serve_every_fault_once() {
    // Two are all woken for each fault, six are not.
    for handlers in [2, 6] {
        let memory = Arc::new(Owner(Region::map(2 * PMD_SIZE, Backing::Base4k).unwrap()));
        let options = Options { store: lz4(), around: FaultAround::Fixed(1), events: false };
        let swapper = Arc::new(Swapper::attach(memory, options).unwrap());
        let reports = Counter::default();
        let observers =
            processors().take(handlers).map(|processor| (reports.clone(), Some(processor))).collect();
        let handlers = Handlers::start(&swapper, observers).unwrap();
        let rig = Rig { swapper, handlers, reports };
        let threads = 4;
        std::thread::scope(|scope| {
            for first in 0..threads {
                let rig = &rig;
                scope.spawn(move || {
                    (first..rig.pages())
                        .step_by(threads as usize)
                        .for_each(|page| rig.write(page, value(page, 0)));
                });
            }
        });
        assert!((0..rig.pages()).all(|page| rig.read(page) == value(page, 0)));
        let pages = rig.pages();
        let reports = rig.handlers.stop().unwrap();
        let (faults, zeroed) =
            reports.iter().fold((0, 0), |sum, one| (sum.0 + one.faults, sum.1 + one.zeroed));
        assert_eq!((faults, zeroed), (pages, pages));
    }
}
