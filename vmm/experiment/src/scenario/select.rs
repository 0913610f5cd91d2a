//! The seeded choice of victims and of hot pages, and the table of Zipf's law.
//!
//! The same seed gives the same pages on every platform and in every version: the generator is written down
//! in [`guest_abi::work::SplitMix64`], and nothing here depends on the order of a hash map or on the C
//! library's `pow`.

use std::collections::HashMap;
use std::ops::Range;

use guest_abi::work::SplitMix64;
use rangemap::RangeSet;

/// The seed of step `step` of a case, distinct from its neighbours'.
pub fn step_seed(seed: u64, step: usize) -> u64 {
    SplitMix64(seed).next() ^ SplitMix64(step as u64).next()
}

/// `count` distinct numbers below `pages`, in the order in which they are taken.
///
/// # Panics
/// If `count` is above `pages`: a checked scenario never asks for it.
pub fn sparse_victims(seed: u64, pages: u64, count: u64) -> Vec<u64> {
    assert!(count <= pages, "{count} distinct numbers below {pages}");
    // Fisher and Yates, of which only the drawn part is carried out and only the moved entries are kept.
    let mut random = SplitMix64(seed);
    let mut moved: HashMap<u64, u64> = HashMap::new();
    (0..count)
        .map(|index| {
            let drawn = index + random.below(pages - index);
            let at_index = moved.get(&index).copied().unwrap_or(index);
            moved.insert(drawn, at_index).unwrap_or(drawn)
        })
        .collect()
}

/// `count` distinct pages below `pages` that are not `taken`, in the order of the first visit.
///
/// # Panics
/// If fewer than `count` pages are left, or a page number does not fit the guest's table of 32-bit entries:
/// a checked scenario never asks for either.
pub fn hot_pages(seed: u64, pages: u64, taken: &RangeSet<u64>, count: u64) -> Vec<u32> {
    // The ranks of the pages left, as runs: (rank of the first page, the pages).
    let mut left = 0;
    let runs: Vec<(u64, Range<u64>)> = taken
        .gaps(&(0..pages))
        .map(|run| {
            let first = left;
            left += run.end - run.start;
            (first, run)
        })
        .collect();
    let page_of = |rank: u64| {
        let (first, run) = &runs[runs.partition_point(|(first, _)| *first <= rank) - 1];
        u32::try_from(run.start + (rank - first)).expect("the arena has fewer than 2^32 pages")
    };
    sparse_victims(seed, left, count).into_iter().map(page_of).collect()
}

/// Zipf's law over `pages` ranks as the guest's table wants it: entry `r` is the probability of a rank of at
/// most `r`, in units of 2^-32, the last entry as close to 1 as fits.
pub fn zipf_table(pages: u64, exponent: f64) -> Vec<u32> {
    let weights: Vec<f64> = (1..=pages).map(|rank| 1.0 / power(rank as f64, exponent)).collect();
    let total: f64 = weights.iter().sum();
    let mut below = 0.0;
    let mut table: Vec<u32> = weights
        .iter()
        .map(|weight| {
            below += weight;
            // The cast saturates, which is what a sum that rounds to 1 needs.
            (below / total * 4_294_967_296.0) as u32
        })
        .collect();
    if let Some(last) = table.last_mut() {
        *last = u32::MAX;
    }
    table
}

