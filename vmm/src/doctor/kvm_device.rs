//! `/dev/kvm`: whether it is there, whether we may use it, and which KVM is behind it.

use std::io;
use std::os::unix::fs::MetadataExt;

use super::finding::Finding;
use crate::host::kvm_module::{KvmFacts, MmuKind};

const DEVICE: &str = "/dev/kvm";
/// The only version there ever was.
const API_VERSION: i32 = 12;

/// What was found at `/dev/kvm`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    state: State,
    kvm: KvmFacts,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Forbidden { group: String, mode: u32 },
    Refused { why: String },
    Open { api: i32 },
}

impl Device {
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }
}

pub(super) fn probe(kvm: &KvmFacts) -> Device {
    let state = match kvm_ioctls::Kvm::new() {
        Ok(device) => match device.get_api_version() {
            api @ 0.. => State::Open { api },
            _ => State::Refused { why: "it opens, but is not KVM's device".to_owned() },
        },
        Err(error) => match io::Error::from_raw_os_error(error.errno()).kind() {
            io::ErrorKind::NotFound => State::Absent,
            io::ErrorKind::PermissionDenied => forbidden(),
            _ => State::Refused { why: error.to_string() },
        },
    };
    Device { state, kvm: kvm.clone() }
}

fn forbidden() -> State {
    match std::fs::metadata(DEVICE) {
        Ok(meta) => State::Forbidden { group: group_name(meta.gid()), mode: meta.mode() & 0o777 },
        Err(error) => State::Refused { why: error.to_string() },
    }
}

fn group_name(gid: u32) -> String {
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    parse_group(&groups, gid).unwrap_or_else(|| gid.to_string())
}

/// `name:password:gid:members`.
fn parse_group(groups: &str, gid: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    })
}

pub(super) fn judge(device: &Device) -> Vec<Finding> {
    let module = device.kvm.module.as_deref();
    let open = match &device.state {
        State::Open { api: API_VERSION } => Finding::can(DEVICE, format!("opens, API version {API_VERSION}")),
        State::Open { api } => {
            Finding::cannot(DEVICE, format!("speaks API version {api}, not {API_VERSION}"))
        }
        State::Absent if module.is_some() => {
            Finding::cannot(DEVICE, "is not there although KVM's module is loaded: a container without it?")
                .remedy("docker run --device /dev/kvm, or mknod /dev/kvm c 10 232")
        }
        State::Absent => {
            Finding::cannot(DEVICE, "is not there; the software MMU still works (--backend soft)")
                .remedy("modprobe kvm_intel or kvm_amd; in a cloud VM, enable nested virtualisation")
        }
        State::Forbidden { group, mode } if mode & 0o060 == 0o060 && group != "root" => {
            Finding::cannot(DEVICE, format!("is for group {group} (mode {mode:o})"))
                .remedy(format!("usermod -aG {group} $USER, then log in again"))
        }
        State::Forbidden { group, mode } => {
            Finding::cannot(DEVICE, format!("is for root alone (group {group}, mode {mode:o})"))
                .remedy("chgrp kvm /dev/kvm && chmod 660 /dev/kvm, or setfacl -m u:$USER:rw /dev/kvm")
        }
        State::Refused { why } => Finding::cannot(DEVICE, format!("cannot be used: {why}")),
    };
    let mut findings = vec![open];
    findings.extend(device.kvm.mmu.map(|mmu| judge_mmu(mmu, &device.kvm)));
    findings
}

fn judge_mmu(mmu: MmuKind, kvm: &KvmFacts) -> Finding {
    const SUBJECT: &str = "secondary MMU";
    let module = kvm.module.as_deref().unwrap_or("KVM");
    match mmu {
        MmuKind::Ept | MmuKind::Npt => {
            let tdp = if kvm.tdp_mmu == Some(true) { "TDP MMU" } else { "without the TDP MMU" };
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

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn device(state: State, module: Option<&str>, mmu: Option<MmuKind>) -> Device {
        Device { state, kvm: KvmFacts { module: module.map(str::to_owned), mmu, ..KvmFacts::default() } }
    }

    #[test]
    fn a_usual_server_runs_any_guest() {
        let findings = judge(&device(State::Open { api: 12 }, Some("kvm_intel"), Some(MmuKind::Ept)));
        assert!(findings.iter().all(|finding| finding.verdict == Verdict::Can), "{findings:?}");
        assert!(findings[1].detail.contains("EPT"));
    }

    #[test]
    fn a_pvm_host_is_limited() {
        let findings = judge(&device(State::Open { api: 12 }, Some("kvm_pvm"), Some(MmuKind::ShadowPvm)));
        assert_eq!((findings[0].verdict, findings[1].verdict), (Verdict::Can, Verdict::Limited));
    }

    #[test]
    fn a_missing_permission_names_the_group() {
        let state = State::Forbidden { group: "kvm".to_owned(), mode: 0o660 };
        let finding = judge(&device(state, Some("kvm_amd"), None)).remove(0);
        assert_eq!(finding.verdict, Verdict::Cannot);
        assert_eq!(finding.remedy.as_deref(), Some("usermod -aG kvm $USER, then log in again"));
        let state = State::Forbidden { group: "root".to_owned(), mode: 0o600 };
        let finding = judge(&device(state, None, None)).remove(0);
        assert!(finding.remedy.unwrap().contains("setfacl"), "joining group root would not help");
    }

    #[test]
    fn an_absent_device_has_two_causes() {
        let without_module = judge(&device(State::Absent, None, None)).remove(0);
        assert!(without_module.remedy.unwrap().contains("modprobe"));
        let in_container = judge(&device(State::Absent, Some("kvm_amd"), None)).remove(0);
        assert!(in_container.remedy.unwrap().contains("--device"));
    }

    #[test]
    fn groups_are_found_by_number() {
        let groups = "root:x:0:\nkvm:x:108:alice,bob\n";
        assert_eq!(parse_group(groups, 108).as_deref(), Some("kvm"));
        assert_eq!(parse_group(groups, 8), None);
    }
}
