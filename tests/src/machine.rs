//! Machines to test on.

use std::time::Duration;

use guest_abi::block::{Outcome, Stall};
use guest_abi::layout::{AREA_SIZE, ARENA_GPA, PAGE_SIZE, STALLS_OFFSET, area_gpa};
use guest_abi::order::{Access, Task, Walk, WorkOrder};
use guest_mem::{Backing, HvaRange};
use machine::Kvm;
use machine::{Machine, VmConfig};

/// How long a test waits for a guest without a sign of life.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A bare guest that is up.
pub struct Bare {
    /// The machine.
    pub machine: Machine,
    /// What it was made of.
    pub config: VmConfig,
}

/// A machine of `vcpus` vCPUs with `arena` MiB in `backing`, under slots of 2 MiB.
pub fn config(vcpus: u32, arena_mib: u64, backing: Backing) -> VmConfig {
    VmConfig { vcpus, arena: arena_mib << 20, backing, granule: 2 << 20, slot_zap_all_quirk: false }
}

impl Bare {
    /// Starts the test guest.
    pub fn start(config: VmConfig) -> Self {
        let kvm = Kvm::open().expect("the test needs KVM");
        let machine = Machine::start(&kvm, &config, resources::GUEST).expect("the machine starts");
        machine.wait_up().expect("the guest comes up");
        let bare = Self { machine, config };
        bare.warm_stall_ring();
        bare
    }

    /// Gives every page of vCPU 0's stall ring its leaf, so that recording a stall is no fault.
    fn warm_stall_ring(&self) {
        let (start, len) = (area_gpa(0) + STALLS_OFFSET, AREA_SIZE - STALLS_OFFSET);
        let task = Task::Touch { access: Access::Write, passes: Some(1), stall_cycles: u64::MAX };
        self.submit(0, &WorkOrder { start, len, walk: Walk::Sequential, task });
        self.wait(0);
    }

    /// An order over the whole arena.
    pub fn order(&self, walk: Walk, task: Task) -> WorkOrder {
        WorkOrder { start: ARENA_GPA, len: self.config.arena, walk, task }
    }

    /// Starts an order on a vCPU.
    pub fn submit(&self, vcpu: u32, order: &WorkOrder) {
        self.machine.vcpus()[vcpu as usize].mailbox().submit(order).expect("the vCPU takes orders");
    }

    /// Waits for an order's end.
    pub fn wait(&self, vcpu: u32) -> Outcome {
        let _waiting = harness::waiting(format!("vCPU {vcpu} to carry out its order"));
        self.machine.wait(vcpu, PATIENCE).expect("the guest does its work")
    }

    /// Carries out one order over the whole arena.
    pub fn run(&self, vcpu: u32, walk: Walk, task: Task) -> Outcome {
        self.submit(vcpu, &self.order(walk, task));
        self.wait(vcpu)
    }

    /// Fills the arena.
    pub fn fill(&self, generation: u64) {
        self.run(0, Walk::Sequential, Task::Fill { generation });
    }

    /// Touches every page of the arena once, in order; those that took `stall_cycles` or longer come back.
    pub fn touch_all(&self, access: Access, stall_cycles: u64) -> Vec<Stall> {
        self.run(0, Walk::Sequential, Task::Touch { access, passes: Some(1), stall_cycles });
        let mut stalls = Vec::new();
        let mailbox = self.machine.vcpus()[0].mailbox();
        mailbox.take_stalls(|stall| stalls.push(stall)).expect("the ring is sound");
        stalls
    }

    /// Verifies the arena.
    pub fn verify(&self, generation: u64) -> Outcome {
        self.run(0, Walk::Sequential, Task::Verify { generation })
    }

    /// Leaf translations of 4 KiB and 2 MiB now.
    pub fn leaves(&self) -> (u64, u64) {
        let leaves = self.machine.core().stats.leaves().expect("this KVM counts its leaves");
        (leaves.pages_4k, leaves.pages_2m)
    }

    /// The host range of `count` pages from page `first` of the arena on.
    pub fn pages(&self, first: u64, count: u64) -> HvaRange {
        let slice = self.machine.core().arena().slice(first * PAGE_SIZE, count * PAGE_SIZE);
        slice.expect("pages of the arena")
    }
}
