//! A machine from a snapshot.
//!
//! ```text
//!   lazily:   empty memory ── Swapper::attach, hand_over ── Handlers ─┐
//!   eagerly:  memory ── every page read, checked, written ────────────┴── vCPUs, their states ── Machine::resume
//! ```

use std::sync::Arc;

use crate::Kvm;
use guest_abi::layout::ARENA_GPA;
use guest_mem::{Memory, PAGE_SIZE, PAGES_PER_PMD, Region};
use swap::{
    FaultAround, HandlerReport, Handlers, ImageStore, Kept, Lost, Observer, Options, PageBuffer, Served,
    Slot, Store, SwapState, Swapper, checksum,
};
use uffd::{Event, PageFault};

use super::SnapshotError;
use super::file::Snapshot;
use super::index::Entry;
use super::stop::Stopper;
use crate::arch::{self, OtherCpu};
use crate::{GuestCpu, Machine, VmConfig, VmCore};
use guest::CrashKind;
use host::processors;

/// How the memory is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Page by page, as the guest asks.
    Lazily {
        /// How many pages a fault brings.
        around: FaultAround,
        /// Threads that serve the faults of the arena; low memory has one of its own.
        handlers: u32,
    },
    /// All of it, before the guest starts.
    Eagerly,
}

/// A machine from a snapshot, whose vCPUs wait for orders. On any error of its guest, [`Restored::abandon`] it: its drop
/// waits for vCPUs, of which one may be waiting for a page that never comes.
#[derive(Debug)]
pub struct Restored {
    // Before the handlers, which serve its faults.
    machine: Machine,
    paging: Option<[Paging; 2]>,
    store: Arc<ImageStore>,
    stopper: Arc<Stopper>,
}

/// The handlers that bring the pages of one region.
#[derive(Debug)]
struct Paging {
    // Before the swapper, which the handlers use.
    handlers: Handlers,
    swapper: Arc<Swapper>,
    /// Pages of zeros that were out at first.
    zeros: u64,
}

/// The pages that were brought to one region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PagesBrought {
    /// By faults: the handlers' counters.
    pub handlers: HandlerReport,
    /// Pages of zeros among those that came.
    pub zeros: u64,
    /// Pages that the guest has not touched.
    pub left: u64,
}

impl Restored {
    /// Makes a machine of a snapshot. `missing` is told the parts of a vCPU's state that KVM does not take.
    pub fn new(
        kvm: &Kvm,
        snapshot: &Snapshot,
        how: How,
        missing: &mut impl FnMut(String),
    ) -> Result<Self, SnapshotError> {
        let header = &snapshot.header;
        let config = VmConfig {
            vcpus: header.vcpus,
            arena: header.arena,
            backing: header.backing,
            granule: header.arena.next_power_of_two(),
            slot_zap_all_quirk: true,
        };
        let core = Arc::new(VmCore::new(kvm, &config)?);
        let vcpus = make_vcpus(kvm, &core, snapshot)?;
        let store = Arc::new(snapshot.store()?);
        let stopper = Arc::new(Stopper::default());
        let processors = processors::for_vcpus(header.vcpus);
        let paging = match how {
            How::Eagerly => {
                read_all(snapshot, &core, &store)?;
                None
            }
            How::Lazily { around, handlers } => {
                let mut entries = snapshot.entries();
                let mut take = |memory: Memory, start, handlers| {
                    let hears = |processor: &Option<usize>| {
                        (LossListener { stopper: stopper.clone(), start }, *processor)
                    };
                    let hears = processors.iter().cycle().take(handlers as usize).map(hears).collect();
                    let options = Options { store: store.clone(), around, events: false };
                    Paging::start(snapshot, memory, options, &mut entries, hears)
                };
                let low = core.low()[0].clone();
                debug_assert_eq!(low.range().page_count(), header.low() / PAGE_SIZE);
                Some([take(low, 0, 1)?, take(core.arena().clone(), ARENA_GPA, handlers)?])
            }
        };
        for (index, (state, fd)) in (0..).zip(snapshot.vcpus.iter().zip(&vcpus)) {
            state.give(kvm, fd, index, missing)?;
        }
        let machine = Machine::resume(core, vcpus, &processors)?;
        stopper.watch(&machine);
        Ok(Self { machine, paging, store, stopper })
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The means to stop its guest, from any thread.
    pub fn stopper(&self) -> &Arc<Stopper> {
        &self.stopper
    }

    /// Bytes read of the file's pages so far, and in how many system calls.
    pub fn read(&self) -> (u64, u64) {
        self.store.read()
    }

    /// Ends the machine, and returns the pages that were brought: to low memory, and to the arena.
    ///
    /// # Errors
    /// A handler had given up.
    pub fn finish(self) -> Result<[PagesBrought; 2], SnapshotError> {
        let Self { machine, paging, .. } = self;
        let Some([low, arena]) = paging else { return Ok(Default::default()) };
        // Its vCPUs may be in the middle of a fault.
        drop(machine);
        Ok([low.finish()?, arena.finish()?])
    }

    /// Leaves everything as it is for the process's end, which is near: a vCPU that waits for a lost page would keep
    /// the thread that joins it, and must not be given zeros in its place, as it would be if its memory's userfaultfd
    /// were closed.
    pub fn abandon(self) {
        std::mem::forget(self);
    }
}

/// vCPUs without a state, on a processor that can go on with the snapshot's.
fn make_vcpus(kvm: &Kvm, core: &VmCore, snapshot: &Snapshot) -> Result<Vec<GuestCpu>, SnapshotError> {
    let mut vcpus = Vec::new();
    for (index, state) in (0u32..).zip(&snapshot.vcpus) {
        let fd = core.create_vcpu(index)?;
        let bad = |why: OtherCpu| SnapshotError::Bad { path: snapshot.path().into(), why: why.into() };
        arch::check_cpu(state, kvm, &fd, index)?.map_err(bad)?;
        vcpus.push(fd);
    }
    Ok(vcpus)
}

impl Paging {
    fn start(
        snapshot: &Snapshot,
        memory: Memory,
        options: Options,
        entries: &mut impl Iterator<Item = Entry>,
        hears: Vec<(LossListener, Option<usize>)>,
    ) -> Result<Self, SnapshotError> {
        let swapper = Arc::new(Swapper::attach(memory, options)?);
        let mut zeros = 0;
        swapper.hand_over(|_| match entries.next() {
            Some(Entry::Stored { rank, checksum }) => {
                // A rank is below the number of stored pages, so this is a slot; one that is none is refused by the store.
                let slot = Slot::from_raw(snapshot.file_page(rank) + 1).unwrap_or_default();
                Kept::Stored { slot, checksum }
            }
            Some(Entry::Zero) | None => {
                zeros += 1;
                Kept::Zero
            }
        })?;
        let handlers = Handlers::start(&swapper, hears)?;
        Ok(Self { handlers, swapper, zeros })
    }

