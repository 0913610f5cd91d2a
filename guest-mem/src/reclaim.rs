//! The operations that take pages away, or that look to a secondary MMU as if they did.
//!
//! A success of the system call says little: MADV_PAGEOUT returns 0 when it did nothing. Count the pages by
//! [`crate::PageScanner`] before and after; [`Operation::got_bytes`] says what the difference means.

use rustix::io::Errno;
use rustix::mm::Advice;

use crate::address::{Hva, PAGE_SIZE, PMD_SIZE};
use crate::backing::Backing;
use crate::mapping::reserve_congruent;
use crate::range::{HvaRange, RangeError};
use crate::region::Region;
use crate::remedy::{self, Asked};
use crate::state::PageCounts;
use crate::sys::{self, Madvise, OldPlace, Protection};
use crate::waits::Overdue;

/// A way to take pages away, or to disturb their mapping. Its [`fmt::Display`](std::fmt::Display) is the name in scenarios
/// and reports.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[strum(serialize_all = "lowercase")]
pub enum Operation {
    /// `pageout`: MADV_PAGEOUT, to swap.
    PageOut,
    /// `dontneed`: MADV_DONTNEED. Anonymous content is lost; shared content stays in the page cache.
    DontNeed,
    /// `cold`: MADV_COLD, to the tail of the LRU. Nothing leaves.
    Cold,
    /// `free`: MADV_FREE, content lost whenever the kernel next wants memory.
    Free,
    /// `collapse`: MADV_COLLAPSE into 2 MiB folios.
    Collapse,
    /// `remove`: MADV_REMOVE, a hole in shared memory.
    #[strum(serialize = "remove")]
    PunchHole,
    /// `punch`: the same hole, by fallocate on the file.
    #[strum(serialize = "punch")]
    Fallocate,
    /// `protect`: mprotect to read-only and back, without seams. See [`crate::toggle_protection`] for the
    /// exact one.
    Protect,
    /// `remap`: mremap elsewhere and back. Content kept; but between the two moves the range is empty, and
    /// a write to it is lost: stop the vCPUs.
    Remap,
}

/// The content that an operation leaves in the pages it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Remains {
    /// Their content, in memory or in swap.
    Content,
    /// Zeros.
    Zeros,
    /// Their content, until the kernel wants memory; zeros from then on.
    Either,
}

/// The memory that a running vCPU finds in a range while an operation on it is in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DuringCall {
    /// Memory, which faults in as usual.
    Usable,
    /// Memory that cannot be written.
    ReadOnly,
    /// An empty mapping: what is written to it is lost.
    Empty,
}

impl Operation {
    /// All of them.
    pub const ALL: &[Self] = <Self as strum::VariantArray>::VARIANTS;

