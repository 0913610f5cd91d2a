//! The meaning of the exits of a PC's vCPU: accesses go to the buses, where a device serves them on the vCPU's thread.
//! A bad access by the guest is no error of the vCPU.

use std::sync::Arc;

use super::life::{Ending, Life};
use crate::arch::{Exit, Space};
use crate::vcpu::{Exits, Next};
use devices::bus::Bus;
use guest::{CrashKind, CrashReport};

/// The devices of the two address spaces.
#[derive(Debug)]
pub(crate) struct Buses {
    /// I/O ports.
    pub ports: Bus,
    /// Guest physical addresses that are no memory.
    pub mmio: Bus,
}

impl Default for Buses {
    fn default() -> Self {
        Self { ports: Bus::new("port"), mmio: Bus::new("MMIO") }
    }
}

impl Buses {
    fn of(&self, space: Space) -> &Bus {
        match space {
            Space::Port => &self.ports,
            Space::Memory => &self.mmio,
        }
    }
}

/// The exits of a PC's vCPUs.
#[derive(Clone, Debug, Default)]
pub(crate) struct PcExits {
    pub buses: Arc<Buses>,
    /// The life of the machine, which an exit can end.
    pub life: Arc<Life>,
}

impl Exits for PcExits {
    const REPAIRS: bool = true;

    fn handle(&mut self, exit: Exit<'_>, is_ram: &dyn Fn(u64) -> bool) -> Next {
        let hole = |gpa, write| Next::Crash(CrashKind::NoMemory { gpa, write, promised: true });
        match exit {
            Exit::Read { space: Space::Memory, address, .. } if is_ram(address) => {
                return hole(address, false);
            }
            Exit::Write { space: Space::Memory, address, .. } if is_ram(address) => {
                return hole(address, true);
            }
            Exit::Read { space, address, data } => self.buses.of(space).read(address, data),
            Exit::Write { space, address, data } => self.buses.of(space).write(address, data),
            Exit::PowerOff => return self.end(Ending::PowerOff),
            Exit::Reset => return self.end(Ending::Reset),
            Exit::Crash(kind) => return Next::Crash(kind),
            // The loop acts on these.
            Exit::Interrupted | Exit::HostFault | Exit::InternalError => {}
        }
        Next::Enter
    }

    fn crashed(&mut self, report: CrashReport) {
        self.life.end(Ending::Crash(Arc::new(report)));
    }
}

impl PcExits {
    fn end(&self, ending: Ending) -> Next {
        self.life.end(ending);
        Next::Quit
    }
}
