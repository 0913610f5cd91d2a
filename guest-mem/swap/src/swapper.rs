//! The swap of one region: the state of its pages, and the changes to it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use guest_mem::{
    Backing, Hva, HvaRange, Memory, Operation, PAGE_SIZE, PAGES_PER_PMD, PMD_SIZE, PageRun, PageScanner,
    RangeError, Region, ScanError,
};
use uffd::{Faults, Features, Modes, OpenError, RegisterError, Userfault};

use crate::address_set::AddressSet;
use crate::own_drops::OwnDrops;
use crate::reading::Reading;
use crate::state::{AfterDrop, BLOCK_PAGES, Block, Blocks, SwapState};
use crate::store::{BufferError, PageBuffer, Store};
use crate::used::Used;
use crate::waiting::Waiting;
use crate::window::{FaultAround, Window};

/// How a [`Swapper`] works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where pages go.
    pub store: Arc<dyn Store>,
    /// How many pages one fault brings back.
    pub around: FaultAround,
    /// Whether the kernel sends an event for each change that others make to the mapping (`MADV_DONTNEED`, `mremap`,
    /// `munmap`). Each change waits for a handler to read its event, also the swapper's own drops of anonymous memory. No
    /// event is read while pages come back from the store, or discarded content could come back.
    ///
    /// For shared memory the observer is told, and no page is forgotten: `MADV_DONTNEED` leaves its content as it is,
    /// `MADV_REMOVE` makes a hole, the event is the same for both, and a hole made by `fallocate` has no event.
    pub events: bool,
}

/// Memory cannot be swapped.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum AttachError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Buffer(#[from] BufferError),
    #[error("memory backed by `{0}` cannot be swapped in user space: use 4k, mthp, thp, memfd or memfd:thp")]
    Backing(Backing),
}

/// The swap of one region.
pub struct Swapper {
    memory: Memory,
    pub(crate) userfault: Userfault,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) window: Window,
    /// Whether whole blocks come back as huge pages.
    pub(crate) huge: bool,
    pub(crate) blocks: Blocks,
    /// Source of pages that are written to at their first touch; never written.
    pub(crate) zeros: PageBuffer,
    claims: AtomicU64,
    pub(crate) own_drops: OwnDrops,
    pub(crate) waiting: Waiting,
    pub(crate) reading: Reading,
    /// Parts of the region whose pages were moved elsewhere, by `mremap`. Events about the empty old place are ignored.
    pub(crate) away: AddressSet,
    pub(crate) used: Used,
}

impl std::fmt::Debug for Swapper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Swapper")
            .field("region", &self.region().range())
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

impl Swapper {
    /// Takes a region over: from now on a touch of a missing page waits for a handler
    /// ([`crate::Handlers::start`]).
    pub fn attach(memory: Memory, options: Options) -> Result<Self, AttachError> {
        Self::attach_for(Faults::All, memory, options)
    }

    /// [`Swapper::attach`] for memory of which only these faults have to be served. The swapper itself takes no fault: it never
    /// touches the region, and copies out resident pages only.
    pub fn attach_for(faults: Faults, memory: Memory, options: Options) -> Result<Self, AttachError> {
        let backing = region(&memory).backing();
        if backing == Backing::Hugetlb2m {
            return Err(AttachError::Backing(backing));
        }
        let mut features = Features::PAGEFAULT_FLAG_WP;
        let shared = backing.is_shared();
        if shared {
            features |= Features::MISSING_SHMEM | Features::MINOR_SHMEM | Features::WP_HUGETLBFS_SHMEM;
        }
        if options.events {
            features |= Features::EVENT_REMOVE | Features::EVENT_REMAP | Features::EVENT_UNMAP;
        }
        let userfault = Userfault::open_for(faults, features)?;
        let len = region(&memory).range().len();
        let swapper = Self {
            blocks: Blocks::new(len),
            memory,
            userfault,
            store: options.store,
            window: Window::new(options.around),
            huge: backing == Backing::Thp,
            zeros: PageBuffer::zeros(BLOCK_PAGES)?,
            claims: AtomicU64::new(0),
            own_drops: OwnDrops::new(options.events),
            waiting: Waiting::default(),
            reading: Reading::new(options.events),
            away: AddressSet::default(),
            used: Used::new(len / PAGE_SIZE),
        };
        // A page in the page cache is not missing, and a hole may leave one there: see `Pager`.
        let modes = Modes { missing: true, minor: shared, write_protect: true };
        for piece in swapper.region().vma_pieces(swapper.region().range()) {
            swapper.userfault.register(swapper.region(), piece, modes)?;
        }
        // From here on a page appears by a handler only.
        swapper.find_residents()?;
        Ok(swapper)
    }

    fn find_residents(&self) -> Result<(), ScanError> {
        for run in self.residents(self.region().range())? {
            for piece in run.block_pieces() {
                let (block, pages) = self.place(piece).expect("chunks stay within a block of the region");
                let mut block = self.blocks.lock(block);
                pages.for_each(|page| block.set(page, SwapState::Resident));
            }
        }
        Ok(())
    }

    /// The parts of a range whose pages are mapped, or in the kernel's swap.
    pub(crate) fn residents(&self, range: HvaRange) -> Result<Vec<HvaRange>, ScanError> {
        let (mut scanner, mut runs) = (PageScanner::new()?, Vec::<PageRun>::new());
        scanner.scan_region(self.region(), range, &mut runs)?;
        let there = |run: &PageRun| (run.state.is_resident() || run.state.is_swapped()).then_some(run.range);
        Ok(runs.iter().filter_map(there).collect())
    }

