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
    ScanError, Victim,
};
use notifier_bridge::{Bridge, Cause, Invalidation, monotonic_ns};
use swap::{
    Clock, Codec, CompressedStore, Evicted, Evictor, FileStore, HandlerReport, Handlers, Lost, Observer,
    Options, Served, Store, Swapper,
};
use uffd::{Event, PageFault};

use super::errors::TrialError;
use super::notes::{Notes, planned_ranges};
use crate::testbed::{Breaker, Testbed};
use experiment::events::{Certainty, Ranges, Swapped};
use experiment::scenario::{Uffd, UffdStore};
use guest::{CrashKind, CrashReport};
use notifier_bridge::hook;

/// The swap of one trial.
#[derive(Debug)]
pub struct OwnSwap {
    // Dropped before the swapper, whose faults the handlers serve.
    handlers: Option<Handlers>,
    /// The ranges announced for events of userfaultfd.
    heard: Arc<Mutex<Ranges>>,
    swapper: Arc<Swapper>,
}

impl OwnSwap {
    /// Takes the testbed's arena over. The handlers sit on the vCPUs' `processors`, one after the other.
    pub fn start(
        testbed: &dyn Testbed,
        bridge: &Arc<Bridge>,
        how: &Uffd,
        processors: &[Option<usize>],
    ) -> Result<Self, TrialError> {
        let options = Options { store: store(how)?, around: how.fault_around, events: how.events };
        let swapper = Arc::new(Swapper::attach_for(testbed.faults(), testbed.memory(), options)?);
        let handlers = how.handlers.unwrap_or(testbed.vcpus()).min(16) as usize;
        let heard = Arc::<Mutex<Ranges>>::default();
        let observers = processors.iter().cycle().take(handlers).map(|processor| {
            let announcer = EventAnnouncer {
                bridge: bridge.clone(),
                heard: heard.clone(),
                breaker: testbed.breaker(),
                region: swapper.region().range(),
                anonymous: swapper.region().backing().is_anonymous(),
            };
            (announcer, *processor)
        });
        let handlers = Some(Handlers::start(&swapper, observers.collect())?);
        Ok(Self { handlers, heard, swapper })
    }

    /// Means to evict, for one thread.
    ///
    /// # Errors
    /// No memory for its buffers.
    pub fn evictor(&self) -> Result<OwnEvictor<'_>, TrialError> {
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
    pub fn finish(mut self) -> Result<Swapped, TrialError> {
        let mut handlers = HandlerReport::default();
        if let Some(started) = self.handlers.take() {
            started.stop()?.into_iter().for_each(|report| handlers += report);
        }
        let events = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let HandlerReport { faults, returned, huge, kept, wakes, .. } = handlers;
        Ok(Swapped { faults, returned, huge, kept, wakes, events })
    }
}

fn store(how: &Uffd) -> Result<Arc<dyn Store>, TrialError> {
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
    ) -> Result<(), TrialError> {
        let region = self.swapper.region();
        let operation = clock.operation();
        for block in range.block_pieces() {
            match operation {
                Operation::Protect => protection(scanner, self.swapper, block, &mut self.planned)?,
                _ => planner.plan(scanner, region, block, operation, &mut self.planned)?,
            }
            let watch = || timed(|| clock.watch(block));
            let (watched, time) =
                hook::announce(bridge, &mut notes.records, region, &self.planned, Cause::Watch, watch);
            notes.called(&[time], Certainty::Unknown, (region, &[]));
            watched?;
        }
        Ok(())
    }

    /// Evicts a range, and says what the kernel was expected to announce for it, and how many nanoseconds it took, without
    /// the announcements and the work of the listeners. Write protection and drop are announced, each in a bracket of its
    /// own: both take translations. What each announces is not known to the byte beforehand: a page that is written to on
    /// its way out stays, and one that is protected already is passed over.
    pub fn take(
        &mut self,
        range: HvaRange,
        bridge: &Bridge,
        notes: &mut Notes,
        (scanner, planner): (&mut PageScanner, &mut Planner),
    ) -> Result<(Evicted, Ranges, u64), TrialError> {
        let region = self.swapper.region();
        let (mut all, mut expected, mut spent) = (Evicted::default(), Ranges::default(), 0);
        for block in range.block_pieces() {
            protection(scanner, self.swapper, block, &mut self.planned)?;
            expected += planned_ranges(&self.planned);
            let evictor = &mut self.evictor;
            let claim = || timed(move || evictor.claim(block));
            let (claimed, claiming) =
                hook::announce(bridge, &mut notes.records, region, &self.planned, Cause::Protect, claim);
            notes.called(&[claiming], Certainty::Unknown, (region, &[]));
            let (packed, storing) = timed(|| claimed?.store());
            let packed = packed?;
            let operation = self.swapper.drop_operation();
            let mut announcements = Vec::new();
            for run in packed.ranges() {
                planner.plan(scanner, region, run, operation, &mut self.planned)?;
                announcements.append(&mut self.planned);
            }
            expected += planned_ranges(&announcements);
            let drop_pages = || timed(|| packed.drop_pages());
            let cause = Cause::of(operation);
            let (evicted, dropping) =
                hook::announce(bridge, &mut notes.records, region, &announcements, cause, drop_pages);
            notes.called(&[dropping], Certainty::Unknown, (region, &[]));
            all += evicted?;
            spent +=
                [claiming, storing, dropping].map(|(begun, ended)| ended - begun).into_iter().sum::<u64>();
        }
        Ok((all, expected, spent))
    }
}

/// Performs an action; returns also when it began and ended.
fn timed<R>(action: impl FnOnce() -> R) -> (R, (u64, u64)) {
    let begun = monotonic_ns();
    let result = action();
    (result, (begun, monotonic_ns()))
}

/// The kernel's announcements for a write protection inside one block: the range; before it, all of the block if a huge
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
    heard: Arc<Mutex<Ranges>>,
    breaker: Breaker,
    region: HvaRange,
    anonymous: bool,
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
        let order = Order::of_bytes(range.len()).unwrap_or(Order::BASE);
        let victim = Victim { pages: range, order, level: MapLevel::Pte, anonymous: self.anonymous };
        let mut records = Vec::with_capacity(1);
        self.bridge.invalidate(&mut records, &Invalidation { cause, victim, vma: self.region }, || ());
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
