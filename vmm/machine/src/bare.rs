//! A vCPU of the bare guest, and the meaning of its exits.
//!
//! ```text
//!   in guest ── doorbell: READY, DONE ──> Mailbox::next_order ── an order ──> in guest
//!   in guest ── any other exit ──> the mailbox fails, with the registers
//! ```

use std::io;
use std::sync::Arc;
use std::time::Duration;

use guest_abi::block::Outcome;
use guest_abi::layout::doorbell;
use rustix::thread::Pid;

use super::arch::{self, Exit, Space};
use super::memslots::GuestCpu;
use super::vcpu::{Exits, Next, Vcpu};
use super::vm_shared::VmShared;
use guest::{Area, CrashKind, CrashReport, GuestError, Mailbox};

/// How long a vCPU that was told to leave the guest may take to report its registers: a signal's way to its thread, which
/// takes long only where the host does not let that thread run.
const REPORT_PATIENCE: Duration = Duration::from_secs(30);

/// A vCPU of the bare guest: its mailbox, and its thread.
#[derive(Debug)]
pub struct BareVcpu {
    mailbox: Arc<Mailbox>,
    vcpu: Vcpu,
}

impl BareVcpu {
    /// Starts a thread that runs `cpu` as vCPU `index`, on this processor if it may. `up`: it had reported for work before
    /// its state was taken, and enters the guest with its first order.
    pub(super) fn start(
        index: u32,
        cpu: GuestCpu,
        area: Area,
        shared: Arc<VmShared>,
        up: bool,
        processor: Option<usize>,
    ) -> io::Result<Self> {
        let mailbox = Arc::new(if up { Mailbox::resumed(index, area) } else { Mailbox::new(index, area) });
        let exits = BareExits { mailbox: mailbox.clone(), up };
        Ok(Self { mailbox, vcpu: Vcpu::start(index, cpu, shared, exits, processor)? })
    }

    /// The thread that runs it, so that it can be given a processor; `None` before it has begun.
    pub fn thread(&self) -> Option<Pid> {
        self.vcpu.thread()
    }

    /// The way to give it orders.
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// Waits for the order's end as [`Mailbox::wait`] does. A vCPU that shows no progress is stopped and its registers are
    /// reported.
    ///
    /// # Errors
    /// As [`Mailbox::wait`], but silence ends in a report with registers.
    pub fn wait(&self, patience: Duration) -> Result<Outcome, GuestError> {
        match self.mailbox.wait(patience) {
            Err(GuestError::Silent { .. }) => {}
            result => return result,
        }
        let (vcpu, mailbox) = (self.mailbox.vcpu(), self.mailbox.clone());
        self.vcpu.end_with(move |fd| {
            mailbox.fail(CrashReport { vcpu, kind: CrashKind::Silent, registers: arch::registers(fd) });
        });
        self.mailbox.wait(REPORT_PATIENCE).map_err(|error| match error {
            GuestError::Silent { waited, .. } => {
                let what = format!(", silent for {} s, to say where it is", patience.as_secs());
                GuestError::Overdue(self.vcpu.overdue(&what, waited))
            }
            error => error,
        })
    }

    /// Tells the thread to end, and does not wait for it.
    pub(super) fn quit(&mut self) {
        self.mailbox.quit();
        self.vcpu.quit();
    }

    /// Ends the thread and returns its vCPU as it left the guest. `None` if the thread panicked, or does not end.
    pub(super) fn stop(mut self) -> Option<GuestCpu> {
        self.mailbox.quit();
        self.vcpu.stop()
    }
}

impl Drop for BareVcpu {
    /// The thread may be waiting for an order.
    fn drop(&mut self) {
        self.mailbox.quit();
    }
}

/// The meaning of an exit of the bare guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// The guest is up, or done with its order.
    NextOrder,
    /// Ring 0 caught an exception and left its frame.
    Exception,
    /// The guest panicked and left its message.
    Panic,
    /// The guest did what it must not do.
    Crash(CrashKind),
}

