//! The state of a PC's VM and vCPUs before the first instruction, apart from memory and the boot registers; and the
//! addresses of its devices.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use crate::Kvm;
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, Msrs, kvm_lapic_state, kvm_msr_entry, kvm_pit_config,
};
use kvm_ioctls::{Cap, VcpuFd, VmFd};

use super::cpuid::Topology;
use crate::memslots::{GuestCpu, Vm};
use crate::vm_error::{VmError, failed};
use devices::bus::{Bus, BusDevice, BusError};
use devices::power::PowerSwitch;
use devices::serial::SerialPort;
use devices::{AcpiPower, I8042};
use guest::ports;
pub(crate) use guest::ports::COM1_GSI as SERIAL_GSI;

/// Where Intel's KVM may keep an identity page table for guests in real mode; next to its task state.
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// `IA32_MISC_ENABLE`, of which only fast string operations are on.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// `IA32_MTRR_DEF_TYPE`: enabled, everything write-back. Without it Linux maps device memory it was told to be RAM
/// uncached.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// Offsets of local vector table entries in the local APIC's registers, and the values that
/// the firmware of a PC leaves in them. The legacy controller's interrupt comes through LINT0, the NMI through LINT1.
const LVT: [(usize, u32); 2] = [(0x350, 7 << 8), (0x360, 4 << 8)];

/// Interrupt controllers and timer, in the kernel. Before any vCPU is made.
pub fn chipset(vm: &VmFd) -> Result<(), VmError> {
    // AMD's KVM takes it too and does not need it.
    if vm.check_extension(Cap::SetIdentityMapAddr) {
        vm.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
    }
    vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
    // The speaker's port reads as a PC's does, which kernels calibrate against.
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
    vm.create_pit2(pit).map_err(failed("KVM_CREATE_PIT2"))
}

/// Puts the registers that end the machine onto the bus.
pub(crate) fn add_power(bus: &mut Bus, switch: &Arc<PowerSwitch>) -> Result<(), BusError> {
    insert(bus, ports::I8042, Arc::new(Mutex::new(I8042::new(switch.clone()))))?;
    insert(bus, ports::ACPI_POWER, Arc::new(Mutex::new(AcpiPower::new(switch.clone()))))
}

/// Puts the serial port onto the bus.
pub(crate) fn add_serial(bus: &mut Bus, port: Arc<Mutex<SerialPort>>) -> Result<(), BusError> {
    insert(bus, ports::COM1, port)
}

fn insert(bus: &mut Bus, ports: Range<u16>, device: Arc<Mutex<dyn BusDevice>>) -> Result<(), BusError> {
    bus.insert(ports.start.into()..ports.end.into(), device)
}

/// The configuration that the vCPUs of a machine share.
#[derive(Debug)]
pub struct Processor {
    supported: CpuId,
    vcpus: u32,
    tsc_deadline: bool,
}

impl Processor {
    /// As this KVM supports it.
    pub fn of(kvm: &Kvm, vcpus: u32) -> Result<Self, VmError> {
        let supported =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        Ok(Self { supported, vcpus, tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer) })
    }

    /// How many vCPUs the machine has.
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// Makes vCPU `index` as a PC's firmware would leave it. The boot vCPU has its registers set afterwards; the others
    /// wait for the start-up interrupt.
    pub(crate) fn make(&self, vm: &Arc<Vm>, index: u32) -> Result<GuestCpu, VmError> {
        let fd = vm.create_vcpu(index)?;
        let mut cpuid = self.supported.clone();
        Topology { vcpu: index, vcpus: self.vcpus, tsc_deadline: self.tsc_deadline }
            .write_into(cpuid.as_mut_slice());
        fd.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;
        set_msrs(&fd)?;
        let mut lapic = fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
        LVT.iter().for_each(|&(offset, value)| write_register(&mut lapic, offset, value));
        fd.set_lapic(&lapic).map_err(failed("KVM_SET_LAPIC"))?;
        Ok(fd)
    }
}

/// A KVM that does not know one of them does without: both are refinements.
fn set_msrs(fd: &VcpuFd) -> Result<(), VmError> {
    for (index, data) in [MTRR_DEF_TYPE, MISC_ENABLE] {
        let entry = kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
        let msrs = Msrs::from_entries(&[entry]).expect("one entry fits");
        fd.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))?;
    }
    Ok(())
}

fn write_register(lapic: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (register, byte) in lapic.regs[offset..offset + 4].iter_mut().zip(value.to_le_bytes()) {
        *register = byte as _;
    }
}

#[cfg(test)]
mod tests {
    use guest_mem::Backing;

    use super::*;
    use crate::pc::PcMemory;
    use linux_boot::layout;

    /// The registers that a PC's firmware sets up, and that Linux reads before it writes to them.
    #[test]
    #[ignore = "needs: Kvm"]
    fn every_vcpu_is_as_firmware_would_leave_it() {
        let kvm = Kvm::open().unwrap();
        let nodes = layout::node0(4 << 20).unwrap();
        let memory = PcMemory::new(&kvm, 2, nodes, Backing::Base4k, true).unwrap();
        chipset(memory.vm().file()).unwrap();
        let processor = Processor::of(&kvm, 2).unwrap();
        for index in 0..processor.vcpus() {
            let vcpu = processor.make(memory.vm(), index).unwrap();
            // Write-back where nothing else is said, and fast strings.
            for (index, data) in [(0x2ff, 0x806), (0x1a0, 1)] {
                let entry = kvm_msr_entry { index, ..kvm_msr_entry::default() };
                let mut msrs = Msrs::from_entries(&[entry]).unwrap();
                assert_eq!(vcpu.get_msrs(&mut msrs).unwrap(), 1);
                assert_eq!(msrs.as_slice()[0].data, data, "MSR {index:#x}");
            }
            let lapic = vcpu.get_lapic().unwrap();
            let register = |at: usize| std::array::from_fn(|byte| lapic.regs[at + byte] as u8);
            // LINT0 takes the legacy controller's interrupt, LINT1 the NMI; neither is masked.
            assert_eq!([0x350, 0x360].map(|at| u32::from_le_bytes(register(at))), [0x700, 0x400]);
        }
        assert_eq!(processor.vcpus(), 2);
    }
}
