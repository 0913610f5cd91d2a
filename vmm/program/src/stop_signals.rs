//! The signals that end a command, and threads that block them.

/// The signals by which a user ends a command.
pub const STOP_SIGNALS: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// They as a set.
pub fn stop_signals() -> libc::sigset_t {
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

/// Starts a thread with these signals blocked: a new thread inherits the mask.
pub fn with_stop_signals_blocked<T>(start: impl FnOnce() -> T) -> T {
    let set = stop_signals();
    let mut before = std::mem::MaybeUninit::uninit();
    // SAFETY: the set is initialised, and the old mask is written to `before`.
    let changed = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, before.as_mut_ptr()) };
    let started = start();
    if changed == 0 {
        // SAFETY: the call above succeeded and has initialised it.
        let before = unsafe { before.assume_init() };
        // SAFETY: the old mask of this thread; the present one is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    }
    started
}
