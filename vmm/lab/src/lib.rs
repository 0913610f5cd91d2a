//! Performs an experiment and emits its events: every row is a trial (or several), every trial has a fresh machine.
//!
//! ```text
//!   Scenario ── rows ──> Trial: testbed, bridge, plan
//!                          fill ─ hot ─ baseline ─ reclaim ─ stop ─ refault ─ sweep ─ verify
//!                                                    │
//!                                     Reclaimer: plan the victim, Bridge::invalidate(operation), look at the rest
//!                          ──> Event, Event, … ── RowFold ──> row of the run record
//! ```
//!
//! | modules | |
//! | --- | --- |
//! | `runner`, `so_far`, `ended`, `no_row`, `sink` | the rows of a run, its record so far, its end |
//! | `trial`, `journal`, `contents`, `hot_loops`, `orders` | the steps of a trial, and its events |
//! | `reclaimer`, `notes`, `own_swap`, `pressure` | memory is taken: by address, by a cgroup, to a store of our own |
//! | `wiring`, [`testbed`] | the listeners; the guest under KVM or the workers on the software MMU |
//! | `tapping`, `attribute` | the kernel's own account, range by range |
//! | `calibrate`, `refill`, `swap_watch`, `tune` | what a run measures of itself, sees of others, sets on the host |

mod attribute;
mod calibrate;
mod contents;
mod ended;
mod errors;
mod hot_loops;
mod journal;
mod no_row;
mod notes;
mod orders;
mod own_swap;
mod pressure;
mod reclaimer;
mod refill;
mod runner;
mod sink;
mod so_far;
mod swap_watch;
mod tapping;
pub mod testbed;
mod trial;
mod tune;
mod wiring;

pub use ended::{Ended, RunError};
pub use errors::TrialError;
pub use no_row::describe;
pub use runner::{Backend, Progress, RunOutcome, Runner};
pub use sink::{NotKept, RowSink};
pub use tapping::{TapChoice, Tapping};
pub use tune::{Tuner, offer_of_tune};

#[cfg(test)]
harness::watch_libtest!();
