//! KVM's counters of another process's VMs, in the debugfs directories `kvm/PID-FD`.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use guest_mem::remedy::{self, Asked};
use host::tracefs::detached_mount;

/// The counters that are read, if this KVM has them: leaf SPTEs at present, and events so far.
pub const NAMES: [&str; 9] = [
    "pages_4k",
    "pages_2m",
    "pages_1g",
    "pf_taken",
    "pf_fixed",
    "pf_spurious",
    "mmu_shadow_zapped",
    "mmu_invalidate_retry",
    "remote_tlb_flush",
];

/// The counters cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CountersError {
    #[error("KVM's counters of other processes are in debugfs, which cannot be mounted{}", remedy::after(Asked::Mount, *.0))]
    Debugfs(#[source] Errno),
    #[error(
        "debugfs has no kvm/{pid}-{fd}: the VM was made by another process, or this KVM keeps no such counters"
    )]
    Directory { pid: u32, fd: u32, source: Errno },
}

/// The directories of a process's VMs.
#[derive(Debug)]
pub struct Counters(Vec<OwnedFd>);

impl Counters {
    /// Opens the directories of these descriptors of process `pid`.
    pub fn open(pid: u32, vms: &[u32]) -> Result<Self, CountersError> {
        let debugfs = detached_mount(c"debugfs").map_err(CountersError::Debugfs)?;
        let open = |&fd: &u32| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(&debugfs, format!("kvm/{pid}-{fd}"), flags, Mode::empty())
                .map_err(|source| CountersError::Directory { pid, fd, source })
        };
        vms.iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    /// The present values, summed over the VMs, without the counters that this KVM lacks.
    pub fn read(&self) -> BTreeMap<&'static str, u64> {
        let mut all = BTreeMap::new();
        for directory in &self.0 {
            for name in NAMES {
                if let Some(value) = number(directory, name) {
                    *all.entry(name).or_default() += value;
                }
            }
        }
        all
    }
}

/// Which of KVM's counters of other processes' VMs can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readable {
    /// All of them.
    All,
    /// All but those that can be reset, as those of faults: the kernel is locked down.
    NotFaults,
    /// None, for this reason.
    None(Errno),
}

impl Readable {
    /// Opens the sums over all VMs, which exist without any VM.
    pub fn probe() -> Self {
        let read_only = OFlags::RDONLY | OFlags::CLOEXEC;
        let open = |name: &str| {
            let debugfs = detached_mount(c"debugfs")?;
            rustix::fs::openat(&debugfs, format!("kvm/{name}"), read_only, Mode::empty()).map(drop)
        };
        match (open("pages_4k"), open("pf_fixed")) {
            (Err(errno), _) => Self::None(errno),
            (Ok(()), Err(_)) => Self::NotFaults,
            (Ok(()), Ok(())) => Self::All,
        }
    }
}

fn number(directory: &impl AsFd, name: &str) -> Option<u64> {
    let file = rustix::fs::openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = [0; 32];
    let length = rustix::io::read(&file, &mut text).ok()?;
    std::str::from_utf8(&text[..length]).ok()?.trim().parse().ok()
}
