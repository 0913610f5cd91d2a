//! Seams: VMA boundaries put inside 2 MiB blocks, so that changing one page's protection zaps one page.
//!
//! mprotect of a part of a VMA splits the VMA, and a split at an address that is no multiple of 2 MiB, in a
//! VMA that spans the whole block around it, goes through `split_huge_pmd_address()`, which announces the
//! block to every secondary MMU, huge page or not. In a block that no VMA spans it does not:
//!
//! ```text
//!   without   |<------------------- one VMA ------------------->|     mprotect of p announces the block
//!             A            p                                  A+2M
//!   with      |s|<----------------- another -------------------->|     … and here 4 KiB: no VMA spans [A, A+2M)
//! ```
//!
//! The two VMAs must differ, or the kernel merges them again. `MADV_DONTDUMP` on the strip `s` makes them
//! differ, and matters to core dumps only. The strip is one page, or for mTHP one folio, so
//! that no folio is cut.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::mm::Advice;

use crate::address::{Address, Hva, PMD_SIZE};
use crate::range::{HvaRange, RangeError};
use crate::remedy::{self, Asked};
use crate::sys::{self, Madvise};

/// Seams could not be put in.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum SeamError {
    #[error(
        "{wanted} more seams need {needed} VMAs in all, but vm.max_map_count is {limit}: \
         `sysctl vm.max_map_count={needed}`, or use less memory"
    )]
    TooManyVmas { wanted: u64, needed: u64, limit: u64 },
    /// hugetlb mappings are only ever cut between their pages.
    #[error("seams in `hugetlb:2m`: there is nothing smaller than 2 MiB to tell apart")]
    Hugetlb,
    #[error(transparent)]
    Range(#[from] RangeError),
    #[error("MADV_DONTDUMP on the seam at {at}{}", remedy::after(Asked::Mapping, *source))]
    Call { at: Hva, source: Errno },
}

/// Seams in place in this process, all regions together: each one costs two VMAs.
static IN_PLACE: AtomicU64 = AtomicU64::new(0);
/// VMAs left to the rest of the process: libraries, stacks, the allocator.
const HEADROOM: u64 = 2048;

/// The seams of one region: which 2 MiB blocks have one.
#[derive(Debug)]
pub(crate) struct Seams {
    region: HvaRange,
    strip: u64,
    /// One bit a block.
    blocks: Box<[AtomicU64]>,
}

impl Seams {
    pub(crate) fn new(region: HvaRange, strip: u64) -> Self {
        let words = (region.len() / PMD_SIZE).div_ceil(64);
        let blocks = (0..words).map(|_| AtomicU64::new(0)).collect();
        Self { region, strip, blocks }
    }

    fn bit(&self, block: HvaRange) -> (&AtomicU64, u64) {
        let index = (block.start().get() - self.region.start().get()) / PMD_SIZE;
        (&self.blocks[(index / 64) as usize], 1 << (index % 64))
    }

    pub(crate) fn has(&self, block: HvaRange) -> bool {
        let (word, bit) = self.bit(block);
        word.load(Ordering::Relaxed) & bit != 0
    }

    pub(crate) fn strip_of(&self, block: HvaRange) -> HvaRange {
        let start = block.start().align_down(PMD_SIZE);
        HvaRange::with_len(start, self.strip).expect("inside the region")
    }

