//! Ctrl-C as a cancel token: a run ends early by returning, and what it changed is undone on the way.
//!
//! ```text
//! main: block_stop_signals() ─► threads start, inherit the mask
//!                                 │
//! SIGINT, SIGTERM, SIGHUP ─► signalfd ─► StopSignals (event manager) ─► Cancel: a flag that steps poll,
//!                                                                       an eventfd that wakes sleepers
//! ```

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::changes::Announce;
use crate::exit::{Class, Classified};

const STOP_SIGNALS: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// The cancel token's or the signals' descriptor could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up {what} for Ctrl-C (are descriptors used up? ulimit -n)")]
pub struct SignalError {
    /// What was being set up.
    pub what: &'static str,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl Classified for SignalError {
    fn class(&self) -> Class {
        Class::of_refused_io(&self.source)
    }
}

/// The run was told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped by a signal; what was measured so far is kept")]
pub struct Cancelled;

/// A token that says whether to go on. Clones are the same token.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<Token>);

#[derive(Debug)]
struct Token {
    is_set: AtomicBool,
    /// Readable once cancelled; never read, so that it wakes everybody and for good.
    wake: OwnedFd,
}

impl Cancel {
    /// A token that says to go on.
    pub fn new() -> Result<Self, SignalError> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| SignalError { what: "an eventfd", source: errno.into() })?;
        Ok(Self(Arc::new(Token { is_set: AtomicBool::new(false), wake })))
    }

    /// Tells everybody to end.
    pub fn cancel(&self) {
        // Release, paired with the load in `is_cancelled`: whoever ends sees what led to it.
        self.0.is_set.store(true, Ordering::Release);
        // Can only fail if the counter is full, and then it is readable already.
        let _ = rustix::io::write(&self.0.wake, &1u64.to_ne_bytes());
    }

    /// Whether to end.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_set.load(Ordering::Acquire)
    }

    /// For the `?` of a step.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.is_cancelled() { Err(Cancelled) } else { Ok(()) }
    }

    /// Sleeps, unless told to end.
    pub fn sleep(&self, duration: Duration) -> Result<(), Cancelled> {
        let end = std::time::Instant::now() + duration;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            // A duration longer than a time_t can hold is cut to a day, and the loop goes on.
            let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 86_400, tv_nsec: 0 });
            match rustix::event::poll(&mut [PollFd::new(&self.0.wake, PollFlags::IN)], Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                // Cannot wait on the descriptor: wait without it, in pieces.
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

fn stop_signals() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initialises the set it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: just initialised.
    let mut set = unsafe { set.assume_init() };
    for signal in STOP_SIGNALS {
        // SAFETY: the set is initialised and the signal number is one of libc's.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

/// Blocks SIGINT, SIGTERM and SIGHUP in this thread and in those it starts. `main` calls it before the first
/// thread: a thread without the mask would be ended by the signal, and all others with it.
pub fn block_stop_signals() -> Result<(), SignalError> {
    change_mask(libc::SIG_BLOCK)
}

/// Lets them through again, for a child process that is to be stopped by Ctrl-C as usual: the mask is
/// inherited. Only makes async-signal-safe calls.
pub fn unblock_stop_signals() -> Result<(), SignalError> {
    change_mask(libc::SIG_UNBLOCK)
}

/// Starts a thread that must not take these signals, whatever its starter does with them: the mask is inherited.
pub fn with_stop_signals_blocked<T>(start: impl FnOnce() -> T) -> T {
    let set = stop_signals();
    let mut before = std::mem::MaybeUninit::uninit();
    // SAFETY: the set is initialised, and the old mask has a place.
    let changed = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, before.as_mut_ptr()) };
    let started = start();
    if changed == 0 {
        // SAFETY: the call above has succeeded and filled it.
        let before = unsafe { before.assume_init() };
        // SAFETY: a mask that was this thread's; the one before is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    }
    started
}

/// Has a write beyond `ulimit -f` fail with EFBIG, as one fails on a full disk, in place of ending this process. Children
/// inherit it: the only one is the guardian, whose messages may go to such a file.
pub fn ignore_file_size_signal() {
    // SAFETY: ignoring a signal runs no code of ours in a handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

fn change_mask(how: i32) -> Result<(), SignalError> {
    let set = stop_signals();
    // SAFETY: the set is initialised; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(SignalError { what: "the signal mask", source: io::Error::from_raw_os_error(errno) }),
    }
}

/// Receives the stop signals on behalf of a [`Cancel`]; goes into the event manager.
pub struct StopSignals {
    fd: OwnedFd,
    cancel: Cancel,
    announce: Announce,
}

impl StopSignals {
    /// Takes the signals, which [`block_stop_signals`] must have blocked.
    pub fn new(cancel: Cancel, announce: impl FnMut(&str) + Send + 'static) -> Result<Self, SignalError> {
        let set = stop_signals();
        // SAFETY: the set is initialised and only read; -1 asks for a new descriptor.
        let raw = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if raw < 0 {
            return Err(SignalError { what: "a signalfd", source: io::Error::last_os_error() });
        }
        // SAFETY: the kernel just made this descriptor for us, nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        Ok(Self { fd, cancel, announce: Box::new(announce) })
    }

    /// Takes what has arrived and acts on it.
    fn receive(&mut self) {
        let mut record = [0u8; size_of::<libc::signalfd_siginfo>()];
        while let Ok(length) = rustix::io::read(&self.fd, &mut record) {
            if length < record.len() {
                return;
            }
            // `ssi_signo` is the first field.
            let number = u32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
            (self.announce)(&announcement(number, self.cancel.is_cancelled()));
            self.cancel.cancel();
        }
    }
}

const _: () = assert!(std::mem::offset_of!(libc::signalfd_siginfo, ssi_signo) == 0);
const _: () = assert!(size_of::<libc::signalfd_siginfo>() == 128);

/// What to say about a signal, depending on whether it is the first.
fn announcement(number: u32, again: bool) -> String {
    let name = match number as i32 {
        libc::SIGINT => "Ctrl-C",
        libc::SIGTERM => "SIGTERM",
        libc::SIGHUP => "SIGHUP",
        _ => "a signal",
    };
    if again {
        format!("{name} again: what was changed on this host is being undone, a moment please")
    } else {
        format!("{name}: stopping, and undoing what was changed on this host")
    }
}

impl fmt::Debug for StopSignals {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("StopSignals").field("cancel", &self.cancel).finish_non_exhaustive()
    }
}

