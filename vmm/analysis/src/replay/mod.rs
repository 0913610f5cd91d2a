//! Recorded victims under other range policies: no guest, no KVM, no swap.
//!
//! ```text
//!   events.log ── RowEvents ──┐
//!                             ├─ Replay ── Policy::calls (the bridge's own) ── ranges, bytes, calls
//!   policy, zap, granule ─────┘              └─ Zapping ── Machine: what is dropped, which faults ── Prediction
//!                                                            └─ HotLoop: how far, by recorded times
//!   run.json ── what does not depend on the policy ─────────────────────────────────── Row ── table, record
//! ```
//!
//! Exact and inexact parts of a prediction:
//! - Ranges, bytes, slots and bytes zapped follow from the log by the functions that a run uses itself.
//! - Entries dropped, refaults and collateral faults follow from the model in `machine.rs`. They are exact where no
//!   hot loop runs.
//! - Where one runs, its faults depend on how far it comes between two victims. The log has the time from one to the
//!   next, the loop's speed, and how fast it gets translations back; a row says the least and the most that any other
//!   speed would have made of it.

mod hot;
mod machine;
mod predict;
mod rows;
mod speed;
mod sptes;
mod validate;
mod zapping;

pub use predict::ReplayError;
pub use rows::{Predicted, row};
pub use validate::{Check, Judgement, checks};
