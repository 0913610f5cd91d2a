//! The cost of a restored guest, which verifies its memory, writes to all of it, and verifies again.
//!
//! ```text
//!   exec ── KVM_RUN ── a first page verified ── every page touched, each touch timed ── all verified ── written, verified
//! ```

use std::path::PathBuf;
use std::time::Duration;

use guest_abi::layout::PAGE_SIZE;
use guest_abi::order::{Access, Task};
use guest_mem::{Earned, PageScanner};
use notifier_bridge::monotonic_ns;
use serde::Serialize;

use super::SnapshotError;
use super::file::Snapshot;
use super::restore::{How, PagesBrought, Restored};
use super::work::{self, Pages};
use guest::GuestError;
use guest::clock::TscRate;
use host::HostFacts;
use program::distribution::{Distribution, Samples};

/// The version of the record.
const SCHEMA: u32 = 1;
/// A touch of this length or more has met a fault.
const STALL: Duration = Duration::from_micros(1);

/// A restore in numbers. Times are nanoseconds since the process was started, where no other is named.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RestoreRecord {
    /// The version of this record.
    pub schema: u32,
    /// The file.
    pub snapshot: PathBuf,
    /// The host's kernel.
    pub kernel: String,
    /// Its processor.
    pub cpu: Option<String>,
    /// vCPUs.
    pub vcpus: u32,
    /// The backing of the memory under test when the snapshot was made, asked for again now; `earned` says what it got.
    pub backing: String,
    /// The part of the memory under test that is what `backing` says, once all of it was written to; null if only root may
    /// know.
    pub earned: Option<f64>,
    /// Bytes of the memory under test.
    pub memory_bytes: u64,
    /// Bytes of it that hold the pattern.
    pub filled_bytes: u64,
    /// Bytes of the memory below: the guest's code, page tables and control areas.
    pub low_bytes: u64,
    /// Pages in the file; all others are zeros.
    pub stored_pages: u64,
    /// `lazy` or `eager`.
    pub mode: &'static str,
    /// How many pages a fault brought; null if there were none.
    pub fault_around: Option<String>,
    /// Threads that served the faults of the memory under test; null if there were none.
    pub handlers: Option<u32>,
    /// When the process was started, `CLOCK_MONOTONIC`: its first reading of the clock, less the CPU time that it had
    /// taken by then.
    pub started_monotonic_ns: u64,
    /// When a vCPU first entered the guest.
    pub first_kvm_run_ns: u64,
    /// When the guest had verified one page.
    pub first_page_verified_ns: u64,
    /// When it had verified all of them.
    pub all_verified_ns: u64,
    /// When it had written to all of them and verified them again.
    pub rewritten_verified_ns: u64,
    /// How long the guest stood still at the first touches that took a microsecond or more.
    pub stall_ns: Distribution,
    /// Faults served, in all the memory.
    pub faults: u64,
    /// Of those, in the memory below the one under test.
    pub low_faults: u64,
    /// Pages that they brought.
    pub pages_brought: u64,
    /// Of those, pages of zeros, which are not in the file.
    pub zero_pages_brought: u64,
    /// Pages that the guest has not touched.
    pub pages_left: u64,
    /// Bytes of the file's pages that were read.
    pub bytes_read: u64,
    /// In so many system calls.
    pub reads: u64,
    /// Pages that were not as they had been: always 0, always checked.
    pub wrong_pages: u64,
    /// Writes that the second verify did not find: always 0, always checked.
    pub lost_writes: u64,
    /// The parts of the vCPUs' states that this KVM did not take.
    pub not_restored: Vec<String>,
}

impl RestoreRecord {
    /// Whether no page was wrong and no write was lost.
    pub fn is_sound(&self) -> bool {
        (self.wrong_pages, self.lost_writes) == (0, 0)
    }
}

