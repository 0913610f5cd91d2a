//! The processor's flags, by which the module of KVM's to load is known.

use crate::Root;

/// The processor's flags that decide about KVM's modules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuFlags {
    vmx: bool,
    svm: bool,
    /// Page tables of five levels, which kvm_pvm cannot use.
    la57: bool,
}

impl CpuFlags {
    /// Of this host.
    pub fn read_from(root: &Root) -> Self {
        Self::parse(&root.text("/proc/cpuinfo").unwrap_or_default())
    }

    /// Out of `/proc/cpuinfo`.
    pub fn parse(cpuinfo: &str) -> Self {
        let line = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
        let has = |flag: &str| line.split_whitespace().any(|word| word == flag);
        Self { vmx: has("vmx"), svm: has("svm"), la57: has("la57") }
    }

    /// One of each kind.
    #[cfg(any(test, feature = "fixture"))]
    pub fn samples() -> [Self; 3] {
        ["", "la57", "vmx"].map(|flags| Self::parse(&format!("flags: {flags}")))
    }

    /// The command that loads the module, or what keeps it from being loaded.
    pub fn module(self) -> String {
        if self.vmx || self.svm {
            return format!("`modprobe kvm_{}`", if self.vmx { "intel" } else { "amd" });
        }
        let boot = if self.la57 { ", on a host booted with `no5lvl`" } else { "" };
        format!(
            "this processor offers neither vmx nor svm: switch nested virtualisation on in what this machine runs under, \
             or `modprobe kvm_pvm` where its kernel has that{boot}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_of_this_host_is_read() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("proc")).unwrap();
        let read = || CpuFlags::read_from(&Root::at(root.path()));
        assert_eq!(read(), CpuFlags::default());
        std::fs::write(root.path().join("proc/cpuinfo"), "flags : fpu svm la57\n").unwrap();
        assert_eq!(read(), CpuFlags { vmx: false, svm: true, la57: true });
    }
}
