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

use notifier_bridge::By;

use super::tasks::Task;
use super::tracepoints::Work;

/// The cause that a piece of work is; `None` of a system call, which says little by itself.
pub fn of_work(work: Work) -> Option<By> {
    match work {
        Work::DirectReclaim | Work::NodeReclaim => Some(By::DirectReclaim),
        Work::MemcgReclaim => Some(By::MemcgReclaim),
        Work::Compaction => Some(By::Compaction),
        Work::Migration => Some(By::Migration),
        Work::Call(_) => None,
    }
}

/// The cause that a thread of another than ours is, by who it is.
pub fn of_stranger(task: Option<&Task>) -> By {
    let Some(task) = task.filter(|task| !task.comm.is_empty()) else { return By::Unattributed };
    if !task.kernel {
        return By::AnotherProcess;
    }
    let known = [
        ("kswapd", By::Kswapd),
        ("khugepaged", By::Khugepaged),
        ("kcompactd", By::Kcompactd),
        ("ksmd", By::Ksmd),
        ("kdamond", By::Kdamond),
    ];
    let named = known.iter().find(|(name, _)| task.comm.starts_with(name));
    named.map_or(By::KernelThread, |(_, cause)| *cause)
}

/// The cause that a thread of this process is, when it is at nothing that is known.
pub fn of_own(task: &Task) -> By {
    let known = [("vcpu", By::GuestFault), ("uffd", By::Userfault), ("devices", By::Device)];
    let named = known.iter().find(|(name, _)| task.comm.starts_with(name));
    named.map_or(By::OwnThread, |(_, cause)| *cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(comm: &str, kernel: bool) -> Task {
        Task { tid: 1, pid: Some(1), comm: comm.to_owned(), kernel }
    }

    #[test]
    fn kernel_threads_are_known_by_name_and_processes_are_not() {
        assert_eq!(of_stranger(Some(&task("kswapd0", true))), By::Kswapd);
        assert_eq!(of_stranger(Some(&task("kdamond.0", true))), By::Kdamond);
        assert_eq!(of_stranger(Some(&task("kworker/0:1", true))), By::KernelThread);
        assert_eq!(of_stranger(Some(&task("kswapd0", false))), By::AnotherProcess);
        assert_eq!(of_stranger(None), By::Unattributed);
        assert_eq!(of_stranger(Some(&task("", false))), By::Unattributed);
        assert_eq!(of_own(&task("vcpu3", false)), By::GuestFault);
    }

    #[test]
    fn names_are_distinct_and_causes_stand_in_their_order() {
        let mut names: Vec<_> = By::ALL.iter().map(|cause| cause.name()).collect();
        assert!(By::ALL.iter().enumerate().all(|(index, cause)| *cause as usize == index));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), By::ALL.len());
    }
}
