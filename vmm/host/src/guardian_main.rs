//! The guardian's process: it keeps the list of outstanding changes, and undoes them when its run has ended.
//!
//! Its standard input is the socket to the run. It must survive what ends the run, must not panic over a closed terminal, and
//! must exit when nothing is outstanding.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use super::change_log::{ChangeLog, Outstanding};
use super::guardian::GUARDIAN_ARGUMENT;
use super::guardian_message::{Answer, Request, to_line};
use super::retry::retry;
use super::switch_file::write_switch;
use super::undo::{UndoAction, UndoError, Undone};
use super::zram;
use program::output;

/// The limit on the wait for the end of a run that has closed the socket. It is ending, or it left a change that it could
/// not undo because it used the device.
const DEATH_SECONDS: i64 = 10;

/// An undo may fail while the kernel is still tearing the run down.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(200);
/// The limit on the wait for a reader of its last messages.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Makes this process a guardian if its arguments ask for it. `main` calls this first, and exits with the code if there is
/// one.
pub fn run_if_asked(arguments: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut arguments = arguments.into_iter().skip(1);
    if arguments.next()? != GUARDIAN_ARGUMENT {
        return None;
    }
    let owner = arguments.next().and_then(|pid| pid.to_str()?.parse().ok());
    Some(match owner {
        Some(owner) => guard(owner),
        None => ExitCode::from(2),
    })
}

/// Guards the run `owner`, which holds the other end of standard input.
pub fn guard(owner: i32) -> ExitCode {
    leave_the_terminal();
    let owner =
        Pid::from_raw(owner).and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    let stdin = io::stdin();
    let mut line = Line { channel: stdin.as_fd(), owner, unread: Vec::new() };
    let (mut outstanding, mut log) = (Outstanding::default(), None);
    line.send(&Answer::Ready);
    while let Some(request) = line.next() {
        match request {
            // The run has just made it. If it cannot be opened, no later zapscope can open it either.
            Request::Log { path } => {
                log = ChangeLog::join(&path).ok();
                line.send(&Answer::Ready);
            }
            Request::AddZram { id } => line.send(&add_zram(id, &mut outstanding, log.as_mut())),
            Request::Done => return ExitCode::SUCCESS,
            Request::Plan { id, action } => {
                leave(&action);
                outstanding.take(Request::Plan { id, action });
            }
            forget @ Request::Forget { .. } => outstanding.take(forget),
        }
    }
    // A run that was killed may not have sent all that is in its log.
    let logged = log.as_mut().and_then(|log: &mut ChangeLog| log.outstanding().ok()).unwrap_or_default();
    logged.actions.into_iter().for_each(|(id, action)| outstanding.take(Request::Plan { id, action }));
    if outstanding.actions.is_empty() {
        log.into_iter().for_each(ChangeLog::end);
        return ExitCode::SUCCESS;
    }
    line.await_end();
    undo_all(outstanding, log)
}

/// Leaves the cgroup that the action removes. A guardian that replaces another one starts in its run's cgroup, whose limit
/// must not apply to it.
fn leave(action: &UndoAction) {
    if let UndoAction::RemoveCgroup { home, .. } = action {
        // 0 stands for the writing process. If it fails, the removal of the group moves this process as well.
        let _ = write_switch(&home.join("cgroup.procs"), "0");
    }
}

/// Starts a session, which the terminal's Ctrl-C and hang-up do not reach, and ignores signals: a user who ends all processes
/// of zapscope wants the host restored.
fn leave_the_terminal() {
    // Fails only for the leader of a process group, which a child just started is not.
    let _ = rustix::process::setsid();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE, libc::SIGXFSZ] {
        // SAFETY: an ignored signal has no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // Do not pin a directory, and be the last process that is killed when memory runs out.
    let _ = std::env::set_current_dir("/");
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
}

fn add_zram(id: u64, outstanding: &mut Outstanding, log: Option<&mut ChangeLog>) -> Answer {
    match zram::hot_add() {
        Ok(made) => {
            let (number, diskseq) = (made.number, made.diskseq);
            let action = UndoAction::RemoveZram { number, diskseq };
            // Before the answer: from now on either process may be killed.
            let plan = Request::Plan { id, action };
            let _ = log.map(|log| log.note(&plan));
            outstanding.take(plan);
            Answer::Zram { number, diskseq }
        }
        Err(error) => Answer::Failed { errno: error.raw_os_error(), why: error.to_string() },
    }
}

/// Performs an action, again as long as the kernel may still be tearing down the killed process.
pub(super) fn undo_with_patience(action: &UndoAction) -> Result<Undone, UndoError> {
    retry(TRIES, PAUSE, |_| true, || action.perform())
}

