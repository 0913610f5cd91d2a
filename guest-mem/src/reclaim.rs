//! The operations that take pages away, or that look to a secondary MMU as if they did.
//!
//! A success of the system call says little: MADV_PAGEOUT returns 0 when it did nothing. [`perform`] asks
//! pagemap before and after; [`perform_unmeasured`] is the bare call, for a caller that scans around a batch.

use std::fmt;
use std::str::FromStr;

use rustix::io::Errno;
use rustix::mm::Advice;

use crate::address::{PAGE_SIZE, PMD_SIZE};
use crate::backing::Backing;
use crate::lru::drain_lru;
use crate::pagemap::PageScanner;
use crate::range::HvaRange;
use crate::range::RangeError;
use crate::region::{Region, reserve_congruent};
use crate::remedy::{self, Asked};
use crate::scan_error::ScanError;
use crate::state::{PageCounts, PageRun, PageState};
use crate::sys::{self, Madvise, OldPlace, Protection};
use crate::waits::Overdue;

/// A way to take pages away, or to disturb their mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    PunchHole,
    /// `punch`: the same hole, by fallocate on the file.
    Fallocate,
    /// `protect`: mprotect to read-only and back, without seams. See [`crate::toggle_protection`] for the
    /// exact one.
    Protect,
    /// `remap`: mremap elsewhere and back. Content kept; but between the two moves the range is empty, and
    /// what anybody writes there then is lost: stop the vCPUs.
    Remap,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::PageOut,
        Self::DontNeed,
        Self::Cold,
        Self::Free,
        Self::Collapse,
        Self::PunchHole,
        Self::Fallocate,
        Self::Protect,
        Self::Remap,
    ];

    /// The name in scenarios and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PageOut => "pageout",
            Self::DontNeed => "dontneed",
            Self::Cold => "cold",
            Self::Free => "free",
            Self::Collapse => "collapse",
            Self::PunchHole => "remove",
            Self::Fallocate => "punch",
            Self::Protect => "protect",
            Self::Remap => "remap",
        }
    }

    /// What it does to the pages, at the beginning of a sentence: `Swapping out`.
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
    /// PMD-mapped, as the operation means it; 0 for those that take nothing.
    pub fn got_bytes(self, backing: Backing, before: &PageCounts, after: &PageCounts) -> u64 {
        got_pages(self, backing, before, after) * PAGE_SIZE
    }

    /// Whether the content of `backing` survives.
    pub const fn keeps_content(self, backing: Backing) -> bool {
        match self {
            Self::PageOut | Self::Cold | Self::Collapse | Self::Protect | Self::Remap => true,
            Self::DontNeed => matches!(backing, Backing::Memfd | Backing::MemfdThp),
            Self::Free | Self::PunchHole | Self::Fallocate => false,
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

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown operation `{0}`: use pageout, dontneed, cold, free, collapse, remove, punch, protect or remap"
)]
pub struct UnknownOperation(pub String);

impl FromStr for Operation {
    type Err = UnknownOperation;

    fn from_str(text: &str) -> Result<Self, UnknownOperation> {
        let known = Self::ALL.into_iter().find(|operation| operation.name() == text);
        known.ok_or_else(|| UnknownOperation(text.to_owned()))
    }
}

/// Why an operation was not, or not wholly, done.
#[derive(Debug, thiserror::Error)]
pub enum ReclaimError {
    /// It makes no sense there.
    #[error("{operation} of `{backing}`: {why}")]
    Refused {
        /// What was asked.
        operation: Operation,
        /// The memory's backing.
        backing: Backing,
        /// Why not, and what to do instead.
        why: &'static str,
    },
    /// The range does not fit the region.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The kernel refused.
    #[error("{operation} of {range}{}", remedy::after(Asked::Feature, *source))]
    Call {
        /// What was asked.
        operation: Operation,
        /// The addresses it was asked for.
        range: HvaRange,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// Pages were moved away and could not be moved back.
    #[error(
        "remap of {range}: its pages are stranded at {at}; stop the guest, its memory is no longer whole"
    )]
    Stranded {
        /// Where they belong.
        range: HvaRange,
        /// Where they are.
        at: HvaRange,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// What happened could not be read back.
    #[error("measuring {operation} of {range}")]
    Scan {
        /// What was asked.
        operation: Operation,
        /// The addresses it was asked for.
        range: HvaRange,
        /// What went wrong there.
        #[source]
        source: ScanError,
    },
    /// It was done, and a fault handler of a swapper does not act on the event of it.
    #[error(transparent)]
    Overdue(#[from] Overdue),
}

/// What an operation really did, by pagemap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes it was asked for.
    pub asked_bytes: u64,
    /// Bytes it got: evicted, discarded, newly PMD-mapped, as the operation means it. 0 for those that take
    /// nothing.
    pub got_bytes: u64,
    /// The pages before.
    pub before: PageCounts,
    /// The pages after.
    pub after: PageCounts,
    /// What the kernel said where it did less than it was asked (MADV_COLLAPSE goes on past a block it cannot
    /// collapse, and reports the last).
    pub short: Option<Errno>,
}

