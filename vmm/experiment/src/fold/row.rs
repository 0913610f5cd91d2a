//! The row that a trial's sums are, with the reason for each value that is null.

use std::collections::BTreeMap;

use guest_mem::{Backing, PAGE_SIZE};
use notifier_bridge::Count;

use super::announced;
use super::kernel::Account;
use super::sums::{Rate, Sums};
use crate::choice::{Listener, Reclaim, Zap};
use crate::events::{DeviceCounts, Ranges, STALL, Swapped, Was};
use crate::record::{CauseTotals, Measured, Row, RowLabel, Warnings};
use notifier_bridge::By;
use program::distribution::Samples;
use program::units;

/// What the kernel's own account says.
const ACCOUNT: [&str; 11] = [
    "kernel_ranges",
    "kernel_bytes",
    "kernel_zap_ranges",
    "kernel_zap_bytes",
    "stranger_ranges",
    "stranger_bytes",
    "unattributed_ranges",
    "unattributed_bytes",
    "kernel_causes",
    "account_differences",
    "lost_events",
];
/// Why nothing of a sharing listener's TLB is in a row.
const NO_DEVICE: &str = "no device shares the host's page tables: set `shared_tlb = true` in the scenario";
/// Why no balloon's doings are in a row.
const NO_SYSTEM: &str = "no operating system runs in the guest that could give memory back";
/// Why nothing of userfaultfd is in a row.
const NO_OWN_SWAP: &str = "the kernel swaps in this row: `reclaim = [\"uffd\"]` is swap in user space";
/// Why it is not known what came back by itself.
const NOT_LOOKED: &str = "it is looked for where the kernel swaps, before a step `refault`";
/// Why times and the like are null in a row that was made up.
const NO_CLOCK: &str = "a replay counts; it has no clock, no guest and no kernel";
/// Why a count by KVM may be missing.
const NO_STATISTIC: &str = "this KVM has no such statistic";

/// The row of so many trials pooled.
pub(super) fn row(label: RowLabel, trials: u32, sums: &Sums, why: impl Fn(&str) -> Option<String>) -> Row {
    let replayed = label.listener == Listener::Replay;
    let mut row = Row::could_not_run(label, "");
    row.could_not_run = None;
    row.trials = trials;
    let mut warnings = Warnings::default();
    sums.warnings.iter().for_each(|warning| warnings.say(warning.as_str()));
    fill_counts(&mut row, sums);
    announced::fill(&mut row, sums, &mut warnings);
    fill_times(&mut row, sums);
    if let Some(account) = sums.account() {
        fill_account(&mut row, account, &mut warnings);
    }
    notes(&row, sums, &mut warnings);
    row.warnings = warnings;
    for key in row.unexplained() {
        let usual = || if replayed { NO_CLOCK.to_owned() } else { why_null(key, sums) };
        row.warnings.note(key, why(key).unwrap_or_else(usual));
    }
    row
}

/// Why a key of a row that ran is null.
fn why_null(key: &str, sums: &Sums) -> String {
    const NO_OPERATION: &str = "no operation by address was performed";
    let why = match key {
        "returned_bytes" => NOT_LOOKED,
        "tlb_entries_dropped" | "tlb_empty_flushes" => NO_DEVICE,
        "zap_ns" => "no listener but the kernel's own, whose zap is part of the operation",
        "reclaim_ns" | "evicted_bytes_per_second" => NO_OPERATION,
        "refault_ns" | "collateral_ns" => return format!("no touch took {} us or longer", STALL.as_micros()),
        "guest_touches_before" => "the case has no baseline",
        "guest_touches_during" => "no hot loop ran while memory was taken",
        "integrity_errors" => "no page was looked at",
        "guest_counters" => NO_SYSTEM,
        key if key.starts_with("balloon_") || key.starts_with("reported_") => NO_SYSTEM,
        key if key.starts_with("uffd_") => NO_OWN_SWAP,
        key if ACCOUNT.contains(&key) => return sums.why_no_account(),
        _ => NO_STATISTIC,
    };
    why.to_owned()
}

fn known<T>(value: Option<T>) -> Measured<T> {
    value.map_or_else(Measured::absent, Measured::of)
}

