//! virtio-balloon: the guest gives pages back.
//!
//! ```text
//!   BalloonHandle::set_target ── config interrupt ──> driver
//!   inflate queue: PFNs ─> sorted, checked, merged into runs ─┐
//!                              └─ PageSet                     ├─> Reclaimer ─> the bridge ─> the host takes them
//!   reporting queue: buffers ─> checked ──────────────────────┘      with Cause::Balloon or Cause::FreePageReport
//!   deflate queue: PFNs ─> leave the PageSet
//! ```
//!
//! A page that a guest names wrongly (outside of RAM, twice, never ballooned) is refused: counted, and never handed on.
//! The driver is told nothing, as the specification has no word for it.
//!
//! VIRTIO_BALLOON_F_MUST_TELL_HOST is not offered: a guest that takes a page back before the host knows faults it in
//! like any other page, so nothing here depends on being told first.

mod handle;
mod pages;
mod reclaimer;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use guest_mem::{GpaRange, PAGE_SIZE};
use notifier_bridge::Cause;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::queue::{Buffer, Chain, Outcome, QueueError, copy_from, lies_in_ram, total_len};
use super::{Interrupt, Running, VirtioDevice, copy_config};
use guest::GuestRam;
use handle::Shared;
use pages::PageSet;

pub use handle::{BalloonCounts, BalloonHandle, TargetError};
pub use reclaimer::{ReclaimError, Reclaimer};

const F_DEFLATE_ON_OOM: u32 = 2;
const F_REPORTING: u32 = 5;

/// Where `actual` lies in the configuration space; `num_pages` lies before it.
const ACTUAL: u64 = 4;

/// Most PFNs in one buffer. Linux sends 256.
const MOST_PFNS: u64 = 16 << 10;

/// A virtio balloon device.
pub struct Balloon {
    shared: Arc<Shared>,
    reclaimer: Box<dyn Reclaimer>,
    pages: PageSet,
    /// PFNs of the buffer being served.
    pfns: Vec<u32>,
    /// Whether free page reporting is offered.
    takes_reports: bool,
}

impl Balloon {
    /// A balloon for a guest with this RAM, and the host's hold of it. `interrupt` is also the transport's.
    pub fn new(
        memory: &GuestRam,
        reclaimer: Box<dyn Reclaimer>,
        interrupt: Arc<Interrupt>,
    ) -> (Self, BalloonHandle) {
        let ram: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
        let shared = Arc::new(Shared::new(interrupt, u32::try_from(ram / PAGE_SIZE).unwrap_or(u32::MAX)));
        let pages = PageSet::up_to(memory.last_addr().0 / PAGE_SIZE + 1);
        let balloon =
            Self { shared: shared.clone(), reclaimer, pages, pfns: Vec::new(), takes_reports: true };
        (balloon, BalloonHandle::new(shared))
    }

    /// The same balloon without free page reporting: the guest gives back only what it is asked for.
    #[must_use]
    pub fn without_reports(self) -> Self {
        Self { takes_reports: false, ..self }
    }

    /// Reads a buffer of PFNs into `self.pfns`, sorted. `None` if it is none.
    fn read_pfns(&mut self, memory: &GuestRam, chain: &Chain<'_>) -> Option<()> {
        let len = total_len(chain.readable);
        if len == 0 || !len.is_multiple_of(4) || len > MOST_PFNS * 4 {
            return None;
        }
        self.pfns.clear();
        let mut bytes = [0u8; 256];
        for at in (0..len).step_by(bytes.len()) {
            let part = &mut bytes[..(len - at).min(256) as usize];
            copy_from(memory, chain.readable, at, part)?;
            self.pfns
                .extend(part.chunks_exact(4).map(|pfn| u32::from_le_bytes([pfn[0], pfn[1], pfn[2], pfn[3]])));
        }
        self.pfns.sort_unstable();
        Some(())
    }

