//! The order in which steps may follow one another.
//!
//! ```text
//!            fill              hot, baseline, stop: any number of times
//!  (empty) ────────> filled ─────────────────────────────────────────────┐
//!                      ^  │ reclaim                                       │
//!                 fill │  v                                               │
//!                   reclaimed ── refault, sweep, reclaim, hot, stop <─────┘
//! ```
//!
//! A baseline comes before the first reclaim, a fill or a single pass needs a vCPU that no hot loop holds.

use std::collections::BTreeMap;

use super::error::{Checked, Fault, Problem};
use super::step::{Action, Step};

/// The state after the steps so far.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    phase: Phase,
    /// The vCPUs that run a hot loop, each with the line of the step that started it.
    hot: BTreeMap<u32, usize>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Empty,
    Filled,
    Reclaimed,
}

impl Sequence {
    /// Takes the next step, and tells it the vCPU it runs on if it needs one.
    pub fn take(&mut self, mut step: Step, (at, line): (usize, usize), vcpus: u32) -> Checked<Step> {
        let fault = |problem| Fault { at, problem };
        self.permit(&step).map_err(fault)?;
        match &mut step {
            Step::Fill => self.phase = Phase::Filled,
            Step::Reclaim(_) => self.phase = Phase::Reclaimed,
            Step::Stop => self.hot.clear(),
            Step::Hot(hot) => {
                for &vcpu in &hot.vcpus {
                    if let Some(since) = self.hot.insert(vcpu, line) {
                        return Err(fault(Problem::BusyVcpu { vcpu, since }));
                    }
                }
            }
            Step::Refault { vcpu } => *vcpu = self.free(vcpus, Action::Refault).map_err(fault)?,
            Step::Sweep { vcpu } => *vcpu = self.free(vcpus, Action::Sweep).map_err(fault)?,
            Step::Baseline(_) | Step::Shell(_) | Step::Inflate(_) | Step::Deflate => {}
        }
        Ok(step)
    }

    fn permit(&self, step: &Step) -> Result<(), Problem> {
        let action = Action::from(step);
        match action {
            Action::Fill if !self.hot.is_empty() => Err(Problem::FillWhileHot),
            // These do not touch the memory under test, and may come at any time.
            Action::Fill | Action::Shell | Action::Inflate | Action::Deflate => Ok(()),
            _ if self.phase == Phase::Empty => Err(Problem::BeforeFill(action)),
            Action::Baseline | Action::Stop if self.hot.is_empty() => Err(Problem::WithoutHot(action)),
            Action::Baseline if self.phase == Phase::Reclaimed => Err(Problem::LateBaseline),
            Action::Refault | Action::Sweep if self.phase != Phase::Reclaimed => {
                Err(Problem::BeforeReclaim(action))
            }
            _ => Ok(()),
        }
    }

    fn free(&self, vcpus: u32, action: Action) -> Result<u32, Problem> {
        (0..vcpus).find(|vcpu| !self.hot.contains_key(vcpu)).ok_or(Problem::NoFreeVcpu(action))
    }
}
