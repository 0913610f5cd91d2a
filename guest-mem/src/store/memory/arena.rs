//! The memory of a compressed store: one mapping as large as the store may become, handed out by the segment.
//!
//! ```text
//!   mapping   | 0 | 1 | 2 | 3 | 4 |  never used ...
//!               │   │   └ cold: no pages behind it
//!               │   └ warm: free, and keeps its pages for the next to come (at most WARM)
//!               └ in use, of one class
//! ```
//!
//! When the last segment falls out of use the warm ones go cold as well: an empty store holds nothing.

use std::sync::atomic::AtomicU32;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use rustix::io::Errno;

use super::classes::Class;
use super::segment::{Objects, SEGMENT_BYTES};
use crate::store::mapping::Mapping;

/// Free segments that keep their pages, so that a store whose need swings does not swing with the kernel: 1 MiB.
const WARM: usize = 16;
/// Segments are described in tables of this many, made when they are first needed.
const TABLE: usize = 256;

/// What is known of one segment.
#[derive(Debug, Default)]
pub(super) struct Segment {
    /// The objects in it while it is in use. Its bytes are read under this lock, and written under it exclusively.
    pub(super) objects: RwLock<Option<Objects>>,
    /// Its place in its class's list of segments with room. Written and read under that class's lock.
    pub(super) position: AtomicU32,
}

/// Why there is no segment to be had.
#[derive(Debug)]
pub(super) enum NoSegment {
    Full,
    Memory(Errno),
}

#[derive(Debug)]
pub(super) struct Arena {
    mapping: Mapping,
    limit: u64,
    tables: Box<[OnceLock<Box<[Segment]>>]>,
    stock: Mutex<Stock>,
}

#[derive(Debug, Default)]
struct Stock {
    /// The first segment that was never used.
    fresh: u32,
    warm: Vec<u32>,
    cold: Vec<u32>,
    in_use: u32,
    /// Bytes of segments in use and warm, and of bookkeeping.
    held: u64,
}

impl Arena {
    /// An arena that never holds more than `limit` bytes.
    pub(super) fn new(limit: u64) -> Result<Self, Errno> {
        // A limit below one segment leaves an arena that is always full; the mapping cannot be empty.
        let count = (limit / SEGMENT_BYTES as u64).max(1);
        let mapping = Mapping::new(count.checked_mul(SEGMENT_BYTES as u64).ok_or(Errno::NOMEM)?)?;
        let tables = (0..count.div_ceil(TABLE as u64)).map(|_| OnceLock::new()).collect();
        Ok(Self { mapping, limit, tables, stock: Mutex::default() })
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// All of its addresses.
    #[cfg(test)]
    pub(super) fn range(&self) -> crate::range::HvaRange {
        self.mapping.range()
    }

    /// Bytes held now.
    pub(super) fn held(&self) -> u64 {
        self.stock().held
    }

    fn stock(&self) -> MutexGuard<'_, Stock> {
        // A panic elsewhere does not leave the numbers half changed.
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The segment of this number, if it was ever used.
    pub(super) fn segment(&self, number: u32) -> Option<&Segment> {
        let number = number as usize;
        self.tables.get(number / TABLE)?.get()?.get(number % TABLE)
    }

    /// The first byte of a segment that [`segment`](Self::segment) knows.
    pub(super) fn bytes(&self, number: u32) -> *mut u8 {
        let offset = number as usize * SEGMENT_BYTES;
        assert!(offset < self.mapping.len());
        // SAFETY: within the mapping, as just asserted.
        unsafe { self.mapping.as_ptr().add(offset) }
    }

    /// A segment for objects of `class`, with pages behind it and its bookkeeping set up.
    pub(super) fn acquire(&self, class: Class) -> Result<u32, NoSegment> {
        let overhead = Objects::overhead(class);
        let (number, warm) = self.stock().take(self.limit, overhead).ok_or(NoSegment::Full)?;
        let offset = u64::from(number) * SEGMENT_BYTES as u64;
        if !warm && let Err(errno) = self.mapping.populate(offset, SEGMENT_BYTES as u64) {
            self.give_back(number);
            self.retire(number, overhead);
            return Err(NoSegment::Memory(errno));
        }
        let tables = &self.tables[number as usize / TABLE];
        let table = tables.get_or_init(|| (0..TABLE).map(|_| Segment::default()).collect());
        let segment = &table[number as usize % TABLE];
        *segment.objects.write().unwrap_or_else(PoisonError::into_inner) = Some(Objects::new(class));
        Ok(number)
    }

    /// Takes a segment back whose objects are gone: its `objects` are `None`, and it is in no list.
    pub(super) fn release(&self, number: u32, class: Class) {
        let overhead = Objects::overhead(class);
        {
            let mut stock = self.stock();
            if stock.warm.len() < WARM && stock.in_use > 1 {
                stock.warm.push(number);
                stock.in_use -= 1;
                stock.held -= overhead;
                return;
            }
        }
        self.give_back(number);
        self.retire(number, overhead);
    }

    /// Counts a segment as cold, and if it was the last in use, has the warm ones follow it.
    fn retire(&self, number: u32, overhead: u64) {
        let warm = {
            let mut stock = self.stock();
            stock.cold.push(number);
            stock.in_use -= 1;
            stock.held -= SEGMENT_BYTES as u64 + overhead;
            if stock.in_use > 0 { Vec::new() } else { std::mem::take(&mut stock.warm) }
        };
        for &number in &warm {
            self.give_back(number);
        }
        let mut stock = self.stock();
        stock.held -= (warm.len() * SEGMENT_BYTES) as u64;
        stock.cold.extend(warm);
    }

    /// Gives the pages of a segment that is in nobody's hands back to the kernel.
    fn give_back(&self, number: u32) {
        let offset = u64::from(number) * SEGMENT_BYTES as u64;
        // SAFETY: references into a segment live under its lock and only while it has objects; it has none, and
        // is in no list from which it could be taken again.
        let given = unsafe { self.mapping.give_back(offset, SEGMENT_BYTES as u64) };
        // It fails on locked memory (mlockall) alone, whose pages nobody can have; they serve when it is used again.
        let _ = given;
    }
}

impl Stock {
    /// A segment, and whether it has its pages.
    fn take(&mut self, limit: u64, overhead: u64) -> Option<(u32, bool)> {
        let more = overhead + if self.warm.is_empty() { SEGMENT_BYTES as u64 } else { 0 };
        if self.held + more > limit {
            return None;
        }
        let taken = if let Some(number) = self.warm.pop() {
            (number, true)
        } else if let Some(number) = self.cold.pop() {
            (number, false)
        } else {
            // Held bytes bound how many are in use, so there is a fresh one below the arena's end.
            self.fresh += 1;
            (self.fresh - 1, false)
        };
        self.held += more;
        self.in_use += 1;
        Some(taken)
    }
}
