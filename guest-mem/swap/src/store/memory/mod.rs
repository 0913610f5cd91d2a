//! Pages compressed in memory.
//!
//! ```text
//!   put   page ─ Packer ─> bytes (raw if over 7/8 of a page) ─ Pool: class ─> segment, place ─> Slot
//!   get   Slot ─ Pool: validated, segment's lock shared ─> bytes ─ Unpacker ─> page
//! ```
//!
//! The bytes held stay below 5/4 of the bytes stored, plus a segment of 64 KiB for each size class in use and 1 MiB of
//! spare ones (of a store that holds more than 4 MiB, up to 6), as long as freed objects are not scattered: a segment
//! goes back to the kernel when the last object in it is freed, and objects do not move. The memory of a segment that was part
//! of a huge page goes back when the kernel splits the huge page, under memory pressure.

mod arena;
mod classes;
mod codec;
mod pool;
mod segment;
mod stock;
#[cfg(test)]
mod tests;

use rustix::io::Errno;

use self::arena::{Arena, NoSegment};
pub use self::codec::Codec;
use self::codec::{Packer, Spares, Unpacker};
use self::pool::Pool;
use super::{Slot, Store, StoreError, Usage, check_shape};
use guest_mem::Page;

/// Pages compressed in memory, one by one, so that each can come back alone. A page that does not shrink to 7/8 is stored
/// uncompressed.
#[derive(Debug)]
pub struct CompressedStore {
    codec: Codec,
    pool: Pool,
    packers: Spares<Packer>,
    unpackers: Spares<Unpacker>,
}

impl CompressedStore {
    /// An empty store that will never hold more than `limit` bytes of memory. As much address space is taken now, and
    /// no memory.
    pub fn new(codec: Codec, limit: u64) -> Result<Self, StoreError> {
        let arena = Arena::new(limit).map_err(|source| StoreError::Memory {
            store: codec.name(),
            bytes: limit,
            source,
        })?;
        let (packers, unpackers) = (Spares::new(), Spares::new());
        Ok(Self { codec, pool: Pool::new(arena), packers, unpackers })
    }

    fn no_segment(&self, why: NoSegment) -> StoreError {
        let store = self.name();
        match why {
            NoSegment::Full => {
                StoreError::Full { store, limit: self.pool.arena().limit(), usage: self.usage() }
            }
            NoSegment::Memory(source) => {
                StoreError::Memory { store, bytes: segment::SEGMENT_BYTES as u64, source }
            }
        }
    }

    fn no_context(&self, source: Errno) -> StoreError {
        StoreError::Memory { store: self.name(), bytes: size_of::<Page>() as u64, source }
    }

    fn put_each(&self, packer: &mut Packer, pages: &[Page], slots: &mut [Slot]) -> Result<(), StoreError> {
        for (index, page) in pages.iter().enumerate() {
            match self.pool.put(packer.pack(page)) {
                Ok(slot) => slots[index] = slot,
                Err(why) => {
                    // Before the slots of the batch are freed: the error reports the full store.
                    let error = self.no_segment(why);
                    self.free(&slots[..index]);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn get_each(
        &self,
        unpacker: &mut Unpacker,
        slots: &[Slot],
        pages: &mut [Page],
    ) -> Result<(), StoreError> {
        let store = self.name();
        for (index, (&slot, page)) in slots.iter().zip(pages).enumerate() {
            match self.pool.read(slot, |bytes| unpacker.unpack(bytes, page)) {
                Some(true) => {}
                Some(false) => return Err(StoreError::Damaged { store, index, slot }),
                None => return Err(StoreError::NoSuchPage { store, index, slot }),
            }
        }
        Ok(())
    }
}

impl Store for CompressedStore {
    fn name(&self) -> &'static str {
        self.codec.name()
    }

    fn put(&self, pages: &[Page], slots: &mut [Slot]) -> Result<(), StoreError> {
        check_shape(pages.len(), slots.len())?;
        let make = || Packer::new(self.codec).map_err(|source| self.no_context(source));
        self.packers.with(make, |packer| self.put_each(packer, pages, slots))
    }

    fn get(&self, slots: &[Slot], pages: &mut [Page]) -> Result<(), StoreError> {
        check_shape(pages.len(), slots.len())?;
        let make = || Unpacker::new(self.codec).map_err(|source| self.no_context(source));
        self.unpackers.with(make, |unpacker| self.get_each(unpacker, slots, pages))
    }

    fn free(&self, slots: &[Slot]) {
        for &slot in slots {
            self.pool.free(slot);
        }
    }

    fn usage(&self) -> Usage {
        let (pages, stored_bytes) = self.pool.stored();
        Usage { pages, stored_bytes, held_bytes: self.pool.arena().held() }
    }
}
