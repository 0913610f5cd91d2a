//! Half-open ranges `[start, end)` of one address space.

use std::fmt;
use std::iter::FusedIterator;

use crate::address::{Address, Gfn, Gpa, Hva, PAGE_SIZE, PMD_SIZE};

/// A half-open range `[start, end)`, possibly empty. `start <= end` always holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AddressRange<A> {
    start: A,
    end: A,
}

/// A range of host virtual addresses, in bytes.
pub type HvaRange = AddressRange<Hva>;
/// A range of guest physical addresses, in bytes.
pub type GpaRange = AddressRange<Gpa>;
/// A range of guest frames.
pub type GfnRange = AddressRange<Gfn>;

impl<A: Address> AddressRange<A> {
    /// `[start, end)`, or `None` if `end` lies below `start`.
    pub fn new(start: A, end: A) -> Option<Self> {
        (start <= end).then_some(Self { start, end })
    }
    /// `len` units from `start`, or `None` if that runs past the end of the space.
    pub fn with_len(start: A, len: u64) -> Option<Self> {
        start.checked_add(len).map(|end| Self { start, end })
    }
    /// The empty range at `at`.
    pub fn empty(at: A) -> Self {
        Self { start: at, end: at }
    }

    /// The first address.
    pub fn start(self) -> A {
        self.start
    }
    /// The first address after the range.
    pub fn end(self) -> A {
        self.end
    }
    /// Units covered: bytes for [`Hva`] and [`Gpa`], frames for [`Gfn`].
    pub fn len(self) -> u64 {
        self.end.raw() - self.start.raw()
    }
    /// Whether nothing is covered.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
    /// Whether `at` lies inside.
    pub fn contains(self, at: A) -> bool {
        self.start <= at && at < self.end
    }
    /// Whether all of `other` lies inside. An empty `other` does, wherever it stands.
    pub fn covers(self, other: Self) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }
    /// Whether the two share at least one unit.
    pub fn overlaps(self, other: Self) -> bool {
        self.start.max(other.start) < self.end.min(other.end)
    }
    /// The part that the two share, or `None` if they share nothing.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start < end).then_some(Self { start, end })
    }
    /// The smallest range that covers both, gap included.
    pub fn hull(self, other: Self) -> Self {
        if self.is_empty() {
            return other;
        }
        if other.is_empty() {
            return self;
        }
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }
    /// The range widened to multiples of `align`, a power of two in units; `None` past the end of the space.
    pub fn checked_align_outward(self, align: u64) -> Option<Self> {
        let start = self.start.align_down(align);
        self.end.checked_align_up(align).map(|end| Self { start, end })
    }
    /// Consecutive pieces of `step` units, the last one shorter if it must be. `step` is not 0.
    pub fn chunks(self, step: u64) -> Chunks<A> {
        assert!(step > 0, "a step of 0 never ends");
        Chunks { rest: self, step }
    }
}

impl HvaRange {
    /// Base pages touched by the range.
    pub fn page_count(self) -> u64 {
        if self.is_empty() {
            return 0;
        }
        (self.end.raw() - 1) / PAGE_SIZE - self.start.raw() / PAGE_SIZE + 1
    }
    /// The address of each base page, for a page-aligned range.
    pub fn pages(self) -> impl ExactSizeIterator<Item = HvaRange> + use<> {
        debug_assert!(self.start.is_aligned(PAGE_SIZE) && self.end.is_aligned(PAGE_SIZE));
        self.chunks(PAGE_SIZE)
    }
}

impl GpaRange {
    /// The frames touched by the range.
    pub fn gfns(self) -> GfnRange {
        if self.is_empty() {
            return GfnRange::empty(self.start.gfn());
        }
        let last = Gpa::from_raw(self.end.raw() - 1).gfn();
        GfnRange { start: self.start.gfn(), end: Gfn::new(last.get() + 1) }
    }
}

impl<A: Address> fmt::Debug for AddressRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:?}, {:?})", self.start, self.end)
    }
}

impl<A: Address> fmt::Display for AddressRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end)
    }
}

/// The pieces of a range. See [`AddressRange::chunks`].
#[derive(Clone, Debug)]
pub struct Chunks<A: Address> {
    rest: AddressRange<A>,
    step: u64,
}

impl<A: Address> Iterator for Chunks<A> {
    type Item = AddressRange<A>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let end = self.rest.start.checked_add(self.step).map_or(self.rest.end, |end| end.min(self.rest.end));
        let piece = AddressRange { start: self.rest.start, end };
        self.rest.start = end;
        Some(piece)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.rest.len().div_ceil(self.step) as usize;
        (left, Some(left))
    }
}

