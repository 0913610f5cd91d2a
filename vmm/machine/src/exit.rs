//! Why a vCPU left the guest, and what that means: a pure function of the captured exit.

use guest_abi::layout::{DOORBELL_PORT, doorbell};
use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};
use rustix::io::Errno;

use guest::CrashKind;

/// An exit, taken out of the `kvm_run` page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A write to an I/O port; the first byte of it.
    PortWrite(u16, u8),
    /// A read from an I/O port.
    PortRead(u16),
    /// An access to a guest physical address without a memslot.
    Mmio {
        /// The guest physical address.
        gpa: u64,
        /// Whether it was a write.
        write: bool,
    },
    /// A signal, or `immediate_exit`.
    Interrupted,
    /// `EFAULT`: KVM could not reach the host memory behind a guest address.
    HostFault,
    /// `KVM_EXIT_HLT`.
    Halt,
    /// `KVM_EXIT_SHUTDOWN`.
    Shutdown,
    /// `KVM_EXIT_INTERNAL_ERROR`.
    InternalError {
        /// KVM's sub-error.
        suberror: u32,
        /// The instruction, if KVM gave it.
        instruction: Vec<u8>,
    },
    /// `KVM_EXIT_FAIL_ENTRY`.
    FailEntry(u64),
    /// `KVM_RUN` failed.
    Refused(Errno),
    /// Anything else, as text.
    Other(String),
}

/// What the vCPU thread does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Enter the guest again.
    Again,
    /// The guest is up, or done with its order: look for the next.
    NextOrder,
    /// Find out whether the VMM itself took the memory away for a moment.
    CheckHostFault,
    /// Read the exception frame and give up.
    Exception,
    /// Read the panic message and give up.
    Panic,
    /// Give up.
    Crash(CrashKind),
}

/// Runs the vCPU until it leaves the guest.
pub fn run(vcpu: &mut VcpuFd) -> Exit {
    match vcpu.run() {
        Ok(VcpuExit::IoOut(port, data)) => Exit::PortWrite(port, data.first().copied().unwrap_or(0)),
        Ok(VcpuExit::IoIn(port, _)) => Exit::PortRead(port),
        Ok(VcpuExit::MmioRead(gpa, _)) => Exit::Mmio { gpa, write: false },
        Ok(VcpuExit::MmioWrite(gpa, _)) => Exit::Mmio { gpa, write: true },
        Ok(VcpuExit::Intr) => Exit::Interrupted,
        Ok(VcpuExit::Hlt) => Exit::Halt,
        Ok(VcpuExit::Shutdown) => Exit::Shutdown,
        Ok(VcpuExit::FailEntry(reason, _)) => Exit::FailEntry(reason),
        Ok(VcpuExit::InternalError) => {
            let (suberror, instruction) = internal_error(vcpu.get_kvm_run());
            Exit::InternalError { suberror, instruction }
        }
        Ok(VcpuExit::MemoryFault { .. }) => Exit::HostFault,
        Ok(other) => Exit::Other(format!("an exit that nobody handles: {other:?}")),
        Err(error) => match error.errno() {
            libc::EINTR | libc::EAGAIN => Exit::Interrupted,
            libc::EFAULT => Exit::HostFault,
            errno => Exit::Refused(Errno::from_raw_os_error(errno)),
        },
    }
}

/// Bit 0 of `emulation_failure.flags`: the instruction's bytes are there.
const HAS_INSTRUCTION_BYTES: u64 = 1;

/// KVM's sub-error, and the instruction if KVM gave it. `run` says `KVM_EXIT_INTERNAL_ERROR`.
pub(super) fn internal_error(run: &kvm_run) -> (u32, Vec<u8>) {
    // SAFETY: KVM_EXIT_INTERNAL_ERROR says that this member of the union is filled.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    // SAFETY: its extension for emulation failures; integers, so any content is a value.
    let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
    let instruction = if internal.suberror == kvm_bindings::KVM_INTERNAL_ERROR_EMULATION
        && internal.ndata >= 1
        && failure.flags & HAS_INSTRUCTION_BYTES != 0
    {
        // SAFETY: the flag says that the instruction is the member of this inner union that is filled.
        let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
        let len = usize::from(instruction.insn_size).min(instruction.insn_bytes.len());
        instruction.insn_bytes[..len].to_vec()
    } else {
        Vec::new()
    };
    (internal.suberror, instruction)
}

