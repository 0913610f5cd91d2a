//! Range policies by enumeration: what each row of FACTS' table means, one page at a time, written without a
//! look at the code under test.

/// Bytes of a page.
const PAGE: u64 = 4096;
/// Bytes under a PMD entry.
const PMD: u64 = 2 << 20;

/// Pages that lose their translation when the single page at `victim` goes, under `policy`, in a mapping that
/// ends at `end`. Addresses count from a 2 MiB boundary; slots have `granule` bytes and begin at 0.
pub fn pages_lost(policy: &str, victim: u64, end: u64, granule: u64) -> u64 {
    let last_of_block = (victim / PMD) * PMD + PMD;
    (0..end / PAGE)
        .map(|page| page * PAGE)
        .filter(|&at| match policy {
            "kernel" | "folio" | "modern" | "page" => at == victim,
            "pmd" => at >= victim && at < last_of_block,
            "slot" => at / granule == victim / granule,
            other => panic!("no policy {other}"),
        })
        .count() as u64
}
