//! Workers on the software MMU as a testbed: the same orders, the same memory, the same kernel below it, and
//! no guest.
//!
//! ```text
//!   Mailbox ── worker thread ── guest_abi::work::run ── SoftMachine::page ── Worker::access ── SoftMmu
//!                                                                                │ fault
//!                                                                                └── HostMmu: touch the page
//! ```
//!
//! The software MMU's frames are host addresses, so an access through a stale translation would still reach
//! the right memory: here the protocol is paid for, and the model tests of `notifier-bridge` show the
//! errors that it prevents.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use guest_abi::block::{Outcome, Stall};
use guest_abi::layout::{ARENA_GPA, area_gpa, low_memory};
use guest_abi::order::WorkOrder;
use guest_abi::page::PagePtr;
use guest_abi::work::{self, Machine};
use guest_mem::remedy::{self, Asked};
use guest_mem::waits::Thread;
use guest_mem::{
    Backing, Gpa, Hva, MapLevel, Memory, PageScanner, PageState, Region, RegionError, ScanError, SlotError,
    SlotTable, SlotTableBuilder,
};
use notifier_bridge::{AccessError, HostMmu, ResolveError, ShadowingMmu, SoftMmu, Worker};
use rustix::thread::{Pid, gettid};
use uffd::Faults;

use super::{Breaker, Testbed};
use experiment::choice::{Reclaim, Zap};
use guest::{Area, CrashKind, CrashReport, GuestError, Mailbox};
use machine::{FaultCounts, Leaves};

