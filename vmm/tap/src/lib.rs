//! The kernel tap: the kernel's own account of what it told KVM to drop.
//!
//! ```text
//!   tracepoints (kvm:kvm_unmap_hva_range …)
//!     ├─ bpf        a program of four stores for the ranges, perf ──────┐
//!     ├─ perf       one ring a CPU, filtered by address in the kernel ──┤
//!     ├─ instance   a private tracefs instance: a change to the host ───┼─> Source ── Collector ── Event, by time
//!     └─ synthetic  the same ring and bytes, written by a thread ───────┘              (one reader thread)
//! ```
//!
//! Begin at [`Tap::open`]; what is made of the events, together with what a run did itself, is in `experiment::fold`. The layout of every record is read from the kernel at run time ([`mod@format`], [`tracepoints`]).
//! The tap watches addresses, of whatever process: a run's own arena, or the memory of a VM that another VMM runs.

mod advice;
mod at_work;
pub mod bpf;
pub mod cause;
pub mod collector;
mod filter;
pub mod format;
pub mod hit;
pub mod instance;
mod mapping;
mod page;
pub mod perf;
mod ring;
pub mod sample;
pub mod source;
pub mod synthetic;
mod tasks;
pub mod tracepoints;

use guest_mem::HvaRange;
use host::{Tracefs, TracefsError, in_initial_pid_namespace};

pub use advice::advice_name;
pub use at_work::AtWork;
pub use bpf::{Bpf, BpfError};
pub use cause::{of_own, of_stranger};
pub use collector::{CollectError, Collector, Deeds, Seen};
pub use filter::everywhere;
pub use instance::{Instance, InstanceError};
pub use perf::{Perf, PerfError};
pub use source::{Heard, Source, SourceError};
pub use tasks::Task;
pub use tracepoints::{Call, Deed, Event, Interest, Layout, LayoutError, What, Work};

/// By which of the kernel's interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    /// A BPF program for the ranges, perf events for the rest.
    Bpf,
    /// perf events.
    Perf,
    /// The tracefs instance of this name, which is there.
    Instance(String),
}

impl Via {
    /// The name in records.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bpf => "bpf",
            Self::Perf => "perf",
            Self::Instance(_) => "tracefs",
        }
    }
}

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No tracefs, in which the tracepoints are described.
    #[error("the kernel's account needs tracefs")]
    Tracefs(#[from] TracefsError),
    /// No ranges to be had.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// No BPF program.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// No perf events.
    #[error(transparent)]
    Perf(#[from] PerfError),
    /// No use of an instance.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// No reader.
    #[error(transparent)]
    Collect(#[from] CollectError),
}

/// The kernel's account of some addresses, being kept.
pub struct Tap;

impl Tap {
    /// Begins to listen for ranges that meet `watched`, in such a way that the collector can watch other addresses
    /// later: those that the kernel picks, which are given back too, lie around it.
    ///
    /// BPF and perf pick what lies near. A tracefs instance picks nothing: a filter there makes the kernel write each record
    /// twice, which costs a range of ours a third more and spares a stranger's next to nothing.
    ///
    /// # Errors
    /// As [`Tap::open`].
    pub fn around(
        via: &Via,
        interest: Interest,
        watched: HvaRange,
        capacity: usize,
    ) -> Result<(Collector, HvaRange), TapError> {
        const NEAR: u64 = 64 << 30;
        let picked = match via {
            Via::Bpf | Via::Perf => watched.checked_align_outward(NEAR).unwrap_or(watched),
            Via::Instance(_) => everywhere(),
        };
        let collector = Self::open(via, interest, &[picked], capacity)?;
        collector.watch(&[watched]);
        Ok((collector, picked))
    }

    /// Begins to listen for ranges that meet `watched`, and whatever else is of interest. Up to `capacity` events wait
    /// to be taken.
    ///
    /// # Errors
    /// [`TapError`], which says what would change it.
    pub fn open(
        via: &Via,
        interest: Interest,
        watched: &[HvaRange],
        capacity: usize,
    ) -> Result<Collector, TapError> {
        Self::open_for(via, interest, watched, &[], capacity)
    }

    /// The same; and of KVM's deeds those of some threads alone, unless none is named, or they have other numbers here than in
    /// the kernel.
    ///
    /// # Errors
    /// As [`Tap::open`].
    pub fn open_for(
        via: &Via,
        interest: Interest,
        watched: &[HvaRange],
        threads: &[u32],
        capacity: usize,
    ) -> Result<Collector, TapError> {
        let tracefs = Tracefs::open()?;
        let mut layout = Layout::read(&tracefs, interest)?;
        if !threads.is_empty() && in_initial_pid_namespace() {
            layout.narrow_deeds(threads);
        }
        let source: Box<dyn Source> = match via {
            Via::Bpf => Box::new(Bpf::open(&layout, watched)?),
            Via::Perf => Box::new(Perf::open(layout.listened(), watched)?),
            Via::Instance(name) => Box::new(Instance::open(&tracefs, name, &layout, watched)?),
        };
        Ok(Collector::start(source, layout, watched, capacity)?)
    }
}

#[cfg(test)]
harness::watch_libtest!();
