//! The sizes that compressed pages are rounded up to.
//!
//! Eight classes to each doubling, so rounding loses at most an eighth; steps of 4 bytes at the small end. Nothing
//! lies between [`LARGEST_PACKED`] and a whole page: what does not shrink to that is stored raw.

use guest_mem::PAGE_SIZE;

/// The most a compressed page may take and still be stored compressed: 7/8 of a page. Beyond it the room saved is
/// less than what the segments lose at their ends.
pub(super) const LARGEST_PACKED: usize = 3584;

/// Bytes of each class.
const SIZES: [u16; COUNT] = sizes();
/// How many classes there are.
pub(super) const COUNT: usize = 60;

const fn sizes() -> [u16; COUNT] {
    let mut sizes = [0; COUNT];
    let (mut at, mut size) = (0, 16);
    while size <= LARGEST_PACKED {
        sizes[at] = size as u16;
        at += 1;
        size += step(size);
    }
    sizes[at] = PAGE_SIZE as u16;
    assert!(at + 1 == COUNT);
    sizes
}

/// From a class of `size` bytes to the next: an eighth of the power of two below, at least 4.
const fn step(size: usize) -> usize {
    let step = (1 << size.ilog2()) / 8;
    if step < 4 { 4 } else { step }
}

/// A class, by its place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class(u8);

impl Class {
    /// The smallest class that holds `len` bytes. `len` is 1 to [`LARGEST_PACKED`], or a page.
    pub(super) fn of(len: usize) -> Self {
        debug_assert!(len > 0 && len <= PAGE_SIZE as usize);
        Self(SIZES.partition_point(|&size| usize::from(size) < len) as u8)
    }

    /// Bytes of an object of this class.
    pub(super) fn size(self) -> usize {
        usize::from(SIZES[self.index()])
    }

    /// Its place in a table of [`COUNT`].
    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_loses_at_most_an_eighth() {
        for len in (1..=LARGEST_PACKED).chain([4096]) {
            let size = Class::of(len).size();
            assert!(size >= len, "{len} in {size}");
            assert!(len < 28 || (size - len) * 8 <= len, "{len} in {size}");
            let smaller = SIZES.iter().rfind(|&&other| usize::from(other) < size);
            assert!(smaller.is_none_or(|&other| usize::from(other) < len), "{len} would fit in {smaller:?}");
        }
        assert_eq!(Class::of(4096).size(), 4096);
        assert_eq!(Class::of(LARGEST_PACKED).size(), LARGEST_PACKED);
    }
}
