//! Waits for threads and wakes of our own, each with a deadline that ends in a report.
//!
//! ```text
//!   a thread to end        Thread::end ── not within ──┐
//!   a word to change       futex, timed out ───────────┼──> Overdue: who waited for what, how long, and whether it had come
//!   a loop that looks      Patience::over ─────────────┘
//! ```
//!
//! What this program waits for from itself comes within moments. If a wake gets lost, or a thread hangs, such a wait would
//! last for good, and nobody would know which. A wait whose length is somebody else's has no deadline: for a guest to
//! end, for a command in it, for a reader of what is printed.

mod overdue;
mod patience;
mod thread;

use std::time::Duration;

pub use overdue::Overdue;
pub use patience::Patience;
pub use thread::Thread;

/// Whether the wake for what came so long ago was lost: who had slept for so long found it by looking. What came just when it
/// looked may still be announced.
pub fn wake_was_lost(ago: Duration, slept: Duration) -> bool {
    ago > slept / 8
}

/// How long a wake of our own may take: long even on a host that lets its threads run only now and then.
pub const WAKE: Duration = Duration::from_secs(30);

/// How long a thread that was told to end may take. It may be in the middle of writing to a slow disk.
pub const END: Duration = Duration::from_secs(60);
