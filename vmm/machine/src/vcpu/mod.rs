//! The thread of a vCPU: one loop for every kind of machine.
//!
//! ```text
//!                                                 ┌── Enter ─────────────────────────┐
//!   at the gate ── open ──> in guest ── exit ──> Exits::handle ── Quit ──> ended     │
//!      ▲  ▲                     │                 └── Crash ──> Exits::crashed, ended │
//!      │  └─────────────────────┼────────────────────────────────────────────────────┘
//!      │          gate shut, or kicked
//!      │                        ▼
//!      └───────────────── run state: commands carried out; Quit ──> ended
//! ```

mod run_state;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use guest_mem::waits::{END, Overdue, Thread, WAKE};
use kvm_ioctls::VcpuFd;
use rustix::thread::Pid;

use super::arch::{self, Exit};
use super::gate::Seated;
use super::memslots::GuestCpu;
use super::sys;
use super::vm_shared::VmShared;
use guest::{CrashKind, CrashReport, Registers};
use host::processors;
use run_state::{RunState, SharedRunState};

/// A command may take as many times the patience for a wake: one has KVM map all of a guest's memory.
const COMMANDS: u32 = 20;

/// A piece of work on a vCPU that is out of the guest.
type Command = Box<dyn FnOnce(&VcpuFd) + Send>;

/// How a machine handles the exits of its vCPU.
pub(super) trait Exits: Send + 'static {
    /// Whether instructions that KVM's emulator lacks are done in its place, where this program can.
    const REPAIRS: bool;

    /// Called once, before the guest is entered. `false` ends the thread.
    fn begin(&mut self) -> bool {
        true
    }

    /// Acts on an exit, outside of the guest: a device's thread may hold the gate while it holds the device. `is_ram` says
    /// whether a guest physical address lies in the guest's RAM. Interruptions, `EFAULT` and internal errors of KVM do not
    /// come here.
    fn handle(&mut self, exit: Exit<'_>, is_ram: &dyn Fn(u64) -> bool) -> Next;

    /// The vCPU cannot go on.
    fn crashed(&mut self, report: CrashReport);
}

/// The next step of a vCPU's thread after an exit.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Enter the guest again.
    Enter,
    /// End.
    Quit,
    /// Report a crash, and end.
    Crash(CrashKind),
}

/// A vCPU that a thread runs.
#[derive(Debug)]
pub struct Vcpu {
    index: u32,
    shared: Arc<VmShared>,
    state: Arc<SharedRunState>,
    commands: Mutex<Sender<Command>>,
    /// Returns the vCPU.
    thread: Option<Thread<GuestCpu>>,
}

impl Vcpu {
    /// Starts a thread that runs `cpu` as vCPU `index`, on this processor if it may.
    pub(super) fn start(
        index: u32,
        cpu: GuestCpu,
        shared: Arc<VmShared>,
        exits: impl Exits,
        processor: Option<usize>,
    ) -> io::Result<Self> {
        sys::prepare_signal()?;
        let (send, commands) = channel();
        let state = Arc::new(SharedRunState::default());
        let runner = Runner { index, cpu, shared: shared.clone(), state: state.clone(), commands, exits };
        let thread = Thread::start(format!("vcpu{index}"), move || {
            if let Some(processor) = processor {
                processors::seat(rustix::thread::gettid(), processor);
            }
            runner.run()
        })?;
        Ok(Self { index, shared, state, commands: Mutex::new(send), thread: Some(thread) })
    }

    /// The thread that runs it, so that it can be given a processor; `None` before it has begun.
    pub fn thread(&self) -> Option<Pid> {
        self.shared.gate.thread(self.index)
    }

