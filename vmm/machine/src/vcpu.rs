//! A vCPU and the thread that runs it.
//!
//! ```text
//!              READY / DONE                 order                   gate shut, or kicked
//!   in guest ───────────────> at the mailbox ─────> at the gate <───────────────────── in guest
//!      ▲                                              │ open
//!      └──────────────────────────────────────────────┘
//!   in guest ── any other exit, or told to report ──> failed, with its registers
//!   anywhere ── told to quit ──> ended
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use guest_abi::block::Outcome;
use guest_mem::waits::{END, Overdue, Thread};
use kvm_ioctls::VcpuFd;
use rustix::thread::Pid;

use super::exit::{self, Action, Exit};
use super::gate::Seated;
use super::memslots::GuestCpu;
use super::surroundings::Surroundings;
use super::sys;
use guest::{Area, CrashKind, CrashReport, GuestError, Mailbox, Registers};
use host::processors;

/// How long a vCPU that was told to leave the guest may take to say where it was: a signal's way to its thread, which
/// takes long only where the host does not let that thread run.
const REPORT_PATIENCE: Duration = Duration::from_secs(30);

/// One vCPU: its mailbox, and its thread.
#[derive(Debug)]
pub struct Vcpu {
    mailbox: Arc<Mailbox>,
    /// Set to make the thread report where it is and end.
    report: Arc<AtomicBool>,
    surroundings: Arc<Surroundings>,
    /// Gives the vCPU back.
    thread: Option<Thread<GuestCpu>>,
}

impl Vcpu {
    /// Starts a thread that runs `fd` as vCPU `index`.
    ///
    /// # Errors
    /// The system has no room for another thread.
    pub fn start(index: u32, fd: GuestCpu, area: Area, surroundings: Arc<Surroundings>) -> io::Result<Self> {
        Self::run(fd, false, Mailbox::new(index, area), surroundings, None)
    }

    /// The same, of a vCPU that had reported for work before its state was taken: it enters the guest with its first
    /// order, on this processor if it may.
    ///
    /// # Errors
    /// The system has no room for another thread.
    pub fn resume(
        index: u32,
        fd: GuestCpu,
        area: Area,
        surroundings: Arc<Surroundings>,
        processor: Option<usize>,
    ) -> io::Result<Self> {
        Self::run(fd, true, Mailbox::resumed(index, area), surroundings, processor)
    }

    fn run(
        fd: GuestCpu,
        up: bool,
        mailbox: Mailbox,
        surroundings: Arc<Surroundings>,
        processor: Option<usize>,
    ) -> io::Result<Self> {
        sys::prepare_signal()?;
        let (name, mailbox) = (format!("vcpu{}", mailbox.vcpu()), Arc::new(mailbox));
        let report = Arc::new(AtomicBool::new(false));
        let runner = Runner {
            fd,
            up,
            processor,
            mailbox: mailbox.clone(),
            report: report.clone(),
            surroundings: surroundings.clone(),
        };
        let thread = Thread::start(name, move || runner.run())?;
        Ok(Self { mailbox, report, surroundings, thread: Some(thread) })
    }

    /// The thread that runs it, so that it can be given a processor; `None` before it has begun.
    pub fn thread(&self) -> Option<Pid> {
        self.surroundings.gate.thread(self.mailbox.vcpu())
    }

    /// The way to give it orders.
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// Waits for the order's end as [`Mailbox::wait`] does; a vCPU that gives no sign of life is stopped and
    /// asked where it is.
    ///
    /// # Errors
    /// As [`Mailbox::wait`], but silence ends in a report with registers.
    pub fn wait(&self, patience: Duration) -> Result<Outcome, GuestError> {
        match self.mailbox.wait(patience) {
            Err(GuestError::Silent { .. }) => {
                self.report.store(true, Ordering::SeqCst);
                self.surroundings.gate.kick(self.mailbox.vcpu());
                self.mailbox.wait(REPORT_PATIENCE).map_err(|error| match error {
                    GuestError::Silent { vcpu, waited, .. } => {
                        let what =
                            format!("vCPU {vcpu}, silent for {} s, to say where it is", patience.as_secs());
                        GuestError::Overdue(Overdue::from_thread(what, waited, self.thread_number()))
                    }
                    error => error,
                })
            }
            result => result,
        }
    }
}