fn fill_counts(row: &mut Row, sums: &Sums) {
    let count = |count: Count| known(count.get());
    row.sptes_zapped_4k = count(sums.sptes_zapped_4k);
    row.sptes_zapped_2m = count(sums.sptes_zapped_2m);
    row.remote_tlb_flushes = count(sums.remote_tlb_flushes);
    row.refaults = count(sums.refaults);
    row.collateral_faults = count(sums.collateral_faults);
    row.victims = Measured::of(sums.victims);
    row.victim_bytes = Measured::of(sums.victim_bytes);
    row.evicted_bytes = Measured::of(sums.evicted_bytes);
    row.returned_bytes = known(sums.returned_bytes);
    row.sharing_calls = Measured::of(sums.told.sharing_calls);
    row.double_calls = Measured::of(sums.told.double_calls);
    row.slots_zapped = Measured::of(sums.told.slots_zapped);
    row.zapped_bytes = Measured::of(sums.told.zapped_bytes);
    row.integrity_errors = known(sums.wrong_pages);
    let device = |of: fn(&DeviceCounts) -> u64| known(sums.device.as_ref().map(of));
    row.tlb_entries_dropped = device(|device| device.entries_dropped);
    row.tlb_empty_flushes = device(|device| device.empty_flushes);
    let parts =
        |ranges: Option<Ranges>| (known(ranges.map(|of| of.ranges)), known(ranges.map(|of| of.bytes)));
    let back = sums.given_back;
    (row.balloon_invalidations, row.balloon_bytes) = parts(back.map(|back| back.balloon));
    (row.reported_invalidations, row.reported_bytes) = parts(back.map(|back| back.reported));
    let own = |of: fn(&Swapped) -> u64| known(sums.swapped.as_ref().map(of));
    row.uffd_faults = own(|own| own.faults);
    row.uffd_returned = own(|own| own.returned);
    row.uffd_huge_returns = own(|own| own.huge);
    row.uffd_kept = own(|own| own.kept);
    row.uffd_wakes = own(|own| own.wakes);
    (row.uffd_invalidations, row.uffd_bytes) = parts(sums.swapped.map(|own| own.events));
    row.guest_counters = known(sums.guest_counters.clone());
}

/// What must be known beside the values that are there.
fn notes(row: &Row, sums: &Sums, warnings: &mut Warnings) {
    if let Some(why) = row.label.tried.reclaim.why_stayed().filter(|_| sums.evicted_bytes < sums.victim_bytes)
    {
        let stayed = sums.victim_bytes - sums.evicted_bytes;
        warnings.note("evicted_bytes", format!("{} stayed: {why}", units::bytes(stayed)));
    }
    if let Some(bytes) = sums.returned_bytes.filter(|bytes| *bytes > 0) {
        let returned = units::counted(bytes / PAGE_SIZE, "page");
        warnings.note(
            "refaults",
            format!(
                "back in memory before they were touched: {returned}, as when another's swap device is taken away: \
                 one fault brings several of these"
            ),
        );
    }
    if sums.evicted_bytes == 0 && sums.refaults.get().is_some_and(|faults| faults > 0) {
        warnings.note("refaults", "nothing left: these are faults on the pages that the operation was about");
    }
    if sums.during.is_some() && row.label.tried.zap != Zap::Memslot {
        for key in ["sptes_zapped_4k", "sptes_zapped_2m"] {
            warnings.note(key, "the hot loops ran on: what they had translated again by then is not counted");
        }
    }
    if sums.repeated > 0 {
        let times = units::counted(sums.repeated, "time");
        warnings.say(format!("MADV_PAGEOUT passed over pages in use and was repeated {times}"));
    }
    if sums.lost_stalls > 0 {
        let lost = units::counted(sums.lost_stalls, "stall");
        warnings.note("collateral_ns", format!("{lost} found no room to be written down"));
    }
    if sums.undisturbed_ns.count() > 0 && sums.collateral_ns.count() > 0 {
        let noise = units::counted(sums.undisturbed_ns.count(), "time");
        warnings.note(
            "collateral_ns",
            format!(
                "the undisturbed hot loop, too, stood still this long {noise}: interrupts are among these"
            ),
        );
    }
    if let Err(why) = achieved_by(row, sums) {
        warnings.note("achieved", why);
    }
}

