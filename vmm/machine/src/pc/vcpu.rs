//! A PC's vCPU and the thread that runs it. Its interrupt controllers are KVM's own, so it leaves the guest only
//! for a device, for the gate, or because something went wrong.
//!
//! ```text
//!              port, MMIO                       gate shut, or kicked
//!   in guest ────────────> on the bus      ┌──────────────────────── in guest
//!      ▲                      │            ▼
//!      └──────────────────────┴── at the gate ── commands? carry them out ── quit? ──> ended
//!   in guest ── any other exit ──> the machine's life ends, with the vCPU's registers
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use guest_mem::waits::{Overdue, Thread, WAKE};
use kvm_ioctls::{VcpuExit, VcpuFd};
use rustix::io::Errno;

use super::life::{Ending, Life};
use super::repair;
use crate::exit;
use crate::gate::Seated;
use crate::memslots::GuestCpu;
use crate::surroundings::Surroundings;
use crate::sys;
use crate::vcpu::{host_fault, registers};
use devices::bus::Bus;
use guest::{CrashKind, CrashReport};

/// How many times the patience for a wake a command may take: one has KVM map all of a guest's memory.
const COMMANDS: u32 = 20;

/// What the machine does with a vCPU that is out of the guest.
type Command = Box<dyn FnOnce(&VcpuFd) + Send>;

/// Where ports and MMIO lead.
#[derive(Debug)]
pub struct Buses {
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

/// What all vCPU threads of a PC share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The gate, the protection window, what is RAM.
    pub surroundings: Arc<Surroundings>,
    /// Where ports and MMIO lead.
    pub buses: Arc<Buses>,
    /// How it all ends.
    pub life: Arc<Life>,
}

/// What a vCPU's thread looks at once the vCPU counts as inside the guest: whoever sets one of these and kicks the
/// vCPU then finds it inside, or is seen.
#[derive(Debug, Default)]
struct Told {
    quit: AtomicBool,
    command: AtomicBool,
}

/// One vCPU of a PC.
#[derive(Debug)]
pub struct PcVcpu {
    index: u32,
    surroundings: Arc<Surroundings>,
    told: Arc<Told>,
    commands: Mutex<Sender<Command>>,
    /// Gives the vCPU back.
    thread: Option<Thread<GuestCpu>>,
}

impl PcVcpu {
    /// Starts a thread that runs `fd` as vCPU `index`.
    ///
    /// # Errors
    /// The system has no room for another thread.
    pub fn start(index: u32, fd: GuestCpu, shared: Shared) -> std::io::Result<Self> {
        sys::prepare_signal()?;
        let told = Arc::new(Told::default());
        let (send, commands) = channel();
        let surroundings = shared.surroundings.clone();
        let runner = Runner { index, fd, shared, told: told.clone(), commands };
        let thread = Thread::start(format!("vcpu{index}"), move || runner.run())?;
        Ok(Self { index, surroundings, told, commands: Mutex::new(send), thread: Some(thread) })
    }

    /// Has the vCPU's thread do something with it, out of the guest, and waits for the result. `None` if the
    /// thread has ended.
    ///
    /// # Errors
    /// It does not come to it, or not to its end. It may still do it.
    pub fn with<R: Send + 'static>(
        &self,
        work: impl FnOnce(&VcpuFd) -> R + Send + 'static,
    ) -> Result<Option<R>, Overdue> {
        self.with_patience(WAKE, work)
    }

    fn with_patience<R: Send + 'static>(
        &self,
        patience: Duration,
        work: impl FnOnce(&VcpuFd) -> R + Send + 'static,
    ) -> Result<Option<R>, Overdue> {
        let (begun, begins) = channel::<()>();
        let (reply, result) = channel();
        let command: Command = Box::new(move |fd| {
            drop(begun);
            // Whoever asked waits for it.
            let _ = reply.send(work(fd));
        });
        if self.commands.lock().unwrap_or_else(PoisonError::into_inner).send(command).is_err() {
            return Ok(None);
        }
        self.told.command.store(true, Ordering::SeqCst);
        self.surroundings.gate.kick(self.index);
        if begins.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            return Err(self.overdue("to leave the guest for a command", patience));
        }
        let longest = patience * COMMANDS;
        match result.recv_timeout(longest) {
            Ok(result) => Ok(Some(result)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err(self.overdue("to carry out a command", longest)),
        }
    }

    fn overdue(&self, what: &str, waited: Duration) -> Overdue {
        let thread = self.surroundings.gate.thread(self.index).map_or(0, |pid| pid.as_raw_nonzero().get());
        Overdue::from_thread(format!("vCPU {} {what}", self.index), waited, thread)
    }

    /// Where the vCPU is, if its thread still runs.
    pub fn registers(&self) -> Option<guest::Registers> {
        // One that does not come has nothing to say, and whoever asks reports a failure anyway.
        self.with(registers).ok().flatten().flatten()
    }
}

impl PcVcpu {
    /// Tells the thread to end, and does not wait for it: whoever ends several tells all of them first.
    pub fn quit(&mut self) {
        self.told.quit.store(true, Ordering::SeqCst);
        self.surroundings.gate.kick(self.index);
        self.thread.iter_mut().for_each(Thread::told);
    }
}

impl Drop for PcVcpu {
    fn drop(&mut self) {
        self.quit();
        if let Some(thread) = self.thread.take() {
            thread.end_or_tell();
        }
    }
}

