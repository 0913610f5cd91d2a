//! The warnings of a row: the reason for each null, and what must be known beside the values that are there.

use guest_mem::PAGE_SIZE;
use notifier_bridge::By;

use super::announced::Announced;
use super::measured::Warnings;
use super::row::Row;
use crate::choice::{Listener, RowLabel, Zap};
use crate::fold::{Account, Sums, achieved};
use program::units;

/// The sums over the events of the kernel's account.
const SUMS: [&str; 8] = [
    "kernel_ranges",
    "kernel_bytes",
    "kernel_zap_ranges",
    "kernel_zap_bytes",
    "stranger_ranges",
    "stranger_bytes",
    "unattributed_ranges",
    "unattributed_bytes",
];
/// The reason for null times in a predicted row.
const NO_CLOCK: &str = "a replay counts; it has no clock, no guest and no kernel";

/// The row of so many trials with these sums. `why` gives the reason for the null of some keys.
pub(super) fn row(label: RowLabel, trials: u32, sums: &Sums, why: impl Fn(&str) -> Option<String>) -> Row {
    let replayed = label.listener == Listener::Replay;
    let announced = Announced::of(&label, sums);
    let mut row = Row::of_sums(label, trials, sums, announced.ranges());
    let mut warnings = Warnings::default();
    sums.warnings.iter().for_each(|warning| warnings.say(warning.as_str()));
    announced.note(&row, &mut warnings);
    if let Some(account) = sums.account() {
        account_notes(account, &mut warnings);
    }
    notes(&row, sums, &mut warnings);
    row.warnings = warnings;
    for key in row.unexplained() {
        let usual = || if replayed { NO_CLOCK.to_owned() } else { Row::why_null(key, sums) };
        row.warnings.note(key, why(key).unwrap_or_else(usual));
    }
    row
}

/// Warnings about values that are there.
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
    if let Err(why) = achieved(&row.label.tried, sums) {
        warnings.note("achieved", why);
    }
}

fn account_notes(account: &Account, warnings: &mut Warnings) {
    let key = "account_differences";
    match (account.lost, account.compared) {
        (0, 0) => warnings.note(
            key,
            "of none of its operations it is known beforehand what the kernel announces: it chose, or was asked again for \
             pages that had stayed",
        ),
        (0, _) => {}
        (lost, _) => {
            let lost = units::counted(lost, "event");
            warnings.note(key, format!("of the kernel's account {lost} got lost"));
        }
    }
    if account.lost > 0 {
        let lost = units::counted(account.lost, "event");
        let why = format!("at least so much: of the kernel's account {lost} got lost");
        SUMS.iter().for_each(|key| warnings.note(key, why.as_str()));
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
        warnings.note("unattributed_ranges", format!("the makers of {ranges} are not known"));
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
