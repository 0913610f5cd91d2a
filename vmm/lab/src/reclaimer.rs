//! Taking memory away, victim by victim, through the bridge.
//!
//! ```text
//!   victim (pages of one operation)
//!     ├─ plan: what the kernel will announce for it, read from pagemap now
//!     ├─ for each announcement: Bridge::invalidate ── the last one's operation is the system call itself
//!     └─ scan again: the pages that left
//! ```
//!
//! Everything that the kernel announces inside one call is announced before it, see [`notifier_bridge::hook`].

mod own;

use std::ops::Range;
use std::time::Duration;

use guest_mem::{
    Earned, HvaRange, MapLevel, MemoryCgroup, NamedFolios, Operation, Order, PAGE_SIZE, PageCounts, PageRun,
    PageScanner, Planned, Planner, Region, Victim, drain_lru, perform,
};
use notifier_bridge::{Bridge, Cause, Invalidation, monotonic_ns};

use super::errors::TrialError;
use super::journal::Journal;
use super::notes::{Notes, planned_ranges};
use super::own_swap::OwnSwap;
use super::wiring::{Device, Wiring};
use crate::testbed::Testbed;
use experiment::choice::RowLabel;
use experiment::choice::{Listener, Reclaim, Zap};
use experiment::events::{
    Certainty, DeviceCounts, Dropped, Event, Leaves as LeafCounts, Operation as OperationBegan, OperationEnd,
    Was,
};
use experiment::scenario::Victims;
use host::signals::Cancel;
use machine::Leaves;
use notifier_bridge::hook;

/// The most attempts of MADV_PAGEOUT for the same pages. It passes over a page that is held for a moment (a fault in progress
/// on another page of the same folio is enough), and returns no error. A repetition is part of
/// the same operation: what it announces was announced.
const ATTEMPTS: u32 = 12;

/// Attempts without a pause between them. A thread that still holds the page then may have lost its CPU, and is waited for.
const AT_ONCE: u32 = 3;

/// The longest time to wait for all victims of a trial together. Where the swap device is full, none of them ever leaves.
const PATIENCE: Duration = Duration::from_secs(1);

/// The way in which each victim is taken.
#[derive(Clone, Copy, Debug)]
pub enum Method<'a> {
    /// One system call for each.
    Call(Operation),
    /// The memory cgroup is squeezed by as many bytes as all victims have; it chooses for itself.
    Squeeze(&'a MemoryCgroup),
    /// This process takes each to a store of its own.
    Own(&'a OwnSwap),
}

/// Takes memory from one testbed.
pub struct Reclaimer<'a> {
    testbed: &'a dyn Testbed,
    bridge: &'a Bridge,
    /// Reads each victim before it is taken.
    device: Option<&'a Device>,
    /// Whether zaps take the mapping by which `MADV_PAGEOUT` finds a page, so that it must be put back first.
    zaps_unmap: bool,
    /// Only the kernel zaps: its zaps show only in KVM's statistics around each operation.
    kernel_alone: bool,
    cancel: &'a Cancel,
    /// The time left to wait for victims.
    patience: Duration,
    scanner: PageScanner,
    planner: Planner,
    planned: Vec<Planned>,
    replanned: Vec<Planned>,
    runs: Vec<PageRun>,
    folios: NamedFolios,
    /// The notes of the operation in progress.
    pub notes: Notes,
    /// Whether the kernel announces what is planned, and nothing else.
    exact: bool,
    /// Bytes that were asked for, and that left.
    asked_bytes: u64,
    evicted_bytes: u64,
    /// vCPUs that run a hot loop while memory is taken.
    pub hot: Vec<u32>,
}

impl<'a> Reclaimer<'a> {
    /// A reclaimer of this testbed.
    pub fn new(
        testbed: &'a dyn Testbed,
        wiring: &'a Wiring,
        label: &RowLabel,
        cancel: &'a Cancel,
    ) -> Result<Self, TrialError> {
        Ok(Self {
            testbed,
            bridge: &wiring.bridge,
            device: wiring.device.as_ref(),
            kernel_alone: label.listener == Listener::Kernel,
            zaps_unmap: label.tried.zap == Zap::Unmap,
            cancel,
            patience: PATIENCE,
            scanner: PageScanner::new()?,
            planner: Planner::new(),
            planned: Vec::new(),
            replanned: Vec::new(),
            runs: Vec::new(),
            folios: NamedFolios::default(),
            notes: Notes::default(),
            exact: wiring.exact,
            asked_bytes: 0,
            evicted_bytes: 0,
            hot: Vec::new(),
        })
    }

