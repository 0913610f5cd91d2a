//! Decodes an exit: the content of the `kvm_run` page, in terms that all machines share.

use guest_abi::arch::DOORBELL_PORT;
use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};
use rustix::io::Errno;

use guest::CrashKind;

/// An address space that devices have registers in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    /// I/O ports.
    Port,
    /// Guest physical addresses without a memslot.
    Memory,
}

/// Why a vCPU left the guest. The data of an access lies in the `kvm_run` page.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Exit<'a> {
    /// The guest reads from a device.
    Read { space: Space, address: u64, data: &'a mut [u8] },
    /// The guest writes to a device.
    Write { space: Space, address: u64, data: &'a [u8] },
    /// A signal, or `immediate_exit`.
    Interrupted,
    /// `EFAULT`: KVM could not reach the host memory behind a guest address.
    HostFault,
    /// `KVM_EXIT_INTERNAL_ERROR`; [`internal_error`] has the details.
    InternalError,
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// Anything else ends every guest.
    Crash(CrashKind),
}

/// The byte that the bare guest rings its doorbell with, if the exit is a ring.
pub(crate) fn doorbell(exit: &Exit<'_>) -> Option<u8> {
    match exit {
        Exit::Write { space: Space::Port, address, data } if *address == u64::from(DOORBELL_PORT) => {
            Some(data.first().copied().unwrap_or(0))
        }
        _ => None,
    }
}

/// Runs the vCPU until it leaves the guest.
pub(crate) fn run(vcpu: &mut VcpuFd) -> Exit<'_> {
    use Space::{Memory, Port};
    match vcpu.run() {
        Ok(VcpuExit::IoIn(port, data)) => Exit::Read { space: Port, address: port.into(), data },
        Ok(VcpuExit::IoOut(port, data)) => Exit::Write { space: Port, address: port.into(), data },
        Ok(VcpuExit::MmioRead(address, data)) => Exit::Read { space: Memory, address, data },
        Ok(VcpuExit::MmioWrite(address, data)) => Exit::Write { space: Memory, address, data },
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => Exit::Interrupted,
        Ok(VcpuExit::MemoryFault { .. }) => Exit::HostFault,
        Ok(VcpuExit::InternalError) => Exit::InternalError,
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => Exit::PowerOff,
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => Exit::Reset,
        Ok(VcpuExit::Hlt) => Exit::Crash(CrashKind::Halted),
        Ok(VcpuExit::Shutdown) => Exit::Crash(CrashKind::TripleFault),
        Ok(VcpuExit::FailEntry(reason, _)) => Exit::Crash(CrashKind::FailEntry { reason }),
        Ok(other) => Exit::Crash(CrashKind::Other(format!("an exit that is not handled: {other:?}"))),
        Err(error) => match error.errno() {
            libc::EINTR | libc::EAGAIN => Exit::Interrupted,
            libc::EFAULT => Exit::HostFault,
            errno => Exit::Crash(CrashKind::NoEntry(Errno::from_raw_os_error(errno))),
        },
    }
}

/// Bit 0 of `emulation_failure.flags`: the instruction's bytes are there.
const HAS_INSTRUCTION_BYTES: u64 = 1;

/// KVM's sub-error, and the instruction if KVM gave it. `run` says `KVM_EXIT_INTERNAL_ERROR`.
pub(crate) fn internal_error(run: &kvm_run) -> (u32, Vec<u8>) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::about_to_run;

    /// The page as KVM writes it for a failed emulation of `ud2`, with one change.
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
        assert_eq!(run(vcpu.file_mut()), Exit::Crash(CrashKind::Halted));
    }
}
