//! What KVM's binary statistics say of a VM and its vCPUs. Each value is absent where this KVM has no such
//! statistic.

use kvm_ioctls::{VcpuFd, VmFd};

use crate::host::kvm_stats::{KvmStats, StatIndex};

/// Leaf translations in the secondary MMU now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaves {
    /// Of 4 KiB.
    pub pages_4k: u64,
    /// Of 2 MiB.
    pub pages_2m: u64,
}

/// A VM's statistics.
#[derive(Debug)]
pub struct VmStats {
    source: Option<Source>,
}

#[derive(Debug)]
struct Source {
    stats: KvmStats,
    /// `pages_4k` and `pages_2m`.
    leaves: Option<[StatIndex; 2]>,
    remote_tlb_flush: Option<StatIndex>,
}

impl VmStats {
    /// Opens the VM's statistics, if it has any.
    pub fn of(vm: &VmFd) -> Self {
        let source = KvmStats::of(vm).ok().map(|stats| Source {
            leaves: stats.index_of("pages_4k").zip(stats.index_of("pages_2m")).map(<[_; 2]>::from),
            remote_tlb_flush: stats.index_of("remote_tlb_flush"),
            stats,
        });
        Self { source }
    }

    /// Leaf translations now.
    pub fn leaves(&self) -> Option<Leaves> {
        let source = self.source.as_ref()?;
        let mut values = [0; 2];
        source.stats.read_many(&source.leaves?, &mut values).ok()?;
        Some(Leaves { pages_4k: values[0], pages_2m: values[1] })
    }

    /// Remote TLB flushes since the VM was made.
    pub fn remote_tlb_flushes(&self) -> Option<u64> {
        let source = self.source.as_ref()?;
        source.stats.read(source.remote_tlb_flush?).ok()
    }
}

/// A vCPU's page-fault statistics.
#[derive(Debug)]
pub struct VcpuStats {
    source: Option<(KvmStats, StatIndex)>,
}

impl VcpuStats {
    /// Opens the vCPU's statistics, if it has any.
    pub fn of(vcpu: &VcpuFd) -> Self {
        let stats = KvmStats::of(vcpu).ok();
        Self { source: stats.and_then(|stats| stats.index_of("pf_fixed").map(|index| (stats, index))) }
    }

    /// Faults that installed a translation, since the vCPU was made.
    pub fn faults_fixed(&self) -> Option<u64> {
        let (stats, index) = self.source.as_ref()?;
        stats.read(*index).ok()
    }
}
