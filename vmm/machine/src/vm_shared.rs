//! The state that the threads acting on a VM share.

use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

use guest_mem::{Gpa, GpaRange};

use super::gate::Gate;
use super::window::ProtectionWindow;

/// The synchronisation of a VM's vCPU threads, its devices, and the threads that take its memory.
#[derive(Debug)]
pub struct VmShared {
    /// Keeps the vCPUs out of the guest while a memslot is absent.
    pub gate: Gate,
    /// The periods in which the VMM itself causes `EFAULT`.
    pub window: ProtectionWindow,
    /// Held for reading by threads of this process that write to guest memory outside of the arena (devices), and for
    /// writing while that memory is read-only.
    pub host_writes: RwLock<()>,
    /// The guest physical addresses of the guest's RAM.
    pub ram: Vec<GpaRange>,
    /// When a vCPU first entered the guest: `CLOCK_MONOTONIC` nanoseconds, 0 before.
    pub first_entry_ns: AtomicU64,
}

impl VmShared {
    /// For a VM with `vcpus` vCPUs and this RAM.
    pub fn new(vcpus: u32, ram: Vec<GpaRange>) -> Self {
        Self {
            gate: Gate::new(vcpus),
            window: ProtectionWindow::default(),
            host_writes: RwLock::default(),
            ram,
            first_entry_ns: AtomicU64::new(0),
        }
    }

    /// Whether `gpa` lies in the guest's RAM.
    pub(crate) fn is_ram(&self, gpa: u64) -> bool {
        self.ram.iter().any(|range| range.contains(Gpa::new(gpa)))
    }

    /// Records the time of the first entry. Later calls change nothing.
    pub(crate) fn note_first_entry(&self) {
        let now = notifier_bridge::monotonic_ns();
        let _ = self.first_entry_ns.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_entry_is_recorded() {
        let shared = VmShared::new(2, Vec::new());
        let first_entry = || shared.first_entry_ns.load(Ordering::Relaxed);
        assert_eq!(first_entry(), 0);
        let before = notifier_bridge::monotonic_ns();
        shared.note_first_entry();
        let first = first_entry();
        assert!(first >= before);
        shared.note_first_entry();
        assert_eq!(first_entry(), first);
    }

    #[test]
    fn ram_is_what_lies_in_one_of_its_ranges() {
        let ram = [(0, 0x2000), (0x8000, 0x1000)];
        let shared =
            VmShared::new(1, ram.map(|(at, len)| GpaRange::with_len(Gpa::new(at), len).unwrap()).to_vec());
        for (gpa, is_ram) in [(0, true), (0x1fff, true), (0x2000, false), (0x8fff, true), (0x9000, false)] {
            assert_eq!(shared.is_ram(gpa), is_ram, "{gpa:#x}");
        }
    }
}