    /// The name in scenarios and reports.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The verb for it, as at the beginning of a sentence: `Swapping out`.
    pub const fn verb(self) -> &'static str {
        match self {
            Self::PageOut => "Swapping out",
            Self::DontNeed => "Discarding",
            Self::Cold => "Deactivating",
            Self::Free => "Freeing",
            Self::Collapse => "Collapsing",
            Self::PunchHole | Self::Fallocate => "Punching out",
            Self::Protect => "Protecting",
            Self::Remap => "Moving",
        }
    }

    /// Whether it is meant to take every byte that is asked for, at once.
    pub const fn evicts(self) -> bool {
        match self {
            Self::PageOut | Self::DontNeed | Self::PunchHole | Self::Fallocate => true,
            Self::Cold | Self::Free | Self::Collapse | Self::Protect | Self::Remap => false,
        }
    }

    /// Bytes that an operation on `backing` got, from the pages before and after it: evicted, discarded, newly
    /// PMD-mapped, as the operation means it; 0 for those that take nothing. Pages that were brought in meanwhile count
    /// against it, never below 0.
    pub fn got_bytes(self, backing: Backing, before: &PageCounts, after: &PageCounts) -> u64 {
        let pages = match self {
            Self::PageOut => before.resident().saturating_sub(after.resident()),
            Self::DontNeed if backing.is_shared() => before.present.saturating_sub(after.present),
            Self::DontNeed | Self::Free | Self::PunchHole | Self::Fallocate => {
                after.absent.saturating_sub(before.absent)
            }
            Self::Collapse => after.pmd_mapped.saturating_sub(before.pmd_mapped),
            Self::Cold | Self::Protect | Self::Remap => 0,
        };
        pages * PAGE_SIZE
    }

    /// The content that it leaves in pages of `backing`.
    pub fn remains(self, backing: Backing) -> Remains {
        match self {
            // Shared memory keeps its content in the page cache.
            Self::DontNeed if backing.is_shared() => Remains::Content,
            Self::DontNeed | Self::PunchHole | Self::Fallocate => Remains::Zeros,
            Self::Free => Remains::Either,
            Self::PageOut | Self::Cold | Self::Collapse | Self::Protect | Self::Remap => Remains::Content,
        }
    }

    /// Whether the kernel's reclaim performs it. Reclaim goes to swap, finds a page by its mapping, and passes over pages in use
    /// without an error.
    pub const fn is_reclaim(self) -> bool {
        match self {
            Self::PageOut => true,
            Self::DontNeed | Self::Cold | Self::Free | Self::Collapse => false,
            Self::PunchHole | Self::Fallocate | Self::Protect | Self::Remap => false,
        }
    }

    /// Whether it makes huge pages.
    pub const fn makes_huge_pages(self) -> bool {
        match self {
            Self::Collapse => true,
            Self::PageOut | Self::DontNeed | Self::Cold | Self::Free => false,
            Self::PunchHole | Self::Fallocate | Self::Protect | Self::Remap => false,
        }
    }

    /// Whether the kernel chooses how finely it splits the folios at the ends of the range.
    pub fn splits_freely(self, backing: Backing) -> bool {
        match self {
            Self::PunchHole | Self::Fallocate => backing == Backing::MemfdThp,
            Self::PageOut | Self::DontNeed | Self::Cold | Self::Free => false,
            Self::Collapse | Self::Protect | Self::Remap => false,
        }
    }

    /// The memory that a running vCPU finds in the range during the call.
    pub const fn during_call(self) -> DuringCall {
        match self {
            Self::Protect => DuringCall::ReadOnly,
            Self::Remap => DuringCall::Empty,
            Self::PageOut | Self::DontNeed | Self::Cold | Self::Free => DuringCall::Usable,
            Self::Collapse | Self::PunchHole | Self::Fallocate => DuringCall::Usable,
        }
    }

    /// Why the operation makes no sense on a backing, or `None` if it does.
    pub const fn refused_on(self, backing: Backing) -> Option<&'static str> {
        let shared = matches!(backing, Backing::Memfd | Backing::MemfdThp);
        let hugetlb = matches!(backing, Backing::Hugetlb2m);
        match self {
            Self::PageOut if hugetlb => Some("hugetlb pages cannot be paged out; use thp to see 2 MiB leave"),
            Self::Cold | Self::Free if hugetlb => Some("hugetlb pages are on no LRU list; use thp"),
            Self::Remap if hugetlb => Some("mremap cannot leave an empty hugetlb mapping behind; use thp"),
            Self::Free if shared => Some("MADV_FREE is for anonymous memory; use remove or punch"),
            Self::PunchHole | Self::Fallocate if !shared => {
                Some("only a file can have a hole; use dontneed, or back the region by memfd")
            }
            Self::Collapse if !matches!(backing, Backing::Thp | Backing::MemfdThp) => {
                Some("it would no longer be what its label says; back the region by thp or memfd:thp")
            }
            _ => None,
        }
    }
}

/// An operation failed, or was done in part.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum ReclaimError {
    #[error("{operation} of `{backing}`: {why}")]
    Refused { operation: Operation, backing: Backing, why: &'static str },
    #[error(transparent)]
    Range(#[from] RangeError),
    #[error("{operation} of {range}{}", remedy::after(Asked::Feature, *source))]
    Call { operation: Operation, range: HvaRange, source: Errno },
    #[error(
        "remap of {range}: its pages are stranded at {at}; stop the guest, its memory is no longer whole"
    )]
    Stranded { range: HvaRange, at: HvaRange, source: Errno },
    /// It was done, and a fault handler of a swapper does not act on the event of it.
    #[error(transparent)]
    Overdue(#[from] Overdue),
}

/// Does `operation` on `range`: the system call alone.
///
/// # Errors
/// An operation that makes no sense on the region's backing, a range that does not fit, a kernel that refuses.
/// MADV_COLLAPSE fails if it could not collapse one block, having gone on to the others.
pub fn perform(region: &Region, operation: Operation, range: HvaRange) -> Result<(), ReclaimError> {
    if let Some(why) = operation.refused_on(region.backing()) {
        return Err(ReclaimError::Refused { operation, backing: region.backing(), why });
    }
    region.check(range)?;
    if range.is_empty() {
        return Ok(());
    }
    let advice = match operation {
        Operation::PageOut => Madvise::Known(Advice::LinuxPageOut),
        Operation::DontNeed => Madvise::Known(Advice::LinuxDontNeed),
        Operation::Cold => Madvise::Known(Advice::LinuxCold),
        Operation::Free => Madvise::Known(Advice::LinuxFree),
        Operation::Collapse => Madvise::Collapse,
        Operation::PunchHole => Madvise::Known(Advice::LinuxRemove),
        Operation::Fallocate => return punch(region, range),
        Operation::Protect => return protect_and_back(range),
        Operation::Remap => return remap_and_back(region, range),
    };
    // SAFETY: checked to lie in the region's mapping, to which no Rust reference exists.
    unsafe { sys::madvise(range, advice) }.map_err(|source| ReclaimError::Call { operation, range, source })
}