/// `base^exponent` for an exponent that is not negative, cut to 32 binary places. Only multiplications and
/// square roots, which IEEE 754 rounds exactly: `powf` may differ from one C library to the next.
fn power(base: f64, exponent: f64) -> f64 {
    let mut result = 1.0;
    let (mut whole, mut square) = (exponent as u32, base);
    while whole > 0 {
        if whole & 1 == 1 {
            result *= square;
        }
        square *= square;
        whole >>= 1;
    }
    let places = ((exponent - exponent.floor()) * 4_294_967_296.0) as u64;
    let mut root = base;
    for place in (0..32).rev() {
        root = root.sqrt();
        if places >> place & 1 == 1 {
            result *= root;
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Written down once. A change here changes what every scenario with this seed has ever measured.
    #[test]
    fn a_seed_means_the_same_pages_for_ever() {
        assert_eq!(sparse_victims(42, 16_384, 6), VICTIMS_OF_42);
        assert_eq!(hot_pages(42, 8, &one_run(2..6), 4), HOT_OF_42);
        assert_eq!(zipf_table(4, 1.0), ZIPF_OF_4);
        assert_ne!(step_seed(42, 0), step_seed(42, 1));
    }

    const VICTIMS_OF_42: [u64; 6] = [12149, 2620, 4566, 5641, 626, 14225];
    const HOT_OF_42: [u32; 4] = [6, 1, 0, 7];
    /// 12/25, 18/25, 22/25 and 1.
    const ZIPF_OF_4: [u32; 4] = [2_061_584_302, 3_092_376_453, 3_779_571_220, u32::MAX];

    fn one_run(run: Range<u64>) -> RangeSet<u64> {
        let mut set = RangeSet::new();
        set.insert(run);
        set
    }

    /// A few ranges in a small arena.
    fn taken() -> impl Strategy<Value = RangeSet<u64>> {
        prop::collection::vec((0u64..200, 1u64..20), 0..12).prop_map(|runs| {
            runs.into_iter()
                .map(|(start, len)| start..(start + len).min(200))
                .filter(|r| !r.is_empty())
                .collect()
        })
    }

    proptest! {
        #[test]
        fn victims_are_distinct_and_inside(seed: u64, pages in 1u64..3_000, part in 0.0f64..=1.0) {
            let count = (pages as f64 * part) as u64;
            let victims = sparse_victims(seed, pages, count);
            prop_assert_eq!(victims.len() as u64, count);
            prop_assert!(victims.iter().all(|&page| page < pages));
            prop_assert_eq!(victims.iter().collect::<BTreeSet<_>>().len() as u64, count);
        }

        #[test]
        fn fewer_victims_are_a_prefix_of_more(seed: u64, pages in 2u64..500, count in 1u64..500) {
            let count = count.min(pages);
            let more = sparse_victims(seed, pages, count);
            prop_assert_eq!(&sparse_victims(seed, pages, count - 1)[..], &more[..more.len() - 1]);
        }

        #[test]
        fn all_of_them_is_a_permutation(seed: u64, pages in 0u64..500) {
            let mut victims = sparse_victims(seed, pages, pages);
            victims.sort_unstable();
            prop_assert_eq!(victims, (0..pages).collect::<Vec<_>>());
        }

        #[test]
        fn hot_pages_leave_the_taken_alone(seed: u64, taken in taken(), part in 0.0f64..=1.0) {
            let others: BTreeSet<u64> = (0..200).filter(|page| !taken.contains(page)).collect();
            let count = (others.len() as f64 * part) as u64;
            let hot = hot_pages(seed, 200, &taken, count);
            prop_assert_eq!(hot.len() as u64, count);
            let distinct: BTreeSet<u64> = hot.iter().map(|&page| u64::from(page)).collect();
            prop_assert_eq!(distinct.len() as u64, count);
            prop_assert!(distinct.is_subset(&others));
            let all: BTreeSet<u64> =
                hot_pages(seed, 200, &taken, others.len() as u64).into_iter().map(u64::from).collect();
            prop_assert_eq!(all, others);
        }

        #[test]
        fn power_agrees_with_powf(base in 1.0f64..300_000.0, exponent in 0.0f64..8.0) {
            let (ours, theirs) = (power(base, exponent), base.powf(exponent));
            prop_assert!((ours / theirs - 1.0).abs() < 1e-8, "{} {}", ours, theirs);
        }

        #[test]
        fn a_zipf_table_rises_to_one(pages in 1u64..3_000, exponent in 0.01f64..8.0) {
            let table = zipf_table(pages, exponent);
            prop_assert_eq!(table.len() as u64, pages);
            prop_assert_eq!(table[table.len() - 1], u32::MAX);
            prop_assert!(table.is_sorted());
            // Each rank is at most as likely as the one before, but for the rounding.
            let widths: Vec<u32> = table.windows(2).map(|pair| pair[1] - pair[0]).collect();
            prop_assert!(widths.windows(2).all(|pair| pair[1] <= pair[0].saturating_add(2)));
            prop_assert!(widths.first().is_none_or(|&second| second <= table[0].saturating_add(2)));
        }
    }

    #[test]
    fn a_large_arena_is_sampled_without_visiting_it() {
        let pages = (62 << 30) / 4096;
        let hot = hot_pages(1, pages, &one_run(0..pages - 10), 10);
        assert!(hot.iter().all(|&page| u64::from(page) >= pages - 10));
        assert_eq!(sparse_victims(1, u64::MAX, 3).len(), 3);
    }
}