/// Has a restored guest verify, write and verify all of its memory, and ends it. `started` is when the process was
/// started, by `CLOCK_MONOTONIC`.
///
/// # Errors
/// The guest failed. It is abandoned then, and the process should end.
pub fn measure(
    restored: Restored,
    snapshot: &Snapshot,
    how: How,
    started: u64,
    not_restored: Vec<String>,
) -> Result<RestoreRecord, SnapshotError> {
    let guest = match Guest::run(&restored, snapshot, started) {
        Ok(guest) => guest,
        Err(error) => {
            restored.abandon();
            return Err(error.into());
        }
    };
    let first_run =
        restored.machine().core().shared.first_entry_ns.load(std::sync::atomic::Ordering::Relaxed);
    let (bytes_read, reads) = restored.read();
    let earned = Earned::of(&mut PageScanner::new()?, restored.machine().core().arena())?;
    let [low, arena] = restored.finish()?;
    let sum = |get: fn(&PagesBrought) -> u64| get(&low) + get(&arena);
    let (mode, around, handlers) = match how {
        How::Lazily { around, handlers } => ("lazy", Some(around.to_string()), Some(handlers)),
        How::Eagerly => ("eager", None, None),
    };
    let (header, facts) = (&snapshot.header, HostFacts::read());
    Ok(RestoreRecord {
        schema: SCHEMA,
        snapshot: snapshot.path().to_owned(),
        kernel: facts.kernel,
        cpu: facts.cpu,
        vcpus: header.vcpus,
        backing: header.backing.to_string(),
        earned: earned.fraction(),
        memory_bytes: header.arena,
        filled_bytes: header.filled,
        low_bytes: header.low(),
        stored_pages: header.stored,
        mode,
        fault_around: around,
        handlers,
        started_monotonic_ns: started,
        first_kvm_run_ns: first_run.saturating_sub(started),
        first_page_verified_ns: guest.first_page,
        all_verified_ns: guest.all,
        rewritten_verified_ns: guest.rewritten,
        stall_ns: guest.stalls.summary(),
        faults: sum(|brought| brought.handlers.faults),
        low_faults: low.handlers.faults,
        pages_brought: sum(|brought| brought.handlers.returned),
        zero_pages_brought: sum(|brought| brought.zeros),
        pages_left: sum(|brought| brought.left),
        bytes_read,
        reads,
        wrong_pages: guest.wrong,
        lost_writes: guest.lost_writes,
        not_restored,
    })
}

/// The guest's findings, and their times.
struct Guest {
    first_page: u64,
    all: u64,
    rewritten: u64,
    stalls: Samples,
    wrong: u64,
    lost_writes: u64,
}

impl Guest {
    fn run(restored: &Restored, snapshot: &Snapshot, started: u64) -> Result<Self, GuestError> {
        let (machine, header) = (restored.machine(), &snapshot.header);
        let now = || monotonic_ns().saturating_sub(started);
        let rate = TscRate::begin();
        let [filled, pages] = [header.filled, header.arena].map(|bytes| bytes / PAGE_SIZE);
        // The generation that a verify expects of each span.
        let spans = [(0..filled, header.generation), (filled..pages, 0)];
        let verify = |pages: &Pages, generation, first, counts: &mut Counts| {
            work::all(machine, pages, Task::Verify { generation }, first, |outcome| counts.add(outcome))
        };
        let mut found = Counts::default();
        let first = if filled > 0 { header.generation } else { 0 };
        verify(&(0..1), first, 0, &mut found)?;
        let first_page = now();
        let mut stalls = Samples::default();
        let read = Task::Touch { access: Access::Read, passes: Some(1), stall_cycles: rate.ticks(STALL) };
        work::timed(machine, &(0..pages), read, |stall| stalls.record(rate.nanoseconds(stall.cycles)))?;
        let mut before = Counts::default();
        for (pages, generation) in &spans {
            verify(pages, *generation, 0, &mut before)?;
        }
        let all = now();
        let mut written = 0;
        let write = Task::Touch { access: Access::Write, passes: Some(1), stall_cycles: u64::MAX };
        work::all(machine, &(0..pages), write, 0, |outcome| written += outcome.visits)?;
        let mut after = Counts::default();
        for (pages, generation) in &spans {
            // Each part by another vCPU than the one that wrote to it.
            verify(pages, *generation, 1, &mut after)?;
        }
        let lost_writes = before.writes.wrapping_add(written).abs_diff(after.writes);
        let wrong = found.wrong + before.wrong + after.wrong;
        Ok(Self { first_page, all, rewritten: now(), stalls, wrong, lost_writes })
    }
}

/// The findings of verifies.
#[derive(Default)]
struct Counts {
    wrong: u64,
    writes: u64,
}

impl Counts {
    fn add(&mut self, outcome: &guest_abi::block::Outcome) {
        self.wrong += outcome.wrong_pages;
        // A guest's numbers are untrusted.
        self.writes = outcome.lane_sums.iter().fold(self.writes, |sum, lane| sum.wrapping_add(*lane));
    }
}
