//! A section's header: what was tried, on what memory, step by step.

use guest_mem::{Gpa, Hva, HvaRange, SlotError, SlotTable, SlotTableBuilder};
use serde::{Deserialize, Serialize};

use crate::choice::Granule;
use crate::host::kvm_module::{KvmFacts, MmuKind};
use crate::output::visible;
use crate::record::RowLabel;

/// What of a row does not repeat. Keys are added, never renamed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowHeader {
    /// The row's place in `run.json`, from 0.
    pub row: u32,
    /// What was tried.
    pub label: RowLabel,
    /// Who translated.
    pub mmu: SecondaryMmu,
    /// Who used the memory: `bare`, `linux`, or `none` on the software MMU.
    pub guest: String,
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
    /// Whether every 2 MiB had a VMA boundary inside when the row began, so that toggles were exact.
    pub seamed: bool,
    /// `CLOCK_MONOTONIC` when the first operation began.
    pub began_ns: u64,
    /// What happened, in order.
    pub steps: Vec<StepEvent>,
    /// When each of them was carried out, and what the secondary MMU counted meanwhile.
    pub step_times: Vec<StepTime>,
    /// Touches by all hot loops while nothing was done to them, and in how many nanoseconds.
    #[serde(default)]
    pub undisturbed: Option<(u64, u64)>,
    /// How fast the hot loops get their translations back.
    #[serde(default)]
    pub refill: Option<Refill>,
    /// The names of causes, as announcements have them by number.
    #[serde(deserialize_with = "visible::read_line_each")]
    pub causes: Vec<String>,
    /// Lists in the body.
    pub lists: u32,
    /// Layouts in the body.
    pub layouts: u32,
    /// Operations in the body.
    pub operations: u32,
    /// Stalls in the body.
    pub stalls: u32,
    /// Those that found the notebook full, or could not be put on the host's clock.
    pub stalls_left_out: u64,
    /// By how much their times may be off, either way.
    pub clock_uncertain_ns: u64,
    /// The names of causes, as ranges have them by number.
    #[serde(deserialize_with = "visible::read_line_each")]
    pub range_causes: Vec<String>,
    /// Ranges of the kernel's in the body.
    pub ranges: u32,
    /// Those that found the notebook full; `None` where nobody kept the kernel's account.
    pub ranges_left_out: Option<u64>,
    /// Announcements that found the notebook full: they are in the row's totals and not here.
    pub lost: u64,
}

/// A stretch of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Where it is in the host process.
    pub hva: u64,
    /// Where in the guest.
    pub gpa: u64,
    /// How long.
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
    /// What they cover together.
    #[serde(flatten)]
    pub span: Span,
    /// Bytes of each; the last may be shorter.
    pub granule: u64,
}

/// Who translates beside the host, as far as a prediction must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
    /// That of this host's KVM. Two-dimensional paging without the TDP MMU goes through the shadow MMU's code.
    pub fn of(kvm: &KvmFacts) -> Self {
        match (kvm.mmu, kvm.tdp_mmu) {
            (Some(MmuKind::Shadow | MmuKind::ShadowPvm), _) | (Some(_), Some(false)) => Self::Shadow,
            (Some(MmuKind::Ept | MmuKind::Npt), Some(true)) => Self::Tdp,
            (Some(MmuKind::Ept | MmuKind::Npt), None) | (None, _) => Self::Unknown,
        }
    }

    /// Whether a guest ran on it.
    pub fn has_guest(self) -> bool {
        self != Self::Soft
    }
}

/// A step of the case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub enum StepEvent {
    /// Every page was written.
    Fill,
    /// Hot loops were started.
    Hot {
        /// Which list they visit, over and over; `None` if they draw their pages.
        list: Option<u32>,
        /// Every how many pages of the arena, if there is no list: 1 is sequential.
        #[serde(default)]
        stride: Option<u64>,
        /// Whether they write what they visit.
        writes: bool,
        /// How many run it.
        loops: u32,
    },
    /// The loops ran undisturbed.
    Baseline,
    /// Memory was taken.
    Reclaim {
        /// How the host mapped the arena at its begin.
        layout: u32,
        /// How many of the operations are its own.
        operations: u32,
        /// When it was over, nanoseconds since the row's first operation.
        ended_ns: u64,
    },
    /// The loops were stopped.
    Stop,
    /// Every page taken was read once, lowest first.
    Refault,
    /// Every other page was read once, lowest first.
    Sweep,
    /// Something beside the memory under test.
    Other,
}

/// When a step was carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTime {
    /// When it began, nanoseconds since the row's first operation: negative before.
    pub began_ns: i64,
    /// When it was over.
    pub ended_ns: i64,
    /// Faults that installed a translation, those on the guest's own memory among them.
    pub faults: Option<u64>,
    /// Faults that were to be tried again.
    pub retries: Option<u64>,
    /// Remote TLB flushes.
    pub flushes: Option<u64>,
}

/// How fast hot loops get their translations back once all of them are gone: measured after the row, by zapping
/// every memslot under the running loops and looking how many faults they resolve in a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refill {
    /// Each time.
    pub rounds: Vec<RefillRound>,
    /// Faults until every loop has come round, each time: those on the guest's own pages are among them.
    #[serde(default)]
    pub around: Vec<u64>,
    /// How long each of these took, nanoseconds, from the end of the zap until every loop had been round twice.
    #[serde(default)]
    pub around_ns: Vec<u64>,
}

/// All translations went, and the loops had a while to get them back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefillRound {
    /// How long it was to be, nanoseconds.
    pub gap_ns: u64,
    /// How long it was, from the end of one zap to the begin of the next.
    pub ns: u64,
    /// Faults resolved from one zap to the next: those count that a vCPU still gets done while it is being stopped.
    pub faults: u64,
}

impl RowHeader {
    /// The memslots, those of the arena cut by `granule` if one is given.
    ///
    /// # Errors
    /// No VM has such slots.
    pub fn slot_table(&self, granule: Option<Granule>) -> Result<SlotTable, SlotError> {
        let mut builder = SlotTableBuilder::new(guest_mem::MOST_SLOTS);
        for run in &self.slots {
            let hva = HvaRange::with_len(Hva::new(run.span.hva), run.span.bytes).ok_or(SlotError::Wraps {
                gpa: Gpa::new(run.span.gpa),
                hva: Hva::new(run.span.hva),
                len: run.span.bytes,
            })?;
            let of_arena = run.span.hva == self.arena.hva;
            let granule = granule.filter(|_| of_arena).map_or(run.granule, Granule::bytes);
            builder.add_region(Gpa::new(run.span.gpa), hva, granule)?;
        }
        builder.build()
    }
}

/// The slots as runs of equal ones.
pub(crate) fn slot_runs(slots: &SlotTable) -> Vec<SlotRun> {
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
        let of = |mmu, tdp_mmu| SecondaryMmu::of(&KvmFacts { mmu, tdp_mmu, ..KvmFacts::default() });
        assert_eq!(of(Some(MmuKind::Ept), Some(true)), SecondaryMmu::Tdp);
        assert_eq!(of(Some(MmuKind::Npt), Some(false)), SecondaryMmu::Shadow);
        assert_eq!(of(Some(MmuKind::ShadowPvm), None), SecondaryMmu::Shadow);
        assert_eq!(of(Some(MmuKind::Ept), None), SecondaryMmu::Unknown);
        assert_eq!(of(None, Some(true)), SecondaryMmu::Unknown);
    }
}
