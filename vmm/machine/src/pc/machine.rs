//! Putting a PC together, in the order in which its parts need one another.
//!
//! | step | needs | gives |
//! | --- | --- | --- |
//! | [`Pc::new`] | KVM, the memory map | a VM with memory, interrupt controllers, timer, power control |
//! | [`Pc::add_serial`], [`Pc::add_disk`], [`Pc::add_balloon`], [`Pc::add_agent`] | interrupts | devices on the buses |
//! | [`Pc::boot`] | the devices' places | tables and kernel in memory, vCPUs running, devices served |

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use crate::Kvm;
use crate::arch::setup::{self, Processor};
use guest_mem::Backing;
use guest_mem::remedy::{self, Asked};
use kvm_ioctls::IoEventAddress;
use vmm_sys_util::eventfd::EventFd;

use super::exits::{Buses, PcExits};
use super::give_back::{BalloonReclaimer, GiveBack};
use super::guarded::Guarded;
use super::life::Life;
use super::memory::PcMemory;
use super::watch::LifeWatch;
use crate::stats::{FaultCounts, VcpuStats};
use crate::vcpu::Vcpu;
use crate::vm_error::{VmError, failed};
use devices::bus::BusError;
use devices::loop_thread::{DeviceLoop, LoopError, Served};
use devices::power::PowerSwitch;
use devices::serial::{SerialInput, SerialPort};
use devices::virtio::balloon::{Balloon, BalloonHandle};
use devices::virtio::block::{Block, Disk};
use devices::virtio::console::Console;
use devices::virtio::mmio::{QUEUE_NOTIFY, VirtioMmio};
use devices::virtio::{Interrupt, VirtioDevice};
use linux_boot::layout;
use linux_boot::{self, Boot, LoadError, MemoryNode, Platform, RegistersError, VirtioSlot};
use program::exit::{Class, Classified};
use program::output::Sink;

/// The configuration of a PC.
#[derive(Clone, Copy, Debug)]
pub struct PcConfig {
    /// vCPUs.
    pub vcpus: u32,
    /// Bytes of the kernel's own memory, a multiple of 2 MiB.
    pub memory: u64,
    /// Its backing.
    pub backing: Backing,
    /// Bytes of a node for the memory under test, a multiple of 2 MiB; 0 for none.
    pub arena_node: u64,
    /// Whether KVM's default stays, by which one slot's zap drops every translation of the VM.
    pub slot_zap_all_quirk: bool,
}