/// Whether a key of the account is a sum over its events.
fn is_sum(key: &str) -> bool {
    key.ends_with("_ranges") || key.ends_with("_bytes")
}

fn fill_account(row: &mut Row, account: &Account, warnings: &mut Warnings) {
    let parts = |ranges: Ranges| (Measured::of(ranges.ranges), Measured::of(ranges.bytes));
    (row.kernel_ranges, row.kernel_bytes) = parts(account.of(By::Step));
    (row.kernel_zap_ranges, row.kernel_zap_bytes) = parts(account.sum(By::is_ours));
    (row.stranger_ranges, row.stranger_bytes) = parts(account.sum(By::is_stranger));
    (row.unattributed_ranges, row.unattributed_bytes) = parts(account.of(By::Unattributed));
    let causes = By::ALL.iter().copied().map(|cause| (cause, account.of(cause)));
    let told = causes.filter(|(_, ranges)| ranges.ranges > 0);
    let totals = |Ranges { ranges, bytes }| CauseTotals { ranges, bytes };
    row.kernel_causes =
        Measured::of(told.map(|(cause, ranges)| (cause.name().to_owned(), totals(ranges))).collect());
    row.lost_events = Measured::of(account.lost);
    let key = "account_differences";
    row.account_differences = match (account.lost, account.compared) {
        (0, 0) => warnings
            .not_measured(key, "of none of its operations it is known beforehand what the kernel announces: it chose, or was asked again for \
                 pages that had stayed",
            ),
        (0, _) => Measured::of(account.differed),
        (lost, _) => {
            let lost = units::counted(lost, "event");
            warnings.not_measured(key, format!("of the kernel's account {lost} got lost"))
        }
    };
    if account.lost > 0 {
        let lost = units::counted(account.lost, "event");
        let why = format!("at least so much: of the kernel's account {lost} got lost");
        ACCOUNT.iter().filter(|key| is_sum(key)).for_each(|key| warnings.note(key, why.as_str()));
    }
    if account.lost == 0 && account.differed > 0 {
        let (differed, how) = (account.differed, account.sentences.join("; "));
        let compared = units::counted(account.compared, "operation");
        warnings.note(key, format!("the kernel announced something else in {differed} of {compared}: {how}"));
    }
    if account.fallbacks > 0 {
        let fallbacks = units::counted(account.fallbacks, "folio");
        warnings.note(
            "kernel_ranges",
            format!("{fallbacks} left page by page: there was no contiguous swap space for them"),
        );
    }
    let unknown = account.of(By::Unattributed);
    if unknown.ranges > 0 {
        let ranges = units::counted(unknown.ranges, "range");
        warnings.note("unattributed_ranges", format!("of {ranges} nobody knows who made them"));
    }
    let strangers = account.sum(By::is_stranger);
    if strangers.ranges > 0 {
        let named =
            By::ALL.iter().copied().filter(|cause| cause.is_stranger() && account.of(*cause).ranges > 0);
        let names: Vec<_> = named.map(By::name).collect();
        warnings.note(
            "stranger_ranges",
            format!("others took memory of the guest meanwhile: {}", names.join(", ")),
        );
    }
}

fn fill_times(row: &mut Row, sums: &Sums) {
    let distribution = |samples: &Samples| known((samples.count() > 0).then(|| samples.summary()));
    row.zap_ns = distribution(&sums.zap_ns);
    row.reclaim_ns = distribution(&sums.reclaim_ns);
    row.refault_ns = distribution(&sums.refault_ns);
    row.collateral_ns = distribution(&sums.collateral_ns);
    let evicted = sums.evicted_bytes.saturating_mul(u64::from(row.trials));
    let times = row.reclaim_ns.as_ref().filter(|times| times.sum > 0);
    row.evicted_bytes_per_second = known(times.map(|times| evicted as f64 * 1e9 / times.sum as f64));
    row.guest_touches_before = known(sums.before.and_then(Rate::per_second));
    row.guest_touches_during = known(sums.during.and_then(Rate::per_second));
    row.achieved = known(achieved_by(row, sums).ok());
}

