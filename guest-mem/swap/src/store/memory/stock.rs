//! The states of an arena's segments: in use, free with pages (warm), free without pages (cold). Pure.
//!
//! ```text
//!            take: page by page below SMALL, 2 MiB at once above                put back: as long as few are warm
//!   cold ─────────────────────────────────────────────────────> warm <──────────────────────────────── in use
//!     ▲  no pages behind it                                       │ free, keeps its pages                ▲
//!     └───────────────────────────────────────────────────────────┼──────────────────────────────────────┘
//!           too many are warm: an unused chunk, or                 └── taken first
//!           this segment alone; the last one is back: all
//! ```
//!
//! A page that the kernel maps by itself costs several times what it costs as part of a huge page, so a store that has
//! grown takes its memory by the chunk. Segments of the lowest chunk are taken first, so that the others may drain.

use std::collections::BTreeSet;
use std::ops::Range;

use guest_mem::PMD_SIZE;

use super::segment::SEGMENT_BYTES;

/// Segments of a chunk, which is as long as a huge page.
pub(super) const CHUNK: u32 = (PMD_SIZE / SEGMENT_BYTES as u64) as u32;
const _: () = assert!(CHUNK == u32::BITS);
/// The chunks from this one on are backed whole: a store below 4 MiB grows by the segment.
const SMALL: u32 = 2;
/// Free segments that keep their pages whatever is in use, so that a store whose need swings does not swing with the
/// kernel: 1 MiB.
const WARM: u32 = 16;

/// One chunk, a bit for each segment.
#[derive(Clone, Copy, Debug, Default)]
struct Chunk {
    /// In use, or its pages are being given back.
    taken: u32,
    /// With pages.
    backed: u32,
}

/// The segments of an arena. Chunks that were never used are behind the end of the list.
#[derive(Debug)]
pub(super) struct Stock {
    /// Chunks of the arena.
    count: u32,
    chunks: Vec<Chunk>,
    /// Chunks with a free segment that has pages.
    warm: BTreeSet<u32>,
    /// Chunks with a free segment that has none, and others in use or with pages.
    holed: BTreeSet<u32>,
    /// Chunks with neither.
    empty: BTreeSet<u32>,
    warm_segments: u32,
    in_use: u32,
    /// Bytes of segments with pages, and of the bookkeeping of those in use.
    held: u64,
}

/// A segment that was taken, and those that need pages first: itself and maybe its whole chunk.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub segment: u32,
    pub to_back: Range<u32>,
}

impl Taken {
    /// Whether a whole chunk is to be backed.
    pub(super) fn is_chunk(&self) -> bool {
        self.to_back.len() == CHUNK as usize
    }
}

impl Stock {
    /// So many chunks, all cold.
    pub(super) fn new(count: u32) -> Self {
        let (warm, holed, empty) = Default::default();
        Self { count, chunks: Vec::new(), warm, holed, empty, warm_segments: 0, in_use: 0, held: 0 }
    }

    pub(super) fn held(&self) -> u64 {
        self.held
    }

    /// Takes a segment whose bookkeeping takes `overhead` bytes. `None` if more than `limit` bytes would be held.
    pub(super) fn take(&mut self, limit: u64, overhead: u64) -> Option<Taken> {
        let fits = |segments: usize| self.held + overhead + (segments * SEGMENT_BYTES) as u64 <= limit;
        let cold = self.holed.first().or(self.empty.first()).copied();
        let chunk = self.warm.first().copied().or(cold).unwrap_or(self.chunks.len() as u32);
        let known = self.chunks.get(chunk as usize).copied().unwrap_or_default();
        let first = chunk * CHUNK;
        let bit = match known.backed & !known.taken {
            0 => (!known.taken).trailing_zeros(),
            warm => warm.trailing_zeros(),
        };
        let segment = first + bit;
        let whole = chunk >= SMALL && known.backed == 0 && fits(CHUNK as usize);
        let to_back = match known.backed & 1 << bit {
            0 if whole => first..first + CHUNK,
            0 => segment..segment + 1,
            _ => segment..segment,
        };
        if chunk >= self.count || !fits(to_back.len()) {
            return None;
        }
        if chunk as usize == self.chunks.len() {
            self.chunks.push(Chunk::default());
        }
        self.in_use += 1;
        self.held += overhead;
        self.change(chunk, |chunk| {
            chunk.taken |= 1 << bit;
            chunk.backed |= bits(&to_back);
        });
        Some(Taken { segment, to_back })
    }

    /// Puts a segment back. Returns the segments whose pages are to be given back: they are not taken again before they are
    /// [`gone`](Self::gone).
    pub(super) fn put_back(&mut self, segment: u32, overhead: u64) -> Vec<Range<u32>> {
        let (number, bit) = (segment / CHUNK, 1 << (segment % CHUNK));
        self.in_use -= 1;
        self.held -= overhead;
        self.change(number, |chunk| chunk.taken &= !bit);
        let last = self.in_use == 0;
        if !last && self.warm_segments <= WARM.max((self.in_use / 4).min(2 * CHUNK)) {
            return Vec::new();
        }
        if last {
            let warm: Vec<u32> = self.warm.iter().copied().collect();
            return warm.into_iter().map(|number| self.retire_chunk(number)).collect();
        }
        let idle = |number: &u32| self.chunks[*number as usize].taken == 0;
        let highest = self.warm.iter().rev().take(4).copied();
        let going = match std::iter::once(number).chain(highest).find(idle) {
            Some(number) => self.retire_chunk(number),
            None => {
                self.change(number, |chunk| chunk.taken |= bit);
                segment..segment + 1
            }
        };
        std::iter::once(going).collect()
    }

