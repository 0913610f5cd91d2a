//! The guardian's own side: keeps the list of what is outstanding, and works through it when its owner died.
//!
//! It speaks through its standard input, which is a socket. It must not be ended by what ends its owner, must
//! not panic over a closed terminal, and must end itself when there is nothing left to guard.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use super::change_log::ChangeLog;
use super::guardian::GUARDIAN_ARGUMENT;
use super::guardian_message::{Answer, Request, to_line};
use super::switch_file::write_switch;
use super::undo::{UndoAction, UndoError, Undone};
use super::zram;
use program::output;

/// How long an owner that closed the socket may take to die. It is dying already, or it left us a change it
/// could not undo itself because it still used the device.
const DEATH_SECONDS: i64 = 10;

/// An undo may fail because the kernel is still tearing the owner down.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(200);
/// How long its last words may take to be read.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Makes this process a guardian if its arguments ask for that: `main` calls it before anything else, and
/// exits with the code if there is one.
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

/// Guards the process `owner`, which holds the other end of standard input.
pub fn guard(owner: i32) -> ExitCode {
    leave_the_terminal();
    let owner =
        Pid::from_raw(owner).and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    let stdin = io::stdin();
    let mut line = Line { channel: stdin.as_fd(), owner, unread: Vec::new() };
    let (mut outstanding, mut log) = (Outstanding::default(), None);
    line.say(&Answer::Ready);
    while let Some(request) = line.next() {
        match request {
            // A log that cannot be held is one that nobody else can read either: the run had it a moment ago.
            Request::Log { path } => {
                log = ChangeLog::join(&path).ok();
                line.say(&Answer::Ready);
            }
            Request::Plan { id, action } => {
                stay_out_of(&action);
                outstanding.add(id, action);
            }
            Request::Forget { id } => outstanding.forget(id),
            Request::AddZram { id } => line.say(&add_zram(id, &mut outstanding, log.as_mut())),
            Request::Done => return ExitCode::SUCCESS,
        }
    }
    // A run that was killed may not have told all that it had noted.
    let noted = log.as_mut().and_then(|log: &mut ChangeLog| log.outstanding().ok()).unwrap_or_default();
    noted.actions.into_iter().for_each(|(id, action)| outstanding.add(id, action));
    if outstanding.0.is_empty() {
        log.into_iter().for_each(ChangeLog::end);
        return ExitCode::SUCCESS;
    }
    line.await_death();
    undo_all(outstanding, log)
}

/// A guardian that took another one's place began where its run is: in the cgroup that it shall remove, and whose limit
/// it shall not feel.
fn stay_out_of(action: &UndoAction) {
    if let UndoAction::RemoveCgroup { home, .. } = action {
        // 0 is whoever writes it. Where it fails the group's removal moves this process as well.
        let _ = write_switch(&home.join("cgroup.procs"), "0");
    }
}

/// A session of its own is out of reach of the terminal's Ctrl-C and hang-up. Signals sent to it by name are
/// ignored too: whoever ends "all zapscopes" wants the host restored.
fn leave_the_terminal() {
    // Fails only for the leader of a process group, which a child just started is not.
    let _ = rustix::process::setsid();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE, libc::SIGXFSZ] {
        // SAFETY: ignoring a signal runs no code of ours in a handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // Pin no directory, and be the last to go when memory runs out: this process exists for bad times.
    let _ = std::env::set_current_dir("/");
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
}

/// What is to be undone, in the order in which it was changed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outstanding(Vec<(u64, UndoAction)>);

impl Outstanding {
    fn add(&mut self, id: u64, action: UndoAction) {
        if !self.0.iter().any(|(known, _)| *known == id) {
            self.0.push((id, action));
        }
    }

    fn forget(&mut self, id: u64) {
        self.0.retain(|(known, _)| *known != id);
    }

    fn in_reverse(mut self) -> impl Iterator<Item = (u64, UndoAction)> {
        // By number, whoever told of it first.
        self.0.sort_by_key(|(id, _)| *id);
        self.0.into_iter().rev()
    }
}