impl Vcpu {
    /// Ends the thread, and gives its vCPU back as it left the guest. `None` if the thread panicked, or does not end:
    /// either has been said.
    pub fn stop(mut self) -> Option<GuestCpu> {
        self.quit();
        match self.thread.take()?.end(END) {
            Ok(ended) => ended.ok(),
            Err(overdue) => {
                overdue.tell();
                None
            }
        }
    }

    /// Tells the thread to end, and does not wait for it: whoever ends several tells all of them first.
    pub fn quit(&mut self) {
        self.mailbox.quit();
        self.surroundings.gate.kick(self.mailbox.vcpu());
        self.thread.iter_mut().for_each(Thread::told);
    }

    fn thread_number(&self) -> i32 {
        self.thread().map_or(0, |thread| thread.as_raw_nonzero().get())
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
struct Runner {
    fd: GuestCpu,
    /// Whether the guest has reported for work.
    up: bool,
    /// Where to run; anywhere if nobody says.
    processor: Option<usize>,
    mailbox: Arc<Mailbox>,
    report: Arc<AtomicBool>,
    surroundings: Arc<Surroundings>,
}

impl Runner {
    fn run(mut self) -> GuestCpu {
        if let Some(processor) = self.processor {
            processors::seat(rustix::thread::gettid(), processor);
        }
        let immediate_exit = &raw mut self.fd.file_mut().get_kvm_run().immediate_exit;
        let surroundings = self.surroundings.clone();
        // SAFETY: the flag lies in the kvm_run page, mapped as long as the file, which this function gives back after it has
        // given up the seat.
        let seated = unsafe { surroundings.gate.sit(self.mailbox.vcpu(), immediate_exit) };
        if let Some(kind) = self.run_until_told(&seated) {
            let registers = registers(&self.fd);
            self.mailbox.fail(CrashReport { vcpu: self.mailbox.vcpu(), kind, registers });
        }
        drop(seated);
        self.fd
    }

    /// Runs the guest until it crashes, or until told to quit, which is `None`.
    fn run_until_told(&mut self, seated: &Seated<'_>) -> Option<CrashKind> {
        if self.up && !self.mailbox.first_order() {
            return None;
        }
        self.surroundings.note_first_entry();
        loop {
            let toggles = self.surroundings.window.ended();
            // Looked at after the vCPU counts as inside: whoever tells it something and kicks it finds it inside,
            // or is seen here.
            let told = || self.mailbox.quitting() || self.report.load(Ordering::SeqCst);
            let entered =
                seated.enter(|| if told() { Exit::Interrupted } else { exit::run(self.fd.file_mut()) });
            let exit = match entered {
                Ok(exit) => exit,
                Err(shut) => return Some(shut.clone()),
            };
            match exit::decide(exit, self.up, |gpa| self.surroundings.is_ram(gpa)) {
                Action::Again if self.mailbox.quitting() => return None,
                Action::Again if self.report.load(Ordering::SeqCst) => return Some(CrashKind::Silent),
                Action::Again => {}
                Action::NextOrder => {
                    self.up = true;
                    if !self.mailbox.next_order() {
                        return None;
                    }
                }
                Action::CheckHostFault => match self.surroundings.window.explains(toggles) {
                    Ok(true) => {}
                    Ok(false) => return Some(host_fault(&self.fd)),
                    Err(overdue) => return Some(CrashKind::Overdue(overdue)),
                },
                Action::Exception => {
                    return Some(CrashKind::Exception(self.mailbox.area().fault_frame()));
                }
                Action::Panic => return Some(CrashKind::Panic(self.message())),
                Action::Crash(kind) => return Some(kind),
            }
        }
    }

    fn message(&self) -> String {
        let (bytes, len) = self.mailbox.area().message();
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    }
}

/// What an `EFAULT` was that no toggle explains.
pub(super) fn host_fault(fd: &GuestCpu) -> CrashKind {
    fd.not_given().map_or(CrashKind::HostFault, CrashKind::HostLimit)
}

/// The vCPU's registers, if KVM still tells them.
pub(super) fn registers(fd: &VcpuFd) -> Option<Registers> {
    let (regs, sregs) = (fd.get_regs().ok()?, fd.get_sregs().ok()?);
    Some(Registers {
        rip: regs.rip,
        rsp: regs.rsp,
        rflags: regs.rflags,
        general: [
            regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.r8, regs.r9, regs.r10,
            regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ],
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        efer: sregs.efer,
        cs: sregs.cs.selector,
        ss: sregs.ss.selector,
    })
}

#[cfg(test)]
mod tests;