    /// Takes an unused chunk out, its cold segments as well: only pages that are given back in one call free their page table,
    /// and without one the chunk can be a huge page next time.
    fn retire_chunk(&mut self, number: u32) -> Range<u32> {
        self.change(number, |chunk| chunk.taken = u32::MAX);
        number * CHUNK..(number + 1) * CHUNK
    }

    /// The pages of segments that were to go are gone.
    pub(super) fn gone(&mut self, segments: &Range<u32>) {
        self.change(segments.start / CHUNK, |chunk| {
            chunk.taken &= !bits(segments);
            chunk.backed &= !bits(segments);
        });
    }

    /// Changes a chunk, and the lists and sums that depend on it.
    fn change(&mut self, number: u32, change: impl FnOnce(&mut Chunk)) {
        let chunk = &mut self.chunks[number as usize];
        let before = *chunk;
        change(chunk);
        let Chunk { taken, backed } = *chunk;
        let warm = |chunk: Chunk| (chunk.backed & !chunk.taken).count_ones();
        self.warm_segments = self.warm_segments + warm(*chunk) - warm(before);
        self.held += u64::from(backed.count_ones()) * SEGMENT_BYTES as u64;
        self.held -= u64::from(before.backed.count_ones()) * SEGMENT_BYTES as u64;
        let unused = taken | backed == 0;
        let lists = [
            (&mut self.warm, backed & !taken != 0),
            (&mut self.holed, !unused && taken | backed != u32::MAX),
            (&mut self.empty, unused),
        ];
        for (list, belongs) in lists {
            if belongs {
                list.insert(number)
            } else {
                list.remove(&number)
            };
        }
    }
}

/// The bits of segments of one chunk.
fn bits(segments: &Range<u32>) -> u32 {
    let below = |end: u32| 1u32.checked_shl(end).map_or(u32::MAX, |bit| bit - 1);
    let len = segments.end - segments.start;
    if len == 0 { 0 } else { below(len) << (segments.start % CHUNK) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEGMENT: u64 = SEGMENT_BYTES as u64;

    proptest! {
        /// Against sets that hold one entry for each segment.
        #[test]
        fn a_segment_is_taken_once_and_held_bytes_are_counted(
            steps in proptest::collection::vec((0u8..8, any::<prop::sample::Index>()), 1..400),
            count in 1u32..9, limit in 0u64..9 * CHUNK as u64,
        ) {
            let mut stock = Stock::new(count);
            let (mut in_use, mut backed) = (Vec::<u32>::new(), BTreeSet::<u32>::new());
            let mut going = Vec::<Range<u32>>::new();
            for (step, which) in steps {
                // Mostly up, then mostly down.
                let up = step < if in_use.len() < 24 * count as usize { 6 } else { 3 };
                if up {
                    for _ in 0..8 {
                        let Some(Taken { segment, to_back }) = stock.take(limit * SEGMENT, 1) else { break };
                        prop_assert!(segment < count * CHUNK && !in_use.contains(&segment));
                        prop_assert!(!going.iter().any(|range| range.contains(&segment)));
                        prop_assert!(to_back.clone().all(|one| backed.insert(one)), "backed twice");
                        prop_assert!(backed.contains(&segment));
                        in_use.push(segment);
                    }
                } else if !in_use.is_empty() {
                    let segment = in_use.swap_remove(which.index(in_use.len()));
                    going.extend(stock.put_back(segment, 1));
                } else if !going.is_empty() {
                    let range = going.swap_remove(which.index(going.len()));
                    prop_assert!(range.clone().all(|one| !in_use.contains(&one)));
                    let had_pages = range.clone().filter(|one| backed.remove(one)).count();
                    prop_assert!(had_pages > 0);
                    stock.gone(&range);
                }
                prop_assert_eq!(stock.held(), backed.len() as u64 * SEGMENT + in_use.len() as u64);
                prop_assert!(stock.held() <= limit * SEGMENT);
            }
            for segment in in_use {
                going.extend(stock.put_back(segment, 1));
            }
            going.iter().for_each(|range| stock.gone(range));
            prop_assert_eq!(stock.held(), 0, "an empty store holds nothing");
        }
    }

    #[test]
    fn it_grows_by_the_segment_and_then_by_the_chunk() {
        let mut stock = Stock::new(SMALL + 3);
        // Of the last chunk a part is within the limit.
        let limit = u64::from((SMALL + 2) * CHUNK + 3) * SEGMENT;
        let taken: Vec<Taken> = std::iter::from_fn(|| stock.take(limit, 0)).collect();
        let alone = |taken: &[Taken]| taken.iter().all(|one| one.to_back == (one.segment..one.segment + 1));
        let (small, large) = taken.split_at((SMALL * CHUNK) as usize);
        assert!(alone(small));
        let (large, last) = large.split_at(2 * CHUNK as usize);
        let backed: Vec<&Taken> = large.iter().filter(|one| !one.to_back.is_empty()).collect();
        assert!(backed.len() == 2 && backed.iter().all(|one| one.is_chunk()));
        assert!(last.len() == 3 && alone(last));
    }

    #[test]
    fn an_unused_chunk_goes_whole() {
        let mut stock = Stock::new(8);
        while stock.take(u64::MAX, 0).is_some() {}
        // The second half of it, in no order: a quarter of what is left may stay warm.
        let mut gone = Vec::new();
        for segment in (4 * CHUNK..8 * CHUNK).step_by(2).chain((4 * CHUNK + 1..8 * CHUNK).step_by(2)) {
            for range in stock.put_back(segment, 0) {
                stock.gone(&range);
                gone.push(range);
            }
        }
        assert!(gone.iter().any(|range| range.len() == CHUNK as usize), "{gone:?}");
    }
}
