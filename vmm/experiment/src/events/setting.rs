//! The setting of a trial: its label, its memory, its secondary MMU.

use guest_mem::{Gpa, Hva, HvaRange, PAGE_SIZE, SlotError, SlotTable, SlotTableBuilder};
use serde::{Deserialize, Serialize};

use super::wire;
use crate::choice::{Granule, RowLabel};
use host::kvm_module::KvmFacts;

/// The setting of a trial, its first event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The label of its row.
    #[serde(with = "wire::Label")]
    pub label: RowLabel,
    /// The secondary MMU.
    pub mmu: SecondaryMmu,
    /// The user of the memory.
    pub guest: GuestKind,
    /// Processors that the run could use: a vCPU for each, and one shares its own with the thread that takes memory.
    pub processors: u32,
    /// Whether the guest maps the memory under test by 2 MiB.
    pub large_guest_pages: bool,
    /// Whether the deletion of one memslot drops every translation of the VM.
    pub slot_zap_drops_all: bool,
    /// The memory under test.
    pub arena: Span,
    /// All memslots, by runs of equal ones.
    pub slots: Vec<SlotRun>,
    /// Whether every 2 MiB had a VMA boundary inside when the trial began, so that toggles were exact.
    pub seamed: bool,
    /// `CLOCK_MONOTONIC` when it began.
    pub began_ns: u64,
}

/// The user of the memory under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestKind {
    /// No guest: workers on the software MMU.
    None,
    /// This project's own guest.
    Bare,
    /// Linux.
    Linux,
}

/// A stretch of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Its address in the host process.
    pub hva: u64,
    /// Its address in the guest.
    pub gpa: u64,
    /// Its length.
    pub bytes: u64,
}

impl Span {
    /// As a host range; `None` if it wraps.
    pub fn range(&self) -> Option<HvaRange> {
        HvaRange::with_len(Hva::new(self.hva), self.bytes)
    }
}

/// Memslots side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRun {
    /// The memory of all of them.
    pub span: Span,
    /// Bytes of each; the last may be shorter.
    pub granule: u64,
}

/// The secondary MMU, as far as a prediction depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecondaryMmu {
    /// KVM's shadow MMU: a fault brings the resident neighbours of an aligned group of eight along.
    Shadow,
    /// KVM's TDP MMU: a fault brings one entry.
    Tdp,
    /// This project's own in software, without a guest: one entry a fault.
    Soft,
    /// KVM's, and `/sys` does not say which.
    Unknown,
}

impl SecondaryMmu {
    /// That of this host's KVM.
    pub fn of(kvm: &KvmFacts) -> Self {
        match kvm.shadows() {
            Some(true) => Self::Shadow,
            Some(false) => Self::Tdp,
            None => Self::Unknown,
        }
    }

    /// Whether a guest ran on it.
    pub fn has_guest(self) -> bool {
        self != Self::Soft
    }
}

impl Setting {
    /// Pages of the memory under test.
    pub fn pages(&self) -> u64 {
        self.arena.bytes / PAGE_SIZE
    }

    /// The memslots, those of the arena cut by `granule` if one is given.
    ///
    /// # Errors
    /// No VM has such slots.
    pub fn slot_table(&self, granule: Option<Granule>) -> Result<SlotTable, SlotError> {
        let mut builder = SlotTableBuilder::new(guest_mem::MOST_SLOTS);
        for run in &self.slots {
            let Span { hva, gpa, bytes } = run.span;
            let (start, gpa) = (Hva::new(hva), Gpa::new(gpa));
            let range = run.span.range().ok_or(SlotError::Wraps { gpa, hva: start, len: bytes })?;
            let of_arena = hva == self.arena.hva;
            let granule = granule.filter(|_| of_arena).map_or(run.granule, Granule::bytes);
            builder.add_region(gpa, range, granule)?;
        }
        builder.build()
    }
}

/// The slots as runs of equal ones.
pub fn slot_runs(slots: &SlotTable) -> Vec<SlotRun> {
    let mut runs: Vec<SlotRun> = Vec::new();
    for slot in slots.as_slice() {
        let (hva, gpa, bytes) = (slot.hva_range().start().get(), slot.gpa_range().start().get(), slot.len());
        match runs.last_mut() {
            Some(SlotRun { span, granule })
                if span.hva + span.bytes == hva
                    && span.gpa + span.bytes == gpa
                    && span.bytes.is_multiple_of(*granule)
                    && bytes <= *granule =>
            {
                span.bytes += bytes;
            }
            // One that is no power of two is the last of its region.
            _ => runs.push(SlotRun { span: Span { hva, gpa, bytes }, granule: bytes.next_power_of_two() }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sys_does_not_say_is_unknown() {
        assert_eq!(SecondaryMmu::of(&KvmFacts::default()), SecondaryMmu::Unknown);
        assert_eq!(KvmFacts::limited().map(|kvm| SecondaryMmu::of(&kvm)), [SecondaryMmu::Shadow; 2]);
    }
}
