//! Making the kernel drop the secondary MMU's translations of a range without taking a page away.
//!
//! The two ways beside removing a memslot:
//!
//! | way | for | what it does to the primary MMU |
//! | --- | --- | --- |
//! | [`protect`], then [`Protected::unprotect`] | every backing | takes the write permission and gives it back |
//! | [`unmap_shared`] | `memfd`, `memfd:thp` | drops the page-table entries; the pages stay in the page cache |
//!
//! Between the two halves of a toggle a write fault fails: KVM_RUN returns EFAULT. Hold off the vCPUs, or retry.

use rustix::io::Errno;
use rustix::mm::Advice;

use crate::address::Hva;
use crate::backing::Backing;
use crate::range::HvaRange;
use crate::range::RangeError;
use crate::region::Region;
use crate::remedy::{self, Asked};
use crate::seam::SeamError;
use crate::sys::{self, Madvise, Protection};

/// Why translations could not be dropped.
#[derive(Debug, thiserror::Error)]
pub enum ZapError {
    /// The range does not fit the region.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The seams for an exact toggle could not be made.
    #[error("toggling the protection of {range} exactly")]
    Seam {
        /// What was to be toggled.
        range: HvaRange,
        /// What went wrong there.
        #[source]
        source: SeamError,
    },
    /// The pages would be lost.
    #[error("unmapping {range} of `{backing}`: only shared memory keeps its content; toggle its protection")]
    NotShared {
        /// What was to be unmapped.
        range: HvaRange,
        /// What it is.
        backing: Backing,
    },
    /// A call failed.
    #[error("{call} over {range}{}", remedy::after(Asked::Mapping, *source))]
    Call {
        /// Which call.
        call: &'static str,
        /// The addresses that the call was for.
        range: HvaRange,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

/// A range that is read-only for now. Dropping it gives the write permission back.
#[derive(Debug)]
#[must_use = "the range stays read-only as long as this lives"]
pub struct Protected<'r> {
    region: &'r Region,
    range: HvaRange,
}

impl Protected<'_> {
    /// What is read-only.
    pub fn range(&self) -> HvaRange {
        self.range
    }

    /// Gives the write permission back: the second half of [`protect`].
    ///
    /// # Errors
    /// A kernel that refuses. The range is then still read-only, and the next write to it is fatal.
    pub fn unprotect(self) -> Result<(), ZapError> {
        let (region, range) = (self.region, self.range);
        std::mem::forget(self);
        set_protection(region, range, Protection::ReadWrite)
    }
}

impl Drop for Protected<'_> {
    fn drop(&mut self) {
        // Second and last chance: a failure here shows as a fault on the next write, not as lost data.
        let _ = set_protection(self.region, self.range, Protection::ReadWrite);
    }
}

/// Makes `range` read-only, which drops its writable translations in every MMU: the first half of a toggle.
/// Puts seams where the range begins or ends inside a 2 MiB block, so that no more than `range` is announced;
/// [`Region::unseamed_edges`] tells beforehand which blocks pay for that, once.
///
/// One caller at a time for any one range.
///
/// # Errors
/// A range that does not fit, no seam to be had, or a kernel that refuses. The range is then writable.
pub fn protect(region: &Region, range: HvaRange) -> Result<Protected<'_>, ZapError> {
    region.check(range)?;
    seam_edges(region, range)?;
    let guard = Protected { region, range };
    // On failure a part may be read-only already; the drop of the guard restores it.
    set_protection(region, range, Protection::ReadOnly)?;
    Ok(guard)
}

/// Both halves of a toggle, for when nobody else uses the memory: [`protect`] and [`Protected::unprotect`].
///
/// # Errors
/// As the two.
pub fn toggle_protection(region: &Region, range: HvaRange) -> Result<(), ZapError> {
    protect(region, range)?.unprotect()
}

/// Drops the page-table entries of a range of shared memory. Its pages stay in the page cache (or in swap), so
/// the next touch, by a guest or by the host, is a minor fault that finds the old content.
///
/// # Errors
/// Memory that is not shared, a range that does not fit, or a kernel that refuses.
pub fn unmap_shared(region: &Region, range: HvaRange) -> Result<(), ZapError> {
    region.check(range)?;
    if !region.backing().is_shared() {
        return Err(ZapError::NotShared { range, backing: region.backing() });
    }
    // SAFETY: inside the region's mapping; the file behind it keeps the content.
    unsafe { sys::madvise(range, Madvise::Known(Advice::LinuxDontNeed)) }.map_err(|source| ZapError::Call {
        call: "MADV_DONTNEED",
        range,
        source,
    })
}

fn seam_edges(region: &Region, range: HvaRange) -> Result<(), ZapError> {
    // Collected before the first is made: each seam changes what the iterator looks at.
    let mut edges = region.unseamed_edges(range);
    let blocks: [Option<HvaRange>; 2] = [edges.next(), edges.next()];
    drop(edges);
    for block in blocks.into_iter().flatten() {
        region.seam(block).map_err(|source| ZapError::Seam { range, source })?;
    }
    Ok(())
}

fn set_protection(region: &Region, range: HvaRange, protection: Protection) -> Result<(), ZapError> {
    debug_assert!(region.range().covers(range));
    if range.is_empty() {
        return Ok(());
    }
    let call = match protection {
        Protection::ReadOnly => "mprotect(PROT_READ)",
        Protection::ReadWrite => "mprotect(PROT_READ | PROT_WRITE)",
    };
    // SAFETY: inside the region's mapping, to which no Rust reference exists; it stays readable throughout.
    unsafe { sys::mprotect(range, protection) }.map_err(|source| ZapError::Call { call, range, source })
}

/// The bare pair of calls, without seams: what a toggle is measured against.
///
/// # Errors
/// A range that does not fit, or a kernel that refuses.
pub fn toggle_without_seams(region: &Region, range: HvaRange) -> Result<(), ZapError> {
    region.check(range)?;
    let guard = Protected { region, range };
    set_protection(region, range, Protection::ReadOnly)?;
    guard.unprotect()
}

/// The page that a toggle of one address covers.
pub fn toggle_unit(region: &Region, at: Hva) -> Option<HvaRange> {
    let start = crate::address::Address::align_down(at, region.granule());
    HvaRange::with_len(start, region.granule()).filter(|&page| region.range().covers(page))
}
