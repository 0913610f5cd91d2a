//! One worker's mailbox: what it is doing, who waits for it, and the control area the work goes through.
//!
//! ```text
//!             next_order         submit          next_order
//!   Starting ──────────> Idle ──────────> Working ─────────> Idle
//!       │                 │                  │
//!       └──── fail ───────┴──── fail ────────┴──────────> Failed(report)
//!   quit, from any phase: the worker ends at the next look
//! ```

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use guest_abi::block::{ControlArea, Outcome, RingCorrupt, Stall};
use guest_abi::order::{RawOrder, WorkOrder};

use super::area::Area;
use super::crash::CrashReport;
use crate::clock::{Offset, OffsetBounds, tsc};
use crate::exit::{Class, Classified};

/// What a worker is doing.
#[derive(Clone, Debug)]
pub enum Phase {
    /// It has not reported for work yet.
    Starting,
    /// It waits for an order.
    Idle,
    /// It carries one out.
    Working,
    /// It will do nothing more, and this is why.
    Failed(Arc<CrashReport>),
}

/// Why an order did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The guest did what it must not do.
    #[error("{0}")]
    Crashed(Arc<CrashReport>),
    /// Nothing came back in time.
    #[error("vCPU {vcpu} gave no sign of life for {} ms, after {touches} touches", waited.as_millis())]
    Silent {
        /// Which vCPU.
        vcpu: u32,
        /// For how long.
        waited: Duration,
        /// How far it had come.
        touches: u64,
    },
    /// An order was given to a vCPU that had one, or was not up.
    #[error("vCPU {vcpu} was given an order while it was {phase}")]
    Busy {
        /// Which vCPU.
        vcpu: u32,
        /// What it was doing.
        phase: &'static str,
    },
    /// The guest's operating system, or the agent in it, could not do what it was asked.
    #[error("the Linux guest: {0}")]
    System(String),
    /// The guest refused the order.
    #[error("vCPU {vcpu} refused its order: {order:?}")]
    Refused {
        /// Which vCPU.
        vcpu: u32,
        /// The order as it stood in the control block.
        order: RawOrder,
    },
    /// The stall ring's counters make no sense.
    #[error(
        "vCPU {vcpu} left its stall ring corrupt: {} recorded, {} taken",
        ring.recorded,
        ring.taken
    )]
    Ring {
        /// Which vCPU.
        vcpu: u32,
        /// The counters.
        ring: RingCorrupt,
    },
}

impl Classified for GuestError {
    fn class(&self) -> Class {
        match self {
            Self::Crashed(report) if report.kind.host_limit().is_some() => Class::Host,
            Self::Crashed(_) | Self::Silent { .. } | Self::System(_) | Self::Ring { .. } => Class::Wrong,
            Self::Busy { .. } | Self::Refused { .. } => Class::Fault,
        }
    }
}

#[derive(Debug)]
struct State {
    phase: Phase,
    quit: bool,
    /// The host's counter when the order was given; `None` once its end was heard of.
    given_tsc: Option<u64>,
    clock: OffsetBounds,
}

/// What the engine and one worker share: an order going in, an outcome coming back.
#[derive(Debug)]
pub struct Mailbox {
    vcpu: u32,
    area: Area,
    state: Mutex<State>,
    changed: Condvar,
}

impl Mailbox {
    /// The mailbox of worker `vcpu`.
    pub fn new(vcpu: u32, area: Area) -> Self {
        Self::of(vcpu, area, Phase::Starting)
    }

    /// The mailbox of one that reported for work in an earlier life.
    pub fn resumed(vcpu: u32, area: Area) -> Self {
        Self::of(vcpu, area, Phase::Idle)
    }

    fn of(vcpu: u32, area: Area, phase: Phase) -> Self {
        let state = Mutex::new(State { phase, quit: false, given_tsc: None, clock: OffsetBounds::default() });
        Self { vcpu, area, state, changed: Condvar::new() }
    }

    /// The worker's index.
    pub fn vcpu(&self) -> u32 {
        self.vcpu
    }

    /// The worker's control area, which lies in memory that stays mapped as long as the mailbox, whatever becomes of the
    /// machine. No copy of it outlives that:
    ///
    /// ```compile_fail
    /// # fn of(machine: vmm::kvm::Machine) {
    /// let area = machine.vcpus()[0].mailbox().area();
    /// drop(machine);
    /// area.touches();
    /// # }
    /// ```
    /// ```
    /// # fn of(machine: vmm::kvm::Machine) {
    /// let mailbox = machine.vcpus()[0].mailbox().clone();
    /// drop(machine);
    /// mailbox.area().touches();
    /// # }
    /// ```
    pub fn area(&self) -> &ControlArea {
        &self.area
    }

