//! The cause of each range that the kernel announced in a span: by the thread in whose context it was announced, and by the
//! work of this process at that time.
//!
//! ```text
//!   calls: thread, begin..end ────────────────┐
//!   events: ranges and works, by time ────────┴─> range by range: time, range, cause, and the call
//! ```
//!
//! A range is of a call if its thread is the one that made the call, between the clock's reading before it and the one after:
//! system calls are synchronous, and both clocks are `CLOCK_MONOTONIC`. Pure code.

use guest_mem::HvaRange;

use experiment::events::Certainty;
use notifier_bridge::By;
use tap::{Event, Ongoing, Task, of_own, of_range};

/// System calls of a step, in order of time.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    thread: u32,
    calls: Vec<Call>,
}

#[derive(Clone, Copy, Debug)]
struct Call {
    begin_ns: u64,
    end_ns: u64,
    certainty: Certainty,
}

impl Calls {
    /// None yet, by the thread of this number.
    pub fn of_thread(thread: u32) -> Self {
        Self { thread, calls: Vec::new() }
    }

    /// Notes a system call.
    pub fn note(&mut self, begin_ns: u64, end_ns: u64, certainty: Certainty) {
        self.calls.push(Call { begin_ns, end_ns, certainty });
    }

    /// The call that this thread was in at a time.
    fn at(&self, time_ns: u64) -> Option<usize> {
        let after = self.calls.partition_point(|call| call.begin_ns <= time_ns);
        let index = after.checked_sub(1)?;
        (time_ns <= self.calls[index].end_ns).then_some(index)
    }
}

/// Gives each range of the events of a span, which are in order of time, to `each`, with its time, its cause, and the
/// one of `calls` of this process (number `pid`) that made it. Threads are looked up in `tasks`, which is in order of
/// number.
pub fn attribute(
    events: &[Event],
    calls: &Calls,
    tasks: &[Task],
    pid: u32,
    mut each: impl FnMut(u64, HvaRange, By, Option<usize>),
) {
    let mut ongoing = Ongoing::default();
    for event in events {
        let Some(range) = ongoing.follow(event) else { continue };
        let (cause, call) = cause_of(event, calls, &ongoing, tasks, pid);
        each(event.time_ns, range, cause, call);
    }
}

/// The maker of a range, and the call if it is a step's.
fn cause_of(
    event: &Event,
    calls: &Calls,
    ongoing: &Ongoing,
    tasks: &[Task],
    pid: u32,
) -> (By, Option<usize>) {
    if event.tid == calls.thread {
        let work = ongoing.cause(event.tid);
        let call = calls.at(event.time_ns);
        let certainty = call.map(|call| calls.calls[call].certainty);
        return match (work, certainty) {
            (Some(_), Some(Certainty::Reclaim)) | (None, Some(_)) => (By::Step, call),
            // The call is made for collapse or migration by address.
            (Some(By::Migration | By::Compaction), Some(_)) => (By::Step, call),
            (Some(work), _) => (work, None),
            (None, None) => (By::Zap, None),
        };
    }
    let of_process = |process, task: Option<&Task>| {
        let ours = event.pid == pid || process == pid;
        ours.then(|| task.map_or(By::OwnThread, of_own))
    };
    (of_range(event, ongoing, tasks, of_process), None)
}

#[cfg(test)]
mod tests;
