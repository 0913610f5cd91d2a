//! Ctrl-C as a cancel token: a run ends early by returning, and its changes are undone on the way.
//!
//! ```text
//! main: cancel_on_signal(): the signals are blocked ─► threads start, inherit the mask
//!                                 │
//! SIGINT, SIGTERM, SIGHUP ─► signalfd ─► the signal thread ─► Cancel: a flag that steps poll,
//!                                            │               an eventfd that wakes sleepers
//!                                            └─ then the announcement, which may fail
//! ```
//!
//! If the signal thread fails, it unblocks the signals: then they end the process, and the guardian undoes its changes.

use guest_mem::remedy::{self, Asked};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::changes::Announce;
use program::exit::{Class, Classified};
use program::stop_signals::stop_signals;

/// The stack of the signal thread, which reads and prints a line.
const STACK: usize = 64 << 10;

/// The cancel token or the signal thread cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up {what} for Ctrl-C{}", remedy::after_io(*asked, source))]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub struct SignalError {
    pub what: &'static str,
    pub asked: Asked,
    #[source]
    pub source: io::Error,
}

impl Classified for SignalError {
    fn class(&self) -> Class {
        Class::of_refused_io(&self.source)
    }
}

/// A signal has asked for the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped by a signal; what was measured so far is kept")]
pub struct Cancelled;

/// A token by which a run is cancelled. Clones are the same token.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<Token>);

#[derive(Debug)]
struct Token {
    is_set: AtomicBool,
    /// Readable once cancelled. It is never read, so that it stays readable for all waiters.
    wake: OwnedFd,
}

impl Cancel {
    /// A token that is not cancelled.
    pub fn new() -> Result<Self, SignalError> {
        let wake =
            rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|errno| {
                SignalError { what: "an eventfd", asked: Asked::Descriptor, source: errno.into() }
            })?;
        Ok(Self(Arc::new(Token { is_set: AtomicBool::new(false), wake })))
    }

    /// Cancels.
    pub fn cancel(&self) {
        // Release, paired with the load in `is_cancelled`.
        self.0.is_set.store(true, Ordering::Release);
        // Fails only if the counter is full, and then it is readable.
        let _ = rustix::io::retry_on_intr(|| rustix::io::write(&self.0.wake, &1u64.to_ne_bytes()));
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_set.load(Ordering::Acquire)
    }

    /// [`Cancelled`] as an error, for `?`.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.is_cancelled() { Err(Cancelled) } else { Ok(()) }
    }

    /// Sleeps until the time is over or the token is cancelled.
    pub fn sleep(&self, duration: Duration) -> Result<(), Cancelled> {
        let end = std::time::Instant::now() + duration;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            // A duration that does not fit into a time_t is cut to a day; the loop continues.
            let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 86_400, tv_nsec: 0 });
            match rustix::event::poll(&mut [PollFd::new(&self.0.wake, PollFlags::IN)], Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                // The descriptor cannot be polled: sleep in short pieces.
                Err(_) => std::thread::sleep(left.min(Duration::from_millis(10))),
            }
        }
    }
}

impl AsFd for Cancel {
    /// Readable once cancelled; must not be read.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }
}

/// A token that SIGINT, SIGTERM and SIGHUP cancel. Call this before the first thread is started: a signal to a thread without
/// the mask would end the process.
///
/// `announce` receives each signal after the token is cancelled.
///
/// # Errors
/// [`SignalError`]; the signals are not blocked then.
pub fn cancel_on_signal(announce: impl FnMut(&str) + Send + 'static) -> Result<Cancel, SignalError> {
    let cancel = Cancel::new()?;
    change_mask(libc::SIG_BLOCK)?;
    let started = StopSignals::new(cancel.clone(), announce).and_then(StopSignals::start);
    if let Err(error) = started {
        // Without the signal thread they end the process at once, as before this call.
        let _ = change_mask(libc::SIG_UNBLOCK);
        return Err(error);
    }
    Ok(cancel)
}