    /// The memory.
    pub fn region(&self) -> &Region {
        region(&self.memory)
    }
    /// Its store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }
    /// The descriptor, for waiting and for ioctls of one's own.
    pub fn userfault(&self) -> &Userfault {
        &self.userfault
    }

    /// The state of the page at an address of the region.
    pub fn state(&self, at: Hva) -> Option<SwapState> {
        let (block, pages) = self.place(HvaRange::with_len(at, PAGE_SIZE)?)?;
        Some(self.blocks.lock(block).state(pages.start))
    }

    /// The number of pages whose state is `wanted`.
    pub fn count(&self, wanted: impl Fn(SwapState) -> bool) -> u64 {
        let of = |block: &Block| (0..BLOCK_PAGES).filter(|&page| wanted(block.state(page))).count();
        self.blocks.iter().map(|block| of(&block) as u64).sum()
    }

    /// Bytes of the pages that are in memory.
    pub fn resident_bytes(&self) -> u64 {
        self.count(|state| matches!(state, SwapState::Resident | SwapState::Leaving(_))) * PAGE_SIZE
    }

    /// The operation that drops stored pages: `MADV_DONTNEED` for anonymous memory, a hole for shared.
    pub fn drop_operation(&self) -> Operation {
        if self.region().backing().is_shared() { Operation::Fallocate } else { Operation::DontNeed }
    }

    /// Forgets the pages of a range: they read as zeros from now on. To be called by the code that discards them
    /// (`MADV_DONTNEED`, a hole), before it does. With [`Options::events`] the kernel reports discards of private memory, and
    /// only holes in shared memory need the call.
    pub fn discard(&self, range: HvaRange) -> Result<(), RangeError> {
        self.region().check(range)?;
        let mut slots = Vec::new();
        for piece in range.block_pieces() {
            let (block, pages) = self.place(piece).expect("a checked range, block by block");
            let mut block = self.blocks.lock(block);
            for page in pages {
                let state = block.state(page);
                if let SwapState::Stored(slot) | SwapState::Dropping(AfterDrop::Stored(slot)) = state {
                    slots.push(slot);
                }
                // A page that is being dropped must be gone before it is touched again.
                let dropping = matches!(state, SwapState::Dropping(_));
                block.set(
                    page,
                    if dropping { SwapState::Dropping(AfterDrop::Absent) } else { SwapState::Absent },
                );
            }
            // Under the block's lock: a thread that sees the new states may rely on the room.
            self.store.free(&slots);
            slots.clear();
        }
        Ok(())
    }

    /// A `MADV_DONTNEED`, `MADV_FREE` or `MADV_REMOVE` that was not made here.
    pub(crate) fn removed(&self, range: HvaRange) {
        if !self.region().backing().is_shared() {
            self.forget(range);
        }
    }

    /// Forgets the part of a range that lies in the region.
    pub(crate) fn forget(&self, range: HvaRange) {
        if let Some(ours) = range.intersection(self.region().range()) {
            // It fits: both ranges are of whole pages.
            let _ = self.discard(ours);
        }
    }

    /// Forgets a range that was unmapped, without the parts whose pages had been moved away.
    pub(crate) fn forget_unless_away(&self, range: HvaRange) {
        self.away.gaps(range).into_iter().for_each(|rest| self.forget(rest));
    }

    /// Pages were moved: away from the region, or back.
    pub(crate) fn moved(&self, from: HvaRange, to: Hva) {
        let region = self.region().range();
        if region.covers(from) {
            self.away.insert(from);
        } else {
            self.away.remove(HvaRange::with_len(to, from.len()).unwrap_or(HvaRange::empty(to)));
        }
    }

    /// A number that no claim had before.
    pub(crate) fn next_claim(&self) -> u64 {
        self.claims.fetch_add(1, Ordering::Relaxed)
    }

    /// The block that a range of the region lies in, and its pages there; `None` if it lies in more than one, or
    /// elsewhere.
    pub(crate) fn place(&self, range: HvaRange) -> Option<(usize, Range<usize>)> {
        let offset = self.region().offset_of(range.start())?;
        let first = offset % PMD_SIZE / PAGE_SIZE;
        let end = first + range.page_count();
        (end <= PAGES_PER_PMD).then_some(((offset / PMD_SIZE) as usize, first as usize..end as usize))
    }

    /// The number of a block's first page, from the start of the region.
    pub(crate) fn first_page(&self, block: usize) -> u64 {
        block as u64 * PAGES_PER_PMD
    }

    /// The numbers of the pages of a range of the region, from its start.
    pub(crate) fn numbers(&self, range: HvaRange) -> Range<u64> {
        let first = self.region().offset_of(range.start()).map_or(0, |offset| offset / PAGE_SIZE);
        first..first + range.page_count()
    }

    /// Where pages of a block are.
    pub(crate) fn range_of(&self, block: usize, pages: &Range<usize>) -> HvaRange {
        let offset = (self.first_page(block) + pages.start as u64) * PAGE_SIZE;
        self.region().slice(offset, pages.len() as u64 * PAGE_SIZE).expect("pages of a block of the region")
    }
}

impl Drop for Swapper {
    /// Pages that are out are lost: they read as zeros, and the store, which other swappers may use, frees them.
    /// The memory is unregistered first, or its unmapping would wait for a handler to read the event.
    fn drop(&mut self) {
        self.forget(self.region().range());
        for piece in self.region().vma_pieces(self.region().range()) {
            // If it fails, the range is unregistered when the descriptor closes.
            let _ = self.userfault.unregister(piece);
        }
    }
}

fn region(memory: &Memory) -> &Region {
    (**memory).as_ref()
}