/// The thread's own part.
struct Runner {
    index: u32,
    fd: GuestCpu,
    shared: Shared,
    told: Arc<Told>,
    commands: Receiver<Command>,
}

/// What is left to do once the vCPU has left the guest.
enum Next {
    Enter,
    CheckHostFault,
    InternalError,
    End(Ending),
    Crash(CrashKind),
}

impl Runner {
    fn run(mut self) -> GuestCpu {
        let immediate_exit = &raw mut self.fd.file_mut().get_kvm_run().immediate_exit;
        let surroundings = self.shared.surroundings.clone();
        // SAFETY: the flag lies in the kvm_run page, mapped as long as the file, which this function gives back after it has
        // given up the seat.
        let seated = unsafe { surroundings.gate.sit(self.index, immediate_exit) };
        if let Some(ending) = self.run_until_told(&seated) {
            self.shared.life.end(ending);
        }
        drop(seated);
        self.fd
    }

    /// Runs the guest until it ends, or until told to quit, which is `None`.
    fn run_until_told(&mut self, seated: &Seated<'_>) -> Option<Ending> {
        self.shared.surroundings.note_first_entry();
        loop {
            if self.told.quit.load(Ordering::SeqCst) {
                return None;
            }
            // Before the queue is looked at: what is sent later sets it again.
            if self.told.command.swap(false, Ordering::SeqCst) {
                self.commands.try_iter().for_each(|command| command(&self.fd));
            }
            let toggles = self.shared.surroundings.window.ended();
            match self.enter(seated) {
                Next::Enter => {}
                Next::CheckHostFault => match self.shared.surroundings.window.explains(toggles) {
                    Ok(true) => {}
                    Ok(false) => return Some(self.crash(host_fault(&self.fd))),
                    Err(overdue) => return Some(self.crash(CrashKind::Overdue(overdue))),
                },
                Next::InternalError => {
                    if let Some(kind) = self.repair() {
                        return Some(self.crash(kind));
                    }
                }
                Next::End(ending) => return Some(ending),
                Next::Crash(kind) => return Some(self.crash(kind)),
            }
        }
    }

    /// Runs the guest once and serves what it wants of a device, outside: a device's thread may hold the gate
    /// while it holds the device.
    fn enter(&mut self, seated: &Seated<'_>) -> Next {
        let Self { fd, told, shared, .. } = self;
        let told = || told.quit.load(Ordering::SeqCst) || told.command.load(Ordering::SeqCst);
        let exit = match seated.enter(|| (!told()).then(|| fd.file_mut().run())) {
            Ok(Some(exit)) => exit,
            Ok(None) => return Next::Enter,
            Err(shut) => return Next::Crash(shut.clone()),
        };
        let (buses, ram) = (&shared.buses, |gpa| shared.surroundings.is_ram(gpa));
        match exit {
            Ok(VcpuExit::IoIn(port, data)) => {
                buses.ports.read(port.into(), data);
                Next::Enter
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                buses.ports.write(port.into(), data);
                Next::Enter
            }
            Ok(VcpuExit::MmioRead(gpa, _)) if ram(gpa) => hole(gpa, false),
            Ok(VcpuExit::MmioWrite(gpa, _)) if ram(gpa) => hole(gpa, true),
            Ok(VcpuExit::MmioRead(gpa, data)) => {
                buses.mmio.read(gpa, data);
                Next::Enter
            }
            Ok(VcpuExit::MmioWrite(gpa, data)) => {
                buses.mmio.write(gpa, data);
                Next::Enter
            }
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => Next::Enter,
            Ok(VcpuExit::Shutdown) => Next::Crash(CrashKind::TripleFault),
            Ok(VcpuExit::Hlt) => Next::Crash(CrashKind::Halted),
            Ok(VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
                Next::End(Ending::PowerOff)
            }
            Ok(VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_RESET, _)) => Next::End(Ending::Reset),
            Ok(VcpuExit::FailEntry(reason, _)) => Next::Crash(CrashKind::FailEntry { reason }),
            Ok(VcpuExit::InternalError) => Next::InternalError,
            Ok(VcpuExit::MemoryFault { .. }) => Next::CheckHostFault,
            Ok(other) => Next::Crash(CrashKind::Other(format!("an exit that nobody handles: {other:?}"))),
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => Next::Enter,
                libc::EFAULT => Next::CheckHostFault,
                errno => Next::Crash(CrashKind::NoEntry(Errno::from_raw_os_error(errno))),
            },
        }
    }

    /// Does for KVM's emulator what it cannot, if that is known how; else says what it met.
    fn repair(&mut self) -> Option<CrashKind> {
        let (suberror, instruction) = exit::internal_error(self.fd.file_mut().get_kvm_run());
        match repair::repair(&self.fd, &instruction) {
            Some(()) => None,
            None => Some(CrashKind::InternalError { suberror, instruction }),
        }
    }

    fn crash(&self, kind: CrashKind) -> Ending {
        Ending::Crash(Arc::new(CrashReport { vcpu: self.index, kind, registers: registers(&self.fd) }))
    }
}

fn hole(gpa: u64, write: bool) -> Next {
    Next::Crash(CrashKind::NoMemory { gpa, write, promised: true })
}

#[cfg(test)]
mod tests;
