//! The processor on which a vCPU and its userfaultfd handler run.
//!
//! userfaultfd serves a fault by putting one thread to sleep and waking another. On one processor that is a context switch; on
//! two it wakes an idle processor, which costs more than the fault.

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

/// The processors that this process may use; empty if they are not known.
pub fn allowed() -> Vec<usize> {
    let Ok(allowed) = sched_getaffinity(None) else { return Vec::new() };
    (0..CpuSet::MAX_CPU).filter(|&processor| allowed.is_set(processor)).collect()
}

/// A processor for each vCPU: the allowed ones in turn; `None` if they are not known.
pub fn for_vcpus(vcpus: u32) -> Vec<Option<usize>> {
    let processors = allowed();
    (0..vcpus as usize).map(|vcpu| processors.get(vcpu % processors.len().max(1)).copied()).collect()
}

/// Pins a thread to a processor; returns whether that succeeded.
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
        let Some(first) = processors[0] else { panic!("a thread has a processor") };
        std::thread::spawn(move || {
            assert!(seat(rustix::thread::gettid(), first));
            let mine = sched_getaffinity(None).unwrap();
            assert!(mine.is_set(first) && mine.count() == 1);
            assert_eq!(for_vcpus(3), [Some(first); 3], "one processor is allowed now");
        })
        .join()
        .unwrap();
    }
}