    /// Puts a seam into each block `range` touches. Returns how many were new.
    pub(crate) fn install(&self, range: HvaRange) -> Result<u64, SeamError> {
        let wanted = range.block_pieces().filter(|&block| !self.has(block)).count() as u64;
        if wanted == 0 {
            return Ok(0);
        }
        check_vmas(wanted)?;
        for block in range.block_pieces().filter(|&block| !self.has(block)) {
            let strip = self.strip_of(block);
            // SAFETY: the strip lies in the region's own mapping, and the advice changes no content.
            unsafe { sys::madvise(strip, Madvise::Known(Advice::LinuxDontDump)) }
                .map_err(|source| SeamError::Call { at: strip.start(), source })?;
            let (word, bit) = self.bit(block);
            if word.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
                IN_PLACE.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(wanted)
    }

    /// Subtracts the seams from the count of the process: their mapping goes.
    pub(crate) fn forget(&self) {
        let seams: u32 = self.blocks.iter().map(|word| word.swap(0, Ordering::Relaxed).count_ones()).sum();
        IN_PLACE.fetch_sub(u64::from(seams), Ordering::Relaxed);
    }

    /// Cuts `range` where seams cut its VMAs: a system call over it announces each piece by itself.
    pub(crate) fn pieces(&self, range: HvaRange) -> impl Iterator<Item = HvaRange> {
        range.cut_by(move |rest| self.next_cut(rest))
    }

    /// The first VMA boundary in `rest` after its start, or an address at or after its end.
    fn next_cut(&self, rest: HvaRange) -> Hva {
        for piece in rest.block_pieces().filter(|&piece| self.has(piece)) {
            let strip = self.strip_of(piece);
            if let Some(cut) = [strip.start(), strip.end()].into_iter().find(|&cut| cut > rest.start()) {
                return cut;
            }
        }
        rest.end()
    }
}

fn check_vmas(wanted: u64) -> Result<(), SeamError> {
    let read = fs::read_to_string("/proc/sys/vm/max_map_count");
    // Where the limit cannot be read, the kernel enforces it all the same.
    let Some(limit) = read.ok().and_then(|text| text.trim().parse::<u64>().ok()) else { return Ok(()) };
    judge_vmas(wanted, IN_PLACE.load(Ordering::Relaxed), limit)
}

/// The pure part of [`check_vmas`].
fn judge_vmas(wanted: u64, in_place: u64, limit: u64) -> Result<(), SeamError> {
    let needed = 2 * (in_place + wanted) + HEADROOM;
    if needed > limit { Err(SeamError::TooManyVmas { wanted, needed, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::PAGE_SIZE;
    use proptest::prelude::*;

    const BLOCKS: u64 = 5;

    fn region() -> HvaRange {
        HvaRange::with_len(Hva::new(16 * PMD_SIZE), BLOCKS * PMD_SIZE).unwrap()
    }

    /// Seams as data only: the bits are set without a mapping behind them.
    fn seams(mask: u64, strip: u64) -> Seams {
        let seams = Seams::new(region(), strip);
        seams.blocks[0].store(mask, Ordering::Relaxed);
        seams
    }

    proptest! {
        #[test]
        fn pieces_tile_the_range_and_cut_exactly_at_seams(
            mask in 0u64..1 << BLOCKS, strip in 0u32..9, a in 0u64..=512 * BLOCKS, b in 0u64..=512 * BLOCKS,
        ) {
            let base = region().start().get();
            let at = |page: u64| Hva::new(base + page * PAGE_SIZE);
            let range = HvaRange::new(at(a.min(b)), at(a.max(b))).unwrap();
            let strip_pages = 1u64 << strip;
            let got: Vec<_> = seams(mask, strip_pages * PAGE_SIZE).pieces(range).collect();
            // The oracle asks of each page boundary whether a seam's strip begins or ends there.
            let is_cut = |page: u64| [page, page.wrapping_sub(strip_pages)].into_iter()
                .any(|strip_start| strip_start % 512 == 0 && strip_start < 512 * BLOCKS && mask >> (strip_start / 512) & 1 == 1);
            let mut expected = Vec::new();
            let mut from = a.min(b);
            for page in a.min(b) + 1..=a.max(b) {
                if page == a.max(b) || is_cut(page) {
                    expected.push(HvaRange::new(at(from), at(page)).unwrap());
                    from = page;
                }
            }
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn too_many_vmas_are_refused_with_the_remedy() {
        assert!(judge_vmas(31_000, 0, 65_530).is_ok());
        let error = judge_vmas(31_000, 1_000, 65_530).unwrap_err();
        assert!(error.to_string().contains("sysctl vm.max_map_count=66048"), "{error}");
    }
}
