//! The buffers that the program writes and the tap reads: one for each CPU, a ring of slots behind its positions.
//!
//! ```text
//!   buffer of CPU 0                              buffer of CPU 1 …
//!   ├ head   ranges written so far (program)     slot │ time ns │ tgid<<32|tid │ start │ end │  8 bytes each
//!   ├ lost   ranges that did not fit (program)
//!   ├ tail   ranges read so far (tap)
//!   └ slots, from the next page on
//! ```
//!
//! Positions only grow; the slot of a position is its remainder by the number of slots.

use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use guest_mem::{Hva, HvaRange};
use rustix::io::Errno;

use crate::mapping::Mapping;
use crate::ring::Damaged;
use crate::tracepoints::{Event, What};

/// The offset of the head in a buffer.
pub(super) const HEAD: usize = 0;
/// The offset of the count of losses: in the same cache line, which has the same writer.
pub(super) const LOST: usize = 8;
/// The offset of the tail: in another cache line.
pub(super) const TAIL: usize = 64;
/// The offset of the slots.
pub(super) const SLOTS: usize = 4096;
/// Bytes of a slot: two to a cache line.
pub(super) const SLOT: usize = 32;

/// Slots that are read before the tail is published.
const STRIDE: u64 = 1 << 11;

/// Bytes of a buffer.
pub(super) fn buffer_size(slots: u32) -> usize {
    SLOTS + slots as usize * SLOT
}

/// The buffers of all CPUs.
#[derive(Debug)]
pub(super) struct Buffers {
    memory: Mapping,
    slots: u32,
    cpus: usize,
}

impl Buffers {
    /// The buffers of `cpus` CPUs in a BPF map.
    pub(super) fn of(map: BorrowedFd<'_>, cpus: usize, slots: u32) -> Result<Self, Errno> {
        Ok(Self::over(Mapping::of(map, cpus * buffer_size(slots))?, cpus, slots))
    }

    fn over(memory: Mapping, cpus: usize, slots: u32) -> Self {
        Self { memory, slots, cpus }
    }

    /// Passes every unread range to `sink`, CPU by CPU; `None` for a slot without a valid range.
    ///
    /// # Errors
    /// [`Damaged`]: a head is inconsistent. Its unread slots are dropped.
    pub(super) fn drain(&self, mut sink: impl FnMut(Option<Event>)) -> Result<(), Damaged> {
        for buffer in (0..self.cpus).map(|cpu| cpu * buffer_size(self.slots)) {
            let (head, tail) = (self.memory.word(buffer + HEAD), self.memory.word(buffer + TAIL));
            // The tail has no other writer.
            let (until, mut at) = (head.load(Ordering::Acquire), tail.load(Ordering::Relaxed));
            if until.wrapping_sub(at) > self.slots.into() {
                tail.store(until, Ordering::Release);
                return Err(Damaged { position: at });
            }
            while at != until {
                sink(self.slot(buffer, at));
                at += 1;
                if at.is_multiple_of(STRIDE) {
                    tail.store(at, Ordering::Release);
                }
            }
            tail.store(at, Ordering::Release);
        }
        Ok(())
    }

    /// The slot at a position between tail and head, which the program does not write. `None` if its range is not valid.
    fn slot(&self, buffer: usize, at: u64) -> Option<Event> {
        let place = buffer + SLOTS + (at as usize & (self.slots as usize - 1)) * SLOT;
        let [time_ns, thread, start, end] =
            [0, 8, 16, 24].map(|word| self.memory.word(place + word).load(Ordering::Relaxed));
        let range = HvaRange::new(Hva::new(start), Hva::new(end))?;
        Some(Event { time_ns, pid: (thread >> 32) as u32, tid: thread as u32, what: What::Range(range) })
    }

    /// Ranges that did not fit, so far.
    pub(super) fn lost(&self) -> u64 {
        let each = (0..self.cpus).map(|cpu| self.memory.word(cpu * buffer_size(self.slots) + LOST));
        each.map(|lost| lost.load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests;
