//! The reason why there is no KVM, and its remedy: a function of the system's answer and of the state of this host.

use std::os::unix::fs::MetadataExt;

use rustix::io::Errno;

use host::kvm_module::KvmFacts;
use host::{CpuFlags, Root};
use program::exit::{Class, Classified};

/// Where KVM's device is.
pub const DEVICE: &str = "/dev/kvm";

/// Why there is no KVM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum NoKvm {
    #[error("{DEVICE} cannot be opened: {remedy}")]
    Open {
        remedy: String,
        #[source]
        source: Errno,
    },
    #[error("{DEVICE} is not KVM's device, for it does not answer KVM_GET_API_VERSION: {}", self.remedy())]
    OtherDevice(#[source] Errno),
    #[error("{DEVICE} speaks version {version} of KVM's API: {}", self.remedy(), version = .0)]
    Version(i32),
    #[error("{DEVICE} opens, but KVM makes no virtual machine: {}", self.remedy())]
    NoVm(#[source] Errno),
}

impl Classified for NoKvm {
    fn class(&self) -> Class {
        Class::Host
    }
}

impl NoKvm {
    pub(super) fn cannot_open(source: Errno) -> Self {
        let root = Root::default();
        let host = KvmHost {
            module: KvmFacts::read_from(&root).module,
            flags: CpuFlags::read_from(&root),
            file: std::fs::metadata(DEVICE).ok().map(|file| (group_name(file.gid()), file.mode())),
        };
        Self::Open { remedy: host.opens_when(source), source }
    }

    /// By the error of KVM_GET_API_VERSION: a device that does not know this ioctl is another device.
    pub(super) fn no_version(source: Errno) -> Self {
        match source {
            Errno::NOTTY | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP => Self::OtherDevice(source),
            other => Self::NoVm(other),
        }
    }

    /// The remedy.
    pub fn remedy(&self) -> &str {
        match self {
            Self::Open { remedy, .. } => remedy,
            Self::OtherDevice(_) => "remove it, and load KVM's module again, or `mknod /dev/kvm c 10 232`",
            Self::Version(_) => "every Linux since 2.6.22 speaks version 12",
            Self::NoVm(errno) => match *errno {
                Errno::BUSY => "another hypervisor has the processor: stop it (VirtualBox, VMware, Xen)",
                Errno::NODEV | Errno::OPNOTSUPP | Errno::IO => {
                    "virtualisation was switched off under it: see the kernel's log, and load KVM's module again"
                }
                Errno::NOMEM => "free memory on the host, or raise the limit of this cgroup",
                Errno::MFILE => "raise `ulimit -n`",
                Errno::NFILE => "raise `sysctl fs.file-max`",
                Errno::PERM | Errno::ACCESS => "a sandbox forbids it: allow ioctls on /dev/kvm there",
                _ => "see the kernel's log",
            },
        }
    }
}

#[cfg(any(test, feature = "fixture"))]
impl NoKvm {
    /// One of each kind that has a remedy of its own.
    pub fn samples() -> Vec<Self> {
        let file = |group: &str| Some((group.to_owned(), 0o660));
        let module = || Some("kvm_amd".to_owned());
        let [none, la57, intel] = CpuFlags::samples();
        let hosts = [
            KvmHost { module: None, flags: none, file: None },
            KvmHost { module: None, flags: la57, file: file("root") },
            KvmHost { module: module(), flags: intel, file: file("kvm") },
            KvmHost { module: None, flags: intel, file: None },
        ];
        let errnos = [
            Errno::NOENT,
            Errno::NXIO,
            Errno::ACCESS,
            Errno::PERM,
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOMEM,
            Errno::ISDIR,
            Errno::BUSY,
            Errno::NODEV,
        ];
        let open =
            |host: &KvmHost| errnos.map(|source| Self::Open { remedy: host.opens_when(source), source });
        let others = [Self::OtherDevice(Errno::NOTTY), Self::Version(11)].into_iter();
        hosts.iter().flat_map(open).chain(others).chain(errnos.map(Self::NoVm)).collect()
    }
}

/// The facts of a host that decide the remedy.
struct KvmHost {
    /// The module that is loaded.
    module: Option<String>,
    flags: CpuFlags,
    /// The device file's group and mode, if there is one.
    file: Option<(String, u32)>,
}

impl KvmHost {
    /// The remedy for this error of opening the device.
    fn opens_when(&self, errno: Errno) -> String {
        match (errno, &self.module) {
            (Errno::NOENT | Errno::NXIO | Errno::NODEV, None) => self.flags.module(),
            (Errno::NOENT, Some(module)) => {
                format!(
                    "{module} is loaded; in a container `--device {DEVICE}`, else `mknod {DEVICE} c 10 232`"
                )
            }
            (Errno::NXIO | Errno::NODEV, Some(_)) => {
                format!("it is no device of KVM's: remove it, and `mknod {DEVICE} c 10 232`")
            }
            (Errno::ACCESS, _) => self.permission(),
            (Errno::PERM, _) => {
                format!("a container or a sandbox forbids it: pass it in, `--device {DEVICE}`")
            }
            (Errno::MFILE, _) => "raise `ulimit -n`".to_owned(),
            (Errno::NFILE, _) => "raise `sysctl fs.file-max`".to_owned(),
            (Errno::NOMEM, _) => "free memory on the host".to_owned(),
            _ => format!("it is no device: remove it, and `mknod {DEVICE} c 10 232`"),
        }
    }

    fn permission(&self) -> String {
        match &self.file {
            Some((group, mode)) if mode & 0o060 == 0o060 && group != "root" => {
                format!("it is for group {group}: `usermod -aG {group} $USER`, then log in again")
            }
            _ => format!(
                "it is for root: `chgrp kvm {DEVICE} && chmod 660 {DEVICE}`, or `setfacl -m u:$USER:rw {DEVICE}`"
            ),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn host(module: Option<&str>, flags: &str, file: Option<(&str, u32)>) -> KvmHost {
        KvmHost {
            module: module.map(str::to_owned),
            flags: CpuFlags::parse(&format!("processor\t: 0\nflags\t\t: fpu {flags}\n")),
            file: file.map(|(group, mode)| (group.to_owned(), mode)),
        }
    }

    #[test]
    fn each_answer_of_each_host_has_its_remedy() {
        for (errno, host, words) in [
            (Errno::NOENT, host(None, "vmx ept", None), &["modprobe kvm_intel"][..]),
            (Errno::NOENT, host(None, "svm npt", None), &["modprobe kvm_amd"]),
            (Errno::NOENT, host(None, "", None), &["neither vmx nor svm", "nested", "kvm_pvm"]),
            (Errno::NOENT, host(None, "la57", None), &["kvm_pvm", "no5lvl"]),
            (Errno::NXIO, host(None, "svm", Some(("kvm", 0o660))), &["modprobe kvm_amd"]),
            (Errno::NOENT, host(Some("kvm_amd"), "svm", None), &["--device", "mknod"]),
            (Errno::ACCESS, host(Some("kvm_amd"), "svm", Some(("kvm", 0o660))), &["usermod -aG kvm $USER"]),
            // Joining the group root would be no remedy.
            (Errno::ACCESS, host(None, "", Some(("root", 0o660))), &["setfacl"]),
            (Errno::ACCESS, host(None, "", Some(("kvm", 0o600))), &["setfacl"]),
            (Errno::PERM, host(Some("kvm_amd"), "svm", None), &["container", "--device"]),
            (
                Errno::NXIO,
                host(Some("kvm_amd"), "svm", Some(("kvm", 0o660))),
                &["no device of KVM's", "mknod"],
            ),
            (Errno::MFILE, host(None, "", None), &["ulimit -n"]),
            (Errno::NFILE, host(None, "", None), &["fs.file-max"]),
            (Errno::NOMEM, host(None, "", None), &["free memory"]),
            (Errno::ISDIR, host(None, "", None), &["mknod"]),
        ] {
            let remedy = host.opens_when(errno);
            assert!(words.iter().all(|word| remedy.contains(word)), "{errno}: {remedy}");
        }
        let without_la57 = host(None, "", None).opens_when(Errno::NOENT);
        assert!(!without_la57.contains("no5lvl"), "{without_la57}");
    }

    #[test]
    fn a_vm_that_is_refused_has_a_remedy_too() {
        for (errno, word) in [
            (Errno::BUSY, "another hypervisor"),
            (Errno::NOMEM, "memory"),
            (Errno::MFILE, "ulimit -n"),
            (Errno::PERM, "sandbox"),
            (Errno::NFILE, "fs.file-max"),
            (Errno::IO, "switched off under it"),
            (Errno::INVAL, "kernel's log"),
        ] {
            let error = NoKvm::NoVm(errno);
            assert!(error.remedy().contains(word) && error.to_string().contains(error.remedy()), "{error}");
            assert_eq!(error.class(), Class::Host);
        }
    }

    /// A device is told to be another one where it does not know the question, and only there.
    #[test]
    fn a_host_that_has_too_little_is_no_other_device() {
        for errno in [Errno::NOTTY, Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP] {
            assert_eq!(NoKvm::no_version(errno), NoKvm::OtherDevice(errno));
        }
        for errno in [Errno::NOMEM, Errno::PERM, Errno::IO] {
            assert_eq!(NoKvm::no_version(errno), NoKvm::NoVm(errno));
        }
    }

    #[test]
    fn a_group_without_a_name_is_its_number() {
        assert_eq!((group_name(0).as_str(), group_name(u32::MAX - 7).as_str()), ("root", "4294967288"));
    }

    #[test]
    fn groups_are_found_by_number() {
        let groups = "root:x:0:\nkvm:x:108:alice,bob\n";
        assert_eq!(parse_group(groups, 108).as_deref(), Some("kvm"));
        assert_eq!(parse_group(groups, 8), None);
    }
}