    /// Has the vCPU's thread do something with it, out of the guest, and waits for the result. `None` if the thread has
    /// ended.
    ///
    /// # Errors
    /// The thread does not begin, or does not finish in time. It may still do it.
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
        let sent = self.send(Box::new(move |fd| {
            drop(begun);
            // The receiver is waiting.
            let _ = reply.send(work(fd));
        }));
        if !sent {
            return Ok(None);
        }
        if begins.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            return Err(self.overdue(" to leave the guest for a command", patience));
        }
        let longest = patience * COMMANDS;
        match result.recv_timeout(longest) {
            Ok(result) => Ok(Some(result)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err(self.overdue(" to carry out a command", longest)),
        }
    }

    /// Gives the thread a command. Returns whether the thread can still take one.
    fn send(&self, command: Command) -> bool {
        let sent = self.commands.lock().unwrap_or_else(PoisonError::into_inner).send(command);
        self.state.command();
        self.shared.gate.kick(self.index);
        sent.is_ok()
    }

    /// Has the thread do something with the vCPU, out of the guest, and end. Does not wait for it.
    pub(super) fn end_with(&self, work: impl FnOnce(&VcpuFd) + Send + 'static) {
        self.send(Box::new(work));
        self.tell_to_quit();
    }

    /// An error of a wait for this vCPU's thread. `what` follows its name.
    pub(super) fn overdue(&self, what: &str, waited: Duration) -> Overdue {
        let thread = self.thread().map_or(0, |pid| pid.as_raw_nonzero().get());
        Overdue::from_thread(format!("vCPU {}{what}", self.index), waited, thread)
    }

    /// The vCPU's registers, if its thread still runs.
    pub fn registers(&self) -> Option<Registers> {
        // A vCPU that does not leave the guest has none to show, and the caller reports a failure anyway.
        self.with(arch::registers).ok().flatten().flatten()
    }

    fn tell_to_quit(&self) {
        self.state.quit();
        self.shared.gate.kick(self.index);
    }

    /// Tells the thread to end, and does not wait for it: several vCPUs are all told before the first is waited for.
    pub(super) fn quit(&mut self) {
        self.tell_to_quit();
        self.thread.iter_mut().for_each(Thread::told);
    }

    /// Ends the thread and returns its vCPU as it left the guest. `None` if the thread panicked, or does not end: either
    /// has been reported.
    pub(super) fn stop(&mut self) -> Option<GuestCpu> {
        self.quit();
        match self.thread.take()?.end(END) {
            Ok(ended) => ended.ok(),
            Err(overdue) => {
                overdue.tell();
                None
            }
        }
    }
}

impl Drop for Vcpu {
    /// A thread that does not end keeps its vCPU, and with it all memory that the guest has.
    fn drop(&mut self) {
        self.quit();
        if let Some(thread) = self.thread.take() {
            thread.end_or_tell();
        }
    }
}

/// The thread's own part.
struct Runner<E> {
    index: u32,
    cpu: GuestCpu,
    shared: Arc<VmShared>,
    state: Arc<SharedRunState>,
    commands: Receiver<Command>,
    exits: E,
}

impl<E: Exits> Runner<E> {
    fn run(mut self) -> GuestCpu {
        let immediate_exit = &raw mut self.cpu.file_mut().get_kvm_run().immediate_exit;
        let shared = self.shared.clone();
        // SAFETY: the flag lies in the kvm_run page, mapped as long as the file, which this function returns after it has
        // given up the seat.
        let seated = unsafe { shared.gate.sit(self.index, immediate_exit) };
        if let Some(kind) = self.run_until_told(&seated) {
            let registers = arch::registers(&self.cpu);
            self.exits.crashed(CrashReport { vcpu: self.index, kind, registers });
        }
        drop(seated);
        self.cpu
    }

    /// Runs the guest until it crashes, or until the thread is told to end, which is `None`.
    fn run_until_told(&mut self, seated: &Seated<'_>) -> Option<CrashKind> {
        if !self.exits.begin() {
            return None;
        }
        self.shared.note_first_entry();
        loop {
            match self.enter(seated) {
                Next::Enter => {}
                Next::Quit => return None,
                Next::Crash(kind) => return Some(kind),
            }
        }
    }

    /// Runs the guest once, and acts on its exit.
    fn enter(&mut self, seated: &Seated<'_>) -> Next {
        let Self { cpu, shared, state, exits, .. } = self;
        let toggles = shared.window.ended();
        let file = cpu.file_mut();
        let runs = move || (state.get() == RunState::Run).then(move || arch::run(file));
        match seated.enter(runs) {
            Ok(None | Some(Exit::Interrupted)) => self.obey(),
            Ok(Some(Exit::HostFault)) => match shared.window.explains(toggles) {
                Ok(true) => Next::Enter,
                Ok(false) => Next::Crash(cpu.not_given().map_or(CrashKind::HostFault, CrashKind::HostLimit)),
                Err(overdue) => Next::Crash(CrashKind::Overdue(overdue)),
            },
            Ok(Some(Exit::InternalError)) => {
                let (suberror, instruction) = arch::internal_error(cpu.file_mut().get_kvm_run());
                if E::REPAIRS && arch::repair(cpu, &instruction).is_some() {
                    return Next::Enter;
                }
                Next::Crash(CrashKind::InternalError { suberror, instruction })
            }
            Ok(Some(exit)) => exits.handle(exit, &|gpa| shared.is_ram(gpa)),
            Err(shut) => Next::Crash(shut.clone()),
        }
    }

    /// Takes the run state, and carries out the queued commands unless it is `Run`.
    fn obey(&mut self) -> Next {
        match self.state.take() {
            RunState::Run => Next::Enter,
            told => {
                self.commands.try_iter().for_each(|command| command(&self.cpu));
                if told == RunState::Quit { Next::Quit } else { Next::Enter }
            }
        }
    }
}
