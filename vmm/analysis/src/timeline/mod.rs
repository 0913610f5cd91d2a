//! The time of a row on one axis: the host's operations, the kernel's announcements, the guest's stalls.
//!
//! ```text
//!   CLOCK_MONOTONIC ──────────────────────────────────────────────────────────────────────────────>
//!   steps       │ fill │ hot │ reclaim                                        │ stop │ refault │ sweep
//!   brackets                   [zap | the kernel's call | end]   [zap | … ]
//!   the kernel                        ^ ^  ranges it announced
//!   a vCPU                       ╶── stands still ──╴        ╶───╴
//!                                ├── held: inside ──┤├ repair ┤
//! ```
//!
//! [`RowTime`] sums that up by cause, [`write_trace`] writes it out event by event. Both read the event log alone.

mod account;
mod trace;

pub use account::{CauseTime, OtherRanges, Phase, RowTime, Stalled, Steps};
pub use trace::write_trace;
