//! What the program writes and we read: for each CPU a part, which is a ring of slots with its positions before it.
//!
//! ```text
//!   part of CPU 0                                  part of CPU 1 …
//!   ├ head   ranges written so far (program)       slot │ time ns │ tgid<<32|tid │ start │ end │  8 bytes each
//!   ├ lost   those that found no room (program)
//!   ├ tail   read so far (us)
//!   └ slots, from the next page on
//! ```
//!
//! Positions only grow; a place is a position modulo the number of slots.

use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use guest_mem::{Hva, HvaRange};
use rustix::io::Errno;

use crate::mapping::Mapping;
use crate::ring::Damaged;
use crate::tracepoints::{Event, What};

/// Where in a part its head is.
pub(super) const HEAD: usize = 0;
/// Where its losses are counted: in the same cache line, for the same writer.
pub(super) const LOST: usize = 8;
/// Where its tail is: in a line of its own.
pub(super) const TAIL: usize = 64;
/// Where its slots begin.
pub(super) const SLOTS: usize = 4096;
/// Bytes of a slot: two to a cache line.
pub(super) const SLOT: usize = 32;

/// Slots that may be read before the program is told of the room.
const STRIDE: u64 = 1 << 11;

/// Bytes of a part.
pub(super) fn part_size(slots: u32) -> usize {
    SLOTS + slots as usize * SLOT
}

/// The parts of all CPUs.
#[derive(Debug)]
pub(super) struct Parts {
    memory: Mapping,
    slots: u32,
    cpus: usize,
}

impl Parts {
    /// The parts of `cpus` CPUs in a map of the kernel's.
    pub(super) fn of(map: BorrowedFd<'_>, cpus: usize, slots: u32) -> Result<Self, Errno> {
        Ok(Self::over(Mapping::of(map, cpus * part_size(slots))?, cpus, slots))
    }

    fn over(memory: Mapping, cpus: usize, slots: u32) -> Self {
        Self { memory, slots, cpus }
    }

    /// Gives every range that was written and not read to `sink`, CPU by CPU.
    ///
    /// # Errors
    /// A head that cannot be. What is unread there is given up.
    pub(super) fn drain(&self, mut sink: impl FnMut(Option<Event>)) -> Result<(), Damaged> {
        for part in (0..self.cpus).map(|cpu| cpu * part_size(self.slots)) {
            let (head, tail) = (self.memory.word(part + HEAD), self.memory.word(part + TAIL));
            // Only we write it.
            let (until, mut at) = (head.load(Ordering::Acquire), tail.load(Ordering::Relaxed));
            if until.wrapping_sub(at) > self.slots.into() {
                tail.store(until, Ordering::Release);
                return Err(Damaged { position: at });
            }
            while at != until {
                sink(self.slot(part, at));
                at += 1;
                if at.is_multiple_of(STRIDE) {
                    tail.store(at, Ordering::Release);
                }
            }
            tail.store(at, Ordering::Release);
        }
        Ok(())
    }

    /// The slot at a position between tail and head, where the program keeps out. `None`: its range is none.
    fn slot(&self, part: usize, at: u64) -> Option<Event> {
        let place = part + SLOTS + (at as usize & (self.slots as usize - 1)) * SLOT;
        let [time_ns, thread, start, end] =
            [0, 8, 16, 24].map(|word| self.memory.word(place + word).load(Ordering::Relaxed));
        let range = HvaRange::new(Hva::new(start), Hva::new(end))?;
        Some(Event { time_ns, pid: (thread >> 32) as u32, tid: thread as u32, what: What::Range(range) })
    }

    /// Ranges that found no room, so far.
    pub(super) fn lost(&self) -> u64 {
        let each = (0..self.cpus).map(|cpu| self.memory.word(cpu * part_size(self.slots) + LOST));
        each.map(|lost| lost.load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests;
