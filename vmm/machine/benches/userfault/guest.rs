//! The bare guest, with each vCPU on a processor of its own, touching memory that a handler or the kernel fills.

use std::sync::Arc;
use std::time::{Duration, Instant};

use guest::clock::tsc;
use guest_abi::layout::{ARENA_GPA, PAGE_SIZE};
use guest_abi::order::{Access, Task, Walk, WorkOrder};
use guest_mem::{Backing, HvaRange, Operation, Region, perform};
use machine::Kvm;
use machine::{Machine, VmConfig, VmCore};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

const PATIENCE: Duration = Duration::from_secs(60);
/// The arena. A walk may take less of it.
pub const ARENA: u64 = 64 << 20;

/// Which pages a vCPU touches next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Its part of the arena from the first page to the last.
    Sequential,
    /// The same pages, each once, shuffled.
    Shuffled,
}

/// A guest that is up.
pub struct Guest {
    machine: Machine,
    /// The processor of each vCPU.
    pub processors: Vec<usize>,
}

impl Guest {
    /// Starts one, and gives each vCPU's thread one processor: with fewer of those than vCPUs, in turn.
    pub fn start(vcpus: u32, backing: Backing) -> Self {
        let config = VmConfig { vcpus, arena: ARENA, backing, granule: ARENA, slot_zap_all_quirk: false };
        let kvm = Kvm::open().expect("/dev/kvm opens");
        let machine = Machine::start(&kvm, &config, resources::GUEST).expect("the machine starts");
        machine.wait_up().expect("the guest comes up");
        let allowed = processors();
        let processors: Vec<usize> = (0..vcpus as usize).map(|vcpu| allowed[vcpu % allowed.len()]).collect();
        for (vcpu, &processor) in machine.vcpus().iter().zip(&processors) {
            sched_setaffinity(Some(vcpu.thread().expect("it is up")), &only(processor)).expect("one of ours");
        }
        Self { machine, processors }
    }

    /// The VM, which owns the arena.
    pub fn core(&self) -> &Arc<VmCore> {
        self.machine.core()
    }
    /// The memory under test.
    pub fn arena(&self) -> &Region {
        self.core().arena()
    }

    /// Writes to each of the arena's first `len` bytes' pages once, every vCPU to its part. Returns how long all of
    /// it took.
    pub fn touch(&self, len: u64, order: Order) -> Duration {
        let task = Task::Touch { access: Access::LockedAdd, passes: Some(1), stall_cycles: u64::MAX };
        self.all(len, order, task)
    }

    /// Reads the same pages.
    pub fn read(&self, len: u64, order: Order) -> Duration {
        let task = Task::Touch { access: Access::Read, passes: Some(1), stall_cycles: u64::MAX };
        self.all(len, order, task)
    }

    /// Writes to the first `len` bytes' pages once, shuffled, and returns the median time of a touch as the guest sees it.
    pub fn stalls(&self, len: u64) -> Duration {
        let mailbox = self.machine.vcpus()[0].mailbox();
        let begun = (Instant::now(), tsc());
        let task = Task::Touch { access: Access::LockedAdd, passes: Some(1), stall_cycles: 0 };
        self.all(len, Order::Shuffled, task);
        let cycles_a_second = (tsc() - begun.1) as f64 / begun.0.elapsed().as_secs_f64();
        let mut stalls = Vec::new();
        mailbox.take_stalls(|stall| stalls.push(stall.cycles)).expect("the ring is sound");
        assert_eq!(stalls.len() as u64, len / PAGE_SIZE, "the ring has room for all");
        stalls.sort_unstable();
        Duration::from_secs_f64(stalls[stalls.len() / 2] as f64 / cycles_a_second)
    }

    fn all(&self, len: u64, order: Order, task: Task) -> Duration {
        let vcpus = self.machine.vcpus();
        let part = len / vcpus.len() as u64;
        let pages = part / PAGE_SIZE;
        let walk = match order {
            Order::Sequential => Walk::Sequential,
            Order::Shuffled => Walk::List { count: pages },
        };
        for vcpu in vcpus.iter().filter(|_| order == Order::Shuffled) {
            let area = vcpu.mailbox().area();
            for (index, page) in shuffled(pages as u32).into_iter().enumerate() {
                assert!(area.set_table(index as u64, page), "the table has an entry for each page");
            }
        }
        let begun = Instant::now();
        for (index, vcpu) in vcpus.iter().enumerate() {
            let order = WorkOrder { start: ARENA_GPA + index as u64 * part, len: part, walk, task };
            vcpu.mailbox().submit(&order).expect("the vCPU is idle");
        }
        for vcpu in 0..vcpus.len() as u32 {
            let outcome = self.machine.wait(vcpu, PATIENCE).expect("the guest lives");
            assert_eq!(outcome.visits, pages);
        }
        begun.elapsed()
    }

    /// Discards all of the arena, which is not registered.
    pub fn empty(&self) {
        let shared = self.arena().backing().is_shared();
        let operation = if shared { Operation::Fallocate } else { Operation::DontNeed };
        perform(self.arena(), operation, self.arena().range()).expect("it is all ours");
    }

    /// The host range of the first `len` bytes.
    pub fn first(&self, len: u64) -> HvaRange {
        self.arena().slice(0, len).expect("the arena is as long")
    }
}

/// The processors this process may run on.
pub fn processors() -> Vec<usize> {
    let allowed = sched_getaffinity(None).expect("every thread has an affinity");
    (0..CpuSet::MAX_CPU).filter(|&processor| allowed.is_set(processor)).collect()
}

/// A set of one processor.
pub fn only(processor: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(processor);
    set
}

/// `0..count` in an order without sequences that is the same each time.
fn shuffled(count: u32) -> Vec<u32> {
    let mut pages: Vec<u32> = (0..count).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for last in (1..pages.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        pages.swap(last, (state >> 33) as usize % (last + 1));
    }
    pages
}
