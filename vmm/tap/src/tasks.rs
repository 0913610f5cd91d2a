//! The threads that events came from: looked up once each, soon after their first event.

use std::fs;

/// `PF_KTHREAD` in the flags of `/proc/TID/stat`.
const KERNEL_THREAD: u64 = 0x0020_0000;
/// The limit on threads that are looked up.
const MOST: usize = 4096;

/// A thread, as it was when it was looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its thread ID.
    pub tid: u32,
    /// Its process; `None` if the event did not have it.
    pub pid: Option<u32>,
    /// Its name; empty if it was gone by then.
    pub comm: String,
    /// Whether it is a kernel thread.
    pub kernel: bool,
}

/// The threads of the events so far.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    /// In order of thread ID.
    known: Vec<Task>,
    /// Not looked up yet.
    new: Vec<(u32, u32)>,
    /// The thread of the last event: most events are of the same thread as the one before.
    last: Option<u32>,
}

impl Tasks {
    /// Notes the thread of an event.
    #[inline]
    pub(super) fn note(&mut self, pid: u32, tid: u32) {
        if self.last != Some(tid) {
            self.last = Some(tid);
            self.consider(pid, tid);
        }
    }

    #[cold]
    fn consider(&mut self, pid: u32, tid: u32) {
        let known = self.known.binary_search_by_key(&tid, |task| task.tid).is_ok();
        if !known && self.known.len() + self.new.len() < MOST && !self.new.iter().any(|(_, new)| *new == tid)
        {
            self.new.push((pid, tid));
        }
    }

    /// Looks up the new threads.
    pub(super) fn look_up(&mut self) {
        for (pid, tid) in self.new.drain(..) {
            let task = look_up(pid, tid);
            if let Err(place) = self.known.binary_search_by_key(&tid, |task| task.tid) {
                self.known.insert(place, task);
            }
        }
    }

    /// All threads that were looked up.
    pub(super) fn known(&self) -> &[Task] {
        &self.known
    }
}

fn look_up(pid: u32, tid: u32) -> Task {
    let stat = fs::read_to_string(format!("/proc/{tid}/stat")).unwrap_or_default();
    let (comm, kernel) = parse_stat(&stat).unwrap_or_default();
    Task { tid, pid: (pid != 0).then_some(pid), comm, kernel }
}

/// The name, and whether it is a kernel thread's, from `PID (NAME) STATE PPID PGRP SESSION TTY TPGID FLAGS …`. A name
/// may contain brackets.
fn parse_stat(stat: &str) -> Option<(String, bool)> {
    let (front, rest) = stat.rsplit_once(')')?;
    let comm = front.split_once('(')?.1;
    let flags: u64 = rest.split_whitespace().nth(6)?.parse().ok()?;
    Some((comm.to_owned(), flags & KERNEL_THREAD != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_contain_brackets() {
        let line = "71 (a) b (c) S 2 0 0 0 -1 2129984 0 0";
        assert_eq!(parse_stat(line), Some(("a) b (c".to_owned(), true)));
        assert_eq!(parse_stat("71 (sh) R 2 0 0 0 -1 4194304 0"), Some(("sh".to_owned(), false)));
        assert_eq!(parse_stat("71"), None);
    }

    #[test]
    fn a_thread_is_looked_up_once_and_one_that_is_gone_has_no_name() {
        let mut tasks = Tasks::default();
        let ours = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        for (pid, tid) in [(std::process::id(), ours), (0, u32::MAX), (std::process::id(), ours)] {
            tasks.note(pid, tid);
        }
        tasks.look_up();
        let found = |tid| tasks.known().iter().find(|task| task.tid == tid).unwrap();
        assert_eq!(tasks.known().len(), 2);
        assert_eq!((found(ours).pid, found(ours).kernel), (Some(std::process::id()), false));
        assert_eq!((found(u32::MAX).pid, found(u32::MAX).comm.as_str()), (None, ""));
    }
}
