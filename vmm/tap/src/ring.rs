//! A ring of perf records, from the reader's side.
//!
//! ```text
//!   page 0: perf_event_mmap_page       data_head ── written up to here, by the writer (store release, load acquire)
//!                                      data_tail ── read up to here, by the reader    (store release, load acquire)
//!   data:   ┌──────┬────────────────┬───────────┐
//!           │ free │ records unread │   free    │   positions only grow; the place of a position is its remainder by the size
//!           └──────┴────────────────┴───────────┘
//!                  tail             head
//! ```
//!
//! A record begins with a `perf_event_header` and is a multiple of 8 bytes long, so that only its body can wrap around
//! the end; then it is read from a copy.

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use perf_event_open_sys::bindings::{perf_event_header, perf_event_mmap_page};

use super::mapping::Mapping;

/// `data_head` in the first page.
pub(super) const HEAD: usize = offset_of!(perf_event_mmap_page, data_head);
/// `data_tail` in the first page.
pub(super) const TAIL: usize = offset_of!(perf_event_mmap_page, data_tail);
/// The header of a record: type, flags, length.
pub(super) const HEADER: usize = size_of::<perf_event_header>();

const _: () = assert!(HEAD == 1024 && TAIL == 1032 && HEADER == 8);

/// Bytes that are read before the tail is published.
const STRIDE: u64 = 1 << 16;

/// A ring whose head or records are inconsistent. Nothing in it is used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the ring of trace records is damaged at position {position}: stop this run, and report the kernel's version"
)]
pub struct Damaged {
    /// The position, in bytes since the ring began.
    pub position: u64,
}

/// One CPU's ring.
#[derive(Debug)]
pub(super) struct Ring {
    memory: Arc<Mapping>,
    data: usize,
    size: u64,
    /// A copy of a record that wraps around the end.
    copy: Vec<u8>,
}

impl Ring {
    /// A ring over `memory`, whose data begins at `data`.
    ///
    /// # Panics
    /// If the length of the data is not a power of two of at least a page.
    pub(super) fn new(memory: Arc<Mapping>, data: usize) -> Self {
        let size = (memory.len() - data) as u64;
        assert!(size.is_power_of_two() && size >= 4096 && data.is_multiple_of(8));
        Self { memory, data, size, copy: Vec::with_capacity(256) }
    }

    /// Passes every unread record to `each`: its type, and its body.
    ///
    /// # Errors
    /// [`Damaged`]: a record is inconsistent. The unread records are dropped.
    pub(super) fn drain(&mut self, mut each: impl FnMut(u32, &[u8])) -> Result<(), Damaged> {
        let memory = &*self.memory;
        let (head, mut tail) =
            (memory.word(HEAD).load(Ordering::Acquire), memory.word(TAIL).load(Ordering::Relaxed));
        let publish = |tail| memory.word(TAIL).store(tail, Ordering::Release);
        let mut published = tail;
        while tail != head {
            let damaged = Damaged { position: tail };
            let left = head.wrapping_sub(tail);
            if left > self.size || left < HEADER as u64 || !tail.is_multiple_of(8) {
                publish(head);
                return Err(damaged);
            }
            let at = tail & (self.size - 1);
            // The header is one aligned word.
            let header = memory.word(self.data + at as usize).load(Ordering::Relaxed);
            let (kind, length) = (header as u32, header >> 48);
            if length < HEADER as u64 || length > left || !length.is_multiple_of(8) {
                publish(head);
                return Err(damaged);
            }
            let (begin, whole) = (at as usize + HEADER, length as usize - HEADER);
            let before_end = whole.min(self.size as usize - begin.min(self.size as usize));
            // SAFETY: between tail and head the writer does not write until the tail moves past.
            let front = unsafe { memory.bytes(self.data + begin.min(self.size as usize), before_end) };
            if before_end == whole {
                each(kind, front);
            } else {
                // SAFETY: as above; the record continues at the beginning of the data.
                let back = unsafe { memory.bytes(self.data, whole - before_end) };
                self.copy.clear();
                self.copy.extend_from_slice(front);
                self.copy.extend_from_slice(back);
                each(kind, &self.copy);
            }
            tail = tail.wrapping_add(length);
            if tail.wrapping_sub(published) >= STRIDE {
                publish(tail);
                published = tail;
            }
        }
        publish(tail);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