impl Action {
    /// `up` says whether the guest has reported for work, `is_ram` which guest physical addresses are its RAM.
    pub(super) fn of(exit: Exit<'_>, up: bool, is_ram: impl Fn(u64) -> bool) -> Self {
        if let Some(value) = arch::doorbell(&exit) {
            return match (value, up) {
                (doorbell::READY, false) | (doorbell::DONE, true) => Self::NextOrder,
                (doorbell::FAULT, _) => Self::Exception,
                (doorbell::PANIC, _) => Self::Panic,
                (other, _) => Self::Crash(CrashKind::Doorbell(other)),
            };
        }
        let no_device = |space, address: u64, write| match space {
            Space::Port => CrashKind::Port { port: address as u16, write },
            Space::Memory => CrashKind::NoMemory { gpa: address, write, promised: is_ram(address) },
        };
        Self::Crash(match exit {
            Exit::Read { space, address, .. } => no_device(space, address, false),
            Exit::Write { space, address, .. } => no_device(space, address, true),
            Exit::Crash(kind) => kind,
            other => CrashKind::Other(format!("an exit that is not handled: {other:?}")),
        })
    }
}

/// The exits of one vCPU.
struct BareExits {
    mailbox: Arc<Mailbox>,
    /// Whether the guest has reported for work.
    up: bool,
}

impl Exits for BareExits {
    const REPAIRS: bool = false;

    fn begin(&mut self) -> bool {
        !self.up || self.mailbox.first_order()
    }

    fn handle(&mut self, exit: Exit<'_>, is_ram: &dyn Fn(u64) -> bool) -> Next {
        match Action::of(exit, self.up, is_ram) {
            Action::NextOrder => {
                self.up = true;
                if self.mailbox.next_order() { Next::Enter } else { Next::Quit }
            }
            Action::Exception => Next::Crash(CrashKind::Exception(self.mailbox.area().fault_frame())),
            Action::Panic => {
                let (bytes, len) = self.mailbox.area().message();
                Next::Crash(CrashKind::Panic(String::from_utf8_lossy(&bytes[..len]).into_owned()))
            }
            Action::Crash(kind) => Next::Crash(kind),
        }
    }

    fn crashed(&mut self, report: CrashReport) {
        self.mailbox.fail(report);
    }
}

#[cfg(test)]
mod tests {
    use guest_abi::arch::DOORBELL_PORT;
    use guest_mem::waits::WAKE;

    use super::*;
    use crate::VmCore;
    use crate::testing::{about_to_run, bare_guest};

