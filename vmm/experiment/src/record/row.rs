//! One row: a case in one combination, and what it cost. Each key of it has one place: its meaning, its value in the sums of
//! the row's events, and the reason for a null.

use std::collections::BTreeMap;

use notifier_bridge::By;
use serde::{Deserialize, Serialize};

use super::checked::Checked;
use super::measured::{Measured, Warnings};
use crate::choice::{Listener, PolicyChoice, RowLabel};
use crate::events::{Ranges, STALL};
use crate::fold::{Account, Rate, Sums, achieved};
use program::distribution::{Distribution, Samples};

/// Declares the row: for each key its doc, type, value and, after `else`, the reason for a null. Both have the label, the
/// number of trials, and the sums of all events; the value has what was announced, too.
macro_rules! row {
    (
        |$label:ident, $trials:ident, $sums:ident, $announced:ident|
        $( $(#[$doc:meta])* $key:ident: $type:ty = $value:expr $(, else $why:expr)?; )+
    ) => {
        /// One row of a run. In `run.json` the label's keys stand beside the others.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct Row {
            /// The case, the combination and the listener.
            #[serde(flatten)]
            pub label: RowLabel,
            /// The number of trials: counts are of one trial, times of all of them.
            #[serde(default = "one")]
            pub trials: u32,
            $( $(#[$doc])* pub $key: Measured<$type>, )+
            /// The reason for a row without numbers, and the remedy.
            pub could_not_run: Option<String>,
            /// The reasons for values that are null or doubtful.
            #[serde(default)]
            pub warnings: Warnings,
            /// The case's expectations, checked.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            pub expectations: Vec<Checked>,
            /// The switches of the host that were set for this row, each as the command that sets it.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            pub switches: Vec<String>,
        }

        impl Row {
            /// A row that could not run. Its reason stands for all the warnings it would need.
            pub fn could_not_run(label: RowLabel, why_and_remedy: impl Into<String>) -> Self {
                Self { could_not_run: Some(why_and_remedy.into()), ..Self::without_values(label) }
            }

            fn without_values(label: RowLabel) -> Self {
                Self {
                    label,
                    trials: 0,
                    $( $key: Measured::absent(), )+
                    could_not_run: None,
                    warnings: Warnings::default(),
                    expectations: Vec::new(),
                    switches: Vec::new(),
                }
            }

            /// The row of so many trials, for which so much was announced. It has no warnings yet.
            pub(crate) fn of_sums($label: RowLabel, $trials: u32, $sums: &Sums, $announced: Option<Ranges>) -> Self {
                $( let $key = Measured::known($value); )+
                Self { trials: $trials, $( $key, )+ ..Self::without_values($label) }
            }

            /// The reason for the null of a key in a row with these sums.
            pub(crate) fn why_null(key: &str, $sums: &Sums) -> String {
                match key {
                    $($( stringify!($key) => String::from($why), )?)+
                    _ => "this KVM has no such statistic".to_owned(),
                }
            }

            /// Every key that a row has values under, and what they are.
            pub const KEYS: &[(&str, KeyKind)] =
                &[("granule", KeyKind::Number), ("trials", KeyKind::Number), $( (stringify!($key), <$type as Value>::KIND), )+];

            /// The keys that are null though nothing says why: a record's fault, not a host's.
            pub fn unexplained(&self) -> Vec<&'static str> {
                if self.could_not_run.is_some() {
                    return Vec::new();
                }
                let nulls = [$( (stringify!($key), self.$key.is_null()), )+];
                nulls.into_iter().filter(|(key, null)| *null && !self.warnings.explains(key)).map(|(key, _)| key).collect()
            }
        }
    };
}

const NO_DEVICE: &str = "no device shares the host's page tables: set `shared_tlb = true` in the scenario";
const NO_SYSTEM: &str = "no operating system runs in the guest that could give memory back";
const NO_OWN_SWAP: &str = "the kernel swaps in this row: `reclaim = [\"uffd\"]` is swap in user space";
const NOT_LOOKED: &str = "it is looked for where the kernel swaps, before a step `refault`";
const NO_OPERATION: &str = "no operation by address was performed";

fn one() -> u32 {
    1
}

/// The kind of value under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// A number.
    Number,
    /// Times, which have numbers in them.
    Times,
    /// Something else.
    Other,
}

/// A value under a key.
trait Value {
    const KIND: KeyKind;
}

impl Value for u64 {
    const KIND: KeyKind = KeyKind::Number;
}

impl Value for f64 {
    const KIND: KeyKind = KeyKind::Number;
}

impl Value for Distribution {
    const KIND: KeyKind = KeyKind::Times;
}

impl<V> Value for BTreeMap<String, V> {
    const KIND: KeyKind = KeyKind::Other;
}

/// Times, if there are any.
fn times(samples: &Samples) -> Option<Distribution> {
    (samples.count() > 0).then(|| samples.summary())
}

/// The kernel's ranges by cause, of those that have any.
fn by_cause(account: &Account) -> BTreeMap<String, Ranges> {
    let all = By::ALL.iter().map(|&cause| (cause, account.of(cause)));
    all.filter(|(_, of)| of.ranges > 0).map(|(cause, of)| (cause.name().to_owned(), of)).collect()
}

row! {
    |label, trials, sums, announced|
    /// The backing that the memory really had when it was taken: a fraction for each name, `{"thp": 0.97, "4k": 0.03}`. By pagemap, and of
    /// `mthp` by the flags of page frames: `other` is what was in no whole folio of the size asked for.
    achieved: BTreeMap<String, f64> = achieved(&label.tried, sums).ok();
    /// Operations asked for.
    victims: u64 = Some(sums.victims);
    /// Bytes asked for.
    victim_bytes: u64 = Some(sums.victim_bytes);
    /// Bytes really gone.
    evicted_bytes: u64 = Some(sums.evicted_bytes);
    /// Bytes of those that had been swapped out and were back in memory when the guest was asked to touch them: brought
    /// back by a swap device that was taken away, for one. Pages of memory that is there may come back several at
    /// one fault, so `refaults` can be fewer by as many pages.
    returned_bytes: u64 = sums.returned_bytes, else NOT_LOOKED;
    /// `evicted_bytes` over the time in the operations that took them: `reclaim_ns`, so without the listener's zaps.
    evicted_bytes_per_second: f64 = sums.evicted_bytes_per_second(trials), else NO_OPERATION;
    /// Ranges announced for the steps. Under a policy of ours: those that we announced. Under `kernel`: those that the
    /// kernel announced, by its own account, for the steps' operations and, where this process swaps, for its handlers.
    /// Where that account was not kept or is incomplete, `expected_ranges` stands here, with a warning, see
    /// [`Row::is_expected`]; null where that is unknown, too.
    invalidations: u64 = announced.map(|of| of.ranges);
    /// Bytes that had to be covered, under any policy: see [`notifier_bridge::Invalidation::needed_bytes`].
    needed_bytes: u64 = Some(sums.announced.needed_bytes);
    /// Bytes of the ranges that `invalidations` counts.
    invalidated_bytes: u64 = announced.map(|of| of.bytes);
    /// `invalidated_bytes` over `needed_bytes`, so 1 or more; null where nothing had to be covered, or less was announced.
    amplification: f64 = announced.and_then(|of| amplification(of.bytes, sums.announced.needed_bytes).ok());
    /// Ranges that the kernel was expected to announce for the steps' operations, as pagemap stood before each. Null where
    /// an operation names no address: a cgroup's squeeze, a target.
    expected_ranges: u64 = sums.expected.filter(|_| label.listener != Listener::Replay).map(|of| of.ranges);
    /// Bytes of them.
    expected_bytes: u64 = sums.expected.filter(|_| label.listener != Listener::Replay).map(|of| of.bytes);
    /// Calls to listeners that share the host's page tables, as the policy makes them.
    sharing_calls: u64 = Some(sums.announced.sharing_calls);
    /// Those of them that only repeat an earlier one: the double call of the eras before 6.6.
    double_calls: u64 = Some(sums.announced.double_calls);
    /// Cached translations that a device on the host's page tables dropped at these calls.
    tlb_entries_dropped: u64 = sums.device.map(|of| of.entries_dropped), else NO_DEVICE;
    /// Calls at which it found nothing to drop.
    tlb_empty_flushes: u64 = sums.device.map(|of| of.empty_flushes), else NO_DEVICE;
    /// Ranges announced because a Linux guest's balloon gave memory back.
    balloon_invalidations: u64 = sums.given_back.map(|of| of.balloon.ranges), else NO_SYSTEM;
    /// Bytes of them.
    balloon_bytes: u64 = sums.given_back.map(|of| of.balloon.bytes), else NO_SYSTEM;
    /// Ranges announced because a Linux guest reported pages as free.
    reported_invalidations: u64 = sums.given_back.map(|of| of.reported.ranges), else NO_SYSTEM;
    /// Bytes of them.
    reported_bytes: u64 = sums.given_back.map(|of| of.reported.bytes), else NO_SYSTEM;
    /// Faults that userfaultfd handlers served, where this process swaps.
    uffd_faults: u64 = sums.swapped.map(|of| of.faults), else NO_OWN_SWAP;
    /// Pages they brought back from the store; more than faults, if each brings its neighbours.
    uffd_returned: u64 = sums.swapped.map(|of| of.returned), else NO_OWN_SWAP;
    /// Blocks of 2 MiB among them that came back as one huge page.
    uffd_huge_returns: u64 = sums.swapped.map(|of| of.huge), else NO_OWN_SWAP;
    /// Pages that stayed because they were written to on their way out.
    uffd_kept: u64 = sums.swapped.map(|of| of.kept), else NO_OWN_SWAP;
    /// Times a handler was woken.
    uffd_wakes: u64 = sums.swapped.map(|of| of.wakes), else NO_OWN_SWAP;
    /// Ranges that userfaultfd's events announced: what others did to the mapping.
    uffd_invalidations: u64 = sums.swapped.map(|of| of.events.ranges), else NO_OWN_SWAP;
    /// Bytes of them.
    uffd_bytes: u64 = sums.swapped.map(|of| of.events.bytes), else NO_OWN_SWAP;
    /// A Linux guest's own counters at the end: of `/proc/vmstat` and of its memory.
    guest_counters: BTreeMap<String, u64> = sums.guest_counters.clone(), else NO_SYSTEM;
    /// Memslots that the listener dropped.
    slots_zapped: u64 = Some(sums.announced.slots_zapped);
    /// Bytes the listener dropped. A memslot goes whole, so this can be more than was announced.
    zapped_bytes: u64 = Some(sums.announced.zapped_bytes);
    /// Leaf entries of 4 KiB that were dropped.
    sptes_zapped_4k: u64 = sums.sptes_zapped_4k.get();
    /// Leaf entries of 2 MiB that were dropped.
    sptes_zapped_2m: u64 = sums.sptes_zapped_2m.get();
    /// Remote TLB flushes.
    remote_tlb_flushes: u64 = sums.remote_tlb_flushes.get();
    /// Guest faults on pages that had left.
    refaults: u64 = sums.refaults.get();
    /// Guest faults on pages that never left.
    collateral_faults: u64 = sums.collateral_faults.get();
    /// Time in the listener's zaps.
    zap_ns: Distribution = times(&sums.zap_ns), else "no listener but the kernel's own, whose zap is part of the operation";
    /// Time in the operations that took the memory.
    reclaim_ns: Distribution = times(&sums.reclaim_ns), else NO_OPERATION;
    /// The stall of the guest at each refault.
    refault_ns: Distribution = times(&sums.refault_ns), else no_stall();
    /// The stall of the guest at each collateral fault.
    collateral_ns: Distribution = times(&sums.collateral_ns), else no_stall();
    /// Touches a second by the hot loops, undisturbed.
    guest_touches_before: f64 = sums.before.and_then(Rate::per_second), else "the case has no baseline";
    /// Touches a second by the hot loops, under pressure.
    guest_touches_during: f64 = sums.during.and_then(Rate::per_second), else "no hot loop ran while memory was taken";
    /// Ranges the kernel announced for the steps' own operations, by its own account.
    kernel_ranges: u64 = sums.account().map(|of| of.of(By::Step).ranges), else sums.why_no_account();
    /// Bytes of them.
    kernel_bytes: u64 = sums.account().map(|of| of.of(By::Step).bytes), else sums.why_no_account();
    /// Ranges it announced in the same span for what else this process did: listeners' zaps, a swapper's protection.
    kernel_zap_ranges: u64 = sums.account().map(|of| of.sum(By::is_ours).ranges), else sums.why_no_account();
    /// Bytes of them.
    kernel_zap_bytes: u64 = sums.account().map(|of| of.sum(By::is_ours).bytes), else sums.why_no_account();
    /// Ranges it announced in the same span for others: kswapd, khugepaged, another process.
    stranger_ranges: u64 = sums.account().map(|of| of.sum(By::is_stranger).ranges), else sums.why_no_account();
    /// Bytes of them.
    stranger_bytes: u64 = sums.account().map(|of| of.sum(By::is_stranger).bytes), else sums.why_no_account();
    /// Ranges whose cause is unknown.
    unattributed_ranges: u64 = sums.account().map(|of| of.of(By::Unattributed).ranges), else sums.why_no_account();
    /// Bytes of them.
    unattributed_bytes: u64 = sums.account().map(|of| of.of(By::Unattributed).bytes), else sums.why_no_account();
    /// All these ranges by cause: `{"step": {"ranges": 256, "bytes": 1048576}}`.
    kernel_causes: BTreeMap<String, Ranges> = sums.account().map(by_cause), else sums.why_no_account();
    /// Operations of which the kernel announced something else than was expected, which the warnings tell of.
    account_differences: u64 = sums.account().and_then(Account::differences), else sums.why_no_account();
    /// Events of that account that were lost.
    lost_events: u64 = sums.account().map(|of| of.lost), else sums.why_no_account();
    /// Pages that came back wrong.
    integrity_errors: u64 = sums.wrong_pages, else "no page was looked at";
}

fn no_stall() -> String {
    format!("no touch took {} us or longer", STALL.as_micros())
}

/// The bytes announced for each byte that was needed, or the reason why there is no such number. Less than was needed is no
/// amplification: then not all pages left.
pub(crate) fn amplification(announced: u64, needed: u64) -> Result<f64, &'static str> {
    match (announced, needed) {
        (announced, needed) if announced < needed => {
            Err("less was announced than had to be covered: not all that was to go went")
        }
        (_, 0) => Err("nothing had to be invalidated"),
        (announced, needed) => Ok(announced as f64 / needed as f64),
    }
}

