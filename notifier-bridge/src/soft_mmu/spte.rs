//! One entry of the shadow table.

/// A leaf entry, laid out as a page-table entry is: the frame number from bit 12 up, flags below.
///
/// ```text
///   63 ──────────── 12 │ 1        │ 0
///   page frame number  │ writable │ present
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spte(u64);

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const PFN_SHIFT: u32 = 12;

impl Spte {
    /// No translation.
    pub(super) const NONE: Self = Self(0);

    pub(super) fn new(pfn: u64, writable: bool) -> Self {
        debug_assert!(pfn < 1 << (64 - PFN_SHIFT), "a frame number has 52 bits");
        Self((pfn << PFN_SHIFT) | if writable { PRESENT | WRITABLE } else { PRESENT })
    }
    pub(super) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
    pub(super) fn bits(self) -> u64 {
        self.0
    }
    pub(super) fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }
    /// Whether an access may use it.
    pub(super) fn allows(self, write: bool) -> bool {
        self.is_present() && (!write || self.0 & WRITABLE != 0)
    }
    pub(super) fn pfn(self) -> u64 {
        self.0 >> PFN_SHIFT
    }
    /// The translation of the page `index` pages into a larger one.
    pub(super) fn page(self, index: u64) -> Self {
        if self.is_present() { Self(self.0 + (index << PFN_SHIFT)) } else { Self::NONE }
    }
}