    fn port(address: u16, data: &[u8]) -> Exit<'_> {
        Exit::Write { space: Space::Port, address: address.into(), data }
    }

    fn action_of(exit: Exit<'_>, up: bool) -> Action {
        Action::of(exit, up, |gpa| gpa < 0x1000)
    }

    #[test]
    fn the_doorbell_means_what_the_protocol_says_at_that_point() {
        for (value, up, action) in [
            (doorbell::READY, false, Action::NextOrder),
            (doorbell::DONE, true, Action::NextOrder),
            (doorbell::READY, true, Action::Crash(CrashKind::Doorbell(1))),
            (doorbell::DONE, false, Action::Crash(CrashKind::Doorbell(2))),
            (99, true, Action::Crash(CrashKind::Doorbell(99))),
            (doorbell::FAULT, true, Action::Exception),
            (doorbell::PANIC, true, Action::Panic),
        ] {
            assert_eq!(action_of(port(DOORBELL_PORT, &[value]), up), action, "{value}, up: {up}");
        }
    }

    #[test]
    fn an_access_without_a_device_is_a_crash_that_names_the_place() {
        let write = |address| Exit::Write { space: Space::Memory, address, data: &[1] };
        for (gpa, promised) in [(0, true), (0x1000, false)] {
            let kind = CrashKind::NoMemory { gpa, write: true, promised };
            assert_eq!(action_of(write(gpa), true), Action::Crash(kind));
        }
        let read = Exit::Read { space: Space::Port, address: 0x60, data: &mut [0] };
        assert_eq!(action_of(read, true), Action::Crash(CrashKind::Port { port: 0x60, write: false }));
        assert_eq!(
            action_of(port(0x80, &[1]), true),
            Action::Crash(CrashKind::Port { port: 0x80, write: true })
        );
        assert!(matches!(action_of(Exit::Reset, true), Action::Crash(CrashKind::Other(_))));
    }

    /// A vCPU that runs this code, and how it fails.
    fn failure_of(code: &[u8], before: impl FnOnce(&Mailbox)) -> (CrashKind, VmCore) {
        let (core, cpu) = about_to_run(code);
        let area = core.control_area(0).unwrap();
        before(&Mailbox::new(0, core.control_area(0).unwrap()));
        let vcpu = BareVcpu::start(0, cpu, area, core.shared.clone(), false, None).unwrap();
        let Err(GuestError::Crashed(report)) = vcpu.wait(Duration::from_millis(200)) else {
            panic!("it runs")
        };
        assert!(report.registers.is_some(), "KVM gives them");
        (report.kind.clone(), core)
    }

    #[test]
    #[ignore = "needs: Kvm"]
    fn a_panic_is_reported_in_the_guests_words() {
        let [low, high] = DOORBELL_PORT.to_le_bytes();
        // mov dx, DOORBELL_PORT; mov al, PANIC; out dx, al
        let code = [0x66, 0xba, low, high, 0xb0, doorbell::PANIC, 0xee];
        let (kind, _core) = failure_of(&code, |mailbox| mailbox.area().push_message("out of cheese"));
        assert_eq!(kind, CrashKind::Panic("out of cheese".into()));
    }

    /// A guest that runs in a circle: jmp to itself.
    #[test]
    #[ignore = "needs: Kvm"]
    fn a_guest_without_progress_is_stopped_and_reported() {
        let (kind, _core) = failure_of(&[0xeb, 0xfe], |_| ());
        assert_eq!(kind, CrashKind::Silent);
    }

    /// The guest of a snapshot waits behind its doorbell: entered without an order, it would carry out one of its past.
    #[test]
    #[ignore = "needs: Kvm"]
    fn a_guest_that_goes_on_from_a_snapshot_is_entered_with_its_first_order() {
        let (core, _cpu) = about_to_run(&[0xf4]);
        let area = || core.control_area(0).unwrap();
        let mailbox = Arc::new(Mailbox::resumed(0, area()));
        mailbox.quit();
        assert!(!BareExits { mailbox, up: true }.begin());
        assert!(BareExits { mailbox: Arc::new(Mailbox::new(0, area())), up: false }.begin());
    }

    /// A thread that ran on would keep the guest's memory.
    #[test]
    #[ignore = "needs: Kvm"]
    fn a_machine_that_is_dropped_ends_its_threads() {
        let machine = bare_guest();
        let thread = machine.vcpus()[0].thread().expect("it is up").as_raw_nonzero().get();
        let name = std::fs::read_to_string(format!("/proc/self/task/{thread}/comm")).unwrap();
        assert_eq!(name, "vcpu0\n");
        let arena = Arc::downgrade(machine.core().arena());
        drop(machine);
        assert!(arena.upgrade().is_none());
    }

    /// Holding the vCPUs out of the guest ends no order.
    #[test]
    #[ignore = "needs: Kvm"]
    fn a_vcpu_that_is_only_held_goes_on() {
        let machine = bare_guest();
        crate::testing::submit_touch(&machine, None);
        let vcpu = &machine.vcpus()[0];
        let area = vcpu.mailbox().area();
        while area.touches() == 0 {
            vcpu.mailbox().alive().unwrap();
            std::thread::yield_now();
        }
        for _ in 0..20 {
            drop(machine.core().shared.gate.hold().unwrap());
        }
        area.request_stop();
        vcpu.wait(WAKE).expect("it is still at work, and stops now");
    }
}
