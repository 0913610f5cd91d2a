//! The objects of one segment: a list of free places threaded through the lengths of those that are taken.
//!
//! ```text
//!   entries   [ 1470 | free ─┐| 1512 |  ┌ free | 1490 | ... ]      a length, or FREE and the next free place
//!                head ───────┴──────────┘
//! ```
//!
//! It is kept apart from the segment's bytes, so that damaged bytes cannot damage it.

use super::classes::Class;

/// Bytes of a segment. It holds 16 objects of the largest class; the unused end is under 4 % of it.
pub(super) const SEGMENT_BYTES: usize = 64 << 10;

/// Marks an entry that is free; the rest of it is the next free place, or [`END`].
const FREE: u16 = 0x8000;
const END: u16 = 0x7fff;

/// The objects of a segment in use.
#[derive(Debug)]
pub(super) struct Objects {
    class: Class,
    used: u16,
    head: u16,
    entries: Box<[u16]>,
}

/// The segment after a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// It was full, and now has one free place.
    NoLongerFull,
    /// It has objects and had free places before.
    Partial,
    /// No object is left.
    Empty,
}

impl Objects {
    /// All places free.
    pub(super) fn new(class: Class) -> Self {
        let count = Self::capacity(class);
        let last = count - 1;
        let entries = (0..count).map(|place| FREE | if place == last { END } else { place as u16 + 1 });
        Self { class, used: 0, head: 0, entries: entries.collect() }
    }

    /// How many objects of a class fit in a segment: 16 to 4096.
    pub(super) fn capacity(class: Class) -> usize {
        SEGMENT_BYTES / class.size()
    }

    /// Bytes that the bookkeeping of a segment of this class takes.
    pub(super) fn overhead(class: Class) -> u64 {
        (Self::capacity(class) * size_of::<u16>()) as u64
    }

    /// Whether no place is free.
    pub(super) fn is_full(&self) -> bool {
        self.head == END
    }

    /// Takes a free place for `len` bytes, which are of this segment's class. `None` if it is full.
    pub(super) fn take(&mut self, len: usize) -> Option<usize> {
        debug_assert_eq!(Class::of(len), self.class);
        if self.is_full() {
            return None;
        }
        let place = usize::from(self.head);
        self.head = self.entries[place] & !FREE;
        self.entries[place] = len as u16;
        self.used += 1;
        Some(place)
    }

    /// The offset in the segment of the object of `len` bytes at `place`, if there is one.
    pub(super) fn find(&self, place: usize, len: usize) -> Option<usize> {
        let entry = *self.entries.get(place)?;
        (usize::from(entry) == len).then(|| place * self.class.size())
    }

    /// Frees the object of `len` bytes at `place`. `None` if there is none such, and then nothing changes.
    pub(super) fn release(&mut self, place: usize, len: usize) -> Option<Left> {
        self.find(place, len)?;
        let was_full = self.is_full();
        self.entries[place] = FREE | self.head;
        self.head = place as u16;
        self.used -= 1;
        Some(match (self.used, was_full) {
            (0, _) => Left::Empty,
            (_, true) => Left::NoLongerFull,
            (_, false) => Left::Partial,
        })
    }

    /// The class of all its objects.
    pub(super) fn class(&self) -> Class {
        self.class
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_given_once_and_taken_back_once() {
        for len in [20, 700, 3584, 4096] {
            let mut objects = Objects::new(Class::of(len));
            let count = Objects::capacity(Class::of(len));
            let mut places: Vec<usize> = (0..count).map(|_| objects.take(len).unwrap()).collect();
            assert!(objects.is_full() && objects.take(len).is_none());
            places.sort_unstable();
            assert_eq!(places, (0..count).collect::<Vec<_>>());
            let last = objects.find(count - 1, len).unwrap();
            assert!(last + len <= SEGMENT_BYTES);

            assert_eq!(objects.release(3, len - 1), None, "another length");
            assert_eq!(objects.release(count, len), None, "past the end");
            assert_eq!(objects.release(3, len), Some(Left::NoLongerFull));
            assert_eq!(objects.release(3, len), None, "twice");
            assert_eq!(objects.take(len), Some(3), "what was freed last is used first");
            for place in 0..count - 1 {
                let left = if place == 0 { Left::NoLongerFull } else { Left::Partial };
                assert_eq!(objects.release(place, len), Some(left));
            }
            assert_eq!(objects.release(count - 1, len), Some(Left::Empty));
        }
    }

    #[test]
    fn no_length_looks_like_a_free_entry() {
        let objects = Objects::new(Class::of(16));
        for len in [0, 1, 16, 4096] {
            assert!((0..4096).all(|place| objects.find(place, len).is_none()));
        }
    }
}