/// Makes a write beyond `ulimit -f` fail with EFBIG, as on a full disk, instead of ending this process. The guardian, the only
/// child, inherits it.
pub fn ignore_file_size_signal() {
    // SAFETY: an ignored signal has no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Blocks or unblocks the stop signals in this thread, and in those that it starts later.
fn change_mask(how: i32) -> Result<(), SignalError> {
    let set = stop_signals();
    // SAFETY: the set is initialised; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(SignalError {
            what: "the signal mask",
            asked: Asked::Descriptor,
            source: io::Error::from_raw_os_error(errno),
        }),
    }
}

/// The stop signals, which cancel a token.
struct StopSignals {
    fd: OwnedFd,
    cancel: Cancel,
    announce: Announce,
}

impl StopSignals {
    /// Opens the signals, which must be blocked.
    fn new(cancel: Cancel, announce: impl FnMut(&str) + Send + 'static) -> Result<Self, SignalError> {
        let set = stop_signals();
        // SAFETY: the set is initialised and only read; -1 asks for a new descriptor.
        let raw = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) };
        if raw < 0 {
            return Err(SignalError {
                what: "a signalfd",
                asked: Asked::Descriptor,
                source: io::Error::last_os_error(),
            });
        }
        // SAFETY: the kernel has just returned this descriptor, which has no other owner.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        Ok(Self { fd, cancel, announce: Box::new(announce) })
    }

    /// Starts the signal thread. It ends with the process.
    fn start(mut self) -> Result<(), SignalError> {
        let serve = move || {
            while self.receive().is_ok() {}
            // A mask is of one thread: as long as this thread lives unblocked, the signals end the process.
            let _ = change_mask(libc::SIG_UNBLOCK);
            loop {
                std::thread::park();
            }
        };
        let thread = std::thread::Builder::new().name("signals".to_owned()).stack_size(STACK).spawn(serve);
        thread.map(drop).map_err(|source| SignalError { what: "a thread", asked: Asked::Thread, source })
    }

    /// Waits for a signal and cancels the token.
    fn receive(&mut self) -> io::Result<()> {
        let mut record = [0u8; size_of::<libc::signalfd_siginfo>()];
        let length = rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut record))?;
        if length < record.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // `ssi_signo` is the first field.
        let number = u32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
        let again = self.cancel.is_cancelled();
        self.cancel.cancel();
        // A panic in the announcement must not end this thread.
        let _ = catch_unwind(AssertUnwindSafe(|| (self.announce)(&announcement(number, again))));
        Ok(())
    }
}

const _: () = assert!(std::mem::offset_of!(libc::signalfd_siginfo, ssi_signo) == 0);
const _: () = assert!(size_of::<libc::signalfd_siginfo>() == 128);

