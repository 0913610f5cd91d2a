//! `/dev/kvm`: whether it is there, whether we may use it, and which KVM is behind it.

use rustix::io::Errno;

use super::finding::Finding;
use host::kvm_module::{KvmFacts, MmuKind};
use machine::{Kvm, NoKvm};

const DEVICE: &str = "/dev/kvm";

/// What was found at `/dev/kvm`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    opened: Result<(), NoKvm>,
    kvm: KvmFacts,
}

impl Device {
    pub(super) fn is_open(&self) -> bool {
        self.opened.is_ok()
    }
}

pub(super) fn probe(kvm: &KvmFacts) -> Device {
    Device { opened: Kvm::open().map(drop), kvm: kvm.clone() }
}

pub(super) fn judge(device: &Device) -> Vec<Finding> {
    let open = match &device.opened {
        Ok(()) => Finding::can(DEVICE, "opens, API version 12, and makes a VM"),
        Err(error) => Finding::cannot(DEVICE, refusal(error)).remedy(error.remedy()),
    };
    let mut findings = vec![open];
    findings.extend(device.kvm.mmu.map(|mmu| judge_mmu(mmu, &device.kvm)));
    findings
}

fn refusal(error: &NoKvm) -> String {
    match error {
        NoKvm::Open { source: Errno::NOENT, .. } => {
            "is not there; the software MMU still works (--backend soft)".to_owned()
        }
        NoKvm::Open { source, .. } => format!("cannot be opened: {source}"),
        NoKvm::OtherDevice(_) => "opens, but is not KVM's device".to_owned(),
        NoKvm::Version(version) => format!("speaks API version {version}, not 12"),
        NoKvm::NoVm(errno) => format!("opens, but KVM makes no VM: {errno}"),
    }
}

fn judge_mmu(mmu: MmuKind, kvm: &KvmFacts) -> Finding {
    const SUBJECT: &str = "secondary MMU";
    let module = kvm.module.as_deref().unwrap_or("KVM");
    match mmu {
        MmuKind::Ept | MmuKind::Npt => {
            let tdp = match kvm.tdp_mmu {
                Some(true) => "TDP MMU",
                Some(false) => "without the TDP MMU",
                None => "whether with the TDP MMU, /sys does not say",
            };
            Finding::can(SUBJECT, format!("{mmu} ({module}, {tdp}): any guest runs"))
        }
        MmuKind::Shadow => Finding::limited(
            SUBJECT,
            format!("shadow page tables ({module}): guest page-table writes cost, SPTE counts include them"),
        )
        .remedy("load the module with ept=1 or npt=1"),
        MmuKind::ShadowPvm => Finding::limited(
            SUBJECT,
            "shadow page tables of kvm_pvm: the test guest runs in ring 3; a Linux guest's ring 0 is emulated \
             and does not reach user space",
        )
        .remedy("a host with kvm_intel or kvm_amd, or the nested rig"),
    }
}

/// One finding of each kind that has a remedy.
#[cfg(test)]
pub(super) fn samples() -> Vec<Finding> {
    let of = |(opened, mmu)| judge(&Device { opened, kvm: KvmFacts { mmu, ..KvmFacts::default() } });
    let mmus = [(Ok(()), Some(MmuKind::Shadow)), (Ok(()), Some(MmuKind::ShadowPvm))];
    let refused = NoKvm::samples().into_iter().map(|error| (Err(error), None));
    mmus.into_iter().chain(refused).flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn device(opened: Result<(), NoKvm>, module: Option<&str>, mmu: Option<MmuKind>) -> Device {
        Device { opened, kvm: KvmFacts { module: module.map(str::to_owned), mmu, ..KvmFacts::default() } }
    }

    #[test]
    fn a_usual_server_runs_any_guest() {
        let findings = judge(&device(Ok(()), Some("kvm_intel"), Some(MmuKind::Ept)));
        assert!(findings.iter().all(|finding| finding.verdict == Verdict::Can), "{findings:?}");
        assert!(findings[1].detail.contains("EPT"));
    }

    #[test]
    fn a_pvm_host_is_limited() {
        let findings = judge(&device(Ok(()), Some("kvm_pvm"), Some(MmuKind::ShadowPvm)));
        assert_eq!((findings[0].verdict, findings[1].verdict), (Verdict::Can, Verdict::Limited));
    }

    #[test]
    fn what_is_missing_has_its_own_remedy() {
        let remedy = "join the group".to_owned();
        for (error, word) in [
            (NoKvm::Open { remedy: remedy.clone(), source: Errno::ACCESS }, "cannot be opened"),
            (NoKvm::Open { remedy: remedy.clone(), source: Errno::NOENT }, "--backend soft"),
            (NoKvm::OtherDevice(Errno::NOTTY), "not KVM's device"),
            (NoKvm::Version(11), "version 11"),
            (NoKvm::NoVm(Errno::BUSY), "makes no VM"),
        ] {
            let finding = judge(&device(Err(error.clone()), None, None)).remove(0);
            assert_eq!(finding.verdict, Verdict::Cannot);
            assert_eq!(finding.remedy.as_deref(), Some(error.remedy()));
            assert!(finding.detail.contains(word), "{finding:?}");
        }
    }
}
