//! Finding, among pages that the kernel handed out in its own order, a contiguous run of physical memory.

use std::ops::Range;

/// One page of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Page {
    /// Its page frame number.
    pub pfn: u64,
    /// Its index in the mapping.
    pub index: u32,
}

/// The first `wanted` pages that lie one after the other in physical memory from a frame that is a multiple of
/// `align`, as a range of `sorted`, which is sorted by frame number.
///
/// # Errors
/// There are none: the longest run that begins at such a frame, in pages.
pub fn choose(sorted: &[Page], wanted: usize, align: u64) -> Result<Range<usize>, usize> {
    let mut longest = 0;
    let mut at = 0;
    for run in sorted.chunk_by(|page, next| page.pfn + 1 == next.pfn) {
        let skip = usize::try_from(run[0].pfn.next_multiple_of(align) - run[0].pfn).unwrap_or(usize::MAX);
        let usable = run.len().saturating_sub(skip);
        if usable >= wanted {
            return Ok(at + skip..at + skip + wanted);
        }
        longest = longest.max(usable);
        at += run.len();
    }
    Err(longest)
}

/// The ranges of `0..count` that hold none of `kept`, which is sorted.
pub fn gaps(count: u32, kept: &[u32]) -> impl Iterator<Item = Range<u32>> {
    let starts = std::iter::once(0).chain(kept.iter().map(|&index| index + 1));
    let ends = kept.iter().copied().chain(std::iter::once(count));
    starts.zip(ends).map(|(start, end)| start..end).filter(|gap| !gap.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(pfns: impl IntoIterator<Item = u64>) -> Vec<Page> {
        pfns.into_iter().enumerate().map(|(index, pfn)| Page { pfn, index: index as u32 }).collect()
    }

    #[test]
    fn a_run_begins_at_an_aligned_frame() {
        let sorted = pages((3..12).chain(14..30));
        assert_eq!(choose(&sorted, 8, 8), Ok(11..19), "16..24, not 3..11");
        assert_eq!(choose(&sorted, 4, 4), Ok(1..5));
        assert_eq!(choose(&sorted, 15, 8), Err(14));
        assert_eq!(choose(&sorted, 1, 32), Err(0));
        assert_eq!(choose(&[], 1, 1), Err(0));
    }

    #[test]
    fn every_choice_is_what_a_naive_search_finds() {
        // Each subset of 12 frames, for every size and alignment.
        for subset in 0..1_u32 << 12 {
            let sorted = pages((0..12).filter(|bit| subset >> bit & 1 == 1).map(|bit| 5 + bit));
            for (wanted, align) in [(1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 1)] {
                let naive = (0..24_u64)
                    .step_by(align)
                    .find(|&at| (at..at + wanted).all(|pfn| sorted.iter().any(|page| page.pfn == pfn)));
                let found = choose(&sorted, wanted as usize, align as u64).ok();
                assert_eq!(found.as_ref().map(|range| sorted[range.start].pfn), naive);
                assert!(found.is_none_or(|range| range.len() == wanted as usize));
            }
        }
    }

    #[test]
    fn gaps_and_what_is_kept_make_the_whole() {
        for subset in 0..1_u32 << 8 {
            let kept: Vec<u32> = (0..8).filter(|bit| subset >> bit & 1 == 1).collect();
            let mut all: Vec<u32> = gaps(8, &kept).flatten().chain(kept.iter().copied()).collect();
            all.sort_unstable();
            assert_eq!(all, (0..8).collect::<Vec<_>>());
        }
    }
}