/// The announcement of a signal; `again` if it is not the first.
fn announcement(number: u32, again: bool) -> String {
    let name = match number as i32 {
        libc::SIGINT => "Ctrl-C",
        libc::SIGTERM => "SIGTERM",
        libc::SIGHUP => "SIGHUP",
        _ => "a signal",
    };
    // The undoing of changes is announced where it is done: here it is not known whether there are any.
    if again {
        format!("{name} again: stopping already, a moment please")
    } else {
        format!("{name}: stopping")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Instant;

    use super::*;
    use program::stop_signals::{STOP_SIGNALS, with_stop_signals_blocked};

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_token_is_shared_and_stays_set() {
        let cancel = Cancel::new().unwrap();
        let other = cancel.clone();
        assert_eq!(other.check(), Ok(()));
        cancel.cancel();
        cancel.cancel();
        assert_eq!(other.check(), Err(Cancelled));
        assert_eq!(other.sleep(LONG), Err(Cancelled));
        assert_eq!(other.sleep(LONG), Err(Cancelled), "the token stays cancelled");
    }

    #[test]
    fn sleepers_are_woken() {
        let cancel = Cancel::new().unwrap();
        let sleepers: Vec<_> = (0..3)
            .map(|_| {
                let cancel = cancel.clone();
                std::thread::spawn(move || cancel.sleep(LONG))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(20));
        cancel.cancel();
        for sleeper in sleepers {
            assert_eq!(sleeper.join().unwrap(), Err(Cancelled));
        }
    }

    #[test]
    fn an_undisturbed_sleep_is_as_long_as_asked() {
        let (cancel, start) = (Cancel::new().unwrap(), Instant::now());
        assert_eq!(cancel.sleep(Duration::from_millis(30)), Ok(()));
        assert!(start.elapsed() >= Duration::from_millis(30));
    }

    /// Raises a signal in this thread, in which it is blocked: other tests are not disturbed.
    fn raise(signal: i32) {
        // SAFETY: takes nothing and cannot fail.
        let this_thread = unsafe { libc::pthread_self() };
        // SAFETY: the thread is alive; the signal is blocked in it, so it only becomes pending.
        unsafe { libc::pthread_kill(this_thread, signal) };
    }

    #[test]
    fn a_signal_cancels_and_a_second_one_asks_for_patience() {
        std::thread::spawn(|| {
            change_mask(libc::SIG_BLOCK).unwrap();
            let (said, heard) = channel();
            let cancel = Cancel::new().unwrap();
            let told = cancel.clone();
            let announce = move |text: &str| said.send((text.to_owned(), told.is_cancelled())).unwrap();
            let mut signals = StopSignals::new(cancel.clone(), announce).unwrap();
            for (signal, words) in [(libc::SIGINT, "Ctrl-C: stopping"), (libc::SIGTERM, "SIGTERM again")] {
                raise(signal);
                signals.receive().unwrap();
                let (said, cancelled) = heard.try_recv().unwrap();
                assert!(said.starts_with(words), "{said}");
                assert!(cancelled, "cancelled before it is announced");
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn after_a_panic_in_the_announcement_signals_are_received() {
        std::thread::spawn(|| {
            change_mask(libc::SIG_BLOCK).unwrap();
            let cancel = Cancel::new().unwrap();
            let mut announced = 0;
            let (said, heard) = channel();
            let mut signals = StopSignals::new(cancel.clone(), move |_| {
                announced += 1;
                said.send(announced).unwrap();
                std::panic::resume_unwind(Box::new("standard error is gone"));
            });
            for signal in STOP_SIGNALS {
                raise(signal);
                signals.as_mut().unwrap().receive().unwrap();
            }
            assert!(cancel.is_cancelled());
            assert_eq!(heard.try_iter().collect::<Vec<_>>(), [1, 2, 3]);
        })
        .join()
        .unwrap();
    }

    /// The blocked signals of the thread of this process with this id, as a bit mask.
    fn blocked(thread: i32) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap()
    }

    #[test]
    fn signals_are_unblocked_when_they_cannot_be_received() {
        let known = |thread: &i32| {
            std::fs::read_to_string(format!("/proc/self/task/{thread}/comm"))
                .is_ok_and(|name| name.trim() == "signals")
        };
        let threads = || {
            let entries = std::fs::read_dir("/proc/self/task").unwrap();
            let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
            ids.filter(known).collect::<Vec<_>>()
        };
        let before = threads();
        // A directory in the place of the signalfd: reading it fails.
        let signals = || StopSignals {
            fd: std::fs::File::open("/").unwrap().into(),
            cancel: Cancel::new().unwrap(),
            announce: Box::new(|_| {}),
        };
        with_stop_signals_blocked(|| signals().start().unwrap());
        let deadline = Instant::now() + LONG;
        loop {
            let ours: Vec<_> = threads().into_iter().filter(|thread| !before.contains(thread)).collect();
            if let [thread] = ours[..]
                && STOP_SIGNALS.iter().all(|signal| blocked(thread) & 1 << (signal - 1) == 0)
            {
                return;
            }
            assert!(Instant::now() < deadline, "the threads {ours:?} still block the signals");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