impl MutEventSubscriber for StopSignals {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        self.receive();
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new_raw(self.fd.as_raw_fd(), EventSet::IN)) {
            // The callback cannot fail. Without it Ctrl-C would be swallowed: let it end the process, after
            // which the guardian undoes.
            (self.announce)(&format!("Ctrl-C will end this run at once: {error}"));
            let _ = unblock_stop_signals();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use event_manager::{EventManager, SubscriberOps};

    use super::*;

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
        assert_eq!(other.sleep(LONG), Err(Cancelled), "the wake-up is for good");
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

    #[test]
    fn a_signal_cancels_and_a_second_one_asks_for_patience() {
        // A signal to this one thread, with the mask of this one thread: other tests are not disturbed.
        std::thread::spawn(|| {
            block_stop_signals().unwrap();
            let said = Arc::new(Mutex::new(Vec::new()));
            let sink = Arc::clone(&said);
            let cancel = Cancel::new().unwrap();
            let signals =
                StopSignals::new(cancel.clone(), move |text| sink.lock().unwrap().push(text.to_owned()));
            let mut manager = EventManager::<StopSignals>::new().unwrap();
            manager.add_subscriber(signals.unwrap());
            assert_eq!(manager.run_with_timeout(0).unwrap(), 0);
            assert!(!cancel.is_cancelled());
            for signal in [libc::SIGINT, libc::SIGTERM] {
                // SAFETY: takes nothing and cannot fail.
                let this_thread = unsafe { libc::pthread_self() };
                // SAFETY: the thread is alive; the signal is blocked in it, so it only becomes pending.
                unsafe { libc::pthread_kill(this_thread, signal) };
                assert_eq!(manager.run_with_timeout(1000).unwrap(), 1);
                assert!(cancel.is_cancelled());
            }
            let said = said.lock().unwrap();
            assert!(said[0].starts_with("Ctrl-C: stopping"), "{said:?}");
            assert!(said[1].starts_with("SIGTERM again"), "{said:?}");
        })
        .join()
        .unwrap();
    }
}
