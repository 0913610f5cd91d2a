//! What is the same for all who act on a VM.

use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::gate::Gate;
use super::window::ProtectionWindow;

/// What all vCPU threads of a VM share.
#[derive(Debug)]
pub struct Surroundings {
    /// Keeps them out of the guest while a memslot is absent.
    pub gate: Gate,
    /// The moments in which `EFAULT` is the VMM's own doing.
    pub window: ProtectionWindow,
    /// Held for reading by threads of this process that write to guest memory outside of the arena (devices), and for
    /// writing while that memory is read-only.
    pub host_writes: RwLock<()>,
    /// Guest physical addresses promised to be memory.
    pub ram: Vec<guest_mem::GpaRange>,
    /// When the first of them first entered the guest: `CLOCK_MONOTONIC` nanoseconds, 0 before.
    pub first_entry_ns: AtomicU64,
}

impl Surroundings {
    /// For a VM with that many vCPUs and that memory.
    pub fn new(vcpus: u32, ram: Vec<guest_mem::GpaRange>) -> Self {
        let window = ProtectionWindow::default();
        let host_writes = RwLock::default();
        Self { gate: Gate::new(vcpus), window, host_writes, ram, first_entry_ns: AtomicU64::new(0) }
    }

    /// Whether memory is promised at that guest physical address.
    pub(super) fn is_ram(&self, gpa: u64) -> bool {
        self.ram.iter().any(|range| range.contains(guest_mem::Gpa::new(gpa)))
    }

    /// Keeps the time, if nobody entered before.
    pub(super) fn note_first_entry(&self) {
        let now = notifier_bridge::monotonic_ns();
        // Only the first vCPU's time is kept.
        let _ = self.first_entry_ns.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }
}
