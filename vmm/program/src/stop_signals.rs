//! The signals that end a run, and threads that do not take them.

/// By these a user ends a run.
pub const STOP_SIGNALS: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// The same as a set.
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
