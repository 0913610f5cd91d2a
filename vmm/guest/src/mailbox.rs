//! One worker's mailbox: its phase, the threads that wait for it, and the control area the work goes through.
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
use guest_mem::waits::Overdue;

use super::area::Area;
use super::crash::{CrashKind, CrashReport};
use crate::clock::{Offset, OffsetBounds, tsc};
use program::exit::{Class, Classified};

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
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum GuestError {
    #[error("{0}")]
    Crashed(Arc<CrashReport>),
    #[error("vCPU {vcpu} gave no sign of life for {} ms, after {touches} touches", waited.as_millis())]
    Silent { vcpu: u32, waited: Duration, touches: u64 },
    #[error(transparent)]
    Overdue(#[from] Overdue),
    #[error("vCPU {vcpu} was given an order while it was {phase}")]
    Busy { vcpu: u32, phase: &'static str },
    #[error("the Linux guest: {0}")]
    System(String),
    #[error("vCPU {vcpu} refused its order: {order:?}")]
    Refused { vcpu: u32, order: RawOrder },
    #[error(
        "vCPU {vcpu} left its stall ring corrupt: {} recorded, {} taken",
        ring.recorded,
        ring.taken
    )]
    Ring { vcpu: u32, ring: RingCorrupt },
}

impl Classified for GuestError {
    fn class(&self) -> Class {
        match self {
            Self::Crashed(report) if report.kind.host_limit().is_some() => Class::Host,
            Self::Crashed(report) if matches!(report.kind, CrashKind::Overdue(_)) => Class::Fault,
            Self::Overdue(overdue) => overdue.class(),
            Self::Crashed(_) | Self::Silent { .. } | Self::System(_) | Self::Ring { .. } => Class::Wrong,
            Self::Busy { .. } | Self::Refused { .. } => Class::Fault,
        }
    }
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Whether the worker has seen the order that it was given last.
    taken: bool,
    quit: bool,
    /// The host's counter when the order was given; `None` once its end was heard of.
    given_tsc: Option<u64>,
    /// The host's counter when the worker last said something.
    said_tsc: u64,
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
        let state = Mutex::new(State {
            phase,
            taken: false,
            quit: false,
            given_tsc: None,
            said_tsc: 0,
            clock: OffsetBounds::default(),
        });
        Self { vcpu, area, state, changed: Condvar::new() }
    }

    /// The worker's index.
    pub fn vcpu(&self) -> u32 {
        self.vcpu
    }

    /// The worker's control area. Its memory stays mapped as long as the mailbox, also when the machine is gone, and no
    /// copy of it outlives the mailbox:
    ///
    /// ```compile_fail,E0505
    /// # fn of(mailbox: std::sync::Arc<guest::Mailbox>) {
    /// let area = mailbox.area();
    /// drop(mailbox);
    /// area.touches();
    /// # }
    /// ```
    /// ```
    /// # fn of(mailbox: std::sync::Arc<guest::Mailbox>) {
    /// let other = mailbox.clone();
    /// drop(mailbox);
    /// other.area().touches();
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
        state.said_tsc = tsc();
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
        state.taken = false;
        state.given_tsc = Some(tsc());
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until the worker is idle, and returns the outcome of its last order.
    ///
    /// # Errors
    /// The worker's failure, its refusal of the order, or [`GuestError::Silent`] after `patience` in which
    /// neither the order ended nor its count of touches moved. [`GuestError::Overdue`] if it had not even taken the order
    /// by then, or had ended it without a wake.
    pub fn wait(&self, patience: Duration) -> Result<Outcome, GuestError> {
        let mut state = self.lock();
        let mut touches = self.area.touches();
        let (mut begun, mut deadline) = (tsc(), Instant::now() + patience);
        let mut slept = None;
        while !self.has_ended(&state, slept)? {
            let now = Instant::now();
            if now >= deadline {
                let progress = self.area.touches();
                if progress == touches {
                    return Err(self.silent(&state, patience, touches));
                }
                (touches, begun, deadline) = (progress, tsc(), now + patience);
            }
            let (locked, waited) =
                self.changed.wait_timeout(state, deadline - now).unwrap_or_else(PoisonError::into_inner);
            (state, slept) = (locked, waited.timed_out().then_some((begun, patience)));
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

    /// Whether the worker is idle, as a waiter finds it that began then and has slept for so long without being woken.
    fn has_ended(&self, state: &State, slept: Option<(u64, Duration)>) -> Result<bool, GuestError> {
        match (&state.phase, slept) {
            (Phase::Idle, Some((begun, slept))) if is_late(begun, state.said_tsc) => {
                let what = format!("vCPU {} to be done with its order", self.vcpu);
                Err(Overdue::unannounced(what, slept).into())
            }
            (Phase::Idle, _) => Ok(true),
            (Phase::Failed(report), _) => Err(GuestError::Crashed(report.clone())),
            (Phase::Starting | Phase::Working, _) => Ok(false),
        }
    }

    /// Why nothing has come of a worker: it does not know of its order, or nothing is known.
    fn silent(&self, state: &State, waited: Duration, touches: u64) -> GuestError {
        match state.phase {
            Phase::Working if !state.taken => {
                Overdue::new(format!("the thread of vCPU {} to take its order", self.vcpu), waited).into()
            }
            _ => GuestError::Silent { vcpu: self.vcpu, waited, touches },
        }
    }

    /// How the worker's counter stands to ours, as far as its orders so far tell.
    pub fn clock(&self) -> Option<Offset> {
        self.lock().clock.offset()
    }

    /// [`GuestError::Crashed`] if the worker has failed, for `?`.
    pub fn alive(&self) -> Result<(), GuestError> {
        self.failure().map_or(Ok(()), |report| Err(GuestError::Crashed(report)))
    }

    /// How the worker failed, if it has.
    pub fn failure(&self) -> Option<Arc<CrashReport>> {
        match &self.lock().phase {
            Phase::Failed(report) => Some(report.clone()),
            Phase::Starting | Phase::Idle | Phase::Working => None,
        }
    }

    /// Takes every stall recorded since the last time.
    pub fn take_stalls(&self, each: impl FnMut(Stall)) -> Result<(), GuestError> {
        self.area.take_stalls(each).map_err(|ring| GuestError::Ring { vcpu: self.vcpu, ring })
    }

    /// Tells the worker to end.
    pub fn quit(&self) {
        self.lock().quit = true;
        self.changed.notify_all();
    }

    // The worker's side.

    /// Reports for work, or reports an order done, and waits for the next one. `false` when told to end, or failed.
    pub fn next_order(&self) -> bool {
        self.set(Phase::Idle);
        self.first_order()
    }

    /// Waits for the first order of an idle worker, which reports nothing: it may have been given already. Returns as
    /// [`Mailbox::next_order`] does.
    pub fn first_order(&self) -> bool {
        let mut state = self
            .changed
            .wait_while(self.lock(), |state| !state.quit && matches!(state.phase, Phase::Idle))
            .unwrap_or_else(PoisonError::into_inner);
        state.taken = matches!(state.phase, Phase::Working);
        !state.quit && state.taken
    }

    /// Ends in failure.
    pub fn fail(&self, report: CrashReport) {
        self.set(Phase::Failed(Arc::new(report)));
    }
}

/// Whether something was said long before the end of a wait that began then and is over now: what comes by chance at that
/// end comes a moment before it at most.
fn is_late(begun: u64, said: u64) -> bool {
    let now = tsc();
    now.saturating_sub(said) > now.saturating_sub(begun) / 8
}

#[cfg(test)]
mod tests {
    use guest_abi::layout::{AREA_SIZE, ARENA_GPA};
    use guest_abi::order::{Task, Walk};
    use guest_mem::{Backing, Region};

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const ORDER: WorkOrder =
        WorkOrder { start: ARENA_GPA, len: 4096, walk: Walk::Sequential, task: Task::Fill { generation: 1 } };

    fn idle(vcpu: u32) -> Mailbox {
        let memory = Arc::new(Region::map(AREA_SIZE, Backing::Base4k).unwrap());
        let at = memory.range().start();
        Mailbox::resumed(vcpu, Area::new(memory, at).unwrap())
    }

    #[test]
    fn an_order_that_nobody_takes_is_told_apart_from_a_silent_guest() {
        let mailbox = idle(5);
        mailbox.submit(&ORDER).unwrap();
        let error = mailbox.wait(SHORT).unwrap_err();
        assert!(matches!(error, GuestError::Overdue(_)) && error.class() == Class::Fault, "{error}");
        let text = error.to_string();
        assert!(text.contains(" waited 50 ms for the thread of vCPU 5 to take its order, in vain"), "{text}");

        assert!(mailbox.first_order());
        let error = mailbox.wait(SHORT).unwrap_err();
        assert!(matches!(error, GuestError::Silent { vcpu: 5, .. }), "{error}");
    }

    #[test]
    fn an_end_that_nobody_was_woken_for_is_told_apart_from_one_that_came_just_then() {
        let mailbox = idle(2);
        let long_ago = mailbox.lock().said_tsc;
        let slept = Some((long_ago + 1, SHORT));
        let error = mailbox.has_ended(&mailbox.lock(), slept).unwrap_err().to_string();
        assert!(
            error.contains(" waited 50 ms for vCPU 2 to be done with its order, which had come"),
            "{error}"
        );
        assert!(mailbox.has_ended(&mailbox.lock(), None).unwrap(), "woken");
        mailbox.lock().said_tsc = tsc();
        assert!(mailbox.has_ended(&mailbox.lock(), slept).unwrap(), "it came just then");
    }

    #[test]
    fn a_crash_by_a_missed_deadline_is_no_fault_of_the_guests() {
        let mailbox = idle(0);
        let overdue = Overdue::new("the gate to open", SHORT);
        let kind = CrashKind::Overdue(overdue.clone());
        mailbox.fail(CrashReport { vcpu: 0, kind, registers: None });
        let error = mailbox.wait(SHORT).unwrap_err();
        assert_eq!((error.class(), error.to_string()), (Class::Fault, format!("vCPU 0: {overdue}")));
    }
}