    /// Bytes that were asked for and are still there, as far as operations told.
    pub const fn stayed_bytes(&self) -> u64 {
        self.asked_bytes.saturating_sub(self.evicted_bytes)
    }

    /// The host's mapping of the arena now.
    pub fn layout(&mut self) -> Result<&[PageRun], TrialError> {
        let arena = self.arena();
        self.scanner.scan_region(arena, arena.range(), &mut self.runs)?;
        Ok(&self.runs)
    }

    /// The number of the arena's pages, of those that `wanted` picks, that are in memory.
    pub fn resident(&mut self, wanted: impl Fn(u64) -> bool) -> Result<u64, TrialError> {
        let arena = self.arena();
        let runs = self.layout()?.iter().filter(|run| run.state.is_resident());
        let pages = runs.flat_map(|run| pages_of(arena, run.range));
        Ok(pages.filter(|page| wanted(*page)).count() as u64)
    }

    /// An operation on these pages begins.
    fn begin(&self, pages: &Range<u64>, journal: &mut Journal) {
        let touches = self.hot.iter().map(|&vcpu| self.testbed.mailbox(vcpu).area().touches()).sum();
        let (at_ns, first_page) = (journal.at(monotonic_ns()), pages.start);
        journal.push(&Event::OperationBegan(OperationBegan {
            at_ns,
            touches,
            first_page,
            pages: pages.end - first_page,
        }));
    }

    /// It is over.
    fn end(&mut self, end: &OperationEnd, journal: &mut Journal) {
        self.evicted_bytes += end.evicted_bytes;
        self.notes.end(self.arena().range(), end, journal);
    }

    /// Counts of the device so far, if there is one.
    pub fn device_counts(&self) -> Option<DeviceCounts> {
        let stats = self.device.map(Device::stats)?;
        Some(DeviceCounts { entries_dropped: stats.entries_dropped, empty_flushes: stats.empty_flushes })
    }