/// The longest time for the start of a worker's thread.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// An error in starting workers.
#[derive(Debug, thiserror::Error)]
pub enum SoftError {
    #[error(transparent)]
    Memory(#[from] RegionError),
    #[error(transparent)]
    Slots(#[from] SlotError),
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error("worker {0}'s thread cannot be started{end}", end = remedy::after_io(Asked::Thread, .1))]
    Thread(u32, #[source] std::io::Error),
    #[error(transparent)]
    Worker(#[from] GuestError),
}

/// Tells how the host maps an address.
type Probe = Box<dyn Fn(Hva) -> MapLevel + Send + Sync>;
type Mmu = SoftMmu<HostMmu<Probe>>;

/// Memory, and the MMU over it, which keeps both regions mapped.
struct Core {
    mmu: Arc<Mmu>,
    low: Arc<Region>,
    arena: Arc<Region>,
}

/// Workers on the software MMU.
pub struct SoftTestbed {
    workers: Vec<Arc<Mailbox>>,
    threads: Vec<Thread<()>>,
    /// The thread of each worker.
    pids: Vec<Arc<OnceLock<Pid>>>,
    core: Arc<Core>,
    slots: Arc<SlotTable>,
}

impl SoftTestbed {
    /// Memory of `arena` bytes in `backing`, under slots of `granule` bytes, and `workers` workers.
    pub fn start(workers: u32, arena: u64, backing: Backing, granule: u64) -> Result<Self, SoftError> {
        let low = Region::map(low_memory(workers), Backing::Base4k)?;
        let arena = Region::map(arena, backing)?;
        let mut builder = SlotTableBuilder::new(guest_mem::MOST_SLOTS);
        builder.add_region(Gpa::new(0), low.range(), low.range().len().next_power_of_two())?;
        builder.add_region(Gpa::new(ARENA_GPA), arena.range(), granule)?;
        let slots = Arc::new(builder.build()?);
        let (low, arena) = (Arc::new(low), Arc::new(arena));
        let primary = HostMmu::new([low.clone() as Memory, arena.clone()], probe()?);
        let mmu = Arc::new(SoftMmu::new(primary, slots.clone()));
        let core = Arc::new(Core { mmu, low, arena });
        let mut testbed = Self { workers: Vec::new(), threads: Vec::new(), pids: Vec::new(), core, slots };
        for index in 0..workers {
            testbed.start_worker(index)?;
        }
        for worker in &testbed.workers {
            worker.wait(START_PATIENCE)?;
        }
        Ok(testbed)
    }

    fn start_worker(&mut self, index: u32) -> Result<(), SoftError> {
        let at = self.core.low.hva_at(area_gpa(index)).expect("there is an area for each worker");
        let mailbox = Arc::new(Mailbox::new(index, Area::new(self.core.low.clone(), at)?));
        self.workers.push(mailbox.clone());
        let core = self.core.clone();
        let pid = Arc::new(OnceLock::new());
        self.pids.push(pid.clone());
        let run = move || {
            pid.get_or_init(gettid);
            serve(&core, &mailbox);
        };
        let thread = Thread::start(format!("worker{index}"), run);
        self.threads.push(thread.map_err(|source| SoftError::Thread(index, source))?);
        Ok(())
    }
}

/// Asks pagemap for the level of a mapping. A page whose state cannot be read counts as mapped by a PTE: the
/// translation is then smaller than it could be, never larger.
fn probe() -> Result<Probe, ScanError> {
    let scanner = Mutex::new(PageScanner::new()?);
    Ok(Box::new(move |hva| match scanner.lock().unwrap_or_else(PoisonError::into_inner).page(hva) {
        Ok(PageState::Mapped { level, .. }) => level,
        _ => MapLevel::Pte,
    }))
}

/// A worker's thread: order after order until told to quit.
fn serve(core: &Core, mailbox: &Mailbox) {
    let mut machine = SoftMachine { worker: core.mmu.worker(), mailbox };
    while mailbox.next_order() {
        let area = mailbox.area();
        let outcome = match WorkOrder::try_from(area.order()) {
            Ok(order) => work::run(&mut machine, mailbox.vcpu(), &order),
            Err(_) => Ok(Outcome { refused: 1, ..Outcome::default() }),
        };
        match outcome {
            Ok(outcome) => area.set_outcome(outcome),
            Err(error) => {
                let kind = match error {
                    AccessError::Resolve(ResolveError::NotGiven(of)) => {
                        CrashKind::HostLimit(of.limit.to_string())
                    }
                    AccessError::Resolve(ResolveError::Overdue(overdue)) => CrashKind::Overdue(overdue),
                    error => CrashKind::Worker(error.to_string()),
                };
                return mailbox.fail(CrashReport { vcpu: mailbox.vcpu(), kind, registers: None });
            }
        }
    }
}

/// The arena as a worker sees it: through its handle on the software MMU.
struct SoftMachine<'a> {
    worker: Worker<HostMmu<Probe>>,
    mailbox: &'a Mailbox,
}

impl Machine for SoftMachine<'_> {
    type Fault = AccessError;

    fn page<R>(&mut self, gpa: u64, write: bool, with: impl FnOnce(PagePtr) -> R) -> Result<R, AccessError> {
        self.worker.access(Gpa::new(gpa), write, |frame: Hva, _offset| {
            // SAFETY: the MMU resolved the address to a page of a region that it keeps mapped; it lets a writer in only
            // where the page may be written. The page is there: it can be dropped only between an invalidation's start
            // and its end, when no worker has a translation.
            with(unsafe { PagePtr::new(frame.as_ptr()) })
        })
    }

    fn tsc(&self) -> u64 {
        guest::clock::tsc()
    }
    fn table(&self, index: u64) -> u32 {
        self.mailbox.area().table(index)
    }
    fn stop_requested(&self) -> bool {
        self.mailbox.area().stop_requested()
    }
    fn touched(&mut self, total: u64) {
        self.mailbox.area().set_touches(total);
    }
    fn stalled(&mut self, stall: Stall) {
        self.mailbox.area().push_stall(stall);
    }
}

impl Drop for SoftTestbed {
    fn drop(&mut self) {
        for worker in &self.workers {
            worker.quit();
            worker.area().request_stop();
        }
        Thread::end_all_or_tell(std::mem::take(&mut self.threads));
    }
}

impl Testbed for SoftTestbed {
    fn arena(&self) -> &Region {
        &self.core.arena
    }
    fn slots(&self) -> &Arc<SlotTable> {
        &self.slots
    }
    fn vcpus(&self) -> u32 {
        self.workers.len() as u32
    }
    fn mailbox(&self, vcpu: u32) -> &Mailbox {
        &self.workers[vcpu as usize]
    }
    fn wait(&self, vcpu: u32, patience: Duration) -> Result<Outcome, GuestError> {
        self.workers[vcpu as usize].wait(patience)
    }
    fn shadowing(&self, _zap: Zap) -> Option<Arc<dyn ShadowingMmu>> {
        // A software table drops exactly what it is told, and only this listener tells it.
        Some(self.core.mmu.clone())
    }
    fn around(&self, _reclaim: Reclaim, call: &mut dyn FnMut()) {
        // Between start and end of the bracket around it no worker has, or gets, a translation of the range.
        call();
    }
    fn memory(&self) -> Memory {
        self.core.arena.clone()
    }
    fn faults(&self) -> Faults {
        // Workers are threads, and reach a page by loads and stores alone.
        Faults::UserMode
    }
    fn breaker(&self) -> Breaker {
        Breaker { shared: None, mailboxes: self.workers.clone() }
    }
    fn thread(&self, vcpu: u32) -> Option<Pid> {
        self.pids[vcpu as usize].get().copied()
    }
    fn leaves(&self) -> Option<Leaves> {
        let stats = self.core.mmu.stats();
        Some(Leaves { pages_4k: stats.pages_4k, pages_2m: stats.pages_2m })
    }
    fn fault_counts(&self) -> Option<FaultCounts> {
        let workers = self.core.mmu.stats().workers;
        Some(FaultCounts { fixed: workers.pf_fixed, retried: Some(workers.retries) })
    }
    fn remote_tlb_flushes(&self) -> Option<u64> {
        Some(self.core.mmu.stats().remote_tlb_flushes)
    }
    fn first_entry_ns(&self) -> Option<u64> {
        None
    }
}
