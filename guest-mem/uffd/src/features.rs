//! The features of a userfaultfd, as a set of named bits.

use std::fmt;

bitflags::bitflags! {
    /// A set of features, known here or not. [`fmt::Display`] lists their names.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Features: u64 {
        /// Write-protect faults of anonymous memory (5.7).
        const PAGEFAULT_FLAG_WP = 1 << 0;
        /// Forks; not followed here.
        const EVENT_FORK = 1 << 1;
        /// [`crate::Event::Remap`]. Without it a mapping that moves loses its registration.
        const EVENT_REMAP = 1 << 2;
        /// [`crate::Event::Remove`].
        const EVENT_REMOVE = 1 << 3;
        /// Missing faults of hugetlb memory.
        const MISSING_HUGETLBFS = 1 << 4;
        /// Missing faults of shared memory.
        const MISSING_SHMEM = 1 << 5;
        /// [`crate::Event::Unmap`].
        const EVENT_UNMAP = 1 << 6;
        /// No fault is reported and none waits: user mode gets SIGBUS, a system call (KVM_RUN too) EFAULT.
        const SIGBUS = 1 << 7;
        /// [`crate::PageFault::thread`].
        const THREAD_ID = 1 << 8;
        /// Minor faults of hugetlb memory (5.13).
        const MINOR_HUGETLBFS = 1 << 9;
        /// Minor faults of shared memory (5.14).
        const MINOR_SHMEM = 1 << 10;
        /// [`crate::PageFault::address`] to the byte (5.18).
        const EXACT_ADDRESS = 1 << 11;
        /// Write-protect faults of hugetlb and shared memory (5.19).
        const WP_HUGETLBFS_SHMEM = 1 << 12;
        /// Write protection of anonymous pages that are not there, too (6.4).
        const WP_UNPOPULATED = 1 << 13;
        /// Pages whose access fails (6.6); not made here.
        const POISON = 1 << 14;
        /// Write-protect faults resolve themselves and are only recorded (6.7). Brings
        /// [`Features::WP_UNPOPULATED`].
        const WP_ASYNC = 1 << 15;
        /// [`crate::Userfault::move_pages`] (6.8).
        const MOVE = 1 << 16;
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        let mut known = self.iter_names();
        let mut names: Vec<String> = known.by_ref().map(|(name, _)| name.to_owned()).collect();
        let rest = known.remaining().bits();
        names.extend((0..u64::BITS).filter(|bit| rest >> bit & 1 == 1).map(|bit| format!("bit {bit}")));
        f.write_str(&names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_listed_and_the_unknown_is_numbered() {
        let some = Features::EVENT_REMOVE | Features::MOVE | Features::from_bits_retain(1 << 40);
        assert_eq!(some.to_string(), "EVENT_REMOVE, MOVE, bit 40");
        assert_eq!(some.difference(some).to_string(), "none");
    }

    #[test]
    fn the_table_is_what_linux_6_12_calls_them() {
        // UFFD_API_FEATURES there: bits 0 to 16, without a gap.
        assert_eq!(Features::all().bits(), 0x1_ffff);
        assert_eq!(Features::all().iter_names().count(), 17);
        assert_eq!(Features::WP_HUGETLBFS_SHMEM.bits(), 1 << 12);
        assert_eq!(Features::MISSING_SHMEM.bits(), 1 << 5);
    }
}