/// An error in making or starting a PC.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum PcError {
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error("{0} bytes of memory do not fit into the guest's address space")]
    TooMuchMemory(u64),
    #[error("the {device} cannot be made{}", remedy::after_io(Asked::Descriptor, source))]
    Device { device: &'static str, source: std::io::Error },
    #[error("there is room for {} virtio devices, and this is one more", layout::MAX_VIRTIO)]
    TooManyDevices,
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error(transparent)]
    Scan(#[from] guest_mem::ScanError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Registers(#[from] RegistersError),
    #[error(transparent)]
    Loop(#[from] LoopError),
}

impl Classified for PcError {
    fn class(&self) -> Class {
        match self {
            Self::Vm(error) => error.class(),
            Self::TooMuchMemory(_) | Self::TooManyDevices => Class::Mistake,
            Self::Device { source, .. } => Class::of_refused_io(source),
            Self::Bus(_) => Class::Fault,
            Self::Scan(error) => error.class(),
            Self::Load(error) => error.class(),
            Self::Registers(error) => Class::of_refused_ioctl(error.source),
            Self::Loop(error) => error.class(),
        }
    }
}

/// A PC.
pub struct Pc {
    // In order of their end: no vCPU runs when the devices go, no device is left when the memory goes.
    vcpus: Vec<Vcpu>,
    vcpu_stats: Vec<VcpuStats>,
    watch: Option<LifeWatch>,
    devices: Option<DeviceLoop>,
    served: Vec<Box<dyn Served>>,
    buses: Buses,
    virtio: Vec<VirtioSlot>,
    interrupts: Vec<(&'static str, Arc<Interrupt>)>,
    switch: Arc<PowerSwitch>,
    life: Arc<Life>,
    processor: Processor,
    give_back: GiveBack,
    memory: Arc<PcMemory>,
}

impl Pc {
    /// Memory, interrupt controllers, timer and power control.
    pub fn new(kvm: &Kvm, config: &PcConfig) -> Result<Self, PcError> {
        let too_much = || PcError::TooMuchMemory(config.memory.saturating_add(config.arena_node));
        let mut nodes: Vec<MemoryNode> = layout::node0(config.memory).ok_or_else(too_much)?;
        if config.arena_node > 0 {
            let node = layout::arena_node(&nodes, config.arena_node, guest_mem::PMD_SIZE);
            nodes.push(node.ok_or_else(too_much)?);
        }
        let memory = PcMemory::new(kvm, config.vcpus, nodes, config.backing, config.slot_zap_all_quirk)?;
        setup::chipset(memory.vm().file())?;
        let switch = PowerSwitch::new().map_err(device("power switch"))?;
        let mut buses = Buses::default();
        setup::add_power(&mut buses.ports, &switch)?;
        Ok(Self {
            vcpus: Vec::new(),
            vcpu_stats: Vec::new(),
            watch: None,
            devices: None,
            served: Vec::new(),
            buses,
            virtio: Vec::new(),
            interrupts: Vec::new(),
            switch,
            life: Arc::new(Life::default()),
            processor: Processor::of(kvm, config.vcpus)?,
            give_back: GiveBack::new(&memory),
            memory: Arc::new(memory),
        })
    }

    /// The first serial port, printed to `output`. It prints only if it has an input, be it `/dev/null`.
    pub fn add_serial(&mut self, output: Box<dyn Sink>) -> Result<Arc<Mutex<SerialPort>>, PcError> {
        let port = SerialPort::new(event("serial port")?, output).map_err(device("serial port"))?;
        let register = self.memory.vm().file().register_irqfd(port.irq(), setup::SERIAL_GSI);
        register.map_err(failed("KVM_IRQFD"))?;
        let port = Arc::new(Mutex::new(port));
        setup::add_serial(&mut self.buses.ports, port.clone())?;
        Ok(port)
    }

    /// Input for the serial port from a pipe or file.
    pub fn feed_serial(&mut self, port: Arc<Mutex<SerialPort>>, input: OwnedFd) {
        self.served.push(Box::new(SerialInput::from_pipe(port, input)));
    }

    /// Input for the serial port from a terminal, where Ctrl-A speaks to the VMM.
    pub fn type_to_serial(&mut self, port: Arc<Mutex<SerialPort>>, terminal: OwnedFd) {
        self.served.push(Box::new(SerialInput::from_terminal(port, terminal, self.switch.clone())));
    }

    /// A disk.
    pub fn add_disk(&mut self, disk: Disk) -> Result<(), PcError> {
        let interrupt = self.interrupt("disk")?;
        self.add_virtio("disk", Box::new(Block::new(disk)), interrupt)
    }

    /// A balloon, which also takes what the guest reports as free, if `reports`.
    pub fn add_balloon(&mut self, reports: bool) -> Result<BalloonHandle, PcError> {
        let interrupt = self.interrupt("balloon")?;
        let reclaimer = Box::new(BalloonReclaimer::new(self.memory.clone(), self.give_back.clone())?);
        let (balloon, handle) = Balloon::new(&self.memory.device_view(), reclaimer, interrupt.clone());
        let balloon = if reports { balloon } else { balloon.without_reports() };
        self.add_virtio("balloon", Box::new(balloon), interrupt)?;
        Ok(handle)
    }

    /// The way to the guest's agent: the stream's other end is the port in the guest.
    pub fn add_agent(&mut self) -> Result<UnixStream, PcError> {
        let (ours, ports) = UnixStream::pair().map_err(device("agent's port"))?;
        let console = Console::new(ports).map_err(device("agent's port"))?;
        let interrupt = self.interrupt("agent's port")?;
        self.add_virtio("agent's port", Box::new(console), interrupt)?;
        Ok(ours)
    }

    fn interrupt(&mut self, name: &'static str) -> Result<Arc<Interrupt>, PcError> {
        let interrupt = Arc::new(Interrupt::new(event(name)?));
        self.interrupts.push((name, interrupt.clone()));
        Ok(interrupt)
    }

    fn add_virtio(
        &mut self,
        name: &'static str,
        virtio: Box<dyn VirtioDevice>,
        interrupt: Arc<Interrupt>,
    ) -> Result<(), PcError> {
        let slot = VirtioSlot::nth(self.virtio.len() as u32).ok_or(PcError::TooManyDevices)?;
        let vm = self.memory.vm().file();
        vm.register_irqfd(interrupt.irq(), slot.gsi).map_err(failed("KVM_IRQFD"))?;
        let (transport, worker) =
            VirtioMmio::new(virtio, self.memory.device_view(), interrupt).map_err(device(name))?;
        let notify = IoEventAddress::Mmio(slot.range.start().get() + QUEUE_NOTIFY);
        for (index, event) in (0u32..).zip(transport.queue_events()) {
            vm.register_ioevent(event, &notify, index).map_err(failed("KVM_IOEVENTFD"))?;
        }
        let range = slot.range.start().get()..slot.range.end().get();
        self.buses.mmio.insert(range, Arc::new(Mutex::new(transport)))?;
        self.served.push(Box::new(worker));
        self.virtio.push(slot);
        Ok(())
    }

    /// Puts tables and kernel into memory, starts the device thread, and then the vCPUs.
    pub fn boot(&mut self, boot: &Boot<'_>) -> Result<(), PcError> {
        let (memory, vcpus) = (self.memory.device_view(), self.processor.vcpus());
        let platform = Platform { vcpus, memory: self.memory.nodes().to_vec(), virtio: self.virtio.clone() };
        let start = linux_boot::load(&memory, &platform, boot)?;
        let files = (0..vcpus)
            .map(|index| self.processor.make(self.memory.vm(), index))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(first) = files.first() {
            linux_boot::set_registers(first, &start)?;
        }
        let shared = self.memory.shared().clone();
        let served = self.served.drain(..);
        let served = served.map(|served| Box::new(Guarded { served, shared: shared.clone() }) as _);
        let devices = DeviceLoop::start(served.collect())?;
        self.watch = Some(
            LifeWatch::start(self.life.clone(), self.switch.clone(), &devices).map_err(device("watch"))?,
        );
        self.devices = Some(devices);
        let exits = PcExits { buses: Arc::new(std::mem::take(&mut self.buses)), life: self.life.clone() };
        for (index, fd) in (0..).zip(files) {
            self.vcpu_stats.push(VcpuStats::of(&fd));
            let vcpu = Vcpu::start(index, fd, shared.clone(), exits.clone(), None)
                .map_err(|source| VmError::Thread { vcpu: index, source })?;
            self.vcpus.push(vcpu);
        }
        Ok(())
    }

    /// How it ends.
    pub fn life(&self) -> &Arc<Life> {
        &self.life
    }
    /// Its memory.
    pub fn memory(&self) -> &Arc<PcMemory> {
        &self.memory
    }
    /// Its vCPUs, once it runs.
    pub fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }
    /// The memory that it gave back.
    pub fn give_back(&self) -> &GiveBack {
        &self.give_back
    }
    /// Faults so far, all vCPUs together; `None` where KVM does not count them.
    pub fn fault_counts(&self) -> Option<FaultCounts> {
        VcpuStats::faults_of_all(&self.vcpu_stats)
    }
    /// The error of each device whose driver broke the rules, and of the memory that devices were to reach.
    pub fn faults(&self) -> impl Iterator<Item = (&'static str, String)> {
        let broken = |(name, interrupt): &(_, Arc<Interrupt>)| Some((*name, interrupt.last_fault()?));
        let refused = self.memory.device_view().refused().map(|why| ("memory of the devices", why));
        self.interrupts.iter().filter_map(broken).chain(refused)
    }
}

impl Drop for Pc {
    /// All vCPUs are told to end before the first is waited for.
    fn drop(&mut self) {
        self.vcpus.iter_mut().for_each(Vcpu::quit);
    }
}

impl std::fmt::Debug for Pc {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Pc").field("vcpus", &self.vcpus).field("life", &self.life).finish_non_exhaustive()
    }
}

fn event(name: &'static str) -> Result<EventFd, PcError> {
    devices::new_event().map_err(device(name))
}

fn device(device: &'static str) -> impl FnOnce(std::io::Error) -> PcError {
    move |source| PcError::Device { device, source }
}

#[cfg(test)]
mod tests;
