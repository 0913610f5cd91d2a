//! A new VM: its quirks and capabilities.

use kvm_bindings::{KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL, kvm_enable_cap};
use kvm_ioctls::{Cap, VmFd};

use super::quirks::{SLOT_ZAP_QUIRK, can_be_limited, quirks};
use crate::Kvm;
use crate::vm_error::{VmError, failed};

/// Where Intel's KVM may keep its task state for guests in real mode; below the 4 GiB line, above all RAM.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// A VM without memory. Returns also whether a slot's zap drops everything.
pub(crate) fn create(kvm: &Kvm, keep_quirk: bool) -> Result<(VmFd, bool), VmError> {
    let vm = kvm.create_vm()?;
    let slot_zap_drops_all = set_quirk(&vm, keep_quirk)?;
    if vm.check_extension(Cap::SetTssAddr) {
        vm.set_tss_address(TSS_ADDRESS).map_err(failed("KVM_SET_TSS_ADDR"))?;
    }
    report_failed_instructions(&vm);
    Ok((vm, slot_zap_drops_all))
}

/// Sets the slot-zap quirk as asked. Returns whether a slot's zap drops everything.
fn set_quirk(vm: &VmFd, keep: bool) -> Result<bool, VmError> {
    if keep {
        return Ok(true);
    }
    if !can_be_limited(quirks(vm)) {
        return Err(VmError::QuirkStays(SLOT_ZAP_QUIRK));
    }
    let cap = capability(KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL.into());
    vm.enable_cap(&cap).map_err(failed("KVM_ENABLE_CAP(KVM_CAP_DISABLE_QUIRKS2)"))?;
    Ok(false)
}

/// Asks for the bytes of instructions that KVM cannot emulate. Without the capability a report lacks them.
fn report_failed_instructions(vm: &VmFd) {
    let _ = vm.enable_cap(&capability(kvm_bindings::KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1));
}

fn capability(cap: u32, argument: u64) -> kvm_enable_cap {
    kvm_enable_cap { cap, args: [argument, 0, 0, 0], ..kvm_enable_cap::default() }
}

#[cfg(test)]
mod tests {
    use guest_mem::Gpa;

    use crate::arch::{Exit, internal_error, run};
    use crate::testing::{about_to_run, in_ring_3};
    use guest::GuestRam;

    /// In ring 3, where a KVM that was not asked gives the guest #UD instead. (kvm_pvm tells it either way.)
    #[test]
    #[ignore = "needs: Kvm"]
    fn an_instruction_that_kvm_cannot_emulate_is_told() {
        // mov edi, 0x7000_0000, where no memory is; popcnt eax, [rdi]; hlt
        let popcnt = [0xf3, 0x0f, 0xb8, 0x07];
        let code = [&[0xbf, 0, 0, 0, 0x70][..], &popcnt, &[0xf4]].concat();
        let (core, mut vcpu) = about_to_run(&[]);
        in_ring_3(&GuestRam::new([(Gpa::new(0), core.low()[0].clone())]), &vcpu, &code);
        assert_eq!(run(vcpu.file_mut()), Exit::InternalError);
        let (suberror, instruction) = internal_error(vcpu.file_mut().get_kvm_run());
        assert!(suberror == 1 && instruction.starts_with(&popcnt), "{suberror}: {instruction:x?}");
    }
}
