//! The system calls of this module that no crate wraps the way it needs them.

use std::io;
use std::ops::Deref;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex;
use rustix::time::Timespec;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// The calling thread's id.
pub fn thread_id() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// The signal that makes a vCPU thread leave `KVM_RUN`.
fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Makes the kick signal interrupt system calls and do nothing else. Once a process.
///
/// # Errors
/// The handler cannot be installed.
pub fn prepare_signal() -> io::Result<()> {
    static PREPARED: OnceLock<Result<(), i32>> = OnceLock::new();
    PREPARED
        .get_or_init(|| register_signal_handler(kick_signal(), ignore).map_err(|error| error.errno()))
        .map_err(io::Error::from_raw_os_error)
}

/// Signals a thread of this process. One that has ended is no error: it is out of the guest.
pub fn signal_thread(thread: i32) {
    let process = std::process::id();
    // SAFETY: the call takes integers; the signal's handler does nothing.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, kick_signal()) };
}

/// Why a sleep on a futex was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woke {
    /// For any reason but the time: the sleeper looks again.
    Early,
    /// The time has passed without a wake.
    TimedOut,
}

/// A word on which threads sleep until it is changed. To wake them costs a system call only if there are any.
///
/// A sleeper counts itself before the kernel compares the word, and the waker changes the word before it looks at the count, all
/// sequentially consistent: a sleeper that the waker does not see finds the word changed.
#[derive(Debug, Default)]
pub struct Futex {
    word: AtomicU32,
    /// Threads that are in the system call, or about to be.
    asleep: AtomicU32,
}

impl Futex {
    /// Sleeps while the word is `value`, at most for `patience`, or less long.
    pub fn wait(&self, value: u32, patience: Duration) -> Woke {
        // A time that does not fit into the kernel's is no limit.
        let timeout = Timespec::try_from(patience).ok();
        self.asleep.fetch_add(1, Ordering::SeqCst);
        let slept = futex::wait(&self.word, futex::Flags::PRIVATE, value, timeout.as_ref());
        self.asleep.fetch_sub(1, Ordering::SeqCst);
        match slept {
            Err(Errno::TIMEDOUT) => Woke::TimedOut,
            _ => Woke::Early,
        }
    }

    /// Wakes all threads that sleep on the word. After it was changed.
    pub fn wake_all(&self) {
        if self.asleep.load(Ordering::SeqCst) == 0 {
            return;
        }
        // The word is mapped and aligned, so the call does not fail.
        let _ = futex::wake(&self.word, futex::Flags::PRIVATE, i32::MAX as u32);
    }
}

impl Deref for Futex {
    type Target = AtomicU32;

    fn deref(&self) -> &AtomicU32 {
        &self.word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_that_is_over_is_timed_out() {
        let futex = Futex::default();
        futex.store(1, Ordering::SeqCst);
        assert_eq!(futex.wait(1, Duration::from_millis(1)), Woke::TimedOut);
        // It had changed before the sleep.
        assert_eq!(futex.wait(0, Duration::from_secs(30)), Woke::Early);
        assert_eq!(futex.asleep.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_sleeper_is_woken() {
        let futex = Futex::default();
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| futex.wait(0, Duration::from_secs(30)));
            while futex.asleep.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            futex.store(1, Ordering::SeqCst);
            futex.wake_all();
            assert_eq!(sleeper.join().unwrap(), Woke::Early);
        });
    }
}
