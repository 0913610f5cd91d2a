//! Waits for threads and wakes of our own, each with a deadline that ends in a report.
//!
//! ```text
//!   a thread to end        Thread::end ── not within ──┐
//!   a word to change       futex, timed out ───────────┼──> Overdue: the waiting thread, its reason, how long, the state
//!   a loop that looks      Patience::over ─────────────┘
//! ```
//!
//! Waits for threads of this program end within moments. If a wake gets lost or a thread hangs, such a wait would not end,
//! and no message would tell which it is. Waits whose length others decide have no deadline: for the end of a guest, for a
//! command in it, for the reader of the output.

mod overdue;
mod patience;
mod thread;

use std::time::Duration;

pub use overdue::Overdue;
pub use patience::Patience;
pub use thread::Thread;

/// Whether the wake for an event was lost: the waiter slept for `slept`, looked by itself, and found an event that came `ago`.
/// The wake for an event that has only just come may still be under way.
pub fn wake_was_lost(ago: Duration, slept: Duration) -> bool {
    ago > slept / 8
}

/// How long a wake of our own may take: long even on a host that lets its threads run only now and then.
pub const WAKE: Duration = Duration::from_secs(30);

/// How long a thread that was told to end may take. It may be in the middle of writing to a slow disk.
pub const END: Duration = Duration::from_secs(60);
