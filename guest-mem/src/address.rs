//! The three address spaces, as types that cannot be mixed.
//!
//! | type | what it names | unit |
//! | --- | --- | --- |
//! | [`Hva`] | a host virtual address of this process | bytes |
//! | [`Gpa`] | a guest physical address | bytes |
//! | [`Gfn`] | a guest frame number, `gpa >> 12` | 4 KiB frames |
//!
//! `+` and `-` are withheld on purpose: only the checked operations compile, so an address near the end of
//! its space cannot wrap silently.

use std::fmt;

/// Bytes of a base page.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes mapped by one PMD entry (the 2 MiB level of x86-64 page tables).
pub const PMD_SIZE: u64 = 2 << 20;
/// Base pages mapped by one PMD entry.
pub const PAGES_PER_PMD: u64 = PMD_SIZE / PAGE_SIZE;

/// A point in one of the address spaces. `raw` counts in the space's own unit.
pub trait Address: Copy + Ord + fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// The address with this raw value.
    fn from_raw(raw: u64) -> Self;
    /// The raw value, in the space's unit.
    fn raw(self) -> u64;

    /// `self + count` units, or `None` past the end of the space.
    fn checked_add(self, count: u64) -> Option<Self> {
        self.raw().checked_add(count).map(Self::from_raw)
    }
    /// Units from `base` up to `self`, or `None` if `self` lies below `base`.
    fn checked_offset_from(self, base: Self) -> Option<u64> {
        self.raw().checked_sub(base.raw())
    }
    /// The largest multiple of `align` at or below `self`. `align` is a power of two, in units.
    fn align_down(self, align: u64) -> Self {
        debug_assert!(align.is_power_of_two());
        Self::from_raw(self.raw() & !(align - 1))
    }
    /// The smallest multiple of `align` at or above `self`, or `None` past the end of the space.
    fn checked_align_up(self, align: u64) -> Option<Self> {
        debug_assert!(align.is_power_of_two());
        self.raw().checked_add(align - 1).map(|raw| Self::from_raw(raw & !(align - 1)))
    }
    /// Whether `self` is a multiple of `align`, a power of two in units.
    fn is_aligned(self, align: u64) -> bool {
        debug_assert!(align.is_power_of_two());
        self.raw() & (align - 1) == 0
    }
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address with this raw value, usable in constants.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }
            /// The raw value, usable in constants.
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl Address for $name {
            fn from_raw(raw: u64) -> Self {
                Self(raw)
            }
            fn raw(self) -> u64 {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A host virtual address of this process, in bytes.
    Hva
}
address! {
    /// A guest physical address, in bytes.
    Gpa
}
address! {
    /// A guest frame number: a guest physical address in units of 4 KiB.
    Gfn
}

impl Gpa {
    /// The frame that holds this address.
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> PAGE_SHIFT)
    }
}

impl Hva {
    /// The address of a pointer.
    pub fn of<T>(pointer: *const T) -> Self {
        Self(pointer as u64)
    }
    /// The address as a pointer, for system calls and volatile access. Dereferencing it is the caller's
    /// business: this function promises nothing about what is mapped there.
    pub fn as_ptr<T>(self) -> *mut T {
        self.0 as *mut T
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_is_checked_at_both_ends() {
        assert_eq!(Hva::new(u64::MAX).checked_add(1), None);
        assert_eq!(Hva::new(8).checked_offset_from(Hva::new(9)), None);
        assert_eq!(Hva::new(9).checked_offset_from(Hva::new(8)), Some(1));
        assert_eq!(Hva::new(u64::MAX).checked_align_up(PAGE_SIZE), None);
    }

    #[test]
    fn a_gfn_is_its_gpa_shifted() {
        assert_eq!(Gpa::new(0x1fff).gfn(), Gfn::new(1));
    }
}
