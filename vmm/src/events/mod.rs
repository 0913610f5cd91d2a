//! The event log: what a run did to memory, operation by operation, so that it can be put through other policies
//! later, without a guest and without KVM.
//!
//! It stands beside `run.json` as `events.log`: one section for each row that ran, on the disk when the row is over, from
//! records that the attacking thread kept for itself. What found its notebook full is counted in the section's `lost`.
//!
//! ```text
//!   file     magic "zapscope", version u32, zero u32         little endian throughout
//!   section  u32 bytes of the header, u32 bytes of the body, u32 CRC-32 of both
//!            header   JSON: what was tried, the memory, its slots, the steps (see `RowHeader`)
//!            body     LEB128 numbers; those that may be negative zigzag; `lists`, `layouts`, `operations`, `stalls`, `ranges`
//!                     of the header say how many there are of each
//!              list       entries, then for each its page less the one before
//!              layout     runs, then for each its pages and its state (see `layout.rs`): they tile the arena
//!              operation  ns since the operation before (the first: since `began_ns`), touches by the hot loops since
//!                         then, first page, pages, pages that left, announcements; then for each announcement:
//!                first page less the one before's first, pages, flags (1 by PMD, 2 anonymous, order << 2), index into
//!                `causes`, ns from the operation's begin to its own, ns of its zap, of the operation in its bracket, of
//!                its end
//!              stall      ns since the stall before (the first: since `began_ns`), ns it took, vCPU, page + 1 or 0 for
//!                         one elsewhere; in order of time
//!              range      ns since the range before (the first: since `began_ns`), first page less the one before's
//!                         first, pages, index into `range_causes`; in order of time
//! ```
//!
//! All times are of one clock, the host's `CLOCK_MONOTONIC`: the guest's counter is put on it, see
//! [`OffsetBounds`](crate::clock::OffsetBounds).
//!
//! Pages count from the beginning of the arena. A reader skips keys of the header that it does not know; a version it
//! does not know it refuses. Nothing in a log is believed: lengths are bounded before memory is taken for them, pages
//! must lie in the arena, and an error names the byte.

mod decode;
mod encode;
mod header;
mod layout;
mod log_file;
mod read;
mod section;
mod varint;

pub use encode::{BodyWriter, TrialEvents};
pub(crate) use header::slot_runs;
pub use header::{Refill, RefillRound, RowHeader, SecondaryMmu, SlotRun, Span, StepEvent, StepTime};
pub use layout::{HostState, LayoutRun};
pub use log_file::LogFile;
pub use read::{EventLog, EventLogError};
pub use section::{Section, SectionError};

use guest_mem::{MapLevel, Order};
use notifier_bridge::Cause;

use crate::tap::RangeCause;

/// What the log is called in a run directory.
pub const FILE_NAME: &str = "events.log";

const MAGIC: [u8; 8] = *b"zapscope";
/// The version that this program writes, and the only one it reads.
pub const VERSION: u32 = 3;

/// The most that a section may have of each part: ten times what 65,536 records take.
const MOST_HEADER: u32 = 1 << 20;
const MOST_BODY: u32 = 32 << 20;

/// One row of a log.
#[derive(Clone, Debug, PartialEq)]
pub struct RowEvents {
    /// What was tried, on what.
    pub header: RowHeader,
    /// Pages that hot loops visit, in order.
    pub lists: Vec<Vec<u32>>,
    /// How the host mapped the arena when each reclaim step began.
    pub layouts: Vec<Vec<LayoutRun>>,
    /// Every operation, in order.
    pub operations: Vec<OperationEvent>,
    /// What they announced, in order.
    pub announcements: Vec<Announcement>,
    /// Where the guest stood still, from the first operation on, in order of time.
    pub stalls: Vec<StallEvent>,
    /// What the kernel said that it announced, in order of time.
    pub ranges: Vec<RangeEvent>,
}

/// A touch of the guest's that took long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StallEvent {
    /// When it began, nanoseconds since the row's first operation.
    pub began_ns: u64,
    /// How long it took.
    pub ns: u64,
    /// Who stood still.
    pub vcpu: u32,
    /// Which page was touched; `None` for memory that is not under test.
    pub page: Option<u64>,
}

/// A range that the kernel announced, by its own account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeEvent {
    /// When, nanoseconds since the row's first operation; 0 for those before it.
    pub at_ns: u64,
    /// The first page; what of it lies beside the memory under test is left out.
    pub first_page: u64,
    /// How many pages, from the first.
    pub pages: u64,
    /// What the pages were taken for.
    pub cause: RangeCause,
}

/// One operation on guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationEvent {
    /// When it began, nanoseconds since the row's first.
    pub began_ns: u64,
    /// Touches that the hot loops had made since the operation before.
    pub touches: u64,
    /// The first page it was asked for.
    pub first_page: u64,
    /// How many pages, from the first.
    pub pages: u64,
    /// How many left.
    pub evicted: u64,
    /// How many of the announcements are its own.
    pub announcements: u32,
}

/// One range about to lose its mapping, before a policy says how wide it is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The first page taken.
    pub first_page: u64,
    /// How many pages, from the first.
    pub pages: u64,
    /// The folio's order.
    pub order: Order,
    /// How the host mapped it.
    pub level: MapLevel,
    /// Whether the folio is anonymous.
    pub anonymous: bool,
    /// What the pages were taken for.
    pub cause: Cause,
    /// When its bracket was opened, nanoseconds since its operation began.
    pub began_ns: u64,
    /// Time in the listener's zaps.
    pub zap_ns: u64,
    /// Time in the operation, if it was in this bracket.
    pub operation_ns: u64,
    /// Time in the ends.
    pub end_ns: u64,
}

#[cfg(test)]
mod tests;
