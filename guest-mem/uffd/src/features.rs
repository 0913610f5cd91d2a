//! The features of a userfaultfd, as a set of named bits.

use std::fmt;
use std::ops::BitOr;

/// A set of features. [`fmt::Display`] lists their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Features(u64);

/// One constant for each feature, and the table of their names.
macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $bit:literal),* $(,)?) => {
        impl Features {
            $($(#[$doc])* pub const $name: Self = Self(1 << $bit);)*
        }
        const NAMES: &[(u64, &str)] = &[$((1 << $bit, stringify!($name))),*];
    };
}

features! {
    /// Write-protect faults of anonymous memory (5.7).
    PAGEFAULT_FLAG_WP = 0,
    /// Forks; not followed here.
    EVENT_FORK = 1,
    /// [`crate::Event::Remap`]. Without it a mapping that moves loses its registration.
    EVENT_REMAP = 2,
    /// [`crate::Event::Remove`].
    EVENT_REMOVE = 3,
    /// Missing faults of hugetlb memory.
    MISSING_HUGETLBFS = 4,
    /// Missing faults of shared memory.
    MISSING_SHMEM = 5,
    /// [`crate::Event::Unmap`].
    EVENT_UNMAP = 6,
    /// No fault is reported and none waits: user mode gets SIGBUS, a system call (KVM_RUN too) EFAULT.
    SIGBUS = 7,
    /// [`crate::PageFault::thread`].
    THREAD_ID = 8,
    /// Minor faults of hugetlb memory (5.13).
    MINOR_HUGETLBFS = 9,
    /// Minor faults of shared memory (5.14).
    MINOR_SHMEM = 10,
    /// [`crate::PageFault::address`] to the byte (5.18).
    EXACT_ADDRESS = 11,
    /// Write-protect faults of hugetlb and shared memory (5.19).
    WP_HUGETLBFS_SHMEM = 12,
    /// Write protection of anonymous pages that are not there, too (6.4).
    WP_UNPOPULATED = 13,
    /// Pages whose access fails (6.6); not made here.
    POISON = 14,
    /// Write-protect faults resolve themselves and are only recorded (6.7). Brings
    /// [`Features::WP_UNPOPULATED`].
    WP_ASYNC = 15,
    /// [`crate::Userfault::move_pages`] (6.8).
    MOVE = 16,
}

impl Features {
    /// None.
    pub const fn empty() -> Self {
        Self(0)
    }
    /// Those with these bits, known here or not.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
    /// The kernel's bits.
    pub const fn bits(self) -> u64 {
        self.0
    }
    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// Both sets, for constants.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// Whether all of `other` are here.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
    /// Those that are here and not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
    /// Each feature of the set by itself, lowest bit first.
    pub fn iter(self) -> impl Iterator<Item = Self> {
        (0..u64::BITS).map(|bit| Self(1 << bit)).filter(move |&one| self.contains(one))
    }
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.and(other)
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (at, one) in self.iter().enumerate() {
            f.write_str(if at == 0 { "" } else { ", " })?;
            match NAMES.iter().find(|(bit, _)| *bit == one.0) {
                Some((_, name)) => f.write_str(name)?,
                None => write!(f, "bit {}", one.0.trailing_zeros())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_listed_and_the_unknown_is_numbered() {
        let some = Features::EVENT_REMOVE | Features::MOVE | Features::from_bits(1 << 40);
        assert_eq!(some.to_string(), "EVENT_REMOVE, MOVE, bit 40");
        assert_eq!(some.without(some).to_string(), "none");
    }

    #[test]
    fn the_table_is_what_linux_6_12_calls_them() {
        // UFFD_API_FEATURES there: bits 0 to 16, without a gap.
        assert_eq!(NAMES.iter().fold(0, |all, (bit, _)| all | bit), 0x1_ffff);
        assert_eq!(NAMES.len(), 17);
        assert_eq!(Features::WP_HUGETLBFS_SHMEM.bits(), 1 << 12);
        assert_eq!(Features::MISSING_SHMEM.bits(), 1 << 5);
    }

    #[test]
    fn sets_behave() {
        let both = Features::SIGBUS.and(Features::THREAD_ID);
        assert!(both.contains(Features::SIGBUS) && !Features::SIGBUS.contains(both));
        assert_eq!(both.without(Features::SIGBUS), Features::THREAD_ID);
        assert_eq!(both.iter().collect::<Vec<_>>(), [Features::SIGBUS, Features::THREAD_ID]);
        assert!(both.contains(Features::empty()) && Features::empty().is_empty());
    }
}
