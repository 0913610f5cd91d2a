//! `/dev/kvm`: whether it is there, whether we may use it, and which KVM is behind it.

use rustix::io::Errno;

use super::finding::Finding;
use host::kvm_module::{Guests, KvmFacts};
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
    findings.extend(device.kvm.guests().map(judge_guests));
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

fn judge_guests(guests: Guests) -> Finding {
    const SUBJECT: &str = "secondary MMU";
    match guests.remedy {
        None => Finding::can(SUBJECT, guests.text),
        Some(remedy) => Finding::limited(SUBJECT, guests.text).remedy(remedy),
    }
}

/// One finding of each kind that has a remedy.
#[cfg(test)]
pub(super) fn samples() -> Vec<Finding> {
    let of = |(opened, kvm)| judge(&Device { opened, kvm });
    let refused = NoKvm::samples().into_iter().map(|error| (Err(error), KvmFacts::default()));
    KvmFacts::limited().map(|kvm| (Ok(()), kvm)).into_iter().chain(refused).flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn an_mmu_that_limits_guests_is_limited() {
        for kvm in KvmFacts::limited() {
            let findings = judge(&Device { opened: Ok(()), kvm });
            assert_eq!((findings[0].verdict, findings[1].verdict), (Verdict::Can, Verdict::Limited));
        }
        let guests = Guests { text: "any guest runs".to_owned(), remedy: None };
        assert_eq!(judge_guests(guests).verdict, Verdict::Can);
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
            let finding = judge(&Device { opened: Err(error.clone()), kvm: KvmFacts::default() }).remove(0);
            assert_eq!(finding.verdict, Verdict::Cannot);
            assert_eq!(finding.remedy.as_deref(), Some(error.remedy()));
            assert!(finding.detail.contains(word), "{finding:?}");
        }
    }
}
