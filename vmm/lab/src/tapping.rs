//! The kernel's account of a run: opened when the first step takes memory, kept until the run ends.
//!
//! ```text
//!   Tapping ── first span: open ──> Collector ── watches the arena of each trial in turn
//!      │ begin: forget what came before              │
//!      │   the step; its thread notes each system call
//!      └ end:   take, attribute, compare ──> Account of the trial ──> row
//! ```

use std::cell::RefCell;

use clap::ValueEnum;
use guest_mem::{HvaRange, with_causes};
use machine::Kvm;

use super::attribute::{Calls, attribute};
use super::calibrate::Announcer;
use super::journal::Journal;
use experiment::events::{Event as RowEvent, KernelRange};
use experiment::record::{Measured, Warnings};
use tap::{Collector, Event, Interest, Tap, Via};

/// Events that wait to be taken: four for each page of the largest step that a user waits for.
const CAPACITY: usize = 1 << 19;

/// The interface of the kernel by which its account is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TapChoice {
    /// The cheapest that this host permits: bpf, else perf.
    #[default]
    Auto,
    /// A BPF program for the ranges, perf events for their causes.
    Bpf,
    /// perf events.
    Perf,
    /// As `auto`: a private tracefs instance, which earlier versions made, is not used any more.
    #[value(hide = true)]
    Tracefs,
    /// No account.
    Off,
}

/// The tap of a run.
pub struct Tapping {
    choice: TapChoice,
    state: RefCell<State>,
}

enum State {
    NotYet,
    Open(Open),
    /// There is none, and why.
    Without(String),
}

struct Open {
    collector: Collector,
    via: Via,
    /// The range by which the kernel selects.
    picked: HvaRange,
    /// What was lost before the span.
    lost_before: u64,
    events: Vec<Event>,
}

impl Tapping {
    /// A tap to be opened when it is needed.
    pub fn new(choice: TapChoice) -> Self {
        let state = match choice {
            TapChoice::Off => State::Without("the kernel's account was not wanted (`--tap off`)".to_owned()),
            _ => State::NotYet,
        };
        Self { choice, state: RefCell::new(state) }
    }

    /// Why there is no account, if there is none.
    pub fn missing(&self) -> Option<String> {
        match &*self.state.borrow() {
            State::Without(why) => Some(why.clone()),
            State::NotYet => Some("no step took memory".to_owned()),
            State::Open(_) => None,
        }
    }

    /// By what the account is kept, once it is.
    pub fn how(&self) -> Option<&'static str> {
        match &*self.state.borrow() {
            State::Open(open) => Some(open.via.name()),
            _ => None,
        }
    }

    /// Tracepoints that this kernel lacks.
    fn lacking(&self) -> Vec<String> {
        match &*self.state.borrow() {
            State::Open(open) => open.collector.missing(),
            _ => Vec::new(),
        }
    }

    /// Ends the account, and says what it added to each range while it was kept: the median of pairs, since what a range
    /// costs without it drifts by as much.
    fn price(&self, kvm: &Kvm) -> Option<f64> {
        /// An odd number.
        const PAIRS: usize = 7;
        let announcer = Announcer::new(kvm)?;
        let over = State::Without("the run is over".to_owned());
        let State::Open(Open { via, collector, .. }) = self.state.replace(over) else { return None };
        drop(collector);
        let with = || {
            let tap = Tap::around(via, Interest::default(), announcer.range(), CAPACITY).ok()?;
            let with = announcer.range_ns();
            drop(tap);
            Some(with)
        };
        let mut added = [0.0; PAIRS];
        for added in &mut added {
            *added = with()? - announcer.range_ns();
        }
        added.sort_by(f64::total_cmp);
        Some(added[PAIRS / 2].max(0.0))
    }

    /// Ends the account of a run on `kvm`: by what it was kept and what it cost go into the record, and what it could not
    /// see.
    pub fn finish(&self, kvm: Option<&Kvm>, warnings: &mut Warnings) -> (Measured<String>, Measured<f64>) {
        let why = if kvm.is_none() { Some("no KVM listens".to_owned()) } else { self.missing() };
        let how = self.how().filter(|_| why.is_none());
        let lacking = self.lacking();
        if !lacking.is_empty() {
            warnings.say(format!(
                "this kernel lacks the tracepoints {}: ranges of such causes are told by their thread alone",
                lacking.join(", ")
            ));
        }
        let price = how.and(kvm).and_then(|kvm| self.price(kvm));
        let why = why.unwrap_or_else(|| "it could not be measured once more after the run".to_owned());
        let how = Measured::or_why(how.map(str::to_owned), warnings, "tap", why.as_str());
        (how, Measured::or_why(price, warnings, "overhead.tap_range_ns", why))
    }

    fn open(&self, arena: HvaRange) -> State {
        let mut reasons = Vec::new();
        let vias: &[Via] = match self.choice {
            TapChoice::Auto | TapChoice::Tracefs => &[Via::Bpf, Via::Perf],
            TapChoice::Bpf => &[Via::Bpf],
            TapChoice::Perf => &[Via::Perf],
            TapChoice::Off => &[],
        };
        for &via in vias {
            let interest = Interest { causes: true, ..Interest::default() };
            match Tap::around(via, interest, arena, CAPACITY) {
                Ok((collector, picked)) => {
                    return State::Open(Open { collector, via, picked, lost_before: 0, events: Vec::new() });
                }
                Err(error) => reasons.push(with_causes(&error)),
            }
        }
        reasons.dedup();
        State::Without(reasons.join("; "))
    }

    /// A span begins in which `arena` is watched. Whether it is.
    pub(crate) fn begin(&self, arena: HvaRange) -> bool {
        let mut state = self.state.borrow_mut();
        let reopens = match &*state {
            State::NotYet => true,
            State::Open(open) => !open.picked.covers(arena),
            State::Without(_) => false,
        };
        if reopens {
            *state = State::NotYet;
            *state = self.open(arena);
        }
        let State::Open(open) = &mut *state else { return false };
        open.lost_before = open.collector.watch(&[arena]);
        true
    }

    /// The span ends: what the kernel announced in it, with `calls` of this process, goes into `journal`.
    pub(crate) fn end(&self, arena: HvaRange, calls: &Calls, journal: &mut Journal) {
        let mut state = self.state.borrow_mut();
        let State::Open(open) = &mut *state else { return };
        open.events.clear();
        match open.collector.take(&mut open.events) {
            Ok(seen) => {
                let tasks = open.collector.tasks();
                attribute(&open.events, calls, &tasks, std::process::id(), |at, range, cause, call| {
                    journal.push(&RowEvent::KernelRange(KernelRange {
                        at_ns: journal.at(at),
                        start: range.start().get().wrapping_sub(arena.start().get()) as i64,
                        bytes: range.len(),
                        cause,
                        call: call.map(|call| call as u32),
                    }));
                });
                journal.push(&RowEvent::KernelSpan { lost: seen.lost - open.lost_before });
            }
            Err(error) => {
                *state = State::Without(format!("the kernel's account ended: {}", with_causes(&error)));
            }
        }
    }
}
