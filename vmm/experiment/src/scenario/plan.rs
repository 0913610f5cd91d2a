//! A case in one combination, down to the page: which pages each step takes, and which each hot loop visits.

use std::collections::BTreeMap;
use std::ops::Range;

use guest_abi::layout::TABLE_ENTRIES;
use guest_mem::{Backing, PAGE_SIZE, PMD_SIZE};
use rangemap::RangeSet;

use super::error::Problem;
use super::select::{hot_pages, sparse_victims, step_seed, zipf_table};
use super::step::{HotLoop, HotWalk, ReclaimStep, Step, VictimChoice};
use super::vocabulary::{HotPages, Unit};
use crate::choice::Size;

/// The victims of one reclaim step, in the order in which they are taken. Pages count from the beginning of the arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victims {
    /// The first page of unit 0.
    base: u64,
    /// Pages that one operation takes.
    unit_pages: u64,
    units: Units,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Units {
    /// These, by number.
    Listed(Vec<u64>),
    /// All of these, lowest first: not written out, since a range may have millions.
    All(Range<u64>),
}

impl Victims {
    /// Operations that take them; none, as far as the scenario says, if the victims are idle pages.
    pub fn operations(&self) -> u64 {
        match &self.units {
            Units::Listed(units) => units.len() as u64,
            Units::All(units) => units.end - units.start,
        }
    }
    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        self.operations() * self.unit_pages * PAGE_SIZE
    }
    /// The pages of each operation, in the order in which they are taken.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let (listed, all): (&[u64], Range<u64>) = match &self.units {
            Units::Listed(units) => (units, 0..0),
            Units::All(units) => (&[], units.clone()),
        };
        let (base, pages) = (self.base, self.unit_pages);
        listed.iter().copied().chain(all).map(move |unit| base + unit * pages..base + (unit + 1) * pages)
    }
}

/// The pages that a hot loop visits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HotSet {
    /// The vCPU's table: the pages of a list, the distribution of Zipf's law, or nothing.
    pub table: Vec<u32>,
    /// The order's walk, over the whole arena.
    pub walk: guest_abi::order::Walk,
}

/// A case in one combination. Depends on the backing alone: the other axes leave the pages as they are, so
/// that rows can be compared.
#[derive(Clone, Debug)]
pub struct Plan {
    pages: u64,
    /// By the step of the case that takes them.
    victims: BTreeMap<usize, Victims>,
    /// By the step of the case that starts the loop.
    hot: BTreeMap<usize, HotSet>,
}

impl Plan {
    /// Lays out `steps` over an arena of `memory` bytes.
    ///
    /// # Errors
    /// The index of the step that this backing makes impossible, and why.
    pub(super) fn of(
        steps: &[Step],
        backing: Backing,
        memory: u64,
        seed: u64,
    ) -> Result<Self, (usize, Problem)> {
        let pages = memory / PAGE_SIZE;
        let mut plan = Self { pages, victims: BTreeMap::new(), hot: BTreeMap::new() };
        let mut taken = RangeSet::new();
        for (index, step) in steps.iter().enumerate() {
            if let Step::Reclaim(reclaim) = step {
                let victims = victims(reclaim, backing, memory, step_seed(seed, index));
                let victims = victims.map_err(|problem| (index, problem))?;
                victims.iter().for_each(|pages| taken.insert(pages));
                plan.victims.insert(index, victims);
            }
        }
        // Only now is it known which pages no step takes.
        for (index, step) in steps.iter().enumerate() {
            if let Step::Hot(hot) = step {
                let set = hot_set(hot, backing, pages, &taken, step_seed(seed, index));
                plan.hot.insert(index, set.map_err(|problem| (index, problem))?);
            }
        }
        Ok(plan)
    }

    /// Pages of the arena.
    pub fn pages(&self) -> u64 {
        self.pages
    }
    /// The victims of step `step` of the case; `None` if it is no reclaim.
    pub fn victims(&self, step: usize) -> Option<&Victims> {
        self.victims.get(&step)
    }
    /// The hot pages of step `step` of the case; `None` if it starts no hot loop.
    pub fn hot(&self, step: usize) -> Option<&HotSet> {
        self.hot.get(&step)
    }
}

fn hot_set(
    hot: &HotLoop,
    backing: Backing,
    pages: u64,
    victims: &RangeSet<u64>,
    seed: u64,
) -> Result<HotSet, Problem> {
    let table = match hot.walk {
        HotWalk::List { pages: set, count } => {
            let none = RangeSet::new();
            let taken = if set == HotPages::All { &none } else { victims };
            let left = pages - taken.iter().map(|run| run.end - run.start).sum::<u64>();
            let wanted = count.unwrap_or(left);
            if wanted > left || left == 0 {
                return Err(Problem::TooFewOthers { wanted: wanted.max(1), left, backing });
            }
            if wanted > TABLE_ENTRIES {
                return Err(Problem::TableFull { pages: wanted, limit: TABLE_ENTRIES });
            }
            hot_pages(seed, pages, taken, wanted)
        }
        HotWalk::Zipf { exponent, .. } => zipf_table(pages, exponent),
        HotWalk::Sequential | HotWalk::Strided { .. } | HotWalk::Random { .. } => Vec::new(),
    };
    let walk = hot.walk.order(seed, table.len() as u64);
    Ok(HotSet { table, walk })
}

fn victims(reclaim: &ReclaimStep, backing: Backing, memory: u64, seed: u64) -> Result<Victims, Problem> {
    if backing == Backing::Hugetlb2m && reclaim.unit == Unit::Page {
        return Err(Problem::HugetlbPage);
    }
    let unit = reclaim.unit_bytes(backing);
    let unit_pages = unit / PAGE_SIZE;
    match reclaim.victims {
        VictimChoice::Sparse { count } => {
            let available = memory / unit;
            if count > available {
                return Err(Problem::TooManyVictims { count, unit: Size(unit), backing, available });
            }
            Ok(Victims { base: 0, unit_pages, units: Units::Listed(sparse_victims(seed, available, count)) })
        }
        // They are chosen when they are taken.
        VictimChoice::Idle(_) => Ok(Victims { base: 0, unit_pages, units: Units::Listed(Vec::new()) }),
        VictimChoice::Range(range) => {
            let align = if reclaim.unit == Unit::Range { least(backing) } else { unit };
            if !range.start.is_multiple_of(align) || !range.end.is_multiple_of(align) {
                return Err(Problem::RangeUnaligned { align: Size(align), backing });
            }
            let units = Units::All(0..(range.end - range.start) / unit);
            Ok(Victims { base: range.start / PAGE_SIZE, unit_pages, units })
        }
    }
}

/// The least that an operation on a range can take of a backing.
fn least(backing: Backing) -> u64 {
    if backing == Backing::Hugetlb2m { PMD_SIZE } else { PAGE_SIZE }
}
