//! Swap in user space as a part of a trial: `reclaim = ["uffd"]`.
//!
//! ```text
//!   take: for each 2 MiB block of a victim                     handlers (threads)
//!     bracket: write protection ── Evictor::claim                fault ─ Pager ─ woken      ── a record each
//!     Claimed::store                                             event ─ bridge             ── a record each
//!     bracket: MADV_DONTNEED or a hole ── Packed::drop_pages     lost page ─ the guest is stopped, with a report
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use guest_mem::{
    HvaRange, MapLevel, Operation, Order, PAGE_SIZE, PMD_SIZE, PageCounts, PageScanner, Planned, Planner,
    Region, ScanError, Victim,
};
use notifier_bridge::{Bridge, Cause, Invalidation, InvalidationRecord, monotonic_ns};
use swap::{
    AttachError, BufferError, Clock, Codec, CompressedStore, EvictError, Evicted, Evictor, FileStore,
    FileStoreError, HandlerError, HandlerReport, Handlers, Lost, Observer, Options, Served, Store,
    StoreError, Swapper, WatchError,
};
use uffd::{Event, PageFault};

use super::notes::{Notes, planned_ranges};
use crate::testbed::{Breaker, Testbed};
use experiment::events::{Certainty, Ranges, Swapped};
use experiment::scenario::{Uffd, UffdStore};
use guest::{CrashKind, CrashReport};
use notifier_bridge::hook;
use program::exit::{Class, Classified};

