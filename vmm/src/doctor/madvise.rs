//! The calls by which pages are taken and looked at, each tried on memory of the doctor's own.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;
use rustix::mm::Advice;

use super::finding::Finding;
use host::HostFacts;
use host::scratch::{HUGE, PAGE, Scratch};
use host::tracefs::last_errno;

/// `_IOWR('f', 16, struct pm_scan_arg)`, whose twelve words are all `u64`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const PM_SCAN_ARG_WORDS: usize = 12;
const _: () = assert!(PAGEMAP_SCAN >> 16 & 0x3fff == (PM_SCAN_ARG_WORDS * size_of::<u64>()) as libc::c_ulong);
const PAGE_IS_PRESENT: u64 = 1 << 3;

/// Bit 62 of a word of `/proc/self/pagemap`.
const PAGEMAP_SWAPPED: u64 = 1 << 62;

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
        pageout: try_pageout(),
        scan: try_scan(),
        collapse: try_collapse(),
        has_swap: !host.swaps.is_empty(),
    }
}

fn try_pageout() -> Result<bool, Errno> {
    let mut scratch = Scratch::new(PAGE)?;
    scratch.advise(PAGE, Advice::LinuxNoHugepage)?;
    scratch.populate();
    scratch.advise(PAGE, Advice::LinuxPageOut)?;
    let pagemap = File::open("/proc/self/pagemap").map_err(|error| errno_of(&error))?;
    let mut word = [0; 8];
    pagemap
        .read_exact_at(&mut word, scratch.address() / PAGE as u64 * 8)
        .map_err(|error| errno_of(&error))?;
    Ok(u64::from_ne_bytes(word) & PAGEMAP_SWAPPED != 0)
}

fn try_scan() -> Result<u64, Errno> {
    let mut scratch = Scratch::new(PAGE)?;
    scratch.populate();
    let pagemap = File::open("/proc/self/pagemap").map_err(|error| errno_of(&error))?;
    // One `struct page_region`: start, end, categories.
    let mut region = [0u64; 3];
    let mut arg = [0u64; PM_SCAN_ARG_WORDS];
    arg[0] = size_of_val(&arg) as u64;
    arg[2] = scratch.address();
    arg[3] = scratch.address() + scratch.len() as u64;
    arg[5] = region.as_mut_ptr() as u64;
    arg[6] = 1;
    arg[10] = PAGE_IS_PRESENT;
    arg[11] = PAGE_IS_PRESENT;
    // SAFETY: `arg` has the size it says, its one-entry vector is `region`, and without a write-protect flag
    // the walk changes nothing.
    let filled = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, arg.as_mut_ptr()) };
    match filled {
        0 => Ok(0),
        1.. => Ok((region[1] - region[0]) / PAGE as u64),
        _ => Err(last_errno()),
    }
}

fn try_collapse() -> Result<(), Errno> {
    let mut scratch = Scratch::new(HUGE)?;
    scratch.advise(HUGE, Advice::LinuxNoHugepage)?;
    scratch.populate();
    // It obeys a mapping's "never"; the host's switch it ignores.
    scratch.advise(HUGE, Advice::LinuxHugepage)?;
    scratch.collapse()
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
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
