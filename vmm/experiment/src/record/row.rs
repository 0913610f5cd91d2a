//! One row: a case in one combination, and what it cost.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::checked::Checked;
use super::measured::{Measured, Warnings};
use crate::choice::{Combination, Listener, PolicyChoice, word};
use program::distribution::Distribution;
use program::output::visible;

/// What tells a row from the others of its run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowLabel {
    /// The case. It is a heading and the name of rows, so it is of one line wherever it was read from.
    #[serde(deserialize_with = "visible::read_line")]
    pub case: String,
    /// What was tried.
    #[serde(flatten)]
    pub tried: Combination,
    /// Who listened.
    #[serde(with = "word")]
    pub listener: Listener,
}

macro_rules! row {
    ($( $(#[$doc:meta])* $key:ident: $type:ty, )+) => {
        /// One row of a run. In `run.json` the label's keys stand beside the others.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct Row {
            /// What was tried.
            #[serde(flatten)]
            pub label: RowLabel,
            /// How many times it was tried: counts are of one trial, times of all of them.
            #[serde(default = "one")]
            pub trials: u32,
            $( $(#[$doc])* #[serde(default = "Measured::absent")] pub $key: Measured<$type>, )+
            /// Why the row has no numbers at all, and what would change that.
            #[serde(default)]
            pub could_not_run: Option<String>,
            /// Why single values are null or doubtful.
            #[serde(default)]
            pub warnings: Warnings,
            /// What came of the case's expectations.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            pub expectations: Vec<Checked>,
            /// The switches of the host that were set for this row, each as the command that sets it.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            pub switches: Vec<String>,
        }

        impl Row {
            /// A row that could not run. Its reason stands for all the warnings it would need.
            pub fn could_not_run(label: RowLabel, why_and_remedy: impl Into<String>) -> Self {
                Self {
                    label,
                    trials: 0,
                    $( $key: Measured::absent(), )+
                    could_not_run: Some(why_and_remedy.into()),
                    warnings: Warnings::default(),
                    expectations: Vec::new(),
                    switches: Vec::new(),
                }
            }

            /// Every key that a row has values under, and what they are.
            pub const KEYS: &[(&str, KeyKind)] =
                &[("granule", KeyKind::Number), ("trials", KeyKind::Number), $( (stringify!($key), <$type as Value>::KIND), )+];

            /// The number under a key (`granule`), or in one (`zap_ns`, `p50`); `None` if it is null or there is none.
            pub fn number(&self, key: &str, field: Option<&str>) -> Option<f64> {
                match key {
                    "granule" => Some(self.label.tried.granule.bytes() as f64),
                    "trials" => Some(f64::from(self.trials)),
                    $( stringify!($key) => self.$key.as_ref().and_then(|value| value.number(field)), )+
                    _ => None,
                }
            }

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

/// Ranges of one cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CauseTotals {
    /// How many ranges.
    pub ranges: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

fn one() -> u32 {
    1
}

/// What stands under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// A number.
    Number,
    /// Times, which have numbers in them.
    Times,
    /// Something else.
    Other,
}

/// What can stand under a key.
trait Value {
    /// Which of the kinds it is.
    const KIND: KeyKind;
    /// Itself as a number, or the number in it that has this name.
    fn number(&self, field: Option<&str>) -> Option<f64>;
}

impl Value for u64 {
    const KIND: KeyKind = KeyKind::Number;
    fn number(&self, field: Option<&str>) -> Option<f64> {
        field.is_none().then_some(*self as f64)
    }
}

impl Value for f64 {
    const KIND: KeyKind = KeyKind::Number;
    fn number(&self, field: Option<&str>) -> Option<f64> {
        field.is_none().then_some(*self)
    }
}

impl Value for Distribution {
    const KIND: KeyKind = KeyKind::Times;
    fn number(&self, field: Option<&str>) -> Option<f64> {
        self.field(field?).map(|value| value as f64)
    }
}

impl<V> Value for BTreeMap<String, V> {
    const KIND: KeyKind = KeyKind::Other;
    fn number(&self, _field: Option<&str>) -> Option<f64> {
        None
    }
}

row! {
    /// What the memory was when it was taken: a fraction for each name, `{"thp": 0.97, "4k": 0.03}`. By pagemap, and of
    /// `mthp` by the flags of page frames: `other` is what was in no whole folio of the size asked for.
    achieved: BTreeMap<String, f64>,
    /// Operations asked for.
    victims: u64,
    /// Bytes asked for.
    victim_bytes: u64,
    /// Bytes really gone.
    evicted_bytes: u64,
    /// Bytes of those that had been swapped out and were back in memory when the guest was asked to touch them, whoever
    /// brought them: a swap device that was taken away, for one. Pages of memory that is there may come back several at
    /// one fault, so `refaults` can be fewer by as many pages.
    returned_bytes: u64,
    /// `evicted_bytes` over the time in the operations that took them: `reclaim_ns`, so without the listener's zaps.
    evicted_bytes_per_second: f64,
    /// Ranges announced for the steps. Under a policy of ours: those that we announced. Under `kernel`: those that the
    /// kernel announced, by its own account, for the steps' operations and, where this process swaps, for its handlers.
    /// Where that account was not kept or is incomplete, `expected_ranges` stands here, with a warning, see
    /// [`Row::is_expected`]; null where that is unknown, too.
    invalidations: u64,
    /// Bytes that had to be covered, whoever announced what. What is needed is decided in one place:
    /// [`notifier_bridge::Invalidation::needed_bytes`].
    needed_bytes: u64,
    /// Bytes of the ranges that `invalidations` counts.
    invalidated_bytes: u64,
    /// `invalidated_bytes` over `needed_bytes`, so 1 or more; null where nothing had to be covered, or less was announced.
    amplification: f64,
    /// Ranges that the kernel was expected to announce for the steps' operations, as pagemap stood before each. Null where
    /// an operation names no address: a cgroup's squeeze, a target.
    expected_ranges: u64,
    /// Bytes of them.
    expected_bytes: u64,
    /// Calls to listeners that share the host's page tables, as the policy makes them.
    sharing_calls: u64,
    /// Those of them that only repeat an earlier one: the double call of the eras before 6.6.
    double_calls: u64,
    /// Cached translations that a device on the host's page tables dropped at these calls.
    tlb_entries_dropped: u64,
    /// Calls at which it found nothing to drop.
    tlb_empty_flushes: u64,
    /// Ranges announced because a Linux guest's balloon gave memory back.
    balloon_invalidations: u64,
    /// Bytes of them.
    balloon_bytes: u64,
    /// Ranges announced because a Linux guest reported pages as free.
    reported_invalidations: u64,
    /// Bytes of them.
    reported_bytes: u64,
    /// Faults that userfaultfd handlers served, where this process swaps.
    uffd_faults: u64,
    /// Pages they brought back from the store; more than faults, if each brings its neighbours.
    uffd_returned: u64,
    /// Blocks of 2 MiB among them that came back as one huge page.
    uffd_huge_returns: u64,
    /// Pages that stayed because they were written to on their way out.
    uffd_kept: u64,
    /// Times a handler was woken.
    uffd_wakes: u64,
    /// Ranges that userfaultfd's events announced: what others did to the mapping.
    uffd_invalidations: u64,
    /// Bytes of them.
    uffd_bytes: u64,
    /// A Linux guest's own counters at the end: of `/proc/vmstat` and of its memory.
    guest_counters: BTreeMap<String, u64>,
    /// Memslots that the listener dropped.
    slots_zapped: u64,
    /// Bytes the listener dropped. A memslot goes whole, so this can be more than was announced.
    zapped_bytes: u64,
    /// Leaf entries of 4 KiB that were dropped.
    sptes_zapped_4k: u64,
    /// Leaf entries of 2 MiB that were dropped.
    sptes_zapped_2m: u64,
    /// Remote TLB flushes.
    remote_tlb_flushes: u64,
    /// Guest faults on pages that had left.
    refaults: u64,
    /// Guest faults on pages that never left.
    collateral_faults: u64,
    /// Time in the listener's zaps.
    zap_ns: Distribution,
    /// Time in the operations that took the memory.
    reclaim_ns: Distribution,
    /// How long the guest stood still at each refault.
    refault_ns: Distribution,
    /// How long it stood still at each collateral fault.
    collateral_ns: Distribution,
    /// Touches a second by the hot loops, undisturbed.
    guest_touches_before: f64,
    /// Touches a second by the hot loops, under pressure.
    guest_touches_during: f64,
    /// Ranges the kernel announced for the steps' own operations, by its own account.
    kernel_ranges: u64,
    /// Bytes of them.
    kernel_bytes: u64,
    /// Ranges it announced in the same span for what else this process did: listeners' zaps, a swapper's protection.
    kernel_zap_ranges: u64,
    /// Bytes of them.
    kernel_zap_bytes: u64,
    /// Ranges it announced in the same span for others: kswapd, khugepaged, another process.
    stranger_ranges: u64,
    /// Bytes of them.
    stranger_bytes: u64,
    /// Ranges of which nobody knows why they were announced.
    unattributed_ranges: u64,
    /// Bytes of them.
    unattributed_bytes: u64,
    /// All these ranges by cause: `{"step": {"ranges": 256, "bytes": 1048576}}`.
    kernel_causes: BTreeMap<String, CauseTotals>,
    /// Operations of which the kernel announced something else than was expected, which the warnings tell of.
    account_differences: u64,
    /// Events of that account that were lost.
    lost_events: u64,
    /// Pages that came back wrong.
    integrity_errors: u64,
}

impl Row {
    /// The keys of what was announced, and of what follows from it.
    pub const ANNOUNCED: [&str; 3] = ["invalidations", "invalidated_bytes", "amplification"];

    /// Fills in [`Row::ANNOUNCED`]: what was announced, and how much that is for each byte that was needed. Less than was
    /// needed is no amplification: then not all went.
    pub fn announce(&mut self, ranges: u64, bytes: u64, needed_bytes: u64, warnings: &mut Warnings) {
        self.invalidations = Measured::of(ranges);
        self.invalidated_bytes = Measured::of(bytes);
        self.amplification = if bytes < needed_bytes {
            let why = "less was announced than had to be covered: not all that was to go went";
            warnings.not_measured("amplification", why)
        } else {
            let why = "nothing had to be invalidated";
            Measured::quotient(bytes as f64, needed_bytes as f64, warnings, "amplification", why)
        };
    }

    /// Whether what stands under [`Row::ANNOUNCED`] is what was expected of the kernel, and nobody measured it.
    pub fn is_expected(&self) -> bool {
        let complete = self.lost_events.get() == Some(0) && !self.kernel_ranges.is_null();
        // Where nothing was asked for, nothing was to be expected.
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

    /// Ranges that nobody of the experiment made: others took memory of the guest while it was measured.
    pub fn strangers(&self) -> u64 {
        let of = |count: &Measured<u64>| count.get().unwrap_or(0);
        of(&self.stranger_ranges).saturating_add(of(&self.unattributed_ranges))
    }

    /// How fast the hot loops ran under pressure, as a part of how fast they run undisturbed.
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
        let of = |bytes, needed| {
            let label = super::super::fixture::label(["a", "4k", "kernel", "pageout", "none", "kernel"]);
            let (mut row, mut warnings) = (Row::could_not_run(label, ""), Warnings::default());
            row.announce(1, bytes, needed, &mut warnings);
            (row.amplification.get(), warnings.explains("amplification"))
        };
        assert_eq!(of(4096, 4096), (Some(1.0), false));
        assert_eq!(of(0, 4096), (None, true), "an expectation of it is skipped, and does not come true");
        assert_eq!(of(4095, 4096), (None, true));
        assert_eq!(of(0, 0), (None, true));
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
