//! Running a scenario: every row a trial (or several), every trial a fresh machine.
//!
//! ```text
//!   Scenario ── rows ──> Trial: testbed, bridge, plan
//!                          fill ─ hot ─ baseline ─ reclaim ─ stop ─ refault ─ sweep ─ verify
//!                                                    │
//!                                     Attack: plan the victim, Bridge::invalidate(operation), look what left
//!                          ──> Measured ── pooled over repetitions ──> row of the run record
//! ```

mod announced;
mod attack;
mod calibrate;
mod ended;
mod errors;
mod expected;
mod fate;
mod journal;
mod measured;
mod orders;
mod own_swap;
mod pressure;
mod refill;
mod rows;
mod runner;
mod sink;
mod so_far;
mod swap_watch;
mod tapping;
mod trial;
mod tune;
mod wiring;

pub use ended::{Ended, RunError};
pub use errors::TrialError;
pub use measured::{Counts, Measured, Rate, Times};
pub use own_swap::{OwnSwap, OwnSwapError, Returned};
pub use runner::{Backend, Progress, RunOutcome, Runner, describe};
pub use sink::{NotKept, RowSink};
pub use tapping::{TapChoice, Tapping, Watch};
pub use trial::{STALL, Trial, TrialSetup};
pub use tune::{Tuner, offer_of_tune};
pub use wiring::{Device, Wiring};