fn undo_all(outstanding: Outstanding, mut log: Option<ChangeLog>) -> ExitCode {
    let mut reports = Vec::new();
    let mut actions = outstanding.actions;
    // In reverse order of the changes, whichever process noted them first.
    actions.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
    for (id, action) in actions {
        let done = undo_with_patience(&action);
        if let (Ok(_), Some(log)) = (&done, &mut log) {
            let _ = log.note(&Request::Forget { id });
        }
        reports.push((action, done));
    }
    if reports.iter().all(|(_, done)| done.is_ok()) {
        // Otherwise it stays for the next zapscope.
        log.into_iter().for_each(ChangeLog::end);
    }
    let mut failed = false;
    for (action, done) in reports {
        match done {
            Ok(Undone::Restored) => {
                output::progress(format_args!("zapscope was killed; undone for it: {action}"));
            }
            Ok(Undone::LeftAlone(now)) => output::progress(format_args!(
                "zapscope was killed; did not {action}: somebody has set it to '{now}' since"
            )),
            Err(error) => {
                failed = true;
                output::progress(format_args!("zapscope was killed; {error} ({})", error.source));
            }
        }
    }
    // Last: a terminal that is not read must neither delay the undoing nor keep this process alive.
    output::finish_within(LAST_WORDS);
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The connection to the run.
struct Line<'fd> {
    channel: BorrowedFd<'fd>,
    /// A pidfd, readable once the run has ended. `None` if it has ended already, or this kernel has no pidfds; the socket
    /// shows the end as well.
    owner: Option<OwnedFd>,
    unread: Vec<u8>,
}

impl Line<'_> {
    /// The next request; `None` once the run has ended and all its requests are read.
    fn next(&mut self) -> Option<Request> {
        loop {
            while let Some(text) = take_line(&mut self.unread) {
                match serde_json::from_slice(&text) {
                    Ok(request) => return Some(request),
                    Err(error) => {
                        output::message(format_args!("guardian: a request cannot be read: {error}"));
                    }
                }
            }
            if !self.receive() {
                return None;
            }
        }
    }

    /// Waits for bytes; false if none will come.
    fn receive(&mut self) -> bool {
        let readable = {
            let mut polled = vec![PollFd::new(&self.channel, PollFlags::IN)];
            polled.extend(self.owner.as_ref().map(|owner| PollFd::new(owner, PollFlags::IN)));
            match rustix::event::poll(&mut polled, None) {
                Ok(_) => !polled[0].revents().is_empty(),
                Err(Errno::INTR) => return true,
                // The read below notices the end.
                Err(_) => true,
            }
        };
        // The run has ended and nothing is left to read; a child of it may hold the socket open.
        if !readable {
            return false;
        }
        let mut bytes = [0u8; 4096];
        match rustix::io::read(self.channel, &mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                self.unread.extend_from_slice(&bytes[..count]);
                true
            }
            Err(Errno::INTR) => true,
            // A reset: the run ended with an answer unread. All its requests came before this error.
            Err(_) => false,
        }
    }

    fn send(&self, answer: &Answer) {
        // If it fails, the run is ending, which the next read shows.
        if let Ok(line) = to_line(answer) {
            let _ = rustix::io::write(self.channel, line.as_bytes());
        }
    }

    fn await_end(&self) {
        let Some(owner) = &self.owner else { return };
        let patience = Timespec { tv_sec: DEATH_SECONDS, tv_nsec: 0 };
        let _ = rustix::event::poll(&mut [PollFd::new(owner, PollFlags::IN)], Some(&patience));
    }
}

/// Removes the first whole line from `bytes`.
fn take_line(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let mut line: Vec<_> = bytes.drain(..=end).collect();
    line.pop();
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_only_when_it_is_whole() {
        let mut bytes = b"one\ntw".to_vec();
        assert_eq!(take_line(&mut bytes).as_deref(), Some(&b"one"[..]));
        assert_eq!(take_line(&mut bytes), None);
        bytes.extend(b"o\n");
        assert_eq!(take_line(&mut bytes).as_deref(), Some(&b"two"[..]));
        assert!(bytes.is_empty());
    }

    #[test]
    fn only_the_hidden_argument_makes_a_guardian() {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(run_if_asked(words(&["zapscope", "run"])), None);
        assert_eq!(run_if_asked(words(&["zapscope"])), None);
        assert_eq!(run_if_asked(words(&["zapscope", "run", GUARDIAN_ARGUMENT])), None);
        let without_owner = run_if_asked(words(&["zapscope", GUARDIAN_ARGUMENT, "nobody"]));
        assert_eq!(without_owner, Some(ExitCode::from(2)));
    }
}