impl<A: Address> ExactSizeIterator for Chunks<A> {}
impl<A: Address> FusedIterator for Chunks<A> {}

/// A range that does not fit the region it was used with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum RangeError {
    #[error("{range} leaves its region {region}")]
    Outside { range: HvaRange, region: HvaRange },
    #[error("{range}: both ends must be multiples of {page_size} bytes in this region")]
    Unaligned { range: HvaRange, page_size: u64 },
    #[error("no word of 8 aligned bytes at {at} in {region}")]
    Word { at: Hva, region: HvaRange },
}

impl HvaRange {
    /// The range cut at multiples of 2 MiB.
    pub fn block_pieces(self) -> impl Iterator<Item = Self> {
        self.cut_by(|rest| {
            // The end of the last block of the address space does not fit into an address.
            rest.start().align_down(PMD_SIZE).checked_add(PMD_SIZE).unwrap_or(rest.end())
        })
    }

    /// The range cut in pieces: `next` is given the rest of it, and returns the end of the next piece, which may lie
    /// beyond.
    pub(crate) fn cut_by(self, next: impl Fn(Self) -> Hva) -> impl Iterator<Item = Self> {
        let mut rest = self;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let cut = next(rest).min(rest.end());
            let piece = Self::new(rest.start(), cut)?;
            rest = Self::new(cut, rest.end())?;
            Some(piece)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, end: u64) -> HvaRange {
        HvaRange::new(Hva::new(start), Hva::new(end)).unwrap()
    }

    /// Ranges in a space so small that every unit of it can be enumerated.
    fn small() -> impl Strategy<Value = HvaRange> {
        (0u64..48, 0u64..48).prop_map(|(a, b)| range(a.min(b), a.max(b)))
    }

    fn units(r: HvaRange) -> Vec<u64> {
        (0..64).filter(|&at| r.contains(Hva::new(at))).collect()
    }

    proptest! {
        #[test]
        fn set_operations_agree_with_enumeration(a in small(), b in small()) {
            let shared: Vec<u64> = units(a).into_iter().filter(|at| units(b).contains(at)).collect();
            prop_assert_eq!(a.overlaps(b), !shared.is_empty());
            prop_assert_eq!(a.intersection(b).map(units).unwrap_or_default(), shared);
            prop_assert_eq!(a.covers(b), units(b).iter().all(|at| units(a).contains(at)));
            let both: Vec<u64> = units(a).into_iter().chain(units(b)).collect();
            let hull = match (both.iter().min(), both.iter().max()) {
                (Some(&low), Some(&high)) => (low..=high).collect(),
                _ => Vec::new(),
            };
            prop_assert_eq!(units(a.hull(b)), hull);
        }

        #[test]
        fn chunks_tile_the_range(a in small(), step in 1u64..9) {
            let pieces: Vec<_> = a.chunks(step).collect();
            prop_assert_eq!(pieces.len(), a.chunks(step).len());
            prop_assert!(pieces.iter().all(|p| !p.is_empty() && p.len() <= step));
            let tiled: Vec<u64> = pieces.into_iter().flat_map(units).collect();
            prop_assert_eq!(tiled, units(a));
        }

        #[test]
        fn page_count_agrees_with_enumeration(start in 0u64..4 * PAGE_SIZE, len in 0u64..4 * PAGE_SIZE) {
            let r = HvaRange::with_len(Hva::new(start), len).unwrap();
            let naive = (0..16).filter(|p| r.overlaps(range(p * PAGE_SIZE, (p + 1) * PAGE_SIZE))).count();
            prop_assert_eq!(r.page_count(), naive as u64);
        }
    }

    #[test]
    fn a_range_cannot_run_backwards_or_wrap() {
        assert_eq!(HvaRange::new(Hva::new(2), Hva::new(1)), None);
        assert_eq!(HvaRange::with_len(Hva::new(u64::MAX), 2), None);
        assert_eq!(range(0, u64::MAX).chunks(u64::MAX).count(), 1);
    }

    #[test]
    fn pieces_are_cut_on_the_block_grid() {
        let range =
            HvaRange::new(Hva::new(PMD_SIZE - PAGE_SIZE), Hva::new(2 * PMD_SIZE + PAGE_SIZE)).unwrap();
        let lengths: Vec<u64> = range.block_pieces().map(|piece| piece.len()).collect();
        assert_eq!(lengths, [PAGE_SIZE, PMD_SIZE, PAGE_SIZE]);
    }
}
