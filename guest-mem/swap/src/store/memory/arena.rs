//! The memory of a compressed store: one mapping as large as the store may become, handed out by the segment.
//!
//! ```text
//!   mapping   | 0 | 1 | 2 | 3 | ... | 64 ....... | 96 ....... |  never used ...
//!               │   │   │              └ from here on backed 32 at a time: a huge page, if one is at hand
//!               │   │   └ cold: no pages behind it
//!               │   └ warm: free, and keeps its pages for the next to come
//!               └ in use, of one class
//! ```
//!
//! The [`Stock`] decides the state of each segment; this file makes the system calls. Huge pages are enabled while a chunk
//! is backed and disabled at all other times: the kernel must not put pages behind segments by itself.

use std::ops::Range;
use std::sync::atomic::AtomicU32;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use guest_mem::{Mapping, PMD_SIZE};
use rustix::io::Errno;

use super::classes::Class;
use super::segment::{Objects, SEGMENT_BYTES};
use super::stock::{CHUNK, Stock, Taken};

/// Segments are described in tables of this many, made when they are first needed.
const TABLE: usize = 256;

/// One segment.
#[derive(Debug, Default)]
pub(super) struct Segment {
    /// The objects in it while it is in use. Its bytes are read under this lock, and written under it exclusively.
    pub(super) objects: RwLock<Option<Objects>>,
    /// Its place in its class's list of segments with room. Written and read under that class's lock.
    pub(super) position: AtomicU32,
}

/// No segment is available.
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

impl Arena {
    /// An arena that never holds more than `limit` bytes.
    pub(super) fn new(limit: u64) -> Result<Self, Errno> {
        // Whole chunks, at least one; the stock enforces the limit.
        let chunks = limit.div_ceil(PMD_SIZE).max(1);
        let mapping = Mapping::anonymous(chunks.checked_mul(PMD_SIZE).ok_or(Errno::NOMEM)?)?;
        mapping.huge_pages(0, mapping.range().len(), false)?;
        let chunks = u32::try_from(chunks).map_err(|_| Errno::NOMEM)?;
        let tables =
            (0..(chunks as usize * CHUNK as usize).div_ceil(TABLE)).map(|_| OnceLock::new()).collect();
        Ok(Self { mapping, limit, tables, stock: Mutex::new(Stock::new(chunks)) })
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// All of its addresses.
    #[cfg(test)]
    pub(super) fn range(&self) -> guest_mem::HvaRange {
        self.mapping.range()
    }

    /// Bytes held now.
    pub(super) fn held(&self) -> u64 {
        self.stock().held()
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
        assert!(offset < self.mapping.range().len() as usize);
        // SAFETY: within the mapping, as just asserted.
        unsafe { self.mapping.as_ptr().add(offset) }
    }

    /// A segment for objects of `class`, with pages behind it and its bookkeeping set up.
    pub(super) fn acquire(&self, class: Class) -> Result<u32, NoSegment> {
        let overhead = Objects::overhead(class);
        let taken = self.stock().take(self.limit, overhead).ok_or(NoSegment::Full)?;
        let number = taken.segment;
        if let Err(errno) = self.back(&taken) {
            self.put_back(number, overhead);
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
        self.put_back(number, Objects::overhead(class));
    }

    fn put_back(&self, number: u32, overhead: u64) {
        let going = self.stock().put_back(number, overhead);
        for segments in &going {
            let (offset, len) = extent(segments);
            // It fails on locked memory (mlockall) only, whose pages stay, and serve when the segment is used again.
            // SAFETY: references into a segment live under its lock and only while it has objects; these have none, and
            // the stock does not give them out before they are gone.
            let _ = unsafe { self.mapping.give_back(offset, len) };
            self.stock().gone(segments);
        }
    }

    /// Puts pages behind what was taken.
    fn back(&self, taken: &Taken) -> Result<(), Errno> {
        let (offset, len) = extent(&taken.to_back);
        if !taken.is_chunk() {
            return if len == 0 { Ok(()) } else { self.mapping.populate(offset, len) };
        }
        self.mapping.huge_pages(offset, len, true)?;
        let backed = self.mapping.populate(offset, len);
        self.mapping.huge_pages(offset, len, false)?;
        backed
    }
}

/// The place of segments in the mapping: offset and bytes.
fn extent(segments: &Range<u32>) -> (u64, u64) {
    let bytes = |count: u32| u64::from(count) * SEGMENT_BYTES as u64;
    (bytes(segments.start), bytes(segments.end - segments.start))
}
