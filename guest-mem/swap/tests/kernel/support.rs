//! Memory with a swapper, and the reports of its handlers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use guest_mem::{Backing, HvaRange, PAGE_SIZE, PMD_SIZE, Page, Region};
use swap::{
    Codec, CompressedStore, Evictor, FaultAround, Handlers, Lost, LostWhy, Observer, Options, Served, Slot,
    Store, StoreError, SwapState, Swapper, Usage,
};
use uffd::{Event, PageFault};

/// A region that owns itself.
pub struct Owner(pub Region);

impl AsRef<Region> for Owner {
    fn as_ref(&self) -> &Region {
        &self.0
    }
}

/// The reports of all handlers.
#[derive(Default)]
pub struct Reports {
    pub faults: AtomicU64,
    pub events: AtomicU64,
    lost: Mutex<Vec<Lost>>,
    changed: Condvar,
}

/// Records what one handler reports.
#[derive(Clone)]
pub struct Recorder(pub Arc<Reports>);

impl Observer for Recorder {
    fn fault(&mut self, _fault: &PageFault, _served: Served) {
        self.0.faults.fetch_add(1, Ordering::SeqCst);
    }
    fn event(&mut self, _event: &Event) {
        self.0.events.fetch_add(1, Ordering::SeqCst);
    }
    fn lost(&mut self, lost: Lost) {
        self.0.lost.lock().unwrap().push(lost);
        self.0.changed.notify_all();
    }
}

impl Reports {
    /// Waits for the next lost page that was not asked for yet, a minute at most, and not if it was `given` all the same.
    fn next_lost(&self, given: &AtomicBool) -> Lost {
        let _waiting = harness::waiting("a page that cannot be given back");
        let (lost, minute) = (self.lost.lock().unwrap(), Duration::from_secs(60));
        let nothing_yet = |lost: &mut Vec<Lost>| lost.is_empty() && !given.load(Ordering::SeqCst);
        let mut lost = self.changed.wait_timeout_while(lost, minute, nothing_yet).unwrap().0;
        assert!(!lost.is_empty(), "no page is said to be lost; given: {given:?}");
        lost.remove(0)
    }
    /// A reader has got its page.
    fn give(&self, given: &AtomicBool) {
        let _lost = self.lost.lock().unwrap();
        given.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }
    pub fn nothing_is_lost(&self) -> bool {
        self.lost.lock().unwrap().is_empty()
    }
}

pub struct Rig {
    pub memory: Arc<Owner>,
    pub swapper: Arc<Swapper>,
    pub handlers: Handlers,
    pub reports: Arc<Reports>,
}

pub fn lz4() -> Arc<dyn Store> {
    Arc::new(CompressedStore::new(Codec::Lz4, 1 << 30).unwrap())
}

/// A store that gives back, while it is told to, every page with one bit flipped.
#[derive(Debug)]
pub struct Spoiler {
    inner: Arc<dyn Store>,
    pub spoils: AtomicBool,
}

impl Spoiler {
    pub fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { inner, spoils: AtomicBool::new(false) })
    }
}

impl Store for Spoiler {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn put(&self, pages: &[Page], slots: &mut [Slot]) -> Result<(), StoreError> {
        self.inner.put(pages, slots)
    }
    fn get(&self, slots: &[Slot], pages: &mut [Page]) -> Result<(), StoreError> {
        self.inner.get(slots, pages)?;
        if self.spoils.load(Ordering::SeqCst) {
            // In the middle, where only the checksum finds it.
            pages.iter_mut().for_each(|page| page[2000] ^= 4);
        }
        Ok(())
    }
    fn free(&self, slots: &[Slot]) {
        self.inner.free(slots);
    }
    fn usage(&self) -> Usage {
        self.inner.usage()
    }
}

/// A swapper on so many 4 KiB pages, without handlers yet.
pub fn idle(pages: u64, store: Arc<dyn Store>) -> (Arc<Owner>, Arc<Swapper>) {
    let memory = Arc::new(Owner(Region::map(pages * PAGE_SIZE, Backing::Base4k).unwrap()));
    let options = Options { store, around: FaultAround::Fixed(1), events: false };
    (memory.clone(), Arc::new(Swapper::attach(memory, options).unwrap()))
}

