//! KVM's binary statistics of a VM and its vCPUs. Each value is absent where this KVM has no such
//! statistic.

use kvm_ioctls::{VcpuFd, VmFd};

use host::kvm_stats::{KvmStats, StatIndex};

/// Leaf translations in the secondary MMU now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaves {
    /// Leaf entries that map 4 KiB.
    pub pages_4k: u64,
    /// Leaf entries that map 2 MiB.
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

/// Page faults on the secondary MMU so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Those that installed a translation.
    pub fixed: u64,
    /// Those after which the guest was let in again without one, to fault once more: an invalidation of the page was in
    /// progress or had ended meanwhile, or the page was being brought. `None` where KVM does not count enough to tell.
    pub retried: Option<u64>,
}

impl FaultCounts {
    /// Of the values of [`OUTCOMES`]. They are read one after the other while the vCPU runs, so the parts may be more than
    /// the whole.
    fn of_outcomes([taken, fixed, emulated, spurious, guests]: [u64; OUTCOMES.len()]) -> Self {
        Self { fixed, retried: Some(taken.saturating_sub(fixed + emulated + spurious + guests)) }
    }

    /// Those since `before`.
    pub fn since(self, before: Self) -> Self {
        let retried = self.retried.zip(before.retried).map(|(now, then)| now.saturating_sub(then));
        Self { fixed: self.fixed.saturating_sub(before.fixed), retried }
    }
}

impl std::ops::Add for FaultCounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let retried = self.retried.zip(other.retried).map(|(a, b)| a + b);
        Self { fixed: self.fixed + other.fixed, retried }
    }
}

/// A vCPU's page-fault statistics.
#[derive(Debug)]
pub struct VcpuStats {
    source: Option<(KvmStats, StatIndex, Option<[StatIndex; 5]>)>,
}

/// All faults, then those that `kvm_mmu_do_page_fault()` counts by outcome: a fault in none of these is to be tried
/// again. Under shadow paging the guest itself serves some (`pf_guest`).
const OUTCOMES: [&str; 5] = ["pf_taken", "pf_fixed", "pf_emulate", "pf_spurious", "pf_guest"];

impl VcpuStats {
    /// Opens the vCPU's statistics, if it has any.
    pub fn of(vcpu: &VcpuFd) -> Self {
        let stats = KvmStats::of(vcpu).ok();
        let source = stats.and_then(|stats| {
            let fixed = stats.index_of("pf_fixed")?;
            let outcomes: Option<Vec<StatIndex>> = OUTCOMES.iter().map(|name| stats.index_of(name)).collect();
            Some((stats, fixed, outcomes.and_then(|all| all.try_into().ok())))
        });
        Self { source }
    }

    /// Faults of all vCPUs together; `None` where KVM does not count those of one, or there is none.
    pub fn faults_of_all(vcpus: &[Self]) -> Option<FaultCounts> {
        vcpus.iter().map(Self::faults).reduce(|a, b| Some(a? + b?))?
    }

    /// Faults since the vCPU was made.
    pub fn faults(&self) -> Option<FaultCounts> {
        let (stats, fixed, outcomes) = self.source.as_ref()?;
        let Some(outcomes) = outcomes else {
            return Some(FaultCounts { fixed: stats.read(*fixed).ok()?, retried: None });
        };
        let mut values = [0; OUTCOMES.len()];
        stats.read_many(outcomes, &mut values).ok()?;
        Some(FaultCounts::of_outcomes(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(fixed: u64, retried: Option<u64>) -> FaultCounts {
        FaultCounts { fixed, retried }
    }

    #[test]
    fn what_is_in_no_outcome_was_tried_again() {
        assert_eq!(FaultCounts::of_outcomes([20, 5, 4, 3, 2]), counts(5, Some(6)));
        assert_eq!(FaultCounts::of_outcomes([13, 5, 4, 3, 2]), counts(5, Some(0)));
    }

    #[test]
    fn faults_add_up_and_what_was_before_is_left_out() {
        let (early, late) = (counts(7, Some(3)), counts(10, Some(5)));
        assert_eq!(early + late, counts(17, Some(8)));
        assert_eq!(late.since(early), counts(3, Some(2)));
        let unknown = counts(1, None);
        assert_eq!((early + unknown, late.since(unknown)), (counts(8, None), counts(9, None)));
    }

    #[test]
    fn of_nobody_and_of_one_that_is_not_counted_nothing_is_known() {
        assert_eq!(VcpuStats::faults_of_all(&[]), None);
        assert_eq!(VcpuStats::faults_of_all(&[VcpuStats { source: None }]), None);
    }
}
