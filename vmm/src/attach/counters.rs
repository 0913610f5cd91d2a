//! KVM's counters of another process's VMs: its directory in debugfs, `kvm/PID-FD`.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use guest_mem::remedy::{self, Asked};
use host::tracefs::mounted_nowhere;

/// The counters that are read, as far as this KVM has them: leaf SPTEs now, and what was done so far.
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

/// Why there are no counters.
#[derive(Debug, thiserror::Error)]
pub enum CountersError {
    /// debugfs is not for us.
    #[error("KVM's counters of other processes are in debugfs, which cannot be mounted{}", remedy::after(Asked::Mount, *.0))]
    Debugfs(#[source] Errno),
    /// KVM keeps none for this VM.
    #[error(
        "debugfs has no kvm/{pid}-{fd}: the VM was made by another process, or this KVM keeps no such counters"
    )]
    Directory {
        /// Who holds the VM.
        pid: u32,
        /// By which descriptor.
        fd: u32,
        /// What the kernel said.
        source: Errno,
    },
}

/// The directories of some VMs.
#[derive(Debug)]
pub struct Counters(Vec<OwnedFd>);

impl Counters {
    /// Of the VMs that process `pid` has these descriptors of.
    ///
    /// # Errors
    /// [`CountersError`].
    pub fn open(pid: u32, vms: &[u32]) -> Result<Self, CountersError> {
        let debugfs = mounted_nowhere(c"debugfs").map_err(CountersError::Debugfs)?;
        let open = |&fd: &u32| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(&debugfs, format!("kvm/{pid}-{fd}"), flags, Mode::empty())
                .map_err(|source| CountersError::Directory { pid, fd, source })
        };
        vms.iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    /// What they say now, all VMs together. A counter that this KVM lacks is left out.
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

/// How far KVM's counters of other processes' VMs can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readable {
    /// All of them.
    All,
    /// Not those that can be reset, of faults among them: the kernel is locked down.
    NotFaults,
    /// None, and why.
    None(Errno),
}

impl Readable {
    /// Tries it with the sums of all VMs, which are there when no VM is.
    pub fn probe() -> Self {
        let read_only = OFlags::RDONLY | OFlags::CLOEXEC;
        let open = |name: &str| {
            let debugfs = mounted_nowhere(c"debugfs")?;
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