    fn arena(&self) -> &'a Region {
        self.testbed.arena()
    }

    fn range_of(&self, pages: &Range<u64>) -> HvaRange {
        self.arena()
            .slice(pages.start * PAGE_SIZE, (pages.end - pages.start) * PAGE_SIZE)
            .expect("a checked scenario names pages of its arena")
    }

    /// Takes every victim, waiting `pace` in between. `taken` hears of the pages of each operation.
    pub fn take_all(
        &mut self,
        victims: &Victims,
        method: Method<'_>,
        pace: Duration,
        journal: &mut Journal,
        mut taken: impl FnMut(Range<u64>),
    ) -> Result<(), TrialError> {
        self.ask(victims.operations(), victims.bytes(), journal);
        let operation = match method {
            Method::Call(operation) => operation,
            Method::Squeeze(cgroup) => return self.squeeze(cgroup, victims.bytes(), journal, taken),
            Method::Own(swap) => return self.swap_out(swap, victims, pace, journal, taken),
        };
        for pages in victims.iter() {
            self.cancel.check()?;
            self.begin(&pages, journal);
            let end = self.take(self.range_of(&pages), operation)?;
            self.end(&end, journal);
            taken(pages);
            if !pace.is_zero() {
                self.cancel.sleep(pace)?;
            }
        }
        Ok(())
    }

    /// So many operations are about to ask for so many bytes.
    fn ask(&mut self, victims: u64, bytes: u64, journal: &mut Journal) {
        self.asked_bytes += bytes;
        journal.push(&Event::Asked { victims, bytes });
    }

    /// One operation.
    fn take(&mut self, range: HvaRange, operation: Operation) -> Result<OperationEnd, TrialError> {
        let arena = self.arena();
        let maps_first = self.zaps_unmap && operation.is_reclaim();
        if maps_first {
            // An earlier victim's zap was wide enough to unmap this one.
            arena.populate(range)?;
        }
        if let Some(device) = self.device {
            device.read(range)?;
        }
        let before = self.page_counts(range)?;
        let was = self.what_it_was(range)?;
        let mut planned = std::mem::take(&mut self.planned);
        self.planner.plan(&mut self.scanner, arena, range, operation, &mut planned)?;
        let leaves = self.leaves();
        let (spent, repeated) = self.announce(&planned, range, operation)?;
        let (expected, dropped) = (planned_ranges(&planned), self.dropped_since(leaves));
        self.planned = planned;
        let after = self.page_counts(range)?;
        Ok(OperationEnd {
            evicted_bytes: operation.got_bytes(self.arena().backing(), &before, &after),
            expected: Some(expected),
            dropped,
            was,
            spent_ns: Some(spent),
            repeated,
        })
    }

    /// Announces each planned range; the last bracket holds the system call. Returns how long that took, and how often it was
    /// made again.
    fn announce(
        &mut self,
        planned: &[Planned],
        range: HvaRange,
        operation: Operation,
    ) -> Result<(u64, u32), TrialError> {
        let (arena, testbed) = (self.arena(), self.testbed);
        let (scanner, runs) = (&mut self.scanner, &mut self.runs);
        // A zap inside a huge page cuts it up before the kernel's turn: then the kernel announces other ranges.
        let cuts = !self.kernel_alone
            && planned.iter().any(|planned| !matches!(planned, Planned::Take(_) | Planned::Exact(_)));
        let certainty = match self.exact {
            false => Certainty::Unknown,
            // Kernels differ in the number of mappings that a cut folio has, and so in the announcements of its split.
            true if cuts || operation.splits_freely(arena.backing()) => Certainty::AtLeast,
            true => Certainty::Exact,
        };
        let patience = &mut self.patience;
        let replans = self.notes.calls_are_noted();
        let (planner, replanned) = (&mut self.planner, &mut self.replanned);
        let maps_first = self.zaps_unmap && operation.is_reclaim();
        let (mut made, mut spent) = (Vec::with_capacity(1), 0);
        let call = || -> Result<(), TrialError> {
            if maps_first {
                // This victim's own zap did. Mapping what is in the page cache announces nothing.
                arena.populate(range)?;
            }
            if replans && cuts && certainty != Certainty::Unknown {
                planner.plan(scanner, arena, range, operation, replanned)?;
            } else {
                replanned.clear();
                replanned.extend_from_slice(planned);
            }
            for attempt in 0..ATTEMPTS {
                if attempt > 0 && !let_go(self.cancel, attempt, patience)? {
                    break;
                }
                let begun = monotonic_ns();
                let mut performed = Ok(());
                let reclaim = Reclaim::By(operation);
                testbed.around(reclaim, &mut || performed = perform(arena, operation, range));
                performed?;
                let ended = monotonic_ns();
                spent += ended - begun;
                made.push((begun, ended));
                if !operation.is_reclaim() {
                    break;
                }
                scanner.scan_region(arena, range, runs)?;
                if PageCounts::of(runs).resident() == 0 {
                    break;
                }
            }
            Ok(())
        };
        let cause = Cause::of(operation);
        hook::announce(self.bridge, &mut self.notes.records, arena, planned, cause, call)?;
        self.notes.called(&made, certainty, (arena, &self.replanned));
        Ok((spent, made.len().saturating_sub(1) as u32))
    }

    /// Leaf translations now, if only the kernel drops them: no listener of ours counts them then.
    fn leaves(&self) -> Option<Option<Leaves>> {
        self.kernel_alone.then(|| self.testbed.leaves())
    }

    /// The translations that only the kernel dropped since then.
    fn dropped_since(&self, before: Option<Option<Leaves>>) -> Dropped {
        let Some(before) = before else { return Dropped::ByListeners };
        let Some((before, after)) = before.zip(self.testbed.leaves()) else { return Dropped::Unknown };
        Dropped::ByKernel(LeafCounts {
            small: before.pages_4k.saturating_sub(after.pages_4k),
            large: before.pages_2m.saturating_sub(after.pages_2m),
        })
    }

    fn page_counts(&mut self, range: HvaRange) -> Result<PageCounts, TrialError> {
        self.scanner.scan_region(self.testbed.arena(), range, &mut self.runs)?;
        Ok(PageCounts::of(&self.runs))
    }

    /// How the memory that is about to be taken is mapped, by the page runs of the last look.
    fn what_it_was(&mut self, range: HvaRange) -> Result<Was, TrialError> {
        let arena = self.arena();
        self.folios.look(&mut self.scanner, arena, range)?;
        Ok(self.folios.judge(arena.backing(), &self.runs).into())
    }

    /// Lets the cgroup choose. Its victims are not known beforehand: they are found by a scan afterwards, and announced when the
    /// kernel's own notifier has done its part.
    fn squeeze(
        &mut self,
        cgroup: &MemoryCgroup,
        bytes: u64,
        journal: &mut Journal,
        mut taken: impl FnMut(Range<u64>),
    ) -> Result<(), TrialError> {
        let arena = self.arena();
        let mut before = Vec::new();
        self.scanner.scan_region(arena, arena.range(), &mut before)?;
        self.folios.look(&mut self.scanner, arena, arena.range())?;
        let leaves = self.leaves();
        self.begin(&(0..arena.range().page_count()), journal);
        let begun = monotonic_ns();
        let mut squeezed = None;
        self.testbed.around(Reclaim::Cgroup, &mut || squeezed = Some(cgroup.squeeze(bytes)));
        squeezed.expect("the testbed performs what it is given")?;
        self.notes.called(&[(begun, monotonic_ns())], Certainty::Reclaim, (arena, &[]));
        let dropped = self.dropped_since(leaves);
        let (mut evicted_bytes, mut was) = (0, Earned::NOTHING);
        let mut after = Vec::new();
        self.scanner.scan_region(arena, arena.range(), &mut after)?;
        for run in departed(&before, &after) {
            let went = run.range;
            let level = if run.state.is_pmd_mapped() { MapLevel::Pmd } else { MapLevel::Pte };
            let (order, step) = match level {
                MapLevel::Pmd => (Order::PMD, Order::PMD.bytes()),
                MapLevel::Pte => (Order::BASE, PAGE_SIZE),
            };
            for pages in went.chunks(step) {
                let victim = Victim { pages, order, level, anonymous: arena.backing().is_anonymous() };
                let invalidation = Invalidation { cause: Cause::CgroupReclaim, victim, vma: arena.range() };
                self.bridge.invalidate(&mut self.notes.records, &invalidation, || ());
            }
            evicted_bytes += went.len();
            was = was.and(self.folios.judge(arena.backing(), &[run]));
            taken(pages_of(arena, went));
        }
        let end = OperationEnd { evicted_bytes, dropped, was: was.into(), ..OperationEnd::default() };
        self.end(&end, journal);
        Ok(())
    }
}

