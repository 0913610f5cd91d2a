//! Objects of any size up to a page, in segments of one size class each.
//!
//! Every class has its lock, held while a place is found or freed; the bytes are copied under the segment's own,
//! which readers share. All steps are O(1). Of the segments with room, the one that got its room last is filled
//! first, so those that are nearly empty drain and go.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use guest_mem::PAGE_SIZE;

use super::arena::{Arena, NoSegment, Segment};
use super::classes::{COUNT, Class};
use super::segment::{Left, SEGMENT_BYTES};
use crate::store::slot::Slot;

/// The place and the length of an object: the fields of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    segment: u32,
    place: u16,
    len: u16,
}

const PLACE_BITS: u32 = 12;
const LEN_BITS: u32 = 12;
const _: () = assert!(SEGMENT_BYTES / 16 == 1 << PLACE_BITS && PAGE_SIZE == 1 << LEN_BITS);
const _: () = assert!(u32::BITS + PLACE_BITS + LEN_BITS == Slot::BITS);

impl Place {
    fn slot(self) -> Slot {
        // A length is 2 to 4096, so what is packed is 1 to 4095 and no slot is 0.
        let low = u64::from(self.place) << LEN_BITS | u64::from(self.len - 1);
        Slot::packed(u64::from(self.segment) << (PLACE_BITS + LEN_BITS) | low)
    }

    fn of(slot: Slot) -> Self {
        let raw = slot.raw();
        let low = |shift: u32, bits: u32| (raw >> shift) as u16 & ((1 << bits) - 1);
        Self {
            segment: (raw >> (PLACE_BITS + LEN_BITS)) as u32,
            place: low(LEN_BITS, PLACE_BITS),
            len: low(0, LEN_BITS) + 1,
        }
    }
}

/// One class: its segments with room, and its sums.
#[derive(Debug, Default)]
struct Shelf {
    with_room: Vec<u32>,
    objects: u64,
    bytes: u64,
}

#[derive(Debug)]
pub(super) struct Pool {
    arena: Arena,
    shelves: [Mutex<Shelf>; COUNT],
}

impl Pool {
    pub(super) fn new(arena: Arena) -> Self {
        Self { arena, shelves: std::array::from_fn(|_| Mutex::default()) }
    }

    pub(super) fn arena(&self) -> &Arena {
        &self.arena
    }

    fn shelf(&self, class: Class) -> MutexGuard<'_, Shelf> {
        // A panic elsewhere does not leave a shelf half changed.
        self.shelves[class.index()].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Objects and their bytes.
    pub(super) fn stored(&self) -> (u64, u64) {
        let each = self.shelves.iter().map(|shelf| {
            let shelf = shelf.lock().unwrap_or_else(PoisonError::into_inner);
            (shelf.objects, shelf.bytes)
        });
        each.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// Stores a copy of `bytes`, which are 2 to 4096.
    pub(super) fn put(&self, bytes: &[u8]) -> Result<Slot, NoSegment> {
        debug_assert!((2..=PAGE_SIZE as usize).contains(&bytes.len()));
        let class = Class::of(bytes.len());
        let mut shelf = self.shelf(class);
        let number = match shelf.with_room.last() {
            Some(&number) => number,
            None => {
                let number = self.arena.acquire(class)?;
                self.shelve(&mut shelf, number);
                number
            }
        };
        let segment = self.known(number);
        let mut guard = segment.objects.write().unwrap_or_else(PoisonError::into_inner);
        let objects = guard.as_mut().expect("a segment on a shelf is in use");
        let place = objects.take(bytes.len()).expect("a segment on a shelf has room");
        if objects.is_full() {
            shelf.with_room.pop();
        }
        shelf.objects += 1;
        shelf.bytes += bytes.len() as u64;
        // The copy needs only the segment's lock: other threads may use this class meanwhile.
        drop(shelf);
        let offset = place * class.size();
        // SAFETY: within the segment, see `Objects::capacity`.
        let to = unsafe { self.arena.bytes(number).add(offset) };
        // SAFETY: `to` has room for an object of the class. The segment's lock is held exclusively, under which
        // alone its bytes are read or written.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        drop(guard);
        Ok(Place { segment: number, place: place as u16, len: bytes.len() as u16 }.slot())
    }

    /// Hands the bytes at `slot` to `read`; `None` if there are none.
    pub(super) fn read<R>(&self, slot: Slot, read: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let Place { segment: number, place, len } = Place::of(slot);
        let segment = self.arena.segment(number)?;
        let guard = segment.objects.read().unwrap_or_else(PoisonError::into_inner);
        let offset = guard.as_ref()?.find(usize::from(place), usize::from(len))?;
        // SAFETY: within the segment, see `Objects::capacity`.
        let at = unsafe { self.arena.bytes(number).add(offset) };
        // SAFETY: `find` says that there is an object of `len` bytes, all of them written; the segment's lock is held,
        // so no thread writes while the slice lives.
        let bytes = unsafe { std::slice::from_raw_parts(at, usize::from(len)) };
        let done = read(bytes);
        drop(guard);
        Some(done)
    }

    /// Frees the object at `slot`. Returns whether there was one.
    pub(super) fn free(&self, slot: Slot) -> bool {
        let Place { segment: number, place, len } = Place::of(slot);
        let Some(segment) = self.arena.segment(number) else { return false };
        // The class that the slot claims: if the segment is of another, it has no object of this length.
        let class = Class::of(usize::from(len));
        let mut shelf = self.shelf(class);
        let mut guard = segment.objects.write().unwrap_or_else(PoisonError::into_inner);
        let Some(objects) = guard.as_mut().filter(|objects| objects.class() == class) else { return false };
        let Some(left) = objects.release(usize::from(place), usize::from(len)) else { return false };
        shelf.objects -= 1;
        shelf.bytes -= u64::from(len);
        match left {
            Left::Partial => {}
            Left::NoLongerFull => self.shelve(&mut shelf, number),
            Left::Empty => {
                *guard = None;
                drop(guard);
                self.unshelve(&mut shelf, segment);
                drop(shelf);
                self.arena.release(number, class);
            }
        }
        true
    }

    fn known(&self, number: u32) -> &Segment {
        self.arena.segment(number).expect("a segment on a shelf was acquired")
    }

    /// Puts a segment on the shelf, as the next to be filled.
    fn shelve(&self, shelf: &mut Shelf, number: u32) {
        self.known(number).position.store(shelf.with_room.len() as u32, Ordering::Relaxed);
        shelf.with_room.push(number);
    }

    /// Takes a segment off the shelf; the last one moves to its place.
    fn unshelve(&self, shelf: &mut Shelf, segment: &Segment) {
        let position = segment.position.load(Ordering::Relaxed);
        shelf.with_room.swap_remove(position as usize);
        if let Some(&moved) = shelf.with_room.get(position as usize) {
            self.known(moved).position.store(position, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_its_slot() {
        for place in [
            Place { segment: 0, place: 0, len: 2 },
            Place { segment: u32::MAX, place: 4095, len: 4096 },
            Place { segment: 7, place: 12, len: 1470 },
        ] {
            assert_eq!(Place::of(place.slot()), place);
            assert_ne!(place.slot(), Slot::default());
        }
    }
}
