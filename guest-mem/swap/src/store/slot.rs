//! The place of a page in a store.

use std::fmt;

/// The place of a page in a store: a number that only that store can interpret, of at most [`Slot::BITS`] bits, so that an
/// entry of a table has room beside it. The default slot (0) is never a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u64);

impl Slot {
    /// The most bits a slot takes.
    pub const BITS: u32 = 56;

    /// The slot with this raw value, or `None` if the value has more than [`Slot::BITS`] bits. Any other value is
    /// safe to hand to a store: it answers for its own slots only.
    pub const fn from_raw(raw: u64) -> Option<Self> {
        if raw >> Self::BITS == 0 { Some(Self(raw)) } else { None }
    }

    /// The raw value.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The slot with this raw value, whose high bits the caller knows to be zero.
    pub(super) const fn packed(raw: u64) -> Self {
        debug_assert!(raw >> Self::BITS == 0);
        Self(raw)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {:#x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_has_56_bits() {
        let last = (1 << 56) - 1;
        assert_eq!(Slot::from_raw(last).map(Slot::raw), Some(last));
        assert_eq!(Slot::from_raw(1 << 56), None);
    }
}
