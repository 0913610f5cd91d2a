//! Which processor each vCPU runs on, and its handler with it.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::testbed::Testbed;

/// Gives vCPU n the n-th of the processors this process may use, over again where there are fewer, and says which; `None`
/// for one whose thread stays anywhere. The attacker's thread is left where the scheduler puts it.
///
/// A fault that userfaultfd serves is a thread going to sleep and another waking: on one processor that is a switch, across
/// two the waking of an idle one, which costs more than the fault itself.
pub fn seat(testbed: &dyn Testbed) -> Vec<Option<usize>> {
    let Ok(allowed) = sched_getaffinity(None) else { return vec![None; testbed.vcpus() as usize] };
    let processors = (0..CpuSet::MAX_CPU).filter(|&processor| allowed.is_set(processor)).cycle();
    let seat = |(vcpu, processor): (u32, usize)| {
        let mut only = CpuSet::new();
        only.set(processor);
        sched_setaffinity(Some(testbed.thread(vcpu)?), &only).ok().map(|()| processor)
    };
    (0..testbed.vcpus()).zip(processors).map(seat).collect()
}