/// What an exit means. `up` says whether the guest has reported for work, `is_ram` which guest physical
/// addresses were promised to be memory.
pub fn decide(exit: Exit, up: bool, is_ram: impl Fn(u64) -> bool) -> Action {
    match exit {
        Exit::Interrupted => Action::Again,
        Exit::HostFault => Action::CheckHostFault,
        Exit::PortWrite(DOORBELL_PORT, value) => match (value, up) {
            (doorbell::READY, false) | (doorbell::DONE, true) => Action::NextOrder,
            (doorbell::FAULT, _) => Action::Exception,
            (doorbell::PANIC, _) => Action::Panic,
            (other, _) => Action::Crash(CrashKind::Doorbell(other)),
        },
        Exit::PortWrite(port, _) => Action::Crash(CrashKind::Port { port, write: true }),
        Exit::PortRead(port) => Action::Crash(CrashKind::Port { port, write: false }),
        Exit::Mmio { gpa, write } => Action::Crash(CrashKind::NoMemory { gpa, write, promised: is_ram(gpa) }),
        Exit::Halt => Action::Crash(CrashKind::Halted),
        Exit::Shutdown => Action::Crash(CrashKind::TripleFault),
        Exit::InternalError { suberror, instruction } => {
            Action::Crash(CrashKind::InternalError { suberror, instruction })
        }
        Exit::FailEntry(reason) => Action::Crash(CrashKind::FailEntry { reason }),
        Exit::Refused(errno) => Action::Crash(CrashKind::NoEntry(errno)),
        Exit::Other(what) => Action::Crash(CrashKind::Other(what)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::about_to_run;

    fn decide_up(exit: Exit) -> Action {
        decide(exit, true, |gpa| gpa < 0x1000)
    }

    #[test]
    fn the_doorbell_means_what_the_protocol_says_at_that_point() {
        let ring = |value| Exit::PortWrite(DOORBELL_PORT, value);
        assert_eq!(decide(ring(doorbell::READY), false, |_| false), Action::NextOrder);
        assert_eq!(decide_up(ring(doorbell::DONE)), Action::NextOrder);
        assert_eq!(decide_up(ring(doorbell::READY)), Action::Crash(CrashKind::Doorbell(1)));
        assert_eq!(decide(ring(doorbell::DONE), false, |_| false), Action::Crash(CrashKind::Doorbell(2)));
        assert_eq!(decide_up(ring(99)), Action::Crash(CrashKind::Doorbell(99)));
        assert_eq!(decide_up(ring(doorbell::FAULT)), Action::Exception);
        assert_eq!(decide_up(ring(doorbell::PANIC)), Action::Panic);
    }

    /// What KVM writes for a failed emulation of `ud2`, with one word changed.
    fn failed(change: impl FnOnce(&mut kvm_run)) -> (u32, Vec<u8>) {
        let mut run = kvm_run { exit_reason: kvm_bindings::KVM_EXIT_INTERNAL_ERROR, ..kvm_run::default() };
        let failure = kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_14 {
            suberror: kvm_bindings::KVM_INTERNAL_ERROR_EMULATION,
            ndata: 3,
            flags: HAS_INSTRUCTION_BYTES,
            ..Default::default()
        };
        run.__bindgen_anon_1.emulation_failure = failure;
        with_instruction(&mut run, 2);
        change(&mut run);
        internal_error(&run)
    }

    /// `ud2`, said to be so long.
    fn with_instruction(run: &mut kvm_run, insn_size: u8) {
        let mut insn_bytes = [0xcc; 15];
        insn_bytes[..2].copy_from_slice(&[0x0f, 0x0b]);
        run.__bindgen_anon_1.emulation_failure.__bindgen_anon_1.__bindgen_anon_1 =
            kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_14__bindgen_ty_1__bindgen_ty_1 {
                insn_size,
                insn_bytes,
            };
    }

    #[test]
    fn an_instruction_is_told_if_kvm_gave_it() {
        assert_eq!(failed(|_| ()), (1, vec![0x0f, 0x0b]));
        assert_eq!(failed(|run| with_instruction(run, 0xff)).1.len(), 15, "no more than there is room for");
        assert_eq!(failed(|run| run.__bindgen_anon_1.emulation_failure.ndata = 1).1.len(), 2);
        // Another error has none, and neither has an older KVM, which gives no words or leaves the flag clear.
        assert_eq!(failed(|run| run.__bindgen_anon_1.emulation_failure.suberror = 2), (2, vec![]));
        assert_eq!(failed(|run| run.__bindgen_anon_1.emulation_failure.ndata = 0), (1, vec![]));
        assert_eq!(
            failed(|run| run.__bindgen_anon_1.emulation_failure.flags = !HAS_INSTRUCTION_BYTES),
            (1, vec![])
        );
    }

    #[test]
    #[ignore = "needs: Kvm"]
    fn a_vcpu_that_is_kicked_is_interrupted() {
        let (_core, mut vcpu) = about_to_run(&[0xf4]);
        vcpu.file_mut().set_kvm_immediate_exit(1);
        assert_eq!(run(vcpu.file_mut()), Exit::Interrupted);
        vcpu.file_mut().set_kvm_immediate_exit(0);
        assert_eq!(run(vcpu.file_mut()), Exit::Halt);
    }

    #[test]
    fn mmio_tells_a_hole_of_ours_from_a_wild_access() {
        for (gpa, promised) in [(0, true), (0x1000, false)] {
            let action = decide_up(Exit::Mmio { gpa, write: true });
            assert_eq!(action, Action::Crash(CrashKind::NoMemory { gpa, write: true, promised }));
        }
    }

    #[test]
    fn every_other_exit_ends_in_a_report() {
        for exit in [
            Exit::Halt,
            Exit::Shutdown,
            Exit::PortRead(0x60),
            Exit::PortWrite(0x80, 1),
            Exit::FailEntry(1),
            Exit::InternalError { suberror: 1, instruction: vec![0x0f, 0x0b] },
            Exit::Refused(Errno::NOMEM),
            Exit::Other(String::new()),
        ] {
            assert!(matches!(decide_up(exit.clone()), Action::Crash(_)), "{exit:?}");
        }
    }
}