    /// A panic while the lock is held leaves the state whole: it is only ever assigned.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What failed stays so: it may have been told to from outside, and not know yet.
    fn set(&self, phase: Phase) {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Failed(_)) {
            state.phase = phase;
        }
        self.changed.notify_all();
    }

    // The engine's side.

    /// Gives the worker an order.
    ///
    /// # Errors
    /// [`GuestError::Busy`] unless it is idle; [`GuestError::Crashed`] if it is no more.
    pub fn submit(&self, order: &WorkOrder) -> Result<(), GuestError> {
        let mut state = self.lock();
        match &state.phase {
            Phase::Idle => {}
            Phase::Failed(report) => return Err(GuestError::Crashed(report.clone())),
            Phase::Starting => return Err(GuestError::Busy { vcpu: self.vcpu, phase: "starting" }),
            Phase::Working => return Err(GuestError::Busy { vcpu: self.vcpu, phase: "working" }),
        }
        // What the order before left there is not this one's progress.
        self.area.set_touches(0);
        self.area.set_order((*order).into());
        state.phase = Phase::Working;
        state.given_tsc = Some(tsc());
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until the worker is idle, and returns the outcome of its last order.
    ///
    /// # Errors
    /// The worker's failure, its refusal of the order, or [`GuestError::Silent`] after `patience` in which
    /// neither the order ended nor its count of touches moved.
    pub fn wait(&self, patience: Duration) -> Result<Outcome, GuestError> {
        let mut state = self.lock();
        let mut touches = self.area.touches();
        let mut deadline = Instant::now() + patience;
        loop {
            match &state.phase {
                Phase::Idle => break,
                Phase::Failed(report) => return Err(GuestError::Crashed(report.clone())),
                Phase::Starting | Phase::Working => {}
            }
            let now = Instant::now();
            if now >= deadline {
                let progress = self.area.touches();
                if progress == touches {
                    return Err(GuestError::Silent { vcpu: self.vcpu, waited: patience, touches });
                }
                (touches, deadline) = (progress, now + patience);
            }
            state =
                self.changed.wait_timeout(state, deadline - now).unwrap_or_else(PoisonError::into_inner).0;
        }
        let outcome = self.area.outcome();
        if outcome.refused != 0 {
            return Err(GuestError::Refused { vcpu: self.vcpu, order: self.area.order() });
        }
        if let Some(given) = state.given_tsc.take() {
            state.clock.narrow((given, tsc()), (outcome.tsc_start, outcome.tsc_end));
        }
        Ok(outcome)
    }

    /// How the worker's counter stands to ours, as far as its orders so far tell.
    pub fn clock(&self) -> Option<Offset> {
        self.lock().clock.offset()
    }

    /// Whether the worker is still able to work.
    ///
    /// # Errors
    /// [`GuestError::Crashed`] if it is no more.
    pub fn alive(&self) -> Result<(), GuestError> {
        match &self.lock().phase {
            Phase::Failed(report) => Err(GuestError::Crashed(report.clone())),
            Phase::Starting | Phase::Idle | Phase::Working => Ok(()),
        }
    }

    /// How the worker failed, if it has.
    pub fn failure(&self) -> Option<Arc<CrashReport>> {
        match &self.lock().phase {
            Phase::Failed(report) => Some(report.clone()),
            Phase::Starting | Phase::Idle | Phase::Working => None,
        }
    }

    /// Takes every stall recorded since the last time.
    ///
    /// # Errors
    /// [`GuestError::Ring`] if the guest left the ring's counters impossible.
    pub fn take_stalls(&self, each: impl FnMut(Stall)) -> Result<(), GuestError> {
        self.area.take_stalls(each).map_err(|ring| GuestError::Ring { vcpu: self.vcpu, ring })
    }

    /// Tells the worker to end.
    pub fn quit(&self) {
        self.lock().quit = true;
        self.changed.notify_all();
    }

    // The worker's side.

    /// Whether the worker was told to end.
    pub fn quitting(&self) -> bool {
        self.lock().quit
    }

    /// Reports for work, or reports an order done, and waits for the next one. `false` when told to end, or failed.
    pub fn next_order(&self) -> bool {
        self.set(Phase::Idle);
        self.first_order()
    }

    /// Waits for the first order of an idle worker, which reports nothing: it may have been given already. Returns as
    /// [`Mailbox::next_order`] does.
    pub fn first_order(&self) -> bool {
        let state = self
            .changed
            .wait_while(self.lock(), |state| !state.quit && matches!(state.phase, Phase::Idle))
            .unwrap_or_else(PoisonError::into_inner);
        !state.quit && matches!(state.phase, Phase::Working)
    }

    /// Ends in failure.
    pub fn fail(&self, report: CrashReport) {
        self.set(Phase::Failed(Arc::new(report)));
    }
}
