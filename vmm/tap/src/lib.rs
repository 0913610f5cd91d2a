//! What the kernel announced to secondary MMUs, and by whom: the kernel's own account, by its tracepoints.
//!
//! ```text
//!   tracepoints (kvm:kvm_unmap_hva_range …)
//!     ├─ bpf        a BPF program for the ranges, perf events for the rest ──┐
//!     ├─ perf       one ring for each CPU, filtered by address in the kernel ┼─> Source ── Collector ── Event, by time
//!     └─ synthetic  the same ring and bytes, written by a thread ────────────┘              (one reader thread)
//! ```
//!
//! BPF costs least for each range. perf needs one right less (CAP_PERFMON alone), and works in any PID namespace. Both
//! change nothing on the host.
//!
//! Start reading at [`Tap::open`]. The tap watches addresses of any process: the arena of a run, or the memory of a VM that
//! another VMM runs. `experiment::fold` sums the events up.

mod advice;
mod arch;
pub mod bpf;
mod cause;
pub mod collector;
mod filter;
pub mod format;
mod mapping;
mod ongoing;
pub mod perf;
mod perf_record;
mod ring;
mod source;
pub mod synthetic;
mod tasks;
pub mod tracepoints;

use guest_mem::HvaRange;
use host::{Tracefs, TracefsError, in_initial_pid_namespace};

pub use advice::advice_name;
pub use bpf::{Bpf, BpfError};
pub use cause::{of_own, of_range};
pub use collector::{CollectError, Collector, KvmCounts, Seen};
pub use ongoing::Ongoing;
pub use perf::{Perf, PerfError};
pub use ring::Damaged;
pub use source::{Record, Source};
pub use tasks::Task;
pub use tracepoints::{Call, Event, Interest, KvmEvent, Layout, LayoutError, Sample, What, Work};

/// The interface of the kernel that gives the events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// A BPF program for the ranges, perf events for the rest.
    Bpf,
    /// perf events.
    Perf,
}

impl Via {
    /// The name in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bpf => "bpf",
            Self::Perf => "perf",
        }
    }
}

/// The tap cannot be opened.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum TapError {
    #[error("the kernel's account needs tracefs")]
    Tracefs(#[from] TracefsError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Bpf(#[from] BpfError),
    #[error(transparent)]
    Perf(#[from] PerfError),
    #[error(transparent)]
    Collect(#[from] CollectError),
}

/// The kernel's account of some addresses.
pub struct Tap;

impl Tap {
    /// Begins to record ranges that meet `watched`. The kernel selects by a wider range around it, which is returned as well:
    /// inside it the collector can watch other addresses later.
    pub fn around(
        via: Via,
        interest: Interest,
        watched: HvaRange,
        capacity: usize,
    ) -> Result<(Collector, HvaRange), TapError> {
        const NEAR: u64 = 64 << 30;
        let selected = watched.checked_align_outward(NEAR).unwrap_or(watched);
        let collector = Self::open(via, interest, &[selected], capacity)?;
        collector.watch(&[watched]);
        Ok((collector, selected))
    }

    /// Begins to record ranges that meet `watched`, and the other events of `interest`. Up to `capacity` events wait to be
    /// taken.
    pub fn open(
        via: Via,
        interest: Interest,
        watched: &[HvaRange],
        capacity: usize,
    ) -> Result<Collector, TapError> {
        Self::open_for(via, interest, watched, &[], capacity)
    }

    /// As [`Tap::open`], with the events of KVM limited to these threads. All threads are recorded if the list is empty, or if
    /// this PID namespace is not the initial one, where the kernel's numbers of threads differ.
    pub fn open_for(
        via: Via,
        interest: Interest,
        watched: &[HvaRange],
        threads: &[u32],
        capacity: usize,
    ) -> Result<Collector, TapError> {
        let mut layout = Layout::read(&Tracefs::open()?, interest)?;
        if !threads.is_empty() && in_initial_pid_namespace() {
            layout.limit_kvm_events(threads);
        }
        let source: Box<dyn Source> = match via {
            Via::Bpf => Box::new(Bpf::open(&layout, watched)?),
            Via::Perf => Box::new(Perf::open(layout.listened(), watched)?),
        };
        Ok(Collector::start(source, layout, watched, capacity)?)
    }
}

#[cfg(test)]
harness::watch_libtest!();
