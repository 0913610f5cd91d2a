//! Pages on their way to the LRU lists.
//!
//! A page freshly faulted in waits in its CPU's batch before it is on a list, and reclaim by address skips it
//! there. MADV_PAGEOUT flushes the batch of the CPU it runs on, no other. MADV_COLLAPSE flushes every CPU's
//! (`lru_add_drain_all()`) before it looks at its range, so asking it to collapse less than one huge page of a
//! mapping of our own does exactly that and nothing else.

use std::sync::OnceLock;

use rustix::io::Errno;

use crate::address::{PAGE_SIZE, PMD_SIZE};
use crate::mapping::reserve_congruent;
use crate::range::HvaRange;
use crate::sys::{self, Content, Madvise};

/// One page of a mapping that is large enough for a huge page, or the error of making it. Kept for the life of the
/// process: to unmap it would be announced.
static SCRATCH: OnceLock<Result<HvaRange, Errno>> = OnceLock::new();

/// Moves the pages in every CPU's batch to the LRU lists, where reclaim by address can find them.
///
/// # Errors
/// `EINVAL` before Linux 6.1 or without huge pages: then only the caller's own CPU can be flushed, by running
/// on each.
pub fn drain_lru() -> Result<(), Errno> {
    let one_page = (*SCRATCH.get_or_init(make_scratch))?;
    // SAFETY: our own mapping, to which nothing refers; a range below 2 MiB collapses nothing.
    unsafe { sys::madvise(one_page, Madvise::Collapse) }
}

/// The kernel looks at mappings that were touched and that span an aligned 2 MiB. The touched page lies before
/// that, so that it cannot become a huge one.
fn make_scratch() -> Result<HvaRange, Errno> {
    let scratch = reserve_congruent(2 * PMD_SIZE, PMD_SIZE - PAGE_SIZE)?;
    // SAFETY: reserved a moment ago, ours alone.
    unsafe { sys::map_over(scratch, Content::Anonymous) }?;
    // SAFETY: mapped a moment ago, writable, page aligned.
    unsafe { sys::write_word(scratch.start(), 1) };
    HvaRange::with_len(scratch.start(), PAGE_SIZE)
        .and_then(|touched| HvaRange::with_len(touched.end(), PAGE_SIZE))
        .ok_or(Errno::NOMEM)
}
