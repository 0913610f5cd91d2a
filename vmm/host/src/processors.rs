//! Which processor each vCPU runs on, and its userfaultfd handler with it.
//!
//! A fault that userfaultfd serves is a thread going to sleep and another waking: on one processor that is a switch, across
//! two the waking of an idle one, which costs more than the fault itself.

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

/// The processors that this process may use; none where that is not known.
pub fn allowed() -> Vec<usize> {
    let Ok(allowed) = sched_getaffinity(None) else { return Vec::new() };
    (0..CpuSet::MAX_CPU).filter(|&processor| allowed.is_set(processor)).collect()
}

/// A processor for each of so many vCPUs: the n-th of those this process may use, over again where there are fewer; `None`
/// where that is not known.
pub fn for_vcpus(vcpus: u32) -> Vec<Option<usize>> {
    let processors = allowed();
    (0..vcpus as usize).map(|vcpu| processors.get(vcpu % processors.len().max(1)).copied()).collect()
}

/// Seats a thread on a processor, and says whether it sits.
pub fn seat(thread: Pid, processor: usize) -> bool {
    let mut only = CpuSet::new();
    only.set(processor);
    sched_setaffinity(Some(thread), &only).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_sits_where_it_is_seated() {
        let processors = for_vcpus(3);
        let Some(first) = processors[0] else { panic!("a thread may run somewhere") };
        std::thread::spawn(move || {
            assert!(seat(rustix::thread::gettid(), first));
            let mine = sched_getaffinity(None).unwrap();
            assert!(mine.is_set(first) && mine.count() == 1);
            assert_eq!(for_vcpus(3), [Some(first); 3], "there is but one now");
        })
        .join()
        .unwrap();
    }
}