impl Row {
    /// The keys of what was announced, and of what follows from it.
    pub const ANNOUNCED: [&str; 3] = ["invalidations", "invalidated_bytes", "amplification"];

    /// The number under a key (`granule`), or in one (`zap_ns`, `p50`); `None` if it is null or there is none.
    pub fn number(&self, key: &str, field: Option<&str>) -> Option<f64> {
        let row = serde_json::to_value(self).ok()?;
        let value = &row[key];
        field.map_or(value, |field| &value[field]).as_f64()
    }

    /// Whether what stands under [`Row::ANNOUNCED`] is what was expected of the kernel, and was not measured.
    pub fn is_expected(&self) -> bool {
        let complete = self.lost_events.get() == Some(0) && !self.kernel_ranges.is_null();
        // A row that asked for nothing expects nothing.
        let asked = self.victims.get() != Some(0) || self.invalidations.get() != Some(0);
        self.label.tried.policy == PolicyChoice::Kernel
            && self.label.listener != Listener::Replay
            && !self.invalidations.is_null()
            && asked
            && !complete
    }

    /// Whether the kernel announced something else than was expected of it.
    pub fn differs(&self) -> bool {
        self.account_differences.get().is_some_and(|differing| differing > 0)
    }

    /// Ranges that the experiment did not make: others took memory of the guest while it was measured.
    pub fn strangers(&self) -> u64 {
        let of = |count: &Measured<u64>| count.get().unwrap_or(0);
        of(&self.stranger_ranges).saturating_add(of(&self.unattributed_ranges))
    }

    /// The speed of the hot loops under pressure, as a part of their undisturbed speed.
    pub fn hot_loop_ratio(&self) -> Option<f64> {
        let (before, during) = (self.guest_touches_before.get()?, self.guest_touches_during.get()?);
        let ratio = during / before;
        (before > 0.0 && ratio.is_finite()).then_some(ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_than_was_needed_is_no_amplification() {
        assert_eq!(amplification(6144, 4096), Ok(1.5));
        assert!(amplification(0, 4096).is_err(), "an expectation of it is skipped, and does not come true");
        assert!(amplification(4095, 4096).is_err() && amplification(0, 0).is_err());
    }

    #[test]
    fn a_hot_loop_that_stood_still_before_has_no_ratio() {
        let text = |before: f64| {
            format!(
                r#"{{"case":"a","backing":"4k","policy":"folio","reclaim":"pageout","granule":4096,"zap":"protect",
                "listener":"soft-mmu","guest_touches_before":{before},"guest_touches_during":50.0}}"#
            )
        };
        let ratio = |before| serde_json::from_str::<Row>(&text(before)).unwrap().hot_loop_ratio();
        assert_eq!((ratio(100.0), ratio(0.0)), (Some(0.5), None));
    }
}