/// An error of the swap in user space.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum OwnSwapError {
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Handlers(#[from] HandlerError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    File(#[from] FileStoreError),
    #[error(transparent)]
    Buffer(#[from] BufferError),
    #[error(transparent)]
    Watch(#[from] WatchError),
    #[error(transparent)]
    Evict(#[from] EvictError),
    #[error(transparent)]
    Scan(#[from] ScanError),
}

impl Classified for OwnSwapError {
    fn class(&self) -> Class {
        match self {
            Self::Attach(error) => error.class(),
            Self::Handlers(error) => error.class(),
            Self::Store(error) => error.class(),
            Self::File(error) => error.class(),
            Self::Buffer(error) => error.class(),
            Self::Watch(error) => error.class(),
            Self::Evict(error) => error.class(),
            Self::Scan(error) => error.class(),
        }
    }
}

impl OwnSwapError {
    /// Whether pages could not leave because the store holds as much as it may.
    pub fn is_full_store(&self) -> bool {
        matches!(self, Self::Evict(EvictError::Store { source: StoreError::Full { .. }, .. }))
    }
}

/// The swap of one trial.
#[derive(Debug)]
pub struct OwnSwap {
    // Before the swapper: nobody serves what is no longer there.
    handlers: Option<Handlers>,
    heard: Vec<Arc<Mutex<Ranges>>>,
    swapper: Arc<Swapper>,
}

impl OwnSwap {
    /// Takes the testbed's arena over. The handlers sit on the vCPUs' `processors`, one after the other.
    pub fn start(
        testbed: &dyn Testbed,
        bridge: &Arc<Bridge>,
        how: &Uffd,
        processors: &[Option<usize>],
    ) -> Result<Self, OwnSwapError> {
        let options = Options { store: store(how)?, around: how.fault_around, events: how.events };
        let swapper = Arc::new(Swapper::attach_for(testbed.faults(), testbed.memory(), options)?);
        let handlers = how.handlers.unwrap_or(testbed.vcpus()).min(16) as usize;
        let heard: Vec<_> = (0..handlers).map(|_| Arc::<Mutex<Ranges>>::default()).collect();
        let hears = heard.iter().zip(processors.iter().cycle()).map(|(heard, processor)| {
            let announcer = EventAnnouncer {
                bridge: bridge.clone(),
                heard: heard.clone(),
                breaker: testbed.breaker(),
                region: swapper.region().range(),
                anonymous: swapper.region().backing().is_anonymous(),
            };
            (announcer, *processor)
        });
        let handlers = Some(Handlers::start(&swapper, hears.collect())?);
        Ok(Self { handlers, heard, swapper })
    }

    /// Means to evict, for one thread.
    ///
    /// # Errors
    /// No memory for its buffers.
    pub fn evictor(&self) -> Result<OwnEvictor<'_>, OwnSwapError> {
        Ok(OwnEvictor { swapper: &self.swapper, evictor: Evictor::new(&self.swapper)?, planned: Vec::new() })
    }

    /// A hand that goes round over units of so many pages.
    pub fn clock(&self, unit_pages: u64) -> Clock<'_> {
        Clock::new(&self.swapper, unit_pages)
    }

    /// Bytes of the pages that are in memory.
    pub fn resident_bytes(&self) -> u64 {
        self.swapper.resident_bytes()
    }

    /// Ends it: the memory is ordinary again, whose pages have all been brought back.
    ///
    /// # Errors
    /// A handler had given up.
    pub fn finish(mut self) -> Result<Swapped, OwnSwapError> {
        let mut handlers = HandlerReport::default();
        if let Some(started) = self.handlers.take() {
            started.stop()?.into_iter().for_each(|report| handlers += report);
        }
        let mut events = Ranges::default();
        for heard in &self.heard {
            events += *heard.lock().unwrap_or_else(PoisonError::into_inner);
        }
        let HandlerReport { faults, returned, huge, kept, wakes, .. } = handlers;
        Ok(Swapped { faults, returned, huge, kept, wakes, events })
    }
}

fn store(how: &Uffd) -> Result<Arc<dyn Store>, OwnSwapError> {
    Ok(match how.store {
        UffdStore::Lz4 => Arc::new(CompressedStore::new(Codec::Lz4, how.limit)?),
        UffdStore::Zstd => Arc::new(CompressedStore::new(Codec::Zstd, how.limit)?),
        UffdStore::File => Arc::new(FileStore::new(&std::env::temp_dir(), how.limit)?),
    })
}

/// One thread's means to evict, through the bridge.
pub struct OwnEvictor<'s> {
    swapper: &'s Swapper,
    evictor: Evictor<'s>,
    planned: Vec<Planned>,
}

impl OwnEvictor<'_> {
    /// Begins to watch a range. That takes translations too, and is announced, block by block.
    pub fn watch(
        &mut self,
        clock: &Clock<'_>,
        range: HvaRange,
        bridge: &Bridge,
        notes: &mut Notes,
        (scanner, planner): (&mut PageScanner, &mut Planner),
    ) -> Result<(), OwnSwapError> {
        let region = self.swapper.region();
        let operation = clock.operation();
        for block in range.block_pieces() {
            match operation {
                Operation::Protect => protection(scanner, self.swapper, block, &mut self.planned)?,
                _ => planner.plan(scanner, region, block, operation, &mut self.planned)?,
            }
            noting(notes, region, |records, call| {
                let watch = || call.time(|| clock.watch(block));
                hook::announce(bridge, records, region, &self.planned, Cause::Watch, watch)
            })?;
        }
        Ok(())
    }

    /// Evicts a range, and says what the kernel was expected to announce for it, and how many nanoseconds it took: what it
    /// announces, and what the listeners make of it, not included. Write protection and drop are announced, each in a bracket of its own: both take translations.
    pub fn take(
        &mut self,
        range: HvaRange,
        bridge: &Bridge,
        notes: &mut Notes,
        (scanner, planner): (&mut PageScanner, &mut Planner),
    ) -> Result<(Evicted, Ranges, u64), OwnSwapError> {
        let region = self.swapper.region();
        let (mut all, mut expected, mut spent) = (Evicted::default(), Ranges::default(), 0);
        for block in range.block_pieces() {
            protection(scanner, self.swapper, block, &mut self.planned)?;
            let evictor = &mut self.evictor;
            let planned = &self.planned;
            expected += planned_ranges(planned);
            let claimed = noting(notes, region, |records, call| {
                let claim = || timed(&mut spent, || call.time(move || evictor.claim(block)));
                hook::announce(bridge, records, region, planned, Cause::Protect, claim)
            })?;
            let packed = timed(&mut spent, || claimed.store())?;
            let operation = self.swapper.drop_operation();
            let mut announcements = Vec::new();
            for run in packed.ranges() {
                planner.plan(scanner, region, run, operation, &mut self.planned)?;
                announcements.append(&mut self.planned);
            }
            expected += planned_ranges(&announcements);
            let cause = Cause::of(operation);
            all += noting(notes, region, |records, call| {
                let drop_pages = || call.time(|| timed(&mut spent, || packed.drop_pages()));
                hook::announce(bridge, records, region, &announcements, cause, drop_pages)
            })?;
        }
        Ok((all, expected, spent))
    }
}

