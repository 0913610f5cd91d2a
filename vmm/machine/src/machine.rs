//! A whole machine: a VM, its vCPUs, and the guest in it, up and waiting for orders.

use std::sync::Arc;
use std::time::Duration;

use crate::Kvm;
use guest_abi::block::Outcome;
use guest_abi::layout::area_gpa;
use guest_mem::{Gpa, Region};

use super::arch::boot;
use super::bare::BareVcpu;
use super::memslots::GuestCpu;
use super::stats::{FaultCounts, VcpuStats};
use super::vm::{VmConfig, VmCore};
use super::vm_error::VmError;
use guest::{Area, GuestError, GuestRam};

/// How long a guest may take to report for work. The ring 0 stub is a hundred instructions; an emulated host that is
/// busy with something else takes seconds for them.
const BOOT_PATIENCE: Duration = Duration::from_secs(60);

/// A VM, its vCPUs, and the guest in it.
#[derive(Debug)]
pub struct Machine {
    // Before `core`, so that no vCPU runs when it goes: the memory would stay until the last of them has ended.
    vcpus: Vec<BareVcpu>,
    vcpu_stats: Vec<VcpuStats>,
    core: Arc<VmCore>,
}

impl Machine {
    /// Makes a VM, loads `image` into it, and starts its vCPUs. They are on their way to their first report;
    /// [`Machine::wait_up`] waits for it.
    pub fn start(kvm: &Kvm, config: &VmConfig, image: &[u8]) -> Result<Self, VmError> {
        let core = Arc::new(VmCore::new(kvm, config)?);
        let low_memory = core.low_memory().range().len();
        let memory = GuestRam::new([(Gpa::new(0), core.low_memory().clone())]);
        let entry = boot::load(&memory, low_memory, image)?;
        boot::write_start_info(&memory, core.ram())?;
        let mut machine = Self { vcpus: Vec::new(), vcpu_stats: Vec::new(), core };
        for index in 0..config.vcpus {
            let cpu = machine.core.create_vcpu(index)?;
            boot::set_first_state(kvm, &cpu, index, entry)?;
            machine.add(cpu, false, None)?;
        }
        Ok(machine)
    }

    /// A machine of a VM whose memory and whose vCPUs are as another machine left them ([`Machine::stop`]): each enters
    /// the guest with its first order.
    pub fn resume(
        core: Arc<VmCore>,
        vcpus: Vec<GuestCpu>,
        processors: &[Option<usize>],
    ) -> Result<Self, VmError> {
        let mut machine = Self { vcpus: Vec::new(), vcpu_stats: Vec::new(), core };
        for (index, cpu) in vcpus.into_iter().enumerate() {
            machine.add(cpu, true, processors.get(index).copied().flatten())?;
        }
        Ok(machine)
    }

    /// Starts the next vCPU, as [`BareVcpu::start`] does.
    fn add(&mut self, cpu: GuestCpu, up: bool, processor: Option<usize>) -> Result<(), VmError> {
        let (core, index) = (&self.core, self.vcpus.len() as u32);
        let stats = VcpuStats::of(&cpu);
        let area = core.control_area(index)?;
        let vcpu = BareVcpu::start(index, cpu, area, core.shared.clone(), up, processor)
            .map_err(|source| VmError::Thread { vcpu: index, source })?;
        self.vcpus.push(vcpu);
        self.vcpu_stats.push(stats);
        Ok(())
    }

    /// Ends the vCPUs' threads, and gives the VM and the vCPUs as they left the guest.
    pub fn stop(mut self) -> Result<(Arc<VmCore>, Vec<GuestCpu>), VmError> {
        self.vcpus.iter_mut().for_each(BareVcpu::quit);
        let vcpus = self.vcpus.drain(..).map(BareVcpu::stop).collect::<Option<Vec<_>>>();
        Ok((self.core.clone(), vcpus.ok_or(VmError::ThreadLost)?))
    }

    /// Waits until every vCPU has reported for work.
    ///
    /// # Errors
    /// A guest that crashed or stayed silent.
    pub fn wait_up(&self) -> Result<(), GuestError> {
        self.vcpus.iter().try_for_each(|vcpu| vcpu.wait(BOOT_PATIENCE).map(drop))
    }

    /// The VM apart from its vCPUs.
    pub fn core(&self) -> &Arc<VmCore> {
        &self.core
    }

    /// The vCPUs.
    pub fn vcpus(&self) -> &[BareVcpu] {
        &self.vcpus
    }

    /// Waits for the end of a vCPU's order. See [`BareVcpu::wait`].
    pub fn wait(&self, vcpu: u32, patience: Duration) -> Result<Outcome, GuestError> {
        self.vcpus[vcpu as usize].wait(patience)
    }

    /// Faults so far, all vCPUs together; `None` where KVM does not count them.
    pub fn fault_counts(&self) -> Option<FaultCounts> {
        VcpuStats::faults_of_all(&self.vcpu_stats)
    }
}

impl Drop for Machine {
    /// All vCPUs are told to end before the first is waited for.
    fn drop(&mut self) {
        self.vcpus.iter_mut().for_each(BareVcpu::quit);
    }
}

impl VmCore {
    fn low_memory(&self) -> &Arc<Region> {
        self.low().first().expect("the bare guest has one region of low memory")
    }

    /// vCPU `index`'s control area.
    pub(super) fn control_area(&self, index: u32) -> Result<Area, VmError> {
        let low = self.low_memory();
        let at = low.hva_at(area_gpa(index)).expect("low memory is as large as the areas need");
        Ok(Area::new(low.clone(), at)?)
    }
}

#[cfg(test)]
mod tests {
    use guest_mem::PAGE_SIZE;

    use super::*;
    use crate::testing::{LEAST, bare_guest, touch_all};

    #[test]
    #[ignore = "needs: Kvm"]
    fn a_machine_does_its_work_comes_apart_and_goes_on() {
        let pages = LEAST.arena / PAGE_SIZE;
        let machine = bare_guest();
        let faults = || machine.fault_counts().expect("KVM counts them since Linux 5.14").fixed;
        let before = faults();
        assert_eq!(touch_all(&machine).visits, pages);
        assert!(faults() > before, "new memory without a fault");
        let core = machine.core().clone();
        let (of_whom, vcpus) = machine.stop().unwrap();
        assert!(Arc::ptr_eq(&of_whom, &core));
        assert_eq!(vcpus.len(), 1);
        let resumed = Machine::resume(core, vcpus, &[]).unwrap();
        assert_eq!(touch_all(&resumed).visits, pages);
    }
}
