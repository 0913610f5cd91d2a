//! The part of a worker that other threads read: its epoch and its counters.

use std::sync::atomic::{AtomicU64, Ordering};

use super::epoch::{Epoch, SmpMb};

/// The counters of one worker. Names as in KVM's vCPU statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct WorkerStats {
    /// Accesses that reached their page.
    pub accesses: u64,
    /// Faults taken.
    pub pf_taken: u64,
    /// Faults that installed a translation.
    pub pf_fixed: u64,
    /// Faults that found the translation already installed by another worker.
    pub pf_spurious: u64,
    /// Times a fault began again, since an invalidation was in progress or had overtaken it.
    pub retries: u64,
}

impl std::ops::AddAssign for WorkerStats {
    fn add_assign(&mut self, other: Self) {
        let Self { accesses, pf_taken, pf_fixed, pf_spurious, retries } = other;
        self.accesses += accesses;
        self.pf_taken += pf_taken;
        self.pf_fixed += pf_fixed;
        self.pf_spurious += pf_spurious;
        self.retries += retries;
    }
}

/// A counter that only its owner writes and any thread may read.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn raise(&self) {
        // One writer, so no read-modify-write is needed.
        self.0.store(self.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The part of a worker that other threads see, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct WorkerCell {
    pub(super) epoch: Epoch<SmpMb>,
    pub(super) accesses: Counter,
    pub(super) pf_taken: Counter,
    pub(super) pf_fixed: Counter,
    pub(super) pf_spurious: Counter,
    pub(super) retries: Counter,
}

impl WorkerCell {
    pub(super) fn stats(&self) -> WorkerStats {
        WorkerStats {
            accesses: self.accesses.get(),
            pf_taken: self.pf_taken.get(),
            pf_fixed: self.pf_fixed.get(),
            pf_spurious: self.pf_spurious.get(),
            retries: self.retries.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_field_by_field() {
        let of = |n: u64| WorkerStats {
            accesses: n,
            pf_taken: 2 * n,
            pf_fixed: 3 * n,
            pf_spurious: 4 * n,
            retries: 5 * n,
        };
        let mut sum = of(10);
        sum += of(1);
        assert_eq!(sum, of(11));
    }
}