/// The pages of a range of the arena.
fn pages_of(arena: &Region, range: HvaRange) -> Range<u64> {
    let first = arena.offset_of(range.start()).expect("a range of the arena") / PAGE_SIZE;
    first..first + range.page_count()
}

/// The runs that were resident before and are not after, in their state before. Both lists tile the same range.
fn departed(before: &[PageRun], after: &[PageRun]) -> Vec<PageRun> {
    let mut went = Vec::new();
    let mut rest = after.iter().peekable();
    for was in before.iter().filter(|run| run.state.is_resident()) {
        while rest.peek().is_some_and(|is| is.range.end() <= was.range.start()) {
            rest.next();
        }
        let overlapping = rest.clone().take_while(|is| is.range.start() < was.range.end());
        for is in overlapping.filter(|is| !is.state.is_resident()) {
            if let Some(range) = was.range.intersection(is.range) {
                went.push(PageRun { range, state: was.state });
            }
        }
    }
    went
}

/// Between two attempts at a page: pages in another CPU's batch go to their LRU list, and a holder of the page gets time to
/// let go of it, up to 16 ms. `false` when there is no `patience` left for that.
fn let_go(cancel: &Cancel, attempt: u32, patience: &mut Duration) -> Result<bool, TrialError> {
    // Refused before Linux 6.1, where the batches of other CPUs cannot be flushed from here.
    let _ = drain_lru();
    let Some(waited) = attempt.checked_sub(AT_ONCE) else { return Ok(true) };
    let pause = Duration::from_millis(1 << waited.min(4));
    let Some(left) = patience.checked_sub(pause) else { return Ok(false) };
    *patience = left;
    cancel.sleep(pause)?;
    Ok(true)
}
