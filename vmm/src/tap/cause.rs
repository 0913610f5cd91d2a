//! Why the kernel announced a range: what the thread was at, or who the thread is.
//!
//! ```text
//!   the range's thread
//!     ├─ a kernel thread        by its name: kswapd, khugepaged, kcompactd, ksmd, kdamond
//!     ├─ a thread of ours
//!     │    ├─ it reclaims, compacts or moves pages (begun before the range, not ended)   that
//!     │    ├─ it takes memory for a step, and is inside the system call                  step
//!     │    ├─ it takes memory for a step, and is not                                     zap: our listeners, our swap
//!     │    └─ a vCPU, a userfaultfd handler, a device                                    its name
//!     ├─ a thread of another process   what it reclaims, compacts or moves; else the process
//!     └─ a thread that is gone         unattributed
//! ```

use serde::{Deserialize, Serialize};

use super::tasks::Task;
use super::tracepoints::Work;

/// Why a range was announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RangeCause {
    /// A step's own operation.
    Step,
    /// This process, beside its operations: a listener's zap, the write protection of a swapper.
    Zap,
    /// A vCPU's fault: copy-on-write, a NUMA hint.
    GuestFault,
    /// A userfaultfd handler of ours.
    Userfault,
    /// A device of ours: the balloon.
    Device,
    /// Another thread of ours.
    OwnThread,
    /// kswapd, on its own.
    Kswapd,
    /// khugepaged collapses.
    Khugepaged,
    /// kcompactd compacts.
    Kcompactd,
    /// ksmd merges.
    Ksmd,
    /// DAMON reclaims or moves.
    Kdamond,
    /// Another thread of the kernel.
    KernelThread,
    /// Somebody who found no free memory.
    DirectReclaim,
    /// A cgroup's limit.
    MemcgReclaim,
    /// Somebody who made room for a large page.
    Compaction,
    /// Somebody who moved pages.
    Migration,
    /// Another process.
    AnotherProcess,
    /// Nobody knows.
    Unattributed,
}

impl RangeCause {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::Step,
        Self::Zap,
        Self::GuestFault,
        Self::Userfault,
        Self::Device,
        Self::OwnThread,
        Self::Kswapd,
        Self::Khugepaged,
        Self::Kcompactd,
        Self::Ksmd,
        Self::Kdamond,
        Self::KernelThread,
        Self::DirectReclaim,
        Self::MemcgReclaim,
        Self::Compaction,
        Self::Migration,
        Self::AnotherProcess,
        Self::Unattributed,
    ];

    /// The name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Zap => "zap",
            Self::GuestFault => "guest-fault",
            Self::Userfault => "userfaultfd",
            Self::Device => "device",
            Self::OwnThread => "own-thread",
            Self::Kswapd => "kswapd",
            Self::Khugepaged => "khugepaged",
            Self::Kcompactd => "kcompactd",
            Self::Ksmd => "ksmd",
            Self::Kdamond => "kdamond",
            Self::KernelThread => "kernel-thread",
            Self::DirectReclaim => "direct-reclaim",
            Self::MemcgReclaim => "memcg-reclaim",
            Self::Compaction => "compaction",
            Self::Migration => "migration",
            Self::AnotherProcess => "another-process",
            Self::Unattributed => "unattributed",
        }
    }

    /// The cause of a name in records.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.name() == name)
    }

    /// Whether this process made it, beside its steps.
    pub const fn is_ours(self) -> bool {
        matches!(self, Self::Zap | Self::GuestFault | Self::Userfault | Self::Device | Self::OwnThread)
    }

    /// Whether neither the experiment nor this process made it: the host on its own, or another process.
    pub const fn is_stranger(self) -> bool {
        !self.is_ours() && !matches!(self, Self::Step | Self::Unattributed)
    }
}

/// Ranges and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranges {
    /// How many ranges.
    pub ranges: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

impl std::ops::AddAssign for Ranges {
    fn add_assign(&mut self, other: Self) {
        self.ranges = self.ranges.saturating_add(other.ranges);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// The cause that a piece of work is; `None` of a system call, which says little by itself.
pub fn of_work(work: Work) -> Option<RangeCause> {
    match work {
        Work::DirectReclaim | Work::NodeReclaim => Some(RangeCause::DirectReclaim),
        Work::MemcgReclaim => Some(RangeCause::MemcgReclaim),
        Work::Compaction => Some(RangeCause::Compaction),
        Work::Migration => Some(RangeCause::Migration),
        Work::Call(_) => None,
    }
}

/// The cause that a thread of another than ours is, by who it is.
pub fn of_stranger(task: Option<&Task>) -> RangeCause {
    let Some(task) = task.filter(|task| !task.comm.is_empty()) else { return RangeCause::Unattributed };
    if !task.kernel {
        return RangeCause::AnotherProcess;
    }
    let known = [
        ("kswapd", RangeCause::Kswapd),
        ("khugepaged", RangeCause::Khugepaged),
        ("kcompactd", RangeCause::Kcompactd),
        ("ksmd", RangeCause::Ksmd),
        ("kdamond", RangeCause::Kdamond),
    ];
    let named = known.iter().find(|(name, _)| task.comm.starts_with(name));
    named.map_or(RangeCause::KernelThread, |(_, cause)| *cause)
}

/// The cause that a thread of this process is, when it is at nothing that is known.
pub fn of_own(task: &Task) -> RangeCause {
    let known =
        [("vcpu", RangeCause::GuestFault), ("uffd", RangeCause::Userfault), ("devices", RangeCause::Device)];
    let named = known.iter().find(|(name, _)| task.comm.starts_with(name));
    named.map_or(RangeCause::OwnThread, |(_, cause)| *cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(comm: &str, kernel: bool) -> Task {
        Task { tid: 1, pid: Some(1), comm: comm.to_owned(), kernel }
    }

    #[test]
    fn kernel_threads_are_known_by_name_and_processes_are_not() {
        assert_eq!(of_stranger(Some(&task("kswapd0", true))), RangeCause::Kswapd);
        assert_eq!(of_stranger(Some(&task("kdamond.0", true))), RangeCause::Kdamond);
        assert_eq!(of_stranger(Some(&task("kworker/0:1", true))), RangeCause::KernelThread);
        assert_eq!(of_stranger(Some(&task("kswapd0", false))), RangeCause::AnotherProcess);
        assert_eq!(of_stranger(None), RangeCause::Unattributed);
        assert_eq!(of_stranger(Some(&task("", false))), RangeCause::Unattributed);
        assert_eq!(of_own(&task("vcpu3", false)), RangeCause::GuestFault);
    }

    #[test]
    fn names_are_distinct_and_causes_stand_in_their_order() {
        let mut names: Vec<_> = RangeCause::ALL.iter().map(|cause| cause.name()).collect();
        assert!(RangeCause::ALL.iter().enumerate().all(|(index, cause)| *cause as usize == index));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), RangeCause::ALL.len());
    }
}