fn punch(region: &Region, range: HvaRange) -> Result<(), ReclaimError> {
    let (fd, offset) = region
        .memfd()
        .zip(region.offset_of(range.start()))
        .expect("only shared regions pass the check, and the range lies inside");
    let failed = |source| ReclaimError::Call { operation: Operation::Fallocate, range, source };
    sys::punch_hole(fd, offset, range.len()).map_err(failed)
}

fn protect_and_back(range: HvaRange) -> Result<(), ReclaimError> {
    let failed = |source| ReclaimError::Call { operation: Operation::Protect, range, source };
    // SAFETY: checked to lie in the region's mapping, to which no Rust reference exists.
    let protected = unsafe { sys::mprotect(range, Protection::ReadOnly) };
    // If the first call failed, it may have protected a part of the range: the second gives that back.
    // SAFETY: as above.
    let restored = unsafe { sys::mprotect(range, Protection::ReadWrite) };
    protected.and(restored).map_err(failed)
}

/// Moves the pages to a reservation of the same alignment (or a huge page would be split on the way) and back.
fn remap_and_back(region: &Region, range: HvaRange) -> Result<(), ReclaimError> {
    let failed = |source| ReclaimError::Call { operation: Operation::Remap, range, source };
    let offset_in_block = range.start().get() % PMD_SIZE;
    let scratch = reserve_congruent(range.len(), offset_in_block).map_err(failed)?;
    let place = |piece: HvaRange| {
        let offset = piece.start().get() - range.start().get();
        HvaRange::with_len(Hva::new(scratch.start().get() + offset), piece.len())
            .expect("as long as the range")
    };
    let mut outcome = Ok(());
    // mremap moves within one VMA, so seams make it several moves.
    for piece in region.vma_pieces(range) {
        outcome = move_and_back(piece, place(piece));
        if outcome.is_err() {
            break;
        }
    }
    if !matches!(outcome, Err(ReclaimError::Stranded { .. })) {
        // SAFETY: our own reservation; the pages are back, nothing refers to it.
        unsafe { sys::munmap(scratch) }.map_err(failed)?;
    }
    outcome
}

fn move_and_back(piece: HvaRange, scratch: HvaRange) -> Result<(), ReclaimError> {
    let failed = |source| ReclaimError::Call { operation: Operation::Remap, range: piece, source };
    let stranded = |source| ReclaimError::Stranded { range: piece, at: scratch, source };
    // The old place stays mapped while it is empty: no other thread's mmap can land in it.
    // SAFETY: `piece` lies in the region, `scratch` is our reservation; no Rust reference into either.
    unsafe { sys::move_pages(piece, scratch, OldPlace::KeepEmpty) }.map_err(failed)?;
    // SAFETY: as above, the other way round.
    unsafe { sys::move_pages(scratch, piece, OldPlace::Unmap) }.map_err(stranded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_read_back_as_they_print() {
        for &operation in Operation::ALL {
            assert_eq!(operation.to_string().parse(), Ok(operation));
        }
        assert!("swap".parse::<Operation>().is_err());
    }

    #[test]
    fn operations_that_a_backing_does_not_have_are_refused_before_any_call() {
        let hugetlb = Backing::Hugetlb2m;
        assert!(Operation::PageOut.refused_on(hugetlb).is_some());
        assert!(Operation::Collapse.refused_on(hugetlb).is_some());
        assert!(Operation::DontNeed.refused_on(hugetlb).is_none());
        for backing in [Backing::Base4k, Backing::Thp, hugetlb] {
            assert!(Operation::PunchHole.refused_on(backing).is_some());
            assert!(Operation::Fallocate.refused_on(backing).is_some());
        }
        assert!(Operation::Free.refused_on(Backing::Memfd).is_some());
        assert!(Operation::Collapse.refused_on(Backing::Base4k).is_some());
        assert!(Operation::Collapse.refused_on(Backing::MemfdThp).is_none());
    }

    #[test]
    fn each_operation_counts_the_pages_it_is_meant_to_take() {
        let before = PageCounts { present: 10, cached: 2, absent: 4, ..PageCounts::default() };
        let after = PageCounts { present: 3, cached: 1, swapped: 8, absent: 4, ..PageCounts::default() };
        let got = |operation: Operation, backing, before, after| {
            operation.got_bytes(backing, before, after) / PAGE_SIZE
        };
        assert_eq!(got(Operation::PageOut, Backing::Base4k, &before, &after), 8);
        assert_eq!(got(Operation::DontNeed, Backing::Memfd, &before, &after), 7);
        assert_eq!(got(Operation::DontNeed, Backing::Thp, &before, &after), 0);
        assert_eq!(got(Operation::Cold, Backing::Thp, &before, &after), 0);
        assert_eq!(got(Operation::PageOut, Backing::Base4k, &after, &before), 0);
    }
}
