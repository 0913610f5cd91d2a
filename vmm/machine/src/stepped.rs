//! A bare guest whose vCPU runs on the caller's thread: one `KVM_RUN` for each order, so that it can be timed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use guest::{Area, CrashKind};
use guest_abi::order::WorkOrder;

use super::Machine;
use super::arch::{self, Exit};
use super::bare::Action;
use super::memslots::GuestCpu;
use super::vm::VmCore;
use super::vm_error::VmError;

/// A bare guest of one vCPU, waiting for an order.
#[derive(Debug)]
pub struct Stepped {
    cpu: GuestCpu,
    area: Area,
    core: Arc<VmCore>,
}

impl Stepped {
    /// Takes a machine of one vCPU that is up, and ends the thread of that vCPU.
    ///
    /// # Errors
    /// The thread panicked, or does not end; or the control area cannot be reached.
    pub fn new(machine: Machine) -> Result<Self, VmError> {
        let (core, mut vcpus) = machine.stop()?;
        let area = core.control_area(0)?;
        let cpu = vcpus.pop().ok_or(VmError::ThreadLost)?;
        Ok(Self { cpu, area, core })
    }

    /// The VM apart from its vCPU.
    pub fn core(&self) -> &Arc<VmCore> {
        &self.core
    }

    /// Has the guest carry out an order. Returns how long `KVM_RUN` took, entry and exit included.
    ///
    /// # Errors
    /// The guest did not come to the end of the order.
    pub fn run(&mut self, order: &WorkOrder) -> Result<Duration, Box<CrashKind>> {
        self.area.set_order((*order).into());
        let begun = Instant::now();
        let exit = loop {
            match arch::run(self.cpu.file_mut()) {
                Exit::Interrupted => {}
                exit => break Action::of(exit, true, |_| false),
            }
        };
        let took = begun.elapsed();
        match exit {
            Action::NextOrder => Ok(took),
            Action::Crash(kind) => Err(Box::new(kind)),
            other => Err(CrashKind::Other(format!("left KVM in an unexpected way: {other:?}")).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use guest_abi::layout::{ARENA_GPA, PAGE_SIZE};
    use guest_abi::order::{Access, Task, Walk};

    use super::*;
    use crate::testing::bare_guest;

    #[test]
    #[ignore = "needs: Kvm"]
    fn each_run_carries_out_one_order() {
        let mut stepped = Stepped::new(bare_guest()).unwrap();
        let task = Task::Touch { access: Access::Write, passes: Some(1), stall_cycles: u64::MAX };
        for page in 0..3 {
            let start = ARENA_GPA + page * PAGE_SIZE;
            stepped.run(&WorkOrder { start, len: PAGE_SIZE, walk: Walk::Sequential, task }).unwrap();
            assert_eq!(stepped.area.outcome().visits, 1);
        }
        // Each touch has incremented the counter of vCPU 0 in its page.
        let arena = stepped.core().arena();
        let counter = |page: u64| arena.read_u64(arena.hva_at(page * PAGE_SIZE + 8).unwrap()).unwrap();
        assert_eq!([0, 1, 2, 3].map(counter), [1, 1, 1, 0]);
    }
}