    fn finish(self) -> Result<PagesBrought, SnapshotError> {
        let mut handlers = HandlerReport::default();
        self.handlers.stop()?.into_iter().for_each(|one| handlers += one);
        let zeros = self.zeros - self.swapper.count(|state| state == SwapState::Zero);
        Ok(PagesBrought { handlers, zeros, left: self.swapper.count(SwapState::is_out) })
    }
}

/// The observer of a handler: a page that cannot be brought stops the guest.
struct LossListener {
    stopper: Arc<Stopper>,
    /// The guest physical address at which the region begins.
    start: u64,
}

impl Observer for LossListener {
    fn fault(&mut self, _fault: &PageFault, _served: Served) {}

    fn event(&mut self, _event: &Event) {}

    fn lost(&mut self, lost: Lost) {
        let gpa = self.start + lost.page.saturating_mul(PAGE_SIZE);
        self.stopper.stop(CrashKind::LostPage { gpa, why: guest_mem::with_causes(&lost.why) });
    }
}

/// Reads every stored page to its place.
fn read_all(snapshot: &Snapshot, core: &VmCore, store: &ImageStore) -> Result<(), SnapshotError> {
    let mut buffer = PageBuffer::new(PAGES_PER_PMD as usize)?;
    let mut batch = Batch::default();
    let mut entries = snapshot.entries();
    for (region, start) in core.regions().zip([0, ARENA_GPA]) {
        for number in 0..region.range().page_count() {
            if number.is_multiple_of(PAGES_PER_PMD) {
                batch.read(snapshot, (region, start), store, &mut buffer)?;
            }
            if let Some(Entry::Stored { rank, checksum }) = entries.next() {
                batch.0.push((number, snapshot.file_page(rank), checksum));
            }
        }
        batch.read(snapshot, (region, start), store, &mut buffer)?;
    }
    Ok(())
}

/// Pages of at most one block: the number in the region, the number in the file, the checksum.
#[derive(Default)]
struct Batch(Vec<(u64, u64, u32)>);

impl Batch {
    /// Reads them, and forgets them.
    fn read(
        &mut self,
        snapshot: &Snapshot,
        (region, start): (&Region, u64),
        store: &ImageStore,
        buffer: &mut PageBuffer,
    ) -> Result<(), SnapshotError> {
        let slots: Vec<Slot> = self.0.iter().filter_map(|&(_, page, _)| store.slot(page)).collect();
        let pages = &mut buffer[..self.0.len()];
        store.get(&slots, pages)?;
        if let [(first, ..), .., (last, ..)] = self.0[..]
            && (last - first) as usize + 1 == self.0.len()
            && let Some(range) = region.slice(first * PAGE_SIZE, (last - first + 1) * PAGE_SIZE)
        {
            // One call instead of as many faults. Where there is no such call (before 5.14) the faults come.
            let _ = region.populate(range);
        }
        for ((number, _, expected), page) in self.0.drain(..).zip(pages.iter()) {
            let found = checksum(page, number);
            if found != expected {
                let (path, gpa) = (snapshot.path().to_owned(), start + number * PAGE_SIZE);
                return Err(SnapshotError::Page { path, gpa, expected, found });
            }
            let at = region.hva_at(number * PAGE_SIZE).expect("a page of the region");
            region.write_pages(at, std::slice::from_ref(page))?;
        }
        Ok(())
    }
}