/// A swapper on memory that is there already, served by so many handlers.
pub fn attach(
    memory: Region,
    store: Arc<dyn Store>,
    around: FaultAround,
    events: bool,
    handlers: usize,
) -> Rig {
    let memory = Arc::new(Owner(memory));
    let swapper = Arc::new(Swapper::attach(memory.clone(), Options { store, around, events }).unwrap());
    let reports = Arc::new(Reports::default());
    let observers = (0..handlers).map(|_| (Recorder(reports.clone()), None)).collect();
    let handlers = Handlers::start(&swapper, observers).unwrap();
    Rig { memory, swapper, handlers, reports }
}

pub fn rig(blocks: u64, backing: Backing, store: Arc<dyn Store>, around: FaultAround, events: bool) -> Rig {
    attach(Region::map(blocks * PMD_SIZE, backing).unwrap(), store, around, events, 1)
}

/// Has a thread read a page that cannot be given back: it is reported, the thread sleeps on, and a wake changes
/// nothing. The read returns once the page is discarded.
pub fn assert_lost(rig: &Rig, page: u64) -> LostWhy {
    let (memory, reports, given) =
        (rig.memory.clone(), rig.reports.clone(), Arc::new(AtomicBool::new(false)));
    let reader = std::thread::spawn({
        let given = given.clone();
        move || {
            let value = read(&memory.0, page);
            reports.give(&given);
            value
        }
    });
    let lost = rig.reports.next_lost(&given);
    assert_eq!((lost.page, lost.at), (page, rig.range(page, 1).start()), "{lost}");
    assert_eq!(rig.swapper.state(lost.at), Some(SwapState::Lost));
    rig.swapper.userfault().wake(rig.range(page, 1)).unwrap();
    let again = rig.reports.next_lost(&given);
    assert!(again.page == page && matches!(again.why, LostWhy::Before), "{again}: {}", again.why);
    assert!(!reader.is_finished(), "woken with something else");
    rig.swapper.discard(rig.range(page, 1)).unwrap();
    rig.swapper.userfault().wake(rig.range(page, 1)).unwrap();
    assert_eq!(harness::join(reader, "the reader of a lost page"), 0);
    lost.why
}

impl Rig {
    pub fn region(&self) -> &Region {
        self.swapper.region()
    }
    pub fn range(&self, first: u64, pages: u64) -> HvaRange {
        self.region().slice(first * PAGE_SIZE, pages * PAGE_SIZE).unwrap()
    }
    /// A word at the start of a page, and its like at the end.
    pub fn write(&self, page: u64, value: u64) {
        for at in [0, PAGE_SIZE - 8] {
            let at = self.region().hva_at(page * PAGE_SIZE + at).unwrap();
            self.region().write_u64(at, value).unwrap();
        }
    }
    pub fn read(&self, page: u64) -> u64 {
        read(self.region(), page)
    }
    pub fn evict(&self, first: u64, pages: u64) -> u64 {
        Evictor::new(&self.swapper).unwrap().evict(self.range(first, pages)).unwrap().pages
    }
    /// Pages in the store, once a handler that fills a page has also freed its slot: it wakes the reader before.
    pub fn stored(&self) -> u64 {
        self.swapper.count(|_| false);
        self.swapper.store().usage().pages
    }
    pub fn faults(&self) -> u64 {
        self.reports.faults.load(Ordering::SeqCst)
    }
    /// Waits until so many faults are counted: a handler wakes the faulting thread before it counts.
    pub fn wait_faults(&self, count: u64) {
        let _waiting = harness::waiting(format!("{count} faults to be counted"));
        while self.faults() < count {
            std::thread::yield_now();
        }
    }
}

pub fn read(region: &Region, page: u64) -> u64 {
    let [first, last] =
        [0, PAGE_SIZE - 8].map(|at| region.read_u64(region.hva_at(page * PAGE_SIZE + at).unwrap()).unwrap());
    assert_eq!(first, last, "page {page} is torn");
    first
}

/// What page `page` holds at first: neither zero nor another's.
pub fn value(page: u64) -> u64 {
    (page + 1) << 32 | 1
}
