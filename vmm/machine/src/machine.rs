//! A whole machine: a VM, its vCPUs, and the guest in it, up and waiting for orders.

use std::sync::Arc;
use std::time::Duration;

use crate::Kvm;
use guest_abi::block::Outcome;
use guest_abi::layout::area_gpa;
use guest_mem::{Gpa, Region};
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;

use super::boot;
use super::memslots::GuestCpu;
use super::stats::{FaultCounts, VcpuStats};
use super::vcpu::Vcpu;
use super::vm::{VmConfig, VmCore};
use super::vm_error::{VmError, failed};
use guest::{Area, GuestError, GuestRam};

/// How long a guest may take to report for work. The ring 0 stub is a hundred instructions; an emulated host that is
/// busy with something else takes seconds for them.
const BOOT_PATIENCE: Duration = Duration::from_secs(60);

/// A VM, its vCPUs, and the guest in it.
#[derive(Debug)]
pub struct Machine {
    // Before `core`, so that nobody runs when it goes: the memory would stay until the last of them has ended.
    vcpus: Vec<Vcpu>,
    vcpu_stats: Vec<VcpuStats>,
    core: Arc<VmCore>,
}

impl Machine {
    /// Makes a VM, loads `image` into it, and starts its vCPUs. They are on their way to their first report;
    /// [`Machine::wait_up`] waits for it.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn start(kvm: &Kvm, config: &VmConfig, image: &[u8]) -> Result<Self, VmError> {
        let core = Arc::new(VmCore::new(kvm, config)?);
        let low_memory = core.low_memory().range().len();
        let memory = GuestRam::new([(Gpa::new(0), core.low_memory().clone())]);
        let entry = boot::load(&memory, low_memory, image)?;
        boot::write_start_info(&memory, core.ram())?;
        let cpuid =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        let mut machine = Self { vcpus: Vec::new(), vcpu_stats: Vec::new(), core };
        for index in 0..config.vcpus {
            let core = &machine.core;
            let fd = core.create_vcpu(index)?;
            fd.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;
            boot::set_registers(&fd, index, entry)?;
            let stats = VcpuStats::of(&fd);
            let area = core.control_area(index)?;
            let vcpu = Vcpu::start(index, fd, area, core.surroundings.clone())
                .map_err(|source| VmError::Thread { vcpu: index, source })?;
            machine.vcpus.push(vcpu);
            machine.vcpu_stats.push(stats);
        }
        Ok(machine)
    }

    /// A machine of a VM whose memory and whose vCPUs are as another machine left them ([`Machine::stop`]): each enters
    /// the guest with its first order.
    ///
    /// # Errors
    /// [`VmError::Thread`].
    pub fn resume(
        core: Arc<VmCore>,
        vcpus: Vec<GuestCpu>,
        processors: &[Option<usize>],
    ) -> Result<Self, VmError> {
        let mut machine = Self { vcpus: Vec::new(), vcpu_stats: Vec::new(), core };
        for (index, fd) in (0..).zip(vcpus) {
            let core = &machine.core;
            let stats = VcpuStats::of(&fd);
            let area = core.control_area(index)?;
            let processor = processors.get(index as usize).copied().flatten();
            let vcpu = Vcpu::resume(index, fd, area, core.surroundings.clone(), processor)
                .map_err(|source| VmError::Thread { vcpu: index, source })?;
            machine.vcpus.push(vcpu);
            machine.vcpu_stats.push(stats);
        }
        Ok(machine)
    }

    /// Ends the vCPUs' threads, and gives the VM and the vCPUs as they left the guest.
    ///
    /// # Errors
    /// [`VmError::ThreadLost`].
    pub fn stop(mut self) -> Result<(Arc<VmCore>, Vec<GuestCpu>), VmError> {
        self.vcpus.iter_mut().for_each(Vcpu::quit);
        let vcpus = self.vcpus.drain(..).map(Vcpu::stop).collect::<Option<Vec<_>>>();
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
    pub fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }

    /// Waits for the end of a vCPU's order. See [`Vcpu::wait`].
    ///
    /// # Errors
    /// As [`Vcpu::wait`].
    pub fn wait(&self, vcpu: u32, patience: Duration) -> Result<Outcome, GuestError> {
        self.vcpus[vcpu as usize].wait(patience)
    }

    /// Faults so far, all vCPUs together; `None` where KVM does not count them.
    pub fn fault_counts(&self) -> Option<FaultCounts> {
        VcpuStats::faults_of_all(&self.vcpu_stats)
    }
}

impl Drop for Machine {
    /// All are told before the first is waited for.
    fn drop(&mut self) {
        self.vcpus.iter_mut().for_each(Vcpu::quit);
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