    fn inflate(&mut self, memory: &GuestRam, chain: &Chain<'_>) {
        if self.read_pfns(memory, chain).is_none() {
            self.shared.count(|counts| counts.refused_malformed += 1);
            return;
        }
        let mut counts = BalloonCounts::default();
        let pfns = std::mem::take(&mut self.pfns);
        // The run being gathered: PFNs [start, end).
        let mut run = 0..0;
        for &pfn in &pfns {
            let address = vm_memory::GuestAddress(u64::from(pfn) * PAGE_SIZE);
            let page = Buffer { address, len: PAGE_SIZE as u32 };
            if !lies_in_ram(memory, page) {
                counts.refused_outside += 1;
            } else if !self.pages.insert(pfn.into()) {
                counts.refused_duplicate += 1;
            } else {
                counts.inflated += 1;
                if run.end != u64::from(pfn) {
                    self.reclaim_pages(run, &mut counts);
                    run = pfn.into()..pfn.into();
                }
                run.end += 1;
            }
        }
        self.reclaim_pages(run, &mut counts);
        self.pfns = pfns;
        self.shared.add(counts, self.pages.len());
    }

    fn reclaim_pages(&mut self, pfns: std::ops::Range<u64>, counts: &mut BalloonCounts) {
        if let Some(range) = guest_range(pfns.start * PAGE_SIZE, (pfns.end - pfns.start) * PAGE_SIZE) {
            self.reclaim(range, Cause::Balloon, counts);
        }
    }

    /// Hands a range on. Pages that the host could not take stay with the guest's balloon all the same.
    fn reclaim(&mut self, range: GpaRange, cause: Cause, counts: &mut BalloonCounts) {
        counts.runs += 1;
        if let Err(error) = self.reclaimer.reclaim(range, cause) {
            counts.failed += 1;
            self.shared.note_error(error);
        }
    }

    fn deflate(&mut self, memory: &GuestRam, chain: &Chain<'_>) {
        if self.read_pfns(memory, chain).is_none() {
            self.shared.count(|counts| counts.refused_malformed += 1);
            return;
        }
        let left = self.pfns.iter().filter(|&&pfn| self.pages.remove(pfn.into())).count() as u64;
        let refused_absent = self.pfns.len() as u64 - left;
        self.shared
            .add(BalloonCounts { deflated: left, refused_absent, ..Default::default() }, self.pages.len());
    }

    fn report(&mut self, memory: &GuestRam, chain: &Chain<'_>) {
        let mut counts =
            BalloonCounts { refused_malformed: chain.readable.len() as u64, ..Default::default() };
        for &buffer in chain.writable {
            let (start, len) = (buffer.address.0, u64::from(buffer.len));
            if len == 0 || !start.is_multiple_of(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) {
                counts.refused_malformed += 1;
            } else if !lies_in_ram(memory, buffer) {
                counts.refused_outside += 1;
            } else if self.pages.intersects(start / PAGE_SIZE..(start + len) / PAGE_SIZE) {
                counts.refused_duplicate += 1;
            } else if let Some(range) = guest_range(start, len) {
                counts.reported_bytes += len;
                self.reclaim(range, Cause::FreePageReport, &mut counts);
            }
        }
        self.shared.add(counts, self.pages.len());
    }
}

impl VirtioDevice for Balloon {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn queue_sizes(&self) -> &'static [u16] {
        // Inflate, deflate, and the places of reporting, which Linux wants to have at least 32.
        &[128, 128, 64, 64, 64]
    }

    fn features(&self) -> u64 {
        1 << F_DEFLATE_ON_OOM | u64::from(self.takes_reports) << F_REPORTING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.shared.config(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // Drivers write the whole of `actual`; the target is the host's.
        if let (ACTUAL, Ok(bytes)) = (offset, data.try_into()) {
            self.shared.set_actual(u32::from_le_bytes(bytes));
        }
    }

    fn reset(&mut self) {
        // The next driver uses all of its memory again.
        self.pages.clear();
        self.shared.reset();
    }

    fn serve(&mut self, queue: usize, running: &mut Running) -> Result<(), QueueError> {
        let serve: fn(&mut Self, &GuestRam, &Chain<'_>) = match queue {
            0 => Self::inflate,
            1 => Self::deflate,
            // In the specification reporting is queue 4; Linux leaves no gaps for queues it does not use and finds it at 2.
            // No other queue can be at those places, since neither statistics nor free page hints are offered.
            _ => Self::report,
        };
        running.serve(queue, &mut |memory, chain| {
            serve(self, memory, chain);
            Ok(Outcome::Used(0))
        })
    }
}

impl std::fmt::Debug for Balloon {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Balloon").field("pages", &self.pages.len()).finish_non_exhaustive()
    }
}

/// `None` if it is empty, or no range.
fn guest_range(start: u64, len: u64) -> Option<GpaRange> {
    GpaRange::with_len(guest_mem::Gpa::new(start), len).filter(|range| !range.is_empty())
}
