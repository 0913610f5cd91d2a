//! The least of machines, and KVM with memslots that are refused when a test says so.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use guest_abi::block::Outcome;
use guest_abi::layout::ARENA_GPA;
use guest_abi::order::{Access, Task, Walk, WorkOrder};
use guest_mem::waits::WAKE;
use guest_mem::{Backing, PMD_SIZE};
use kvm_bindings::kvm_userspace_memory_region;

pub(crate) use super::arch::{about_to_run, in_ring_3};
use super::memslots::SetSlot;
use super::{Kvm, Machine, VmConfig};

/// A machine of one vCPU with one slot of 2 MiB for its arena.
pub const LEAST: VmConfig = VmConfig {
    vcpus: 1,
    arena: PMD_SIZE,
    backing: Backing::Base4k,
    granule: PMD_SIZE,
    slot_zap_all_quirk: true,
};

/// The test guest, up in the least of machines.
pub fn bare_guest() -> Machine {
    bare_guest_in(&LEAST)
}

/// The test guest, up.
pub fn bare_guest_in(config: &VmConfig) -> Machine {
    let machine = Machine::start(&Kvm::open().unwrap(), config, resources::GUEST).unwrap();
    machine.wait_up().unwrap();
    machine
}

/// Has the guest write to each page of its arena, once.
pub fn touch_all(machine: &Machine) -> Outcome {
    submit_touch(machine, Some(1));
    machine.wait(0, WAKE).unwrap()
}

/// Has the guest begin to write to each page of its arena, so many times or for ever.
pub fn submit_touch(machine: &Machine, passes: Option<u64>) {
    let task = Task::Touch { access: Access::Write, passes, stall_cycles: u64::MAX };
    let len = machine.core().arena().range().len();
    let order = WorkOrder { start: ARENA_GPA, len, walk: Walk::Sequential, task };
    machine.vcpus()[0].mailbox().submit(&order).unwrap();
}

/// Sets memslots, refuses those that the plan names, and remembers what there is.
#[derive(Debug, Default)]
pub struct Refusing<S> {
    kvm: S,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Calls since the plan was made.
    calls: u64,
    /// Which of them are refused, from 1.
    refused: Vec<u64>,
    /// Whether all that follow the last of these are.
    ever_after: bool,
    slots: BTreeMap<u32, (u64, u64, u64)>,
}

/// No VM: every call succeeds.
impl SetSlot for () {
    unsafe fn set(&self, _slot: kvm_userspace_memory_region) -> Result<(), kvm_ioctls::Error> {
        Ok(())
    }
}

impl<S> Refusing<S> {
    pub fn new(kvm: S) -> Self {
        Self { kvm, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// From now on these calls are refused, counted from 1, and no others.
    pub fn refuse(&self, calls: &[u64]) {
        let mut state = self.lock();
        (state.calls, state.refused, state.ever_after) = (0, calls.to_vec(), false);
    }

    /// From now on this call is refused, and whatever comes after it.
    pub fn refuse_from(&self, call: u64) {
        let mut state = self.lock();
        (state.calls, state.refused, state.ever_after) = (0, vec![call], true);
    }

    /// Calls since the plan was made.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// The memslots there are: number, and guest physical address, host address and size.
    pub fn slots(&self) -> BTreeMap<u32, (u64, u64, u64)> {
        self.lock().slots.clone()
    }

    /// Memslots that point to memory which is not mapped.
    pub fn dangling(&self) -> Vec<u32> {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let mapped: Vec<_> = maps
            .lines()
            .filter_map(|line| line.split_once(' ')?.0.split_once('-'))
            .map(|(start, end)| hex(start)..hex(end))
            .collect();
        let is_mapped = |start: u64, len: u64| {
            // Neighbours may be of one region, which seams cut.
            let mut at = start;
            while let Some(range) = mapped.iter().find(|range| range.contains(&at)) {
                at = range.end;
            }
            at >= start + len
        };
        let slots = self.slots().into_iter();
        slots.filter(|&(_, (_, hva, len))| !is_mapped(hva, len)).map(|(number, _)| number).collect()
    }
}

impl<S: SetSlot> SetSlot for Refusing<S> {
    unsafe fn set(&self, slot: kvm_userspace_memory_region) -> Result<(), kvm_ioctls::Error> {
        let mut state = self.lock();
        state.calls += 1;
        let last = state.refused.last().copied().unwrap_or(u64::MAX);
        if state.refused.contains(&state.calls) || state.ever_after && state.calls > last {
            return Err(kvm_ioctls::Error::new(libc::ENOMEM));
        }
        // SAFETY: the caller's own promise.
        unsafe { self.kvm.set(slot) }?;
        match slot.memory_size {
            0 => drop(state.slots.remove(&slot.slot)),
            len => drop(state.slots.insert(slot.slot, (slot.guest_phys_addr, slot.userspace_addr, len))),
        }
        Ok(())
    }
}

impl<S: SetSlot> SetSlot for std::sync::Arc<S> {
    unsafe fn set(&self, slot: kvm_userspace_memory_region) -> Result<(), kvm_ioctls::Error> {
        // SAFETY: the caller's own promise.
        unsafe { (**self).set(slot) }
    }
}
