use guest_abi::layout::IMAGE_GPA;

use super::*;
use crate::arch::{Exit, Space, run};
use crate::testing::about_to_run;

#[test]
fn a_refused_msr_does_not_cost_the_others() {
    let all: Vec<_> = (0..200).map(|index| kvm_msr_entry { index, ..kvm_msr_entry::default() }).collect();
    let (mut taken, mut refused) = (Vec::new(), Vec::new());
    // One that stops at every multiple of 7, as KVM does: with the number of those before.
    let call = |batch: &mut Msrs| {
        let entries = batch.as_slice();
        let done = entries.iter().take_while(|msr| msr.index % 7 != 0).count();
        taken.extend(entries[..done].iter().map(|msr| msr.index));
        Ok(done)
    };
    each_msr(&all, 0, call, |msr| refused.push(msr.index)).unwrap();
    assert_eq!(taken, (0..200).filter(|index| index % 7 != 0).collect::<Vec<_>>());
    assert_eq!(refused, (0..200).filter(|index| index % 7 == 0).collect::<Vec<_>>());
}

#[test]
fn more_fpu_state_than_is_kept_is_refused() {
    for bytes in [0, 576, 4096] {
        check_xsave(bytes).unwrap();
    }
    assert!(matches!(check_xsave(4097), Err(StateError::LargeXsave { bytes: 4097 })));
}

#[test]
fn only_qemus_processor_is_told_that_its_tss_is_available() {
    let given = |hypervisor: &[u8; 12]| {
        let word = |at| u32::from_le_bytes(std::array::from_fn(|byte| hypervisor[at + byte]));
        let leaf = CpuidResult { eax: 0, ebx: word(0), ecx: word(4), edx: word(8) };
        let mut sregs = kvm_sregs::default();
        sregs.tr.type_ = 11;
        as_the_host_wants(sregs, &leaf).tr.type_
    };
    assert_eq!((given(b"TCGTCGTCGTCG"), given(b"KVMKVMKVM\0\0\0"), given(&[0; 12])), (9, 11, 11));
}

/// KVM completes a read of a port when the vCPU enters again, and only then is RIP behind the instruction.
#[test]
#[ignore = "needs: Kvm"]
fn a_vcpu_comes_to_rest_behind_its_last_exit() {
    // in al, 0x60; then in a circle
    let (_core, mut vcpu) = about_to_run(&[0xe4, 0x60, 0xeb, 0xfe]);
    let left = run(vcpu.file_mut());
    assert!(matches!(left, Exit::Read { space: Space::Port, address: 0x60, .. }), "{left:?}");
    come_to_rest(vcpu.file_mut(), 0).unwrap();
    assert_eq!(vcpu.get_regs().unwrap().rip, IMAGE_GPA + 2);
    // KVM_RUN fails for another reason than that it was to be left at once.
    vcpu.file_mut().get_kvm_run().kvm_valid_regs = u64::MAX;
    let error = come_to_rest(vcpu.file_mut(), 0).unwrap_err();
    assert!(matches!(error, StateError::NotAtRest { vcpu: 0, .. }), "{error}");
}

#[test]
#[ignore = "needs: Kvm"]
fn a_vcpu_is_offered_what_its_guest_sees() {
    let kvm = Kvm::open().unwrap();
    let (_core, vcpu) = about_to_run(&[]);
    let offered = offered_cpuid(&kvm, &vcpu, 0).unwrap();
    assert_eq!(offered, vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap().as_slice());
    let first = offered.iter().find(|leaf| leaf.function == 0).expect("every processor has leaf 0");
    assert!(first.eax >= 1 && first.ebx != 0, "{first:?}");
}

/// STAR, LSTAR, and the base that `swapgs` exchanges: each with a value that KVM takes.
const MSRS: [(u32, u64); 3] = [
    (0xc000_0081, 0x0023_0010_0000_0000),
    (0xc000_0082, 0xffff_8000_1234_5678),
    (0xc000_0102, 0x7f00_1234_5000),
];

fn entries(values: &[(u32, u64)]) -> Vec<kvm_msr_entry> {
    values.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..kvm_msr_entry::default() }).collect()
}

#[test]
#[ignore = "needs: Kvm"]
fn a_vcpu_that_is_given_a_state_has_it() {
    let kvm = Kvm::open().unwrap();
    let complain = &mut |missing| panic!("{missing}");
    let ((_core, vcpu), (_other_core, other)) = (about_to_run(&[]), about_to_run(&[0xf4]));
    give_msrs(&vcpu, &entries(&MSRS), 0, complain).unwrap();
    let regs = kvm_regs { rip: IMAGE_GPA + 7, rax: 0x1234_5678, r15: 15, ..vcpu.get_regs().unwrap() };
    vcpu.set_regs(&regs).unwrap();
    let mut missing = Vec::new();
    let taken = VcpuState::take(&kvm, &vcpu, 0, &mut |what| missing.push(what)).unwrap();
    taken.give(&kvm, &other, 0, complain).unwrap();

    let mut now = Msrs::from_entries(&entries(&MSRS.map(|(index, _)| (index, 0)))).unwrap();
    assert_eq!(other.get_msrs(&mut now).unwrap(), MSRS.len());
    assert_eq!(now.as_slice(), entries(&MSRS));
    assert_eq!((other.get_regs().unwrap(), other.get_sregs().unwrap()), (taken.regs, taken.sregs));
    let listed = kvm.get_msr_index_list().unwrap().as_slice().len();
    let not_given = missing.iter().filter(|what| what.starts_with("MSR ")).count();
    assert_eq!(taken.msrs.len() + not_given, listed);
}

/// No KVM has MSR 0x4000_fff0: it lies in the range reserved for hypervisors, and none defines it.
#[test]
#[ignore = "needs: Kvm"]
fn an_msr_that_cannot_be_given_is_missing() {
    let (_core, vcpu) = about_to_run(&[]);
    let mut missing = Vec::new();
    // KVM leaves 0 for what it does not know, which is not to be taken for the value.
    let unknown = (0x4000_fff0, 0);
    give_msrs(&vcpu, &entries(&[MSRS[0], unknown, MSRS[1]]), 3, &mut |what| missing.push(what)).unwrap();
    assert_eq!(missing, ["MSR 0x4000fff0 of vCPU 3 stays other than 0x0"]);
    let mut now = Msrs::from_entries(&entries(&[(MSRS[1].0, 0)])).unwrap();
    vcpu.get_msrs(&mut now).unwrap();
    assert_eq!(now.as_slice()[0].data, MSRS[1].1, "what comes behind it is given");
}
