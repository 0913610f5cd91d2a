//! The events of a run: each operation on memory, and its effects on the guest. Every result of a run is a fold of them: its
//! rows, its timeline, the predictions of a replay.
//!
//! ```text
//!   Trial ── Event, Event, … ── Stream ──┬─ RowFold ── Row ── table, run.json, KTAP
//!                                        └─ Section ── events.log ── RowEvents ──┬─ timeline
//!                                                                                └─ Replay ── Event, … ── RowFold ── Row
//! ```
//!
//! The log stands beside `run.json` as `events.log`: one section for each row that ran, on the disk when the row is over.
//!
//! ```text
//!   file     magic "zapscope", version u32, zero u32         little endian throughout
//!   section  u32 the row's place in run.json, u32 bytes of the events, u32 CRC-32 of the row's place and the events
//!            events   one after another, each as postcard writes an [`Event`]; trial after trial
//! ```
//!
//! A log is untrusted input. A reader refuses a version that it does not know, checks each length against its limit before it
//! allocates, checks the order of the events and that pages lie in the memory under test, and names the byte of an error.

mod check;
mod event;
#[cfg(any(test, feature = "fixture"))]
pub mod fixture;
mod layout;
mod log_file;
mod read;
mod section;
mod setting;
mod stream;
mod wire;

pub use event::{
    Announcement, Called, Certainty, Counted, Counter, DeviceCounts, Dropped, Event, Expected, ExpectedKind,
    HotLoops, KernelRange, Leaves, Operation, OperationEnd, Refill, RefillRound, Stall, StallOn, Step,
    Swapped, Was, Zapped,
};
pub use layout::{HostState, LayoutRun};
pub use log_file::LogFile;
pub use read::{EventLog, EventLogError};
pub use section::{Section, TooLarge};
pub use setting::{GuestKind, SecondaryMmu, Setting, SlotRun, Span, slot_runs};
pub use stream::Stream;

pub use notifier_bridge::{GivenBack, Ranges};

use std::time::Duration;

/// The log's file name in a run directory.
pub const FILE_NAME: &str = "events.log";

const MAGIC: [u8; 8] = *b"zapscope";
/// The version that this program writes, and the only one it reads.
pub const VERSION: u32 = 4;

/// The largest size of a section.
const MOST_BYTES: u32 = 256 << 20;

/// A touch that takes at least this long is a stall. A TLB miss with cold caches takes a few hundred
/// nanoseconds; the fastest fault that a hypervisor resolves, more than a microsecond.
pub const STALL: Duration = Duration::from_micros(1);

/// One row of a log.
#[derive(Clone, Debug, PartialEq)]
pub struct RowEvents {
    /// The row's place in `run.json`, from 0.
    pub row: u32,
    /// Its events, of which the first is the setting of its first trial.
    pub events: Vec<Event>,
}

impl RowEvents {
    /// The setting of the first trial.
    ///
    /// # Panics
    /// If there is no event, or another stands first: a log has no such row.
    pub fn setting(&self) -> &Setting {
        match self.events.first() {
            Some(Event::Trial(setting)) => setting,
            _ => unreachable!("a row's events begin with a trial's setting"),
        }
    }

    /// The events of the first trial, its setting among them.
    pub fn first_trial(&self) -> &[Event] {
        let next = self.events.iter().skip(1).position(|event| matches!(event, Event::Trial(_)));
        next.map_or(self.events.as_slice(), |next| &self.events[..=next])
    }
}

#[cfg(test)]
mod tests;
