//! The kernel's account of the steps that took memory: its ranges by cause, and the steps' own, call by call, against what
//! was expected.

use std::collections::BTreeMap;

use guest_mem::{Hva, HvaRange, Order, PAGE_SIZE, PMD_SIZE};

use super::ranges::RangeSums;
use crate::events::{Called, Certainty, ExpectedKind, KernelRange, Ranges};
use notifier_bridge::By;

/// How often a split may be announced beside the first time: by the split of the PMD and by that of the folio (Linux 6.12 and
/// older), and each of them for both mappings that a seam cuts the folio into.
const MOST_REPEATS: usize = 3;

/// Sentences kept about operations that disagree; all are counted.
const MOST_SENTENCES: usize = 3;

/// The kernel's account of some reclaim steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    ranges: RangeSums<()>,
    /// Events that were lost.
    pub lost: u64,
    /// Operations whose ranges were compared with what was expected.
    pub compared: u64,
    /// Those that differed.
    pub differed: u64,
    /// Where and how, of the first few.
    pub sentences: Vec<String>,
    /// Folios of several pages that were to leave whole and left page by page.
    pub fallbacks: u64,
    /// The step that is not complete: its calls, and what the kernel announced for them.
    calls: Vec<Call>,
    of_calls: Vec<(usize, HvaRange)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Call {
    certainty: Certainty,
    expected: Vec<Expected>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Expected {
    range: HvaRange,
    kind: ExpectedKind,
}

impl Account {
    /// Ranges of one cause.
    pub fn of(&self, cause: By) -> Ranges {
        self.sum(|one| one == cause)
    }

    /// Ranges of all causes that `wanted` picks.
    pub fn sum(&self, wanted: impl Fn(By) -> bool) -> Ranges {
        self.ranges.sum(|cause, _, _| wanted(cause))
    }

    /// Operations that differed, if any was compared and no event was lost.
    pub fn differences(&self) -> Option<u64> {
        (self.lost == 0 && self.compared > 0).then_some(self.differed)
    }

    /// A call of the step, on the memory under test.
    pub(super) fn called(&mut self, arena: HvaRange, call: &Called) {
        let range = |first_page: u64, pages: u64| {
            let start = Hva::new(arena.start().get().wrapping_add(first_page.wrapping_mul(PAGE_SIZE)));
            HvaRange::with_len(start, pages.saturating_mul(PAGE_SIZE))
        };
        let expected = call
            .expected
            .iter()
            .filter_map(|one| Some(Expected { range: range(one.first_page, one.pages)?, kind: one.kind }));
        self.calls.push(Call { certainty: call.certainty, expected: expected.collect() });
    }

    /// A range that the kernel announced in the step.
    pub(super) fn announced(&mut self, arena: HvaRange, range: &KernelRange) {
        self.ranges.add(range, None);
        let start = Hva::new(arena.start().get().wrapping_add_signed(range.start));
        if let (Some(call), Some(range)) = (range.call, HvaRange::with_len(start, range.bytes)) {
            self.of_calls.push((call as usize, range));
        }
    }

    /// The account of the step is complete, but for so many events.
    pub(super) fn close(&mut self, lost: u64) {
        self.lost = self.lost.saturating_add(lost);
        let (calls, mut announced) = (std::mem::take(&mut self.calls), std::mem::take(&mut self.of_calls));
        announced.sort_by_key(|(call, _)| *call);
        let mut rest = announced.as_slice();
        for (index, call) in calls.iter().enumerate() {
            let (its, others) = rest.split_at(rest.partition_point(|(of, _)| *of <= index));
            rest = others;
            if call.certainty.is_compared() {
                self.compare(index, call, its.iter().map(|(_, range)| *range).collect());
            }
        }
    }

    fn compare(&mut self, index: usize, call: &Call, mut announced: Vec<HvaRange>) {
        self.compared += 1;
        self.fallbacks += fold_fallbacks(&call.expected, &mut announced);
        if let Some(how) = difference(&call.expected, announced, call.certainty) {
            self.differed += 1;
            if self.sentences.len() < MOST_SENTENCES {
                self.sentences.push(format!("operation {index}: {how}"));
            }
        }
    }

    /// Adds what another account of the same steps says of losses and differences; ranges are of one.
    pub(super) fn pool(&mut self, other: &Self) {
        self.lost = self.lost.saturating_add(other.lost);
        self.compared += other.compared;
        self.differed += other.differed;
        self.fallbacks += other.fallbacks;
        let room = MOST_SENTENCES.saturating_sub(self.sentences.len());
        self.sentences.extend(other.sentences.iter().take(room).cloned());
    }
}

/// Puts folios that were announced as their split and each of their pages in place of these, and says how many there were.
fn fold_fallbacks(expected: &[Expected], announced: &mut Vec<HvaRange>) -> u64 {
    if !expected.iter().any(|expected| matches!(expected.kind, ExpectedKind::Folio(_))) {
        return 0;
    }
    let mut folded = 0;
    announced.sort_by_key(key);
    for &Expected { range: whole, kind } in expected {
        let ExpectedKind::Folio(order) = kind else { continue };
        let starts_before = |at| announced.partition_point(|range| range.start() < at);
        let inside = starts_before(whole.start())..starts_before(whole.end());
        let its = &announced[inside.clone()];
        let splits = its.iter().filter(|range| **range == whole).count();
        // Up to Linux 6.12 the split of a folio that a PMD could map is announced for its mapping, too, mapped so or not.
        let most_splits = if order == Order::PMD { 2 } else { 1 };
        let pages = its.iter().copied().filter(|range| *range != whole);
        if (1..=most_splits).contains(&splits) && pages.eq(whole.pages()) {
            announced.splice(inside, [whole]);
            folded += 1;
        }
    }
    folded
}

fn key(range: &HvaRange) -> (Hva, Hva) {
    (range.start(), range.end())
}

/// How what was announced differs from what was expected, as sets with multiplicity; `None` if it does not.
fn difference(expected: &[Expected], announced: Vec<HvaRange>, certainty: Certainty) -> Option<String> {
    // In order, as they usually are: then there is nothing to sort.
    if announced.len() == expected.len() && announced.iter().zip(expected).all(|(is, was)| *is == was.range) {
        return None;
    }
    // By range: the range, how often it was expected, how often announced, and how often it may come again.
    let mut ranges: BTreeMap<(Hva, Hva), (HvaRange, usize, usize, usize)> = BTreeMap::new();
    for one in expected {
        let (_, wanted, _, again) = ranges.entry(key(&one.range)).or_insert((one.range, 0, 0, 0));
        *wanted += 1;
        *again = if one.kind == ExpectedKind::Split { MOST_REPEATS } else { 0 };
    }
    for range in announced {
        ranges.entry(key(&range)).or_insert((range, 0, 0, 0)).2 += 1;
    }
    let (mut missing, mut extra) = (Vec::new(), Vec::new());
    for (range, wanted, found, again) in ranges.into_values() {
        missing.extend(std::iter::repeat_n(range, wanted.saturating_sub(found)));
        extra.extend(std::iter::repeat_n(range, found.saturating_sub(wanted + again)));
    }
    if certainty == Certainty::AtLeast {
        let blocks = expected.iter().filter_map(|one| one.range.checked_align_outward(PMD_SIZE));
        let blocks: Vec<_> = blocks.collect();
        extra.retain(|range| !blocks.iter().any(|block| block.covers(*range)));
    }
    let listed = |ranges: &[HvaRange]| {
        let some: Vec<_> =
            ranges.iter().take(2).map(|range| format!("{range} ({} bytes)", range.len())).collect();
        some.join(", ")
    };
    let told = |what: &str, ranges: &[HvaRange]| {
        (!ranges.is_empty()).then(|| format!("{} {what}: {}", ranges.len(), listed(ranges)))
    };
    let parts: Vec<String> = [
        told("that the kernel did not announce", &missing),
        told("that the kernel announced beside", &extra),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

#[cfg(test)]
mod tests;