/// When a call was made.
#[derive(Clone, Copy, Debug, Default)]
struct Call(Option<(u64, u64)>);

impl Call {
    fn time<R>(&mut self, action: impl FnOnce() -> R) -> R {
        let begun = monotonic_ns();
        let result = action();
        self.0 = Some((begun, monotonic_ns()));
        result
    }
}

/// Announces, and notes the call in the announcement as a step's own. What it announces is not known to the byte beforehand: a
/// page that is written to on its way out stays, and one that is protected already is passed over.
fn noting<R>(
    notes: &mut Notes,
    region: &Region,
    announce: impl FnOnce(&mut Vec<InvalidationRecord>, &mut Call) -> R,
) -> R {
    let mut call = Call::default();
    let result = announce(&mut notes.records, &mut call);
    if let Some((begun, ended)) = call.0 {
        notes.called(begun, ended, Certainty::Unknown, (region, &[]));
    }
    result
}

/// Adds what an action takes to `spent`.
fn timed<R>(spent: &mut u64, action: impl FnOnce() -> R) -> R {
    let begun = monotonic_ns();
    let result = action();
    *spent += monotonic_ns() - begun;
    result
}

/// What the kernel announces for a write protection inside one block: the range; before it, all of the block if a huge
/// page has to come apart.
fn protection(
    scanner: &mut PageScanner,
    swapper: &Swapper,
    range: HvaRange,
    planned: &mut Vec<Planned>,
) -> Result<(), ScanError> {
    planned.clear();
    let mut runs = Vec::new();
    scanner.scan_region(swapper.region(), range, &mut runs)?;
    if range.len() < PMD_SIZE && PageCounts::of(&runs).pmd_mapped > 0 {
        planned.extend(range.checked_align_outward(PMD_SIZE).map(Planned::SplitPmd));
    }
    planned.push(Planned::Exact(range));
    Ok(())
}

/// Announces what the handlers' events report, and ends the guest for a lost page.
struct EventAnnouncer {
    bridge: Arc<Bridge>,
    /// The ranges announced for events.
    heard: Arc<Mutex<Ranges>>,
    breaker: Breaker,
    region: HvaRange,
    anonymous: bool,
}

impl EventAnnouncer {
    fn invalidation(&self, cause: Cause, pages: HvaRange) -> Invalidation {
        let order = Order::of_bytes(pages.len()).unwrap_or(Order::BASE);
        let victim = Victim { pages, order, level: MapLevel::Pte, anonymous: self.anonymous };
        Invalidation { cause, victim, vma: self.region }
    }
}

impl Observer for EventAnnouncer {
    fn fault(&mut self, _fault: &PageFault, _served: Served) {}

    fn event(&mut self, event: &Event) {
        let (cause, range) = match event {
            Event::Remove(range) => (Cause::DontNeed, *range),
            Event::Unmap(range) => (Cause::Unmap, *range),
            Event::Remap { from, .. } => (Cause::Remap, *from),
            Event::Fault(_) => return,
        };
        // Our listeners have nothing outside the region.
        let Some(range) = range.intersection(self.region) else { return };
        let mut records = Vec::with_capacity(1);
        self.bridge.invalidate(&mut records, &self.invalidation(cause, range), || ());
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            *heard += Ranges { ranges: record.ranges, bytes: record.invalidated_bytes };
        }
    }

    fn lost(&mut self, lost: Lost) {
        let gpa = guest_abi::layout::ARENA_GPA + lost.page.saturating_mul(PAGE_SIZE);
        let kind = CrashKind::LostPage { gpa, why: guest_mem::with_causes(&lost.why) };
        self.breaker.stop(|vcpu| CrashReport { vcpu, kind: kind.clone(), registers: None });
    }
}
