//! A whole machine: a VM, its vCPUs, and the guest in it, up and waiting for orders.

use std::sync::Arc;
use std::time::Duration;

use crate::kvm::Kvm;
use guest_abi::block::{ControlArea, Outcome};
use guest_abi::layout::area_gpa;
use guest_mem::Region;
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::VcpuFd;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use super::boot;
use super::stats::{FaultCounts, VcpuStats};
use super::vcpu::Vcpu;
use super::vm::{VmConfig, VmCore, VmError, failed};
use crate::guest::GuestError;

/// How long a guest may take to report for work. The ring 0 stub is a hundred instructions; an emulated host that is
/// busy with something else takes seconds for them.
const BOOT_PATIENCE: Duration = Duration::from_secs(60);

/// A VM, its vCPUs, and the guest in it.
#[derive(Debug)]
pub struct Machine {
    // Before `core`: the vCPU threads end, and their files close, before memory goes.
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
        let memory = boot_memory(&core);
        let entry = boot::load(&memory, low_memory, image)?;
        boot::write_start_info(&memory, core.ram())?;
        let cpuid =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        let mut machine = Self { vcpus: Vec::new(), vcpu_stats: Vec::new(), core };
        for index in 0..config.vcpus {
            let core = &machine.core;
            let fd = core.vm.create_vcpu(index.into()).map_err(failed("KVM_CREATE_VCPU"))?;
            fd.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;
            boot::set_registers(&fd, index, entry)?;
            let stats = VcpuStats::of(&fd);
            let area = core.control_area(index);
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
        vcpus: Vec<VcpuFd>,
        processors: &[Option<usize>],
    ) -> Result<Self, VmError> {
        let mut machine = Self { vcpus: Vec::new(), vcpu_stats: Vec::new(), core };
        for (index, fd) in (0..).zip(vcpus) {
            let core = &machine.core;
            let stats = VcpuStats::of(&fd);
            let area = core.control_area(index);
            let processor = processors.get(index as usize).copied().flatten();
            let vcpu = Vcpu::resume(index, fd, area, core.surroundings.clone(), processor)
                .map_err(|source| VmError::Thread { vcpu: index, source })?;
            machine.vcpus.push(vcpu);
            machine.vcpu_stats.push(stats);
        }
        Ok(machine)
    }

    /// Ends the vCPUs' threads, and gives the VM and the vCPUs as they left the guest. `None` if a thread panicked.
    pub fn stop(self) -> Option<(Arc<VmCore>, Vec<VcpuFd>)> {
        let vcpus = self.vcpus.into_iter().map(Vcpu::stop).collect::<Option<Vec<_>>>()?;
        Some((self.core, vcpus))
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

impl VmCore {
    fn low_memory(&self) -> &Region {
        self.low().first().expect("the bare guest has one region of low memory")
    }

    /// vCPU `index`'s control area. Used only while `self` lives: each vCPU thread ends before.
    fn control_area(&self, index: u32) -> ControlArea {
        let hva =
            self.low_memory().hva_at(area_gpa(index)).expect("low memory is as large as the areas need");
        // SAFETY: page aligned, and low memory holds an area for each vCPU. It stays mapped as long as
        // `self`, which `Machine` drops after its vCPUs.
        unsafe { ControlArea::new(hva.as_ptr()) }
    }
}

/// Low memory as linux-loader takes it.
fn boot_memory(core: &VmCore) -> GuestMemoryMmap {
    let range = core.low_memory().range();
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: low memory is such a mapping, and outlives this value, which is gone before the VM starts.
    let mapping: MmapRegion =
        unsafe { MmapRegion::build_raw(range.start().as_ptr(), range.len() as usize, protection, flags) }
            .expect("page aligned, with the flags it was mapped with");
    let region = GuestRegionMmap::new(mapping, GuestAddress(0)).expect("begins at 0, so it cannot wrap");
    GuestMemoryMmap::from_regions(vec![region]).expect("a single region overlaps nothing")
}