/// Does `operation` on `range` and says what pagemap saw of it.
///
/// # Errors
/// An operation that makes no sense on the region's backing, a range that does not fit, a kernel that refuses.
pub fn perform(
    scanner: &mut PageScanner,
    region: &Region,
    operation: Operation,
    range: HvaRange,
) -> Result<Outcome, ReclaimError> {
    check(region, operation, range)?;
    let measured = |source| ReclaimError::Scan { operation, range, source };
    let before = scanner.counts(region, range).map_err(measured)?;
    let short = match perform_unmeasured(region, operation, range) {
        Ok(()) => None,
        Err(ReclaimError::Call { source, .. }) if is_short_collapse(operation, source) => Some(source),
        Err(error) => return Err(error),
    };
    let after = scanner.counts(region, range).map_err(measured)?;
    let got_bytes = got_pages(operation, region.backing(), &before, &after) * PAGE_SIZE;
    Ok(Outcome { asked_bytes: range.len(), got_bytes, before, after, short })
}

/// MADV_COLLAPSE reports a block it could not collapse by one of these, having gone on to the others.
fn is_short_collapse(operation: Operation, errno: Errno) -> bool {
    operation == Operation::Collapse
        && matches!(errno, Errno::AGAIN | Errno::BUSY | Errno::NOMEM | Errno::INVAL)
}

/// What an operation got, from what was there before and after. Pages that others brought in meanwhile count
/// against it, never below 0.
fn got_pages(operation: Operation, backing: Backing, before: &PageCounts, after: &PageCounts) -> u64 {
    match operation {
        Operation::PageOut => before.resident().saturating_sub(after.resident()),
        Operation::DontNeed if backing.is_shared() => before.present.saturating_sub(after.present),
        Operation::DontNeed | Operation::Free | Operation::PunchHole | Operation::Fallocate => {
            after.absent.saturating_sub(before.absent)
        }
        Operation::Collapse => after.pmd_mapped.saturating_sub(before.pmd_mapped),
        Operation::Cold | Operation::Protect | Operation::Remap => 0,
    }
}

fn check(region: &Region, operation: Operation, range: HvaRange) -> Result<(), ReclaimError> {
    if let Some(why) = operation.refused_on(region.backing()) {
        return Err(ReclaimError::Refused { operation, backing: region.backing(), why });
    }
    Ok(region.check(range)?)
}

/// Does `operation` on `range`, without a look at what came of it: the system call alone.
///
/// # Errors
/// As [`perform`]; and a collapse that fell short is an error here.
pub fn perform_unmeasured(
    region: &Region,
    operation: Operation,
    range: HvaRange,
) -> Result<(), ReclaimError> {
    check(region, operation, range)?;
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
    sys::punch_hole(fd, offset, range.len()).map_err(|source| ReclaimError::Call {
        operation: Operation::Fallocate,
        range,
        source,
    })
}

fn protect_and_back(range: HvaRange) -> Result<(), ReclaimError> {
    let failed = |source| ReclaimError::Call { operation: Operation::Protect, range, source };
    // SAFETY: checked to lie in the region's mapping, to which no Rust reference exists.
    let protected = unsafe { sys::mprotect(range, Protection::ReadOnly) };
    // Whatever the first call did to a part of the range, the second undoes.
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
        HvaRange::with_len(crate::address::Hva::new(scratch.start().get() + offset), piece.len())
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
    // The old place stays mapped while it is empty: no other thread's mmap can land in it.
    // SAFETY: `piece` lies in the region, `scratch` is our reservation; no Rust reference into either.
    unsafe { sys::move_pages(piece, scratch, OldPlace::KeepEmpty) }.map_err(failed)?;
    // SAFETY: as above, the other way round.
    unsafe { sys::move_pages(scratch, piece, OldPlace::Unmap) }.map_err(|source| ReclaimError::Stranded {
        range: piece,
        at: scratch,
        source,
    })
}

