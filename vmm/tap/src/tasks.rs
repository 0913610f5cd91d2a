//! Whose context an event came from: threads by number, looked up once each, soon after they were first heard of.

use std::fs;

/// `PF_KTHREAD` in the flags of `/proc/TID/stat`.
const KERNEL_THREAD: u64 = 0x0020_0000;
/// Threads that are remembered by name; others stay numbers.
const MOST: usize = 4096;

/// A thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its number.
    pub tid: u32,
    /// Its process; `None` if it was gone when it was looked up.
    pub pid: Option<u32>,
    /// Its name; empty if it was gone.
    pub comm: String,
    /// Whether it is the kernel's own.
    pub kernel: bool,
}

/// The threads heard of.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    /// In order of number.
    known: Vec<Task>,
    /// Not looked up yet.
    new: Vec<(u32, u32)>,
    /// The last one heard, to tell quickly that nothing is new.
    last: Option<u32>,
}

impl Tasks {
    /// Notes that a thread was heard of.
    #[inline]
    pub(super) fn heard(&mut self, pid: u32, tid: u32) {
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

    /// Looks up who is new.
    pub(super) fn look_up(&mut self) {
        for (pid, tid) in self.new.drain(..) {
            let task = look_up(pid, tid);
            if let Err(place) = self.known.binary_search_by_key(&tid, |task| task.tid) {
                self.known.insert(place, task);
            }
        }
    }

    /// All that were heard of.
    pub(super) fn known(&self) -> &[Task] {
        &self.known
    }
}

fn look_up(pid: u32, tid: u32) -> Task {
    let stat = fs::read_to_string(format!("/proc/{tid}/stat")).unwrap_or_default();
    let (comm, kernel) = parse_stat(&stat).unwrap_or_default();
    let pid = match pid {
        0 => process_of(tid),
        pid => Some(pid),
    };
    Task { tid, pid, comm, kernel }
}

fn process_of(tid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

/// The name, and whether it is a kernel thread's, from `PID (NAME) STATE PPID PGRP SESSION TTY TPGID FLAGS …`. A name
/// may hold anything, brackets too.
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
    fn a_name_may_hold_brackets() {
        let line = "71 (a) b (c) S 2 0 0 0 -1 2129984 0 0";
        assert_eq!(parse_stat(line), Some(("a) b (c".to_owned(), true)));
        assert_eq!(parse_stat("71 (sh) R 2 0 0 0 -1 4194304 0"), Some(("sh".to_owned(), false)));
        assert_eq!(parse_stat("71"), None);
    }

    #[test]
    fn we_know_ourselves_and_who_is_gone_stays_a_number() {
        let mut tasks = Tasks::default();
        let ours = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        for tid in [ours, u32::MAX, ours] {
            tasks.heard(0, tid);
        }
        tasks.look_up();
        let found = |tid| tasks.known().iter().find(|task| task.tid == tid).unwrap();
        assert_eq!(tasks.known().len(), 2);
        assert_eq!((found(ours).pid, found(ours).kernel), (Some(std::process::id()), false));
        assert_eq!((found(u32::MAX).pid, found(u32::MAX).comm.as_str()), (None, ""));
    }
}
