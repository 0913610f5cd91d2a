//! The calls by which pages are taken and looked at, each tried on a region of the doctor's own.

use std::error::Error;

use guest_mem::{
    Backing, HvaRange, Operation, PAGE_SIZE, PMD_SIZE, PageScanner, Region, RegionError, ScanMethod, perform,
};
use rustix::io::Errno;

use super::finding::Finding;
use host::HostFacts;

/// What the calls did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trials {
    /// Whether the page was in swap afterwards.
    pageout: Result<bool, Errno>,
    /// Pages that were reported present, of one that is.
    scan: Result<u64, Errno>,
    collapse: Result<(), Errno>,
    has_swap: bool,
}

pub(super) fn probe(host: &HostFacts) -> Trials {
    Trials {
        pageout: try_pageout().map_err(errno),
        scan: try_scan().map_err(errno),
        collapse: try_collapse().map_err(errno),
        has_swap: !host.swaps.is_empty(),
    }
}

/// The system's answer at the bottom of the chain.
fn errno(error: Box<dyn Error>) -> Errno {
    let mut error: &dyn Error = &*error;
    while let Some(source) = error.source() {
        error = source;
    }
    let io = error.downcast_ref().and_then(Errno::from_io_error);
    error.downcast_ref().copied().or(io).unwrap_or(Errno::IO)
}

/// A region with its first page touched.
fn one_page() -> Result<(Region, HvaRange), RegionError> {
    let region = Region::map(PMD_SIZE, Backing::Base4k)?;
    let page = region.slice(0, PAGE_SIZE).expect("a region has at least 2 MiB");
    region.touch(page.start(), true)?;
    Ok((region, page))
}

fn try_pageout() -> Result<bool, Box<dyn Error>> {
    let (region, page) = one_page()?;
    perform(&region, Operation::PageOut, page)?;
    Ok(PageScanner::new()?.page(page.start())?.is_swapped())
}

fn try_scan() -> Result<u64, Box<dyn Error>> {
    let (region, _page) = one_page()?;
    let mut scanner = PageScanner::with_method(ScanMethod::Scan)?;
    Ok(scanner.counts(&region, region.range())?.present)
}

fn try_collapse() -> Result<(), Box<dyn Error>> {
    let region = Region::map(PMD_SIZE, Backing::Thp)?;
    // The touch may have brought a huge page. Without its first 4 KiB it is none.
    region.touch(region.range().start(), true)?;
    let first = region.slice(0, PAGE_SIZE).expect("a region has at least 2 MiB");
    perform(&region, Operation::DontNeed, first)?;
    region.range().pages().try_for_each(|page| region.touch(page.start(), true))?;
    Ok(perform(&region, Operation::Collapse, region.range())?)
}

pub(super) fn judge(trials: &Trials) -> Vec<Finding> {
    vec![
        judge_pageout(trials.pageout, trials.has_swap),
        judge_scan(trials.scan),
        judge_collapse(trials.collapse),
    ]
}

fn judge_pageout(pageout: Result<bool, Errno>, has_swap: bool) -> Finding {
    const SUBJECT: &str = "MADV_PAGEOUT";
    match pageout {
        Ok(true) => Finding::can(SUBJECT, "took a page to swap"),
        Ok(false) if has_swap => Finding::limited(
            SUBJECT,
            "was accepted but the page stayed: in another CPU's LRU batch, or swap is full",
        )
        .remedy("`swapon --show`"),
        Ok(false) => Finding::limited(SUBJECT, "is accepted, but without swap nothing goes anywhere")
            .remedy("`zapscope run --zram SIZE`"),
        Err(Errno::INVAL) => Finding::cannot(SUBJECT, "is unknown to this kernel")
            .remedy("a kernel of 5.4 or later with CONFIG_SWAP"),
        Err(errno) => Finding::cannot(SUBJECT, format!("failed: {errno}")),
    }
}

fn judge_scan(scan: Result<u64, Errno>) -> Finding {
    const SUBJECT: &str = "PAGEMAP_SCAN";
    match scan {
        Ok(1) => Finding::can(SUBJECT, "reports what each page is: \"achieved\" and evictions are read back"),
        Ok(pages) => Finding::cannot(SUBJECT, format!("reported {pages} pages present where one is")),
        Err(Errno::NOTTY) => Finding::limited(
            SUBJECT,
            "is unknown to this kernel: page state is read slowly, from pagemap words",
        )
        .remedy("a host kernel of 6.7 or later"),
        Err(errno) => Finding::cannot(SUBJECT, format!("failed: {errno}")),
    }
}

fn judge_collapse(collapse: Result<(), Errno>) -> Finding {
    const SUBJECT: &str = "MADV_COLLAPSE";
    match collapse {
        Ok(()) => Finding::can(SUBJECT, "made a huge page: PMD mappings can be rebuilt for each trial"),
        Err(Errno::INVAL) => Finding::limited(
            SUBJECT,
            "is refused: an old kernel, or one without THP; only a fresh fault makes a huge page",
        )
        .remedy("a kernel of 6.1 or later with CONFIG_TRANSPARENT_HUGEPAGE"),
        Err(Errno::AGAIN | Errno::NOMEM | Errno::BUSY) => {
            Finding::limited(SUBJECT, "found no free huge page just now: memory is fragmented")
                .remedy("`echo 1 > /proc/sys/vm/compact_memory`")
        }
        Err(errno) => Finding::cannot(SUBJECT, format!("failed: {errno}")),
    }
}

/// One finding of each kind that has a remedy.
#[cfg(test)]
pub(super) fn samples() -> Vec<Finding> {
    let pageouts = [(Ok(false), true), (Ok(false), false), (Err(Errno::INVAL), false)];
    let collapses = [Err(Errno::INVAL), Err(Errno::AGAIN)];
    let pageouts = pageouts.into_iter().map(|(pageout, has_swap)| judge_pageout(pageout, has_swap));
    let others = [judge_scan(Err(Errno::NOTTY))].into_iter().chain(collapses.into_iter().map(judge_collapse));
    pageouts.chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn verdicts(trials: &Trials) -> Vec<Verdict> {
        judge(trials).into_iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn a_modern_host_with_swap_can_all_three() {
        let trials = Trials { pageout: Ok(true), scan: Ok(1), collapse: Ok(()), has_swap: true };
        assert_eq!(verdicts(&trials), [Verdict::Can; 3]);
    }

    #[test]
    fn an_old_kernel_knows_none_of_them() {
        let trials = Trials {
            pageout: Err(Errno::INVAL),
            scan: Err(Errno::NOTTY),
            collapse: Err(Errno::INVAL),
            has_swap: true,
        };
        assert_eq!(verdicts(&trials), [Verdict::Cannot, Verdict::Limited, Verdict::Limited]);
    }

    #[test]
    fn a_page_that_stays_has_two_causes() {
        assert!(judge_pageout(Ok(false), false).remedy.unwrap().contains("--zram"));
        assert!(judge_pageout(Ok(false), true).detail.contains("LRU batch"));
    }

    #[test]
    fn a_scan_that_misses_a_page_is_not_trusted() {
        assert_eq!(judge_scan(Ok(0)).verdict, Verdict::Cannot);
    }
}