/// What [`page_out_fully`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageOutReport {
    /// How often the kernel was asked, for all or for what had stayed.
    pub attempts: u32,
    /// The whole, from before the first attempt to after the last.
    pub outcome: Outcome,
}

/// Attempts of [`page_out_fully`]: what has not left by then is pinned, locked or shared.
const ATTEMPTS: u32 = 4;

/// Pages `range` out, then again what pagemap says has stayed: pages that were in another CPU's LRU batch, or
/// in motion, and pages of shared memory that are in the page cache without being mapped, which MADV_PAGEOUT
/// does not see (a huge page of a memfd of which a part is taken only comes apart at first, all of it
/// unmapped). Those are mapped again for the next attempt.
///
/// A victim announced for the first attempt is announced again by the kernel only if it had stayed: count it
/// once.
///
/// # Errors
/// As [`perform`]. Pages that never leave are no error: `after` has them.
pub fn page_out_fully(
    scanner: &mut PageScanner,
    region: &Region,
    range: HvaRange,
) -> Result<PageOutReport, ReclaimError> {
    let operation = Operation::PageOut;
    check(region, operation, range)?;
    let measured = |source| ReclaimError::Scan { operation, range, source };
    let mut runs: Vec<PageRun> = Vec::new();
    scanner.scan_region(region, range, &mut runs).map_err(measured)?;
    let before = PageCounts::of(&runs);
    let mut after = before;
    let mut attempts = 0;
    while attempts < ATTEMPTS && after.resident() > 0 {
        attempts += 1;
        // Without it (an older kernel) repeating still gets what this CPU's own flush releases.
        let _ = drain_lru();
        map_cached(&runs)?;
        if attempts == 1 {
            perform_unmeasured(region, operation, range)?;
        } else {
            for run in runs.iter().filter(|run| run.state.is_resident()) {
                perform_unmeasured(region, operation, run.range)?;
            }
        }
        scanner.scan_region(region, range, &mut runs).map_err(measured)?;
        after = PageCounts::of(&runs);
    }
    let got_bytes = got_pages(operation, region.backing(), &before, &after) * PAGE_SIZE;
    let outcome = Outcome { asked_bytes: range.len(), got_bytes, before, after, short: None };
    Ok(PageOutReport { attempts, outcome })
}

/// Gives pages that are only in the page cache a page-table entry. Announces nothing.
fn map_cached(runs: &[PageRun]) -> Result<(), ReclaimError> {
    for run in runs.iter().filter(|run| run.state == PageState::Cached) {
        // SAFETY: the run was scanned inside the region; populating changes no content.
        unsafe { sys::madvise(run.range, Madvise::Known(Advice::LinuxPopulateRead)) }.map_err(|source| {
            ReclaimError::Call { operation: Operation::PageOut, range: run.range, source }
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_read_back_as_they_print() {
        for operation in Operation::ALL {
            assert_eq!(operation.to_string().parse(), Ok(operation));
        }
        assert!("swap".parse::<Operation>().unwrap_err().to_string().contains("pageout"));
    }

    #[test]
    fn nonsense_is_refused_by_name_before_any_call() {
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
    fn what_was_got_depends_on_what_was_meant() {
        let before = PageCounts { present: 10, cached: 2, absent: 4, ..PageCounts::default() };
        let after = PageCounts { present: 3, cached: 1, swapped: 8, absent: 4, ..PageCounts::default() };
        assert_eq!(got_pages(Operation::PageOut, Backing::Base4k, &before, &after), 8);
        assert_eq!(got_pages(Operation::DontNeed, Backing::Memfd, &before, &after), 7);
        assert_eq!(got_pages(Operation::DontNeed, Backing::Thp, &before, &after), 0);
        assert_eq!(got_pages(Operation::Cold, Backing::Thp, &before, &after), 0);
        assert_eq!(got_pages(Operation::PageOut, Backing::Base4k, &after, &before), 0);
    }
}
