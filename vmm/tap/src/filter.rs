//! The filter of a tracepoint: which of its events the kernel records, as the text that the kernel parses.

use guest_mem::{Hva, HvaRange};

/// The longest filter: the kernel accepts a page.
const LONGEST: usize = 4000;

/// Which events of a tracepoint the kernel records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filtered {
    /// All of them.
    No,
    /// Those whose range from `start` to `end` meets the watched ranges.
    ByAddress,
    /// ioctls of userfaultfd that announce a range.
    ByIoctl,
    /// Those of these threads, by their numbers in the initial PID namespace.
    ByThreads(Vec<u32>),
}

/// The ioctls of userfaultfd that announce a range: `UFFDIO_WRITEPROTECT` and `UFFDIO_MOVE`.
pub(super) const UFFD_IOCTLS: [u32; 2] = [uffd_ioctl(6, 24), uffd_ioctl(5, 40)];

/// `_IOWR(0xaa, number, size)`.
const fn uffd_ioctl(number: u32, size: u32) -> u32 {
    3 << 30 | size << 16 | 0xaa << 8 | number
}

const _: () = assert!(UFFD_IOCTLS[0] == 0xc018_aa06 && UFFD_IOCTLS[1] == 0xc028_aa05);

/// The filter's text where `ranges` are watched; `None` for no filter.
///
/// It may select more than `ranges`, if their exact text is too long for the kernel. The collector checks each range again.
pub(super) fn text(filtered: &Filtered, ranges: &[HvaRange]) -> Option<String> {
    match filtered {
        Filtered::No => None,
        Filtered::ByAddress => by_address(merged(ranges)),
        Filtered::ByIoctl => {
            let each: Vec<_> = UFFD_IOCTLS.iter().map(|number| format!("cmd=={number:#x}")).collect();
            Some(each.join("||"))
        }
        Filtered::ByThreads(threads) => by_threads(threads),
    }
}

/// Threads with consecutive numbers, as most of a VMM's are, take one comparison. `None`, no filter, if the text is too long.
fn by_threads(threads: &[u32]) -> Option<String> {
    let mut sorted = threads.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let runs = sorted.chunk_by(|one, next| one + 1 == *next);
    let each: Vec<_> =
        runs.map(|run| format!("(common_pid>={}&&common_pid<={})", run[0], run[run.len() - 1])).collect();
    Some(each.join("||")).filter(|text| !text.is_empty() && text.len() <= LONGEST)
}

/// The ranges in order of address, without empty ones; ranges that meet are merged.
pub(super) fn merged(ranges: &[HvaRange]) -> Vec<HvaRange> {
    let mut sorted: Vec<HvaRange> = ranges.iter().copied().filter(|range| !range.is_empty()).collect();
    sorted.sort_by_key(|range| (range.start(), range.end()));
    let mut merged: Vec<HvaRange> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.start() <= last.end() => *last = last.hull(range),
            _ => merged.push(range),
        }
    }
    merged
}

/// All addresses.
pub(super) fn everywhere() -> HvaRange {
    HvaRange::new(Hva::new(0), Hva::new(u64::MAX)).expect("0 comes first")
}

/// Without a range, a filter that nothing passes; with all addresses, none.
fn by_address(mut ranges: Vec<HvaRange>) -> Option<String> {
    if ranges == [everywhere()] {
        return None;
    }
    if ranges.is_empty() {
        ranges.push(HvaRange::empty(Hva::new(0)));
    }
    loop {
        let each: Vec<_> = ranges
            .iter()
            .map(|range| format!("(end>{:#x}&&start<{:#x})", range.start().get(), range.end().get()))
            .collect();
        let text = each.join("||");
        if text.len() <= LONGEST {
            return Some(text);
        }
        let gap = |pair: &[HvaRange]| pair[1].start().get() - pair[0].end().get();
        let narrowest = (1..ranges.len()).min_by_key(|&at| gap(&ranges[at - 1..=at]))?;
        let joined = ranges[narrowest - 1].hull(ranges[narrowest]);
        ranges.splice(narrowest - 1..=narrowest, [joined]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, len: u64) -> HvaRange {
        HvaRange::with_len(Hva::new(start), len).unwrap()
    }

    /// Evaluates a filter by address as the kernel does.
    fn passes(text: &str, start: u64, end: u64) -> bool {
        let bound = |text: &str, name: &str| -> u64 {
            u64::from_str_radix(text.strip_prefix(name).unwrap().strip_prefix("0x").unwrap(), 16).unwrap()
        };
        text.split("||").any(|one| {
            let (low, high) = one.trim_matches(['(', ')']).split_once("&&").unwrap();
            end > bound(low, "end>") && start < bound(high, "start<")
        })
    }

    #[test]
    fn ranges_that_meet_are_one() {
        let watched = [range(0x4000, 0x1000), range(0x1000, 0x1000), range(0x2000, 0x1000), range(0x9000, 0)];
        let text = text(&Filtered::ByAddress, &watched).unwrap();
        assert_eq!(text, "(end>0x1000&&start<0x3000)||(end>0x4000&&start<0x5000)");
    }

    #[test]
    fn without_a_watched_range_nothing_passes() {
        let text = text(&Filtered::ByAddress, &[]).unwrap();
        assert!(!passes(&text, 0, u64::MAX));
        assert_eq!(super::text(&Filtered::No, &[]), None);
        assert_eq!(super::text(&Filtered::ByAddress, &[range(0, 4096), everywhere()]), None);
    }

    #[test]
    fn threads_are_selected_by_runs_of_their_numbers() {
        let text = |threads: &[u32]| text(&Filtered::ByThreads(threads.to_vec()), &[]);
        assert_eq!(
            text(&[7, 5, 6, 6, 9]).unwrap(),
            "(common_pid>=5&&common_pid<=7)||(common_pid>=9&&common_pid<=9)"
        );
        assert_eq!(text(&[]), None);
        let many: Vec<u32> = (0..1000).map(|index| 2 * index).collect();
        assert_eq!(text(&many), None, "more than a page of text: no filter");
        assert!(text(&(0..1000).collect::<Vec<_>>()).is_some());
    }

    proptest! {
        #[test]
        fn every_watched_range_passes_and_the_text_is_short(
            watched in prop::collection::vec((0u64..1 << 46, 1u64..1 << 30), 1..300), at in 0u64..1 << 46, len in 1u64..1 << 21,
        ) {
            let ranges: Vec<_> = watched.into_iter().map(|(start, len)| range(start, len)).collect();
            let text = text(&Filtered::ByAddress, &ranges).unwrap();
            prop_assert!(text.len() <= LONGEST);
            if ranges.len() < 50 {
                prop_assert_eq!(passes(&text, at, at + len), ranges.iter().any(|one| one.overlaps(range(at, len))));
            }
            for one in ranges {
                prop_assert!(passes(&text, one.start().get(), one.start().get() + 1));
            }
        }
    }
}
