//! From what a trial measured to a row of the run record.

use std::collections::BTreeMap;

use guest_mem::{Backing, Earned, PAGE_SIZE};
use notifier_bridge::{Count, SharedTlbStats};

use super::announced;
use super::measured::{Measured as Trial, Rate};
use super::own_swap::Returned;
use super::trial::STALL;
use crate::choice::{Reclaim, Zap};
use crate::record::{CauseTotals, Measured, Row, RowLabel, Samples, Warnings};
use crate::tap::{Account, RangeCause, Ranges};
use crate::testbed::GivenBack;
use crate::units;

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
/// Why a count by KVM may be missing.
const NO_STATISTIC: &str = "this KVM has no such statistic";

/// The row of `trials` trials pooled into `measured`. `no_account` says why the kernel's own account is missing, if it is.
pub fn row(
    label: RowLabel,
    backing: Backing,
    trials: u32,
    measured: &Trial,
    no_account: Option<&str>,
) -> Row {
    let mut row = Row::could_not_run(label, "");
    row.could_not_run = None;
    row.trials = trials;
    let mut warnings = Warnings::default();
    measured.warnings.iter().for_each(|warning| warnings.say(warning.as_str()));
    fill_counts(&mut row, backing, measured, &mut warnings);
    announced::fill(&mut row, measured, no_account, &mut warnings);
    fill_times(&mut row, measured, &mut warnings);
    match (&measured.kernel, no_account) {
        (Some(account), None) => fill_account(&mut row, account, &mut warnings),
        (_, why) => {
            let why = why.unwrap_or("no step took memory");
            ACCOUNT.iter().for_each(|key| warnings.note(key, why));
        }
    }
    row.warnings = warnings;
    debug_assert_eq!(row.unexplained(), Vec::<&str>::new());
    row
}

fn fill_counts(row: &mut Row, backing: Backing, measured: &Trial, warnings: &mut Warnings) {
    let (counts, totals) = (&measured.counts, &measured.counts.totals);
    let mut known = |key: &str, count: Count| Measured::or_why(count.get(), warnings, key, NO_STATISTIC);
    row.sptes_zapped_4k = known("sptes_zapped_4k", counts.sptes_zapped_4k);
    row.sptes_zapped_2m = known("sptes_zapped_2m", counts.sptes_zapped_2m);
    row.remote_tlb_flushes = known("remote_tlb_flushes", counts.remote_tlb_flushes);
    row.refaults = known("refaults", counts.refaults);
    row.collateral_faults = known("collateral_faults", counts.collateral_faults);
    // What a cgroup took is its own choice; everything else takes what it was asked for, or a part.
    let taken =
        if row.label.tried.reclaim == Reclaim::Cgroup { counts.evicted_bytes } else { counts.victim_bytes };
    row.achieved = match achieved(backing, &counts.was, taken) {
        Ok(fractions) => Measured::of(fractions),
        Err(why) => warnings.not_measured("achieved", why),
    };
    row.victims = Measured::of(counts.victims);
    row.victim_bytes = Measured::of(counts.victim_bytes);
    row.evicted_bytes = Measured::of(counts.evicted_bytes);
    row.returned_bytes = Measured::or_why(counts.returned_bytes, warnings, "returned_bytes", NOT_LOOKED);
    row.sharing_calls = Measured::of(totals.sharing_calls);
    row.double_calls = Measured::of(totals.double_calls);
    let device = |of: fn(&SharedTlbStats) -> u64| counts.device.as_ref().map(of);
    let mut seen = |key: &str, value| Measured::or_why(value, warnings, key, NO_DEVICE);
    row.tlb_entries_dropped = seen("tlb_entries_dropped", device(|stats| stats.entries_dropped));
    row.tlb_empty_flushes = seen("tlb_empty_flushes", device(|stats| stats.empty_flushes));
    let back = |of: fn(&GivenBack) -> u64| counts.given_back.as_ref().map(of);
    let mut told = |key: &str, value| Measured::or_why(value, warnings, key, NO_SYSTEM);
    row.balloon_invalidations = told("balloon_invalidations", back(|back| back.balloon.invalidations));
    row.balloon_bytes = told("balloon_bytes", back(|back| back.balloon.needed_bytes));
    row.reported_invalidations = told("reported_invalidations", back(|back| back.reported.invalidations));
    row.reported_bytes = told("reported_bytes", back(|back| back.reported.needed_bytes));
    let own = |of: fn(&Returned) -> u64| counts.own_swap.as_ref().map(of);
    let mut served = |key: &str, value| Measured::or_why(value, warnings, key, NO_OWN_SWAP);
    row.uffd_faults = served("uffd_faults", own(|own| own.handlers.faults));
    row.uffd_returned = served("uffd_returned", own(|own| own.handlers.returned));
    row.uffd_huge_returns = served("uffd_huge_returns", own(|own| own.handlers.huge));
    row.uffd_kept = served("uffd_kept", own(|own| own.handlers.kept));
    row.uffd_wakes = served("uffd_wakes", own(|own| own.handlers.wakes));
    row.uffd_invalidations = served("uffd_invalidations", own(|own| own.events.invalidations));
    row.uffd_bytes = served("uffd_bytes", own(|own| own.events.invalidated_bytes));
    row.guest_counters =
        Measured::or_why(measured.guest_counters.clone(), warnings, "guest_counters", NO_SYSTEM);
    row.slots_zapped = Measured::of(totals.slots_zapped);
    row.zapped_bytes = Measured::of(totals.zapped_bytes);
    row.integrity_errors = Measured::of(counts.integrity_errors);
    let why_stayed = row.label.tried.reclaim.why_stayed();
    if let Some(why) = why_stayed.filter(|_| counts.evicted_bytes < counts.victim_bytes) {
        let stayed = counts.victim_bytes - counts.evicted_bytes;
        warnings.note("evicted_bytes", format!("{} stayed: {why}", units::bytes(stayed)));
    }
    if counts.returned_bytes.is_some_and(|bytes| bytes > 0) {
        let returned = units::counted(counts.returned_bytes.unwrap_or(0) / PAGE_SIZE, "page");
        warnings.note(
            "refaults",
            format!(
                "back in memory before they were touched: {returned}, as when another's swap device is taken away: \
                 one fault brings several of these"
            ),
        );
    }
    if counts.evicted_bytes == 0 && counts.refaults.get().is_some_and(|faults| faults > 0) {
        warnings.note("refaults", "nothing left: these are faults on the pages that the operation was about");
    }
    if measured.during.is_some() && row.label.tried.zap != Zap::Memslot {
        for key in ["sptes_zapped_4k", "sptes_zapped_2m"] {
            warnings.note(key, "the hot loops ran on: what they had translated again by then is not counted");
        }
    }
    if counts.repeated > 0 {
        let times = units::counted(counts.repeated, "time");
        warnings.say(format!("MADV_PAGEOUT passed over pages in use and was repeated {times}"));
    }
    if counts.lost_records > 0 {
        let lost = units::counted(counts.lost_records, "invalidation");
        warnings.note("zap_ns", format!("the times of {lost} found the ledger full"));
    }
    if counts.lost_stalls > 0 {
        let lost = units::counted(counts.lost_stalls, "stall");
        warnings.note("collateral_ns", format!("{lost} found no room to be written down"));
    }
}

