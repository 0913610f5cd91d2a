//! What KVM offers for telling zaps apart and for counting them.

use kvm_bindings::{
    KVM_CAP_BINARY_STATS_FD, KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_IMMEDIATE_EXIT,
    KVM_CAP_MEMORY_FAULT_INFO, KVM_CAP_NR_MEMSLOTS,
};
use kvm_ioctls::VmFd;
use machine::{Kvm, SLOT_ZAP_QUIRK, can_be_limited};

use super::finding::Finding;
use host::kvm_stats::KvmStats;

/// Statistics whose absence costs a column of the report.
const VM_STATS: [&str; 5] = ["pages_4k", "pages_2m", "pages_1g", "mmu_shadow_zapped", "remote_tlb_flush"];
const VCPU_STATS: [&str; 2] = ["pf_taken", "pf_fixed"];

/// 256 MiB in slots of 64 KiB, plus the guest's own: fewer limit how finely a listener can zap.
const USEFUL_MEMSLOTS: i32 = 4096;

/// KVM's answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answers {
    /// `None`: no VM could be made.
    vm: Option<VmAnswers>,
    error: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct VmAnswers {
    quirks: i32,
    memslots: i32,
    stats: bool,
    emulation_exit: bool,
    immediate_exit: bool,
    memory_fault_info: bool,
    vm_stats: Vec<String>,
    vcpu_stats: Vec<String>,
}

pub(super) fn probe() -> Answers {
    let made = Kvm::open().and_then(|kvm| kvm.create_vm());
    match made {
        Ok(vm) => Answers { vm: Some(ask(&vm)), error: None },
        Err(error) => Answers { vm: None, error: Some(error.to_string()) },
    }
}

fn ask(vm: &VmFd) -> VmAnswers {
    let value = |capability: u32| vm.check_extension_raw(capability.into());
    let has = |capability: u32| value(capability) > 0;
    let names = |stats: KvmStats| stats.names().map(str::to_owned).collect();
    VmAnswers {
        quirks: machine::quirks(vm),
        memslots: value(KVM_CAP_NR_MEMSLOTS),
        stats: has(KVM_CAP_BINARY_STATS_FD),
        emulation_exit: has(KVM_CAP_EXIT_ON_EMULATION_FAILURE),
        immediate_exit: has(KVM_CAP_IMMEDIATE_EXIT),
        memory_fault_info: has(KVM_CAP_MEMORY_FAULT_INFO),
        vm_stats: KvmStats::of(vm).map(names).unwrap_or_default(),
        vcpu_stats: vm
            .create_vcpu(0)
            .ok()
            .and_then(|vcpu| KvmStats::of(&vcpu).ok())
            .map(names)
            .unwrap_or_default(),
    }
}

pub(super) fn judge(answers: &Answers) -> Vec<Finding> {
    let Some(vm) = &answers.vm else {
        let why = answers.error.as_deref().unwrap_or("no reason given");
        return vec![Finding::cannot("virtual machine", format!("KVM makes none: {why}"))];
    };
    vec![
        judge_quirk(vm.quirks),
        judge_memslots(vm.memslots),
        judge_statistics("VM statistics", vm.stats, &VM_STATS, &vm.vm_stats),
        judge_statistics("vCPU statistics", vm.stats, &VCPU_STATS, &vm.vcpu_stats),
        judge_emulation(vm.emulation_exit),
        judge_immediate_exit(vm.immediate_exit),
        judge_fault_info(vm.memory_fault_info),
    ]
}

fn judge_quirk(mask: i32) -> Finding {
    const SUBJECT: &str = "one slot zapped alone";
    if can_be_limited(mask) {
        return Finding::can(SUBJECT, format!("{SLOT_ZAP_QUIRK} can be disabled (mask {mask:#x})"));
    }
    let why = if mask > 0 { format!("the quirk mask is {mask:#x}") } else { "no quirk mask".to_owned() };
    Finding::limited(
        SUBJECT,
        format!("{why}: deleting a slot drops every SPTE of the VM, so each policy costs what `vm` costs"),
    )
    .remedy("a host kernel of 6.12 or later")
}

fn judge_memslots(count: i32) -> Finding {
    let detail = format!("{count} slots a VM");
    if count >= USEFUL_MEMSLOTS {
        return Finding::can("memslots", detail);
    }
    Finding::limited("memslots", format!("{detail}: slots must be wide, and a zap takes a whole slot"))
        .remedy("a host kernel of 5.12 or later")
}

