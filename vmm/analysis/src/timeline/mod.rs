//! Where the time goes: what the host did, what the kernel said of it, and where the guest stood still, on one axis.
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
