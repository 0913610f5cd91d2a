//! The system calls of this module that no crate wraps the way it needs them.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;
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

/// Sleeps while `word` holds `value`, at most for `patience`, or less long.
pub fn futex_wait(word: &AtomicU32, value: u32, patience: Duration) -> Woke {
    let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    let (tv_sec, tv_nsec) = (patience.as_secs() as libc::time_t, patience.subsec_nanos().into());
    let timeout = libc::timespec { tv_sec, tv_nsec };
    // SAFETY: the word and the time live across the call.
    let slept =
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, &raw const timeout) };
    match slept {
        -1 if Errno::from_io_error(&io::Error::last_os_error()) == Some(Errno::TIMEDOUT) => Woke::TimedOut,
        _ => Woke::Early,
    }
}

/// Wakes all who sleep on `word`.
pub fn futex_wake_all(word: &AtomicU32) {
    let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the kernel only uses the word's address.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, i32::MAX) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_that_is_over_is_timed_out() {
        let word = AtomicU32::new(1);
        assert_eq!(futex_wait(&word, 1, Duration::from_millis(1)), Woke::TimedOut);
        // It had changed before the sleep.
        assert_eq!(futex_wait(&word, 0, Duration::from_secs(30)), Woke::Early);
    }
}
