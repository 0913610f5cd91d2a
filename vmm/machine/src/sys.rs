//! The system calls of this module that no crate wraps the way it needs them.

use std::io;
use std::ops::Deref;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// The calling thread's id.
pub fn thread_id() -> i32 {
    // SAFETY: the call takes nothing and cannot fail.
    unsafe { libc::gettid() }
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
        let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        let (tv_sec, tv_nsec) = (patience.as_secs() as libc::time_t, patience.subsec_nanos().into());
        let timeout = libc::timespec { tv_sec, tv_nsec };
        self.asleep.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the word and the time live across the call.
        let slept = unsafe {
            libc::syscall(libc::SYS_futex, self.word.as_ptr(), operation, value, &raw const timeout)
        };
        let error = (slept == -1).then(io::Error::last_os_error);
        self.asleep.fetch_sub(1, Ordering::SeqCst);
        match error.as_ref().and_then(Errno::from_io_error) {
            Some(Errno::TIMEDOUT) => Woke::TimedOut,
            _ => Woke::Early,
        }
    }

    /// Wakes all who sleep on the word. After it was changed.
    pub fn wake_all(&self) {
        if self.asleep.load(Ordering::SeqCst) == 0 {
            return;
        }
        let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
        // SAFETY: the kernel only uses the word's address.
        unsafe { libc::syscall(libc::SYS_futex, self.word.as_ptr(), operation, i32::MAX) };
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