fn judge_statistics(subject: &str, has: bool, wanted: &[&str], names: &[String]) -> Finding {
    if !has {
        return Finding::cannot(subject, "no KVM_GET_STATS_FD: SPTE counts will be null")
            .remedy("a host kernel of 5.14 or later");
    }
    let (there, missing): (Vec<&str>, Vec<&str>) =
        wanted.iter().copied().partition(|wanted| names.iter().any(|name| name == wanted));
    let there = there.join(", ");
    if missing.is_empty() {
        return Finding::can(subject, there);
    }
    Finding::limited(subject, format!("has [{there}], lacks {}: those columns are null", missing.join(", ")))
        .remedy("a newer host kernel")
}

fn judge_emulation(has: bool) -> Finding {
    const SUBJECT: &str = "emulation failures";
    if has {
        return Finding::can(SUBJECT, "the bytes of an instruction KVM cannot emulate are shown");
    }
    Finding::limited(SUBJECT, "only that one happened is shown, not the instruction")
        .remedy("a host kernel of 5.14 or later")
}

fn judge_immediate_exit(has: bool) -> Finding {
    const SUBJECT: &str = "vCPU stop";
    if has {
        return Finding::can(SUBJECT, "immediate_exit: a vCPU is stopped without a lost signal");
    }
    Finding::cannot(SUBJECT, "no immediate_exit: vCPUs cannot be stopped reliably around a zap")
        .remedy("a host kernel of 4.13 or later")
}

fn judge_fault_info(has: bool) -> Finding {
    const SUBJECT: &str = "memory fault exits";
    if has {
        return Finding::can(SUBJECT, "KVM_CAP_MEMORY_FAULT_INFO: a fault KVM gives up on names its address");
    }
    Finding::limited(SUBJECT, "a fault KVM gives up on ends KVM_RUN with EFAULT and no address")
        .remedy("a host kernel of 6.8 or later")
}

/// One finding of each kind that has a remedy.
#[cfg(test)]
pub(super) fn samples() -> Vec<Finding> {
    judge(&Answers { vm: Some(VmAnswers { memslots: 509, ..VmAnswers::default() }), error: None })
        .into_iter()
        .chain([judge_statistics("VM statistics", true, &VM_STATS, &[])])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn modern() -> VmAnswers {
        VmAnswers {
            quirks: 0xff,
            memslots: 32_764,
            stats: true,
            emulation_exit: true,
            immediate_exit: true,
            memory_fault_info: true,
            vm_stats: VM_STATS.map(str::to_owned).to_vec(),
            vcpu_stats: ["pf_taken", "pf_fixed", "halt_exits"].map(str::to_owned).to_vec(),
        }
    }

    fn verdicts(vm: VmAnswers) -> Vec<Verdict> {
        judge(&Answers { vm: Some(vm), error: None }).into_iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn a_modern_kernel_can_everything() {
        assert_eq!(verdicts(modern()), [Verdict::Can; 7]);
    }

    #[test]
    fn debian_twelve_zaps_all_slots() {
        // 6.1: quirks up to bit 6, no memory fault information.
        let vm = VmAnswers { quirks: 0x7f, memory_fault_info: false, ..modern() };
        let findings = judge(&Answers { vm: Some(vm), error: None });
        assert_eq!(findings[0].verdict, Verdict::Limited);
        assert!(findings[0].detail.contains("0x7f"), "{findings:?}");
        assert_eq!(findings[6].verdict, Verdict::Limited);
    }

    #[test]
    fn an_old_kernel_has_next_to_nothing() {
        let vm = VmAnswers { memslots: 509, ..VmAnswers::default() };
        assert_eq!(
            verdicts(vm),
            [
                Verdict::Limited,
                Verdict::Limited,
                Verdict::Cannot,
                Verdict::Cannot,
                Verdict::Limited,
                Verdict::Cannot,
                Verdict::Limited
            ]
        );
    }

    #[test]
    fn a_missing_statistic_is_named() {
        let names = ["pages_4k", "remote_tlb_flush"].map(str::to_owned);
        let finding = judge_statistics("VM statistics", true, &VM_STATS, &names);
        assert_eq!(finding.verdict, Verdict::Limited);
        assert!(finding.detail.contains("lacks pages_2m, pages_1g, mmu_shadow_zapped"), "{finding:?}");
    }

    #[test]
    fn no_vm_is_one_finding() {
        let findings = judge(&Answers { vm: None, error: Some("Device or resource busy".to_owned()) });
        assert_eq!(findings.len(), 1);
        assert!(findings[0].detail.contains("busy"));
    }
}
