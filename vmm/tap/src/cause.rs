//! The maker of a range: the work that its thread was doing, or the kind of the thread.
//!
//! ```text
//!   the range's thread
//!     ├─ a kernel thread        by its name: kswapd, khugepaged, kcompactd, ksmd, kdamond
//!     ├─ a thread of this process
//!     │    ├─ it reclaims, compacts or moves pages (begun before the range, not ended)   that work
//!     │    ├─ it performs a step, inside the step's system call                          step
//!     │    ├─ it performs a step, between system calls                                   zap: a listener, our swap
//!     │    └─ a vCPU, a userfaultfd handler, a device                                    by its name
//!     ├─ a thread of another process   its reclaim, compaction or migration; else the process
//!     └─ a thread that is gone         unattributed
//! ```

use notifier_bridge::By;

use super::ongoing::Ongoing;
use super::tasks::Task;
use super::tracepoints::Event;

/// By whom the range of an event was announced, outside of a run's steps: a kernel thread by its name; else the work that
/// its thread was doing; else the process, which `of_process` may know by the thread.
pub fn of_range(
    event: &Event,
    ongoing: &Ongoing,
    tasks: &[Task],
    of_process: impl FnOnce(u32, Option<&Task>) -> Option<By>,
) -> By {
    let task = tasks.binary_search_by_key(&event.tid, |task| task.tid).ok().map(|at| &tasks[at]);
    if task.is_some_and(|task| task.kernel) {
        return of_stranger(task);
    }
    let pid = task.and_then(|task| task.pid).unwrap_or(event.pid);
    let known = || ongoing.cause(event.tid).or_else(|| of_process(pid, task));
    known().unwrap_or_else(|| of_stranger(task))
}

/// The maker of ranges that a thread of another process is.
fn of_stranger(task: Option<&Task>) -> By {
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

/// The maker of ranges that a thread of this process is, when it does no work that is a cause by itself.
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
    fn names_are_distinct_and_in_the_order_of_the_enum() {
        let mut names: Vec<_> = By::ALL.iter().map(|cause| cause.name()).collect();
        assert!(By::ALL.iter().enumerate().all(|(index, cause)| *cause as usize == index));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), By::ALL.len());
    }
}