/// What the victims really were.
fn achieved_by(row: &Row, sums: &Sums) -> Result<BTreeMap<String, f64>, &'static str> {
    let tried = row.label.tried;
    // What a cgroup took is its own choice; everything else takes what it was asked for, or a part.
    let taken = if tried.reclaim == Reclaim::Cgroup { sums.evicted_bytes } else { sums.victim_bytes };
    achieved(tried.backing, &sums.was, taken)
}

/// What the victims really were, as parts of all that was taken: what PMDs mapped, what was as the backing says, and the
/// rest. Or why that is not known.
fn achieved(backing: Backing, was: &Was, all: u64) -> Result<BTreeMap<String, f64>, &'static str> {
    const REST: &str = "other";
    if all == 0 {
        return Err("no step took anything");
    }
    let (large, small) = match backing {
        Backing::Base4k | Backing::Thp => ("thp", "4k"),
        Backing::Memfd | Backing::MemfdThp => ("memfd:thp", "memfd"),
        Backing::Hugetlb2m => ("hugetlb:2m", "4k"),
        Backing::Mthp(_) => ("thp", REST),
    };
    let named = match (backing, was.as_said) {
        (Backing::Mthp(_), Some(bytes)) => bytes,
        (Backing::Mthp(_), None) => {
            return Err("which folios there are is for root to see (/proc/kpageflags)");
        }
        _ => 0,
    };
    let rest = all.saturating_sub(was.by_pmd + named);
    let parts = [(large.to_owned(), was.by_pmd), (backing.to_string(), named), (small.to_owned(), rest)];
    let some = parts.into_iter().filter(|(_, bytes)| *bytes > 0);
    Ok(some.map(|(name, bytes)| (name, bytes as f64 / all as f64)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(
        backing: Backing,
        [by_pmd, as_said]: [u64; 2],
        all: u64,
    ) -> Result<Vec<(String, f64)>, &'static str> {
        let was = Was { resident: all, by_pmd, as_said: Some(as_said) };
        achieved(backing, &was, all).map(|parts| parts.into_iter().collect())
    }

    #[test]
    fn a_label_is_earned() {
        let of = |parts: &[(&str, f64)]| {
            Ok(parts.iter().map(|(name, part)| ((*name).to_owned(), *part)).collect::<Vec<_>>())
        };
        assert_eq!(parts(Backing::Thp, [4, 4], 4), of(&[("thp", 1.0)]));
        assert_eq!(parts(Backing::Thp, [0, 0], 4), of(&[("4k", 1.0)]));
        assert_eq!(parts(Backing::Thp, [1, 1], 4), of(&[("4k", 0.75), ("thp", 0.25)]));
        assert_eq!(parts(Backing::Base4k, [0, 4], 4), of(&[("4k", 1.0)]));
        assert_eq!(parts(Backing::Memfd, [0, 4], 4), of(&[("memfd", 1.0)]));
        assert_eq!(parts(Backing::MemfdThp, [1, 1], 4), of(&[("memfd", 0.75), ("memfd:thp", 0.25)]));
        parts(Backing::Base4k, [0, 0], 0).unwrap_err();
    }

    #[test]
    fn folios_of_a_size_are_those_that_were_seen() {
        let mthp = Backing::mthp(64 << 10).unwrap();
        let of = |parts: &[(&str, f64)]| {
            Ok(parts.iter().map(|(name, part)| ((*name).to_owned(), *part)).collect::<Vec<_>>())
        };
        assert_eq!(parts(mthp, [0, 4], 4), of(&[("mthp:64k", 1.0)]));
        assert_eq!(parts(mthp, [0, 0], 4), of(&[("other", 1.0)]));
        assert_eq!(parts(mthp, [1, 2], 4), of(&[("mthp:64k", 0.5), ("other", 0.25), ("thp", 0.25)]));
        let hidden = Was { resident: 4, by_pmd: 0, as_said: None };
        assert!(achieved(mthp, &hidden, 4).unwrap_err().contains("root"));
        assert!(achieved(Backing::Thp, &hidden, 4).is_ok());
    }
}
