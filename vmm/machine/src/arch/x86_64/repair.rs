//! Instructions that KVM's emulator lacks and Linux cannot do without at boot, done in its place.
//!
//! On a KVM that emulates ring 0 (kvm_pvm) they come back as emulation failures. `int3`: Linux patches its own text
//! through it and tests the way at boot; the processor raises #BP, a trap, with the instruction pointer behind the
//! instruction. `fwait`: Linux waits for its first use of the FPU; with every x87 exception masked, as it is after a
//! reset, there is nothing to wait for.

use kvm_ioctls::VcpuFd;

const INT3: u8 = 0xcc;
const FWAIT: u8 = 0x9b;
const BREAKPOINT: u8 = 3;

/// The effect of an instruction on the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Breakpoint,
    Nothing,
}

fn effect(instruction: &[u8]) -> Option<Effect> {
    match *instruction.first()? {
        INT3 => Some(Effect::Breakpoint),
        FWAIT => Some(Effect::Nothing),
        _ => None,
    }
}

/// Carries the instruction out as the processor would. `None` if it has no known `Effect`, or if KVM refuses.
pub fn repair(fd: &VcpuFd, instruction: &[u8]) -> Option<()> {
    let effect = effect(instruction)?;
    let mut regs = fd.get_regs().ok()?;
    // Both are one byte long, and a trap saves the address of the next instruction.
    regs.rip = regs.rip.wrapping_add(1);
    fd.set_regs(&regs).ok()?;
    if effect == Effect::Breakpoint {
        let mut events = fd.get_vcpu_events().ok()?;
        events.exception.injected = 1;
        events.exception.nr = BREAKPOINT;
        events.exception.has_error_code = 0;
        fd.set_vcpu_events(&events).ok()?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Exit, run};
    use crate::testing::about_to_run;
    use guest::CrashKind;

    #[test]
    fn only_what_is_known_is_repaired() {
        assert_eq!(effect(&[0xcc, 0x90]), Some(Effect::Breakpoint));
        assert_eq!(effect(&[0x9b, 0x31, 0xc0]), Some(Effect::Nothing));
        assert_eq!(effect(&[0x0f, 0xae]), None);
        assert_eq!(effect(&[]), None);
    }

    /// A guest without an IDT dies of an exception, and else comes to its `hlt`.
    #[test]
    #[ignore = "needs: Kvm"]
    fn both_are_passed_and_only_int3_traps() {
        for (instruction, then) in [(INT3, CrashKind::TripleFault), (FWAIT, CrashKind::Halted)] {
            let (_core, mut vcpu) = about_to_run(&[instruction, 0xf4]);
            let at = vcpu.get_regs().unwrap().rip;
            repair(&vcpu, &[instruction]).unwrap();
            assert_eq!(vcpu.get_regs().unwrap().rip, at + 1);
            assert_eq!(run(vcpu.file_mut()), Exit::Crash(then));
        }
    }
}