/// Whether a key of the account is a sum over its events.
fn is_sum(key: &str) -> bool {
    key.ends_with("_ranges") || key.ends_with("_bytes")
}

fn fill_account(row: &mut Row, account: &Account, warnings: &mut Warnings) {
    let parts = |ranges: Ranges| (Measured::of(ranges.ranges), Measured::of(ranges.bytes));
    (row.kernel_ranges, row.kernel_bytes) = parts(account.of(RangeCause::Step));
    (row.kernel_zap_ranges, row.kernel_zap_bytes) = parts(account.sum(RangeCause::is_ours));
    (row.stranger_ranges, row.stranger_bytes) = parts(account.sum(RangeCause::is_stranger));
    (row.unattributed_ranges, row.unattributed_bytes) = parts(account.of(RangeCause::Unattributed));
    let causes = RangeCause::ALL.into_iter().map(|cause| (cause, account.of(cause)));
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
    let unknown = account.of(RangeCause::Unattributed);
    if unknown.ranges > 0 {
        let ranges = units::counted(unknown.ranges, "range");
        warnings.note("unattributed_ranges", format!("of {ranges} nobody knows who made them"));
    }
    let strangers = account.sum(RangeCause::is_stranger);
    if strangers.ranges > 0 {
        let named =
            RangeCause::ALL.into_iter().filter(|cause| cause.is_stranger() && account.of(*cause).ranges > 0);
        let names: Vec<_> = named.map(RangeCause::name).collect();
        warnings.note(
            "stranger_ranges",
            format!("others took memory of the guest meanwhile: {}", names.join(", ")),
        );
    }
}

fn fill_times(row: &mut Row, measured: &Trial, warnings: &mut Warnings) {
    let times = &measured.times;
    let mut distribution = |key: &str, samples: &Samples, why: &str| match samples.count() {
        0 => warnings.not_measured(key, why),
        _ => Measured::of(samples.summary()),
    };
    row.zap_ns = distribution(
        "zap_ns",
        &times.zap,
        "no listener but the kernel's own, whose zap is part of the operation",
    );
    const NO_OPERATION: &str = "no operation by address was performed";
    row.reclaim_ns = distribution("reclaim_ns", &times.reclaim, NO_OPERATION);
    let none = format!("no touch took {} us or longer", STALL.as_micros());
    row.refault_ns = distribution("refault_ns", &times.refault, &none);
    row.collateral_ns = distribution("collateral_ns", &times.collateral, &none);
    let evicted = measured.counts.evicted_bytes * u64::from(row.trials);
    let rate = row
        .reclaim_ns
        .as_ref()
        .filter(|times| times.sum > 0)
        .map(|times| evicted as f64 * 1e9 / times.sum as f64);
    row.evicted_bytes_per_second = Measured::or_why(rate, warnings, "evicted_bytes_per_second", NO_OPERATION);
    if times.undisturbed.count() > 0 && times.collateral.count() > 0 {
        let noise = units::counted(times.undisturbed.count(), "time");
        warnings.note(
            "collateral_ns",
            format!(
                "the undisturbed hot loop, too, stood still this long {noise}: interrupts are among these"
            ),
        );
    }
    let mut rate = |key: &str, rate: Option<Rate>, why: &str| {
        Measured::or_why(rate.and_then(Rate::per_second), warnings, key, why)
    };
    row.guest_touches_before = rate("guest_touches_before", measured.before, "the case has no baseline");
    row.guest_touches_during =
        rate("guest_touches_during", measured.during, "no hot loop ran while memory was taken");
}

/// What the victims really were, as parts of all that was taken: what PMDs mapped, what was as the backing says, and the
/// rest. Or why that is not known.
fn achieved(backing: Backing, was: &Earned, all: u64) -> Result<BTreeMap<String, f64>, &'static str> {
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
        let was = Earned { resident: all, by_pmd, as_said: Some(as_said) };
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
        let hidden = Earned { resident: 4, by_pmd: 0, as_said: None };
        assert!(achieved(mthp, &hidden, 4).unwrap_err().contains("root"));
        assert!(achieved(Backing::Thp, &hidden, 4).is_ok());
    }
}