fn add_zram(id: u64, outstanding: &mut Outstanding, log: Option<&mut ChangeLog>) -> Answer {
    match zram::hot_add() {
        Ok(made) => {
            let (number, diskseq) = (made.number, made.diskseq);
            let action = UndoAction::RemoveZram { number, diskseq };
            // Before the run hears of it: from now on any of the two may die.
            let _ = log.map(|log| log.note(&Request::Plan { id, action: action.clone() }));
            outstanding.add(id, action);
            Answer::Zram { number, diskseq }
        }
        Err(error) => Answer::Failed { errno: error.raw_os_error(), why: error.to_string() },
    }
}

/// Tries as long as the kernel may still be tearing down whoever was killed.
pub(super) fn undo_with_patience(action: &UndoAction) -> Result<Undone, UndoError> {
    let mut done = action.perform();
    for _ in 1..TRIES {
        if done.is_ok() {
            break;
        }
        std::thread::sleep(PAUSE);
        done = action.perform();
    }
    done
}

fn undo_all(outstanding: Outstanding, mut log: Option<ChangeLog>) -> ExitCode {
    let mut reports = Vec::new();
    for (id, action) in outstanding.in_reverse() {
        let done = undo_with_patience(&action);
        if let (Ok(_), Some(log)) = (&done, &mut log) {
            let _ = log.note(&Request::Forget { id });
        }
        reports.push((action, done));
    }
    if reports.iter().all(|(_, done)| done.is_ok()) {
        // With what could not be undone it stays, for the next zapscope to try.
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
    // Only now: a terminal that is not read must not keep the host from being restored, nor this process alive.
    output::finish_within(LAST_WORDS);
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The guardian's end of the line.
struct Line<'fd> {
    channel: BorrowedFd<'fd>,
    /// A pidfd, readable once the owner is dead. `None`: it was dead before we could look, or this kernel has
    /// none; the socket tells as well.
    owner: Option<OwnedFd>,
    unread: Vec<u8>,
}

impl Line<'_> {
    /// The next request; `None` once the owner is gone and everything it sent has been read.
    fn next(&mut self) -> Option<Request> {
        loop {
            while let Some(text) = take_line(&mut self.unread) {
                match serde_json::from_slice(&text) {
                    Ok(request) => return Some(request),
                    Err(error) => {
                        output::message(format_args!("guardian: a request makes no sense: {error}"));
                    }
                }
            }
            if !self.receive() {
                return None;
            }
        }
    }

    /// Waits for bytes; false when there will be none.
    fn receive(&mut self) -> bool {
        let readable = {
            let mut polled = vec![PollFd::new(&self.channel, PollFlags::IN)];
            polled.extend(self.owner.as_ref().map(|owner| PollFd::new(owner, PollFlags::IN)));
            match rustix::event::poll(&mut polled, None) {
                Ok(_) => !polled[0].revents().is_empty(),
                Err(Errno::INTR) => return true,
                // Then read alone has to notice.
                Err(_) => true,
            }
        };
        // The owner is dead and nothing is left to read, though some child of it holds the socket open.
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
            // A reset: the owner died with an answer of ours unread. What it sent came before this error.
            Err(_) => false,
        }
    }

    fn say(&self, answer: &Answer) {
        // An owner that does not hear us is dying, which the next read will show.
        if let Ok(line) = to_line(answer) {
            let _ = rustix::io::write(self.channel, line.as_bytes());
        }
    }

    fn await_death(&self) {
        let Some(owner) = &self.owner else { return };
        let patience = Timespec { tv_sec: DEATH_SECONDS, tv_nsec: 0 };
        let _ = rustix::event::poll(&mut [PollFd::new(owner, PollFlags::IN)], Some(&patience));
    }
}

/// Takes the first whole line off `bytes`.
fn take_line(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let mut line: Vec<_> = bytes.drain(..=end).collect();
    line.pop();
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remove(number: u32) -> UndoAction {
        UndoAction::RemoveZram { number, diskseq: None }
    }

    #[test]
    fn undoing_goes_backwards_and_skips_what_was_forgotten() {
        let mut outstanding = Outstanding::default();
        for number in [1, 2, 3] {
            outstanding.add(u64::from(number), remove(number));
        }
        outstanding.forget(2);
        outstanding.forget(9);
        assert_eq!(outstanding.in_reverse().collect::<Vec<_>>(), [(3, remove(3)), (1, remove(1))]);
    }

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
