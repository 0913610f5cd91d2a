//! Which cause each range has that the kernel announced in a span: by the thread in whose context it did, and by what this
//! process was doing then.
//!
//! ```text
//!   calls: thread, begin..end ────────────────┐
//!   events: ranges and works, by time ────────┴─> range by range: when, what, why, and in which of the calls
//! ```
//!
//! A range is of a call if its thread is the one that made the call, between the clock's reading before it and the one after:
//! system calls are synchronous, and both clocks are `CLOCK_MONOTONIC`. Pure code.

use guest_mem::HvaRange;

use experiment::events::Certainty;
use notifier_bridge::By;
use tap::{AtWork, Event, Task, of_own, of_stranger};

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

/// Gives each range of the events of a span, which are in order of time, to `each`: when, what, why, and in which of `calls`
/// of this process (number `pid`). Threads are looked up in `tasks`, which is in order of their numbers.
pub fn attribute(
    events: &[Event],
    calls: &Calls,
    tasks: &[Task],
    pid: u32,
    mut each: impl FnMut(u64, HvaRange, By, Option<usize>),
) {
    let mut at_work = AtWork::default();
    for event in events {
        let Some(range) = at_work.follow(event) else { continue };
        let (cause, call) = cause_of(event, calls, &at_work, tasks, pid);
        each(event.time_ns, range, cause, call);
    }
}

/// The cause of a range, and if it is a step's, which call's.
fn cause_of(event: &Event, calls: &Calls, at_work: &AtWork, tasks: &[Task], pid: u32) -> (By, Option<usize>) {
    let task = tasks.binary_search_by_key(&event.tid, |task| task.tid).ok().map(|index| &tasks[index]);
    let work = at_work.cause(event.tid);
    if event.tid == calls.thread {
        let call = calls.at(event.time_ns);
        let certainty = call.map(|call| calls.calls[call].certainty);
        return match (work, certainty) {
            (Some(_), Some(Certainty::Reclaim)) | (None, Some(_)) => (By::Step, call),
            // Collapse and migration by address are what the call is for.
            (Some(By::Migration | By::Compaction), Some(_)) => (By::Step, call),
            (Some(work), _) => (work, None),
            (None, None) => (By::Zap, None),
        };
    }
    let ours = event.pid == pid || task.is_some_and(|task| task.pid == Some(pid));
    let cause = match (task, work) {
        (Some(task), _) if task.kernel => of_stranger(Some(task)),
        (_, Some(work)) => work,
        (Some(task), None) if ours => of_own(task),
        (None, None) if ours => By::OwnThread,
        (task, None) => of_stranger(task),
    };
    (cause, None)
}

#[cfg(test)]
mod tests;
