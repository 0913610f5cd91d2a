//! Making the kernel drop the secondary MMU's translations of a range without taking a page away.
//!
//! The two ways beside removing a memslot:
//!
//! | way | for | what it does to the primary MMU |
//! | --- | --- | --- |
//! | [`toggle_protection`] | every backing | takes the write permission and gives it back |
//! | [`unmap_shared`] | `memfd`, `memfd:thp` | drops the page-table entries; the pages stay in the page cache |
//!
//! During a toggle a write fault fails: KVM_RUN returns EFAULT. Stop the vCPUs before, or run them again after it.

use rustix::io::Errno;
use rustix::mm::Advice;

use crate::backing::Backing;
use crate::range::{HvaRange, RangeError};
use crate::region::Region;
use crate::remedy::{self, Asked};
use crate::seam::SeamError;
use crate::sys::{self, Madvise, Protection};

/// Translations could not be dropped.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum ZapError {
    #[error(transparent)]
    Range(#[from] RangeError),
    #[error("toggling the protection of {range} exactly")]
    Seam { range: HvaRange, source: SeamError },
    #[error("unmapping {range} of `{backing}`: only shared memory keeps its content; toggle its protection")]
    NotShared { range: HvaRange, backing: Backing },
    #[error("{call} over {range}{}", remedy::after(Asked::Mapping, *source))]
    Call { call: &'static str, range: HvaRange, source: Errno },
}

/// Takes the write permission of `range` and gives it back, which drops its writable translations in every MMU. Puts seams
/// where the range begins or ends inside a 2 MiB block, so that no more than `range` is announced;
/// [`Region::unseamed_edges`] tells beforehand which blocks are announced for their seam, once.
///
/// One caller at a time for any one range.
///
/// # Errors
/// A range that does not fit, no seam to be had, or a kernel that refuses. If it refuses to give the permission back, the
/// next write to the range is a segmentation fault.
pub fn toggle_protection(region: &Region, range: HvaRange) -> Result<(), ZapError> {
    region.check(range)?;
    seam_edges(region, range)?;
    let protected = set_protection(region, range, Protection::ReadOnly);
    // If the first call failed, it may have protected a part of the range: the second gives that back.
    protected.and(set_protection(region, range, Protection::ReadWrite))
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
    let failed = |source| ZapError::Call { call: "MADV_DONTNEED", range, source };
    // SAFETY: inside the region's mapping; the file behind it keeps the content.
    unsafe { sys::madvise(range, Madvise::Known(Advice::LinuxDontNeed)) }.map_err(failed)
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
