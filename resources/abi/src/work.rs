//! Carrying out a work order: by the bare guest, by an agent, or by a worker on the software MMU.

use crate::block::{Outcome, Stall};
use crate::layout::{MAX_VCPUS, PAGE_SIZE};
use crate::order::{Access, Task, Walk, WorkOrder};
use crate::page::{GOLDEN, LOCKED_WORD, PagePtr, lane_word, mix};

/// What carrying out an order needs of its surroundings.
pub trait Machine {
    /// Why a page could not be reached at all.
    type Fault;

    /// Reaches the page at guest physical address `gpa`, for writing if `write`, and hands it to `with`.
    fn page<R>(&mut self, gpa: u64, write: bool, with: impl FnOnce(PagePtr) -> R) -> Result<R, Self::Fault>;
    /// The time stamp counter, read so that neither earlier nor later accesses cross it.
    fn tsc(&self) -> u64;
    /// Entry `index` of the order's table.
    fn table(&self, index: u64) -> u32;
    /// Whether an order without an end should end.
    fn stop_requested(&self) -> bool;
    /// Publishes the number of visits made so far: a sign of life.
    fn touched(&mut self, total: u64);
    /// Keeps a stall.
    fn stalled(&mut self, stall: Stall);
}

/// Carries out `order` as vCPU `vcpu`.
///
/// # Errors
/// The machine's own, at the first page that cannot be reached.
pub fn run<M: Machine>(machine: &mut M, vcpu: u32, order: &WorkOrder) -> Result<Outcome, M::Fault> {
    let mut visits = Visits::new(order);
    let mut outcome = Outcome { tsc_start: machine.tsc(), ..Outcome::default() };
    match order.task {
        Task::Fill { generation } => {
            while let Some(gpa) = visits.next(machine) {
                machine.page(gpa, true, |page| page.fill(gpa, generation))?;
                outcome.visits += 1;
                machine.touched(outcome.visits);
            }
        }
        Task::Touch { access, passes, stall_cycles } => {
            touch(machine, vcpu, &mut visits, (access, passes, stall_cycles), &mut outcome)?;
        }
        Task::Verify { generation } => {
            while let Some(gpa) = visits.next(machine) {
                verify(machine, gpa, generation, &mut outcome)?;
                machine.touched(outcome.visits);
            }
        }
    }
    outcome.tsc_end = machine.tsc();
    Ok(outcome)
}

fn touch<M: Machine>(
    machine: &mut M,
    vcpu: u32,
    visits: &mut Visits,
    (access, passes, stall_cycles): (Access, Option<u64>, u64),
    outcome: &mut Outcome,
) -> Result<(), M::Fault> {
    let lane = lane_word(vcpu);
    let mut pass = 0;
    machine.touched(0);
    while passes.is_none_or(|passes| pass < passes) {
        while let Some(gpa) = visits.next(machine) {
            let begun = machine.tsc();
            machine.page(gpa, access != Access::Read, |page| match access {
                Access::Read => {
                    page.load(lane);
                }
                Access::Write => page.plain_increment(lane),
                Access::LockedAdd => page.locked_increment(LOCKED_WORD),
            })?;
            let cycles = machine.tsc().wrapping_sub(begun);
            if cycles >= stall_cycles {
                machine.stalled(Stall { gpa, tsc: begun, cycles, visit: outcome.visits });
                outcome.stalls += 1;
            }
            outcome.visits += 1;
            machine.touched(outcome.visits);
            if machine.stop_requested() {
                return Ok(());
            }
        }
        pass += 1;
        visits.rewind();
    }
    Ok(())
}

fn verify<M: Machine>(
    machine: &mut M,
    gpa: u64,
    generation: u64,
    outcome: &mut Outcome,
) -> Result<(), M::Fault> {
    let mismatch = machine.page(gpa, false, |page| {
        outcome.locked_sum = outcome.locked_sum.wrapping_add(page.load(LOCKED_WORD));
        for vcpu in 0..MAX_VCPUS {
            let sum = &mut outcome.lane_sums[vcpu as usize];
            *sum = sum.wrapping_add(page.load(lane_word(vcpu)));
        }
        page.check(gpa, generation)
    })?;
    outcome.visits += 1;
    if let Some(mismatch) = mismatch {
        if outcome.wrong_pages == 0 {
            outcome.wrong_gpa = mismatch.gpa;
            outcome.wrong_expected = mismatch.expected;
            outcome.wrong_found = mismatch.found;
        }
        outcome.wrong_pages += 1;
    }
    Ok(())
}

/// The pages of a walk, one pass at a time.
struct Visits {
    start: u64,
    pages: u64,
    walk: Walk,
    /// Visits made in this pass.
    made: u64,
    random: SplitMix64,
}

impl Visits {
    fn new(order: &WorkOrder) -> Self {
        let seed = match order.walk {
            Walk::Random { seed, .. } | Walk::Zipf { seed, .. } => seed,
            _ => 0,
        };
        Self { start: order.start, pages: order.pages(), walk: order.walk, made: 0, random: SplitMix64(seed) }
    }

    /// The next page's address, or `None` at the end of the pass.
    fn next<M: Machine>(&mut self, machine: &M) -> Option<u64> {
        let step = self.made;
        let index = match self.walk {
            Walk::Sequential => (step < self.pages).then_some(step),
            Walk::Strided { stride } => step.checked_mul(stride).filter(|&index| index < self.pages),
            Walk::Random { count, .. } => (step < count).then(|| self.random.below(self.pages)),
            Walk::Zipf { count, .. } => (step < count).then(|| self.rank(machine)),
            // A list that names a page outside the range names its last page: the order may not leave it.
            Walk::List { count } => {
                (step < count).then(|| u64::from(machine.table(step)).min(self.pages - 1))
            }
        }?;
        self.made += 1;
        Some(self.start + index * PAGE_SIZE)
    }

    fn rewind(&mut self) {
        self.made = 0;
    }

    /// Draws a rank by bisecting the cumulative distribution in the table.
    fn rank<M: Machine>(&mut self, machine: &M) -> u64 {
        let draw = (self.random.next() >> 32) as u32;
        let (mut low, mut high) = (0, self.pages - 1);
        while low < high {
            let middle = low + (high - low) / 2;
            if machine.table(middle) > draw { high = middle } else { low = middle + 1 }
        }
        low
    }
}

/// The generator of Steele, Lea and Flood (2014): small, seedable by any value, good enough to pick pages.
#[derive(Clone, Debug)]
pub struct SplitMix64(pub u64);

impl SplitMix64 {
    /// The next 64 bits.
    #[expect(clippy::should_implement_trait, reason = "it never ends, and is no iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }
    /// A number below `bound`, which is not 0 (Lemire's multiplication; the bias is below `bound / 2^64`).
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::BTreeMap;
    use std::vec::Vec;

    /// Pages in a map, a clock that ticks 10 a page and 1,000 at the first touch of one.
    #[derive(Default)]
    struct Fake {
        pages: BTreeMap<u64, std::boxed::Box<[u64; 512]>>,
        visited: Vec<u64>,
        table: Vec<u32>,
        clock: u64,
        stop_after: Option<u64>,
        stalls: Vec<Stall>,
    }

    impl Machine for Fake {
        type Fault = ();
        fn page<R>(&mut self, gpa: u64, _write: bool, with: impl FnOnce(PagePtr) -> R) -> Result<R, ()> {
            if gpa >= 0x8000_0000 {
                return Err(());
            }
            self.clock += if self.pages.contains_key(&gpa) { 10 } else { 1_000 };
            self.visited.push(gpa);
            let page = self.pages.entry(gpa).or_insert_with(|| std::boxed::Box::new([0; 512]));
            // SAFETY: the box holds a whole page; the test runs in one thread.
            Ok(with(unsafe { PagePtr::new(page.as_mut_ptr()) }))
        }
        fn tsc(&self) -> u64 {
            self.clock
        }
        fn table(&self, index: u64) -> u32 {
            self.table[index as usize]
        }
        fn stop_requested(&self) -> bool {
            self.stop_after.is_some_and(|after| self.visited.len() as u64 >= after)
        }
        fn touched(&mut self, _total: u64) {}
        fn stalled(&mut self, stall: Stall) {
            self.stalls.push(stall);
        }
    }

    fn order(pages: u64, walk: Walk, task: Task) -> WorkOrder {
        WorkOrder { start: 0x4000_0000, len: pages * PAGE_SIZE, walk, task }
    }

    fn touch(access: Access, passes: Option<u64>) -> Task {
        Task::Touch { access, passes, stall_cycles: 500 }
    }

    fn indices(fake: &Fake) -> Vec<u64> {
        fake.visited.iter().map(|gpa| (gpa - 0x4000_0000) / PAGE_SIZE).collect()
    }

    #[test]
    fn walks_visit_what_they_say() {
        for (walk, expected) in [
            (Walk::Sequential, std::vec![0, 1, 2, 3, 4]),
            (Walk::Strided { stride: 2 }, std::vec![0, 2, 4]),
            (Walk::Strided { stride: u64::MAX }, std::vec![0]),
            (Walk::List { count: 3 }, std::vec![4, 1, 4]),
        ] {
            let mut fake = Fake { table: std::vec![4, 1, 99], ..Fake::default() };
            run(&mut fake, 0, &order(5, walk, touch(Access::Read, Some(1)))).unwrap();
            assert_eq!(indices(&fake), expected, "{walk:?}");
        }
    }

    #[test]
    fn random_walks_stay_inside_and_reach_everything() {
        let mut fake = Fake::default();
        let walk = Walk::Random { seed: 3, count: 400 };
        run(&mut fake, 0, &order(16, walk, touch(Access::Read, Some(2)))).unwrap();
        let mut seen = indices(&fake);
        assert_eq!(seen.len(), 800);
        assert_ne!(seen[..400], seen[400..], "the second pass continues the sequence");
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, (0..16).collect::<Vec<_>>());
    }

    #[test]
    fn zipf_follows_its_table() {
        // Half of the draws on page 0, a quarter on page 1, the rest on page 2; page 3 has none.
        let table = std::vec![1 << 31, 3 << 30, u32::MAX, u32::MAX];
        let mut fake = Fake { table, ..Fake::default() };
        let walk = Walk::Zipf { seed: 1, count: 4_000 };
        run(&mut fake, 0, &order(4, walk, touch(Access::Read, Some(1)))).unwrap();
        let count = |page| indices(&fake).iter().filter(|&&index| index == page).count();
        assert!((1_850..2_150).contains(&count(0)) && (900..1_100).contains(&count(1)));
        assert_eq!(count(3), 0);
    }

    #[test]
    fn stalls_are_the_slow_touches_and_counters_count_all() {
        let mut fake = Fake::default();
        let outcome = run(&mut fake, 3, &order(8, Walk::Sequential, touch(Access::Write, Some(2)))).unwrap();
        assert_eq!((outcome.visits, outcome.stalls, fake.stalls.len()), (16, 8, 8));
        assert_eq!(fake.stalls[7], Stall { gpa: 0x4000_7000, tsc: 7_000, cycles: 1_000, visit: 7 });
        run(&mut fake, 0, &order(8, Walk::Sequential, touch(Access::LockedAdd, Some(3)))).unwrap();
        let sums = run(&mut fake, 0, &order(8, Walk::Sequential, Task::Verify { generation: 0 })).unwrap();
        assert_eq!((sums.locked_sum, sums.lane_sums[3], sums.lane_sums[0]), (24, 16, 0));
    }

    #[test]
    fn verify_names_the_first_wrong_page() {
        let mut fake = Fake::default();
        run(&mut fake, 0, &order(4, Walk::Sequential, Task::Fill { generation: 2 })).unwrap();
        let check = order(4, Walk::Sequential, Task::Verify { generation: 2 });
        assert_eq!(run(&mut fake, 0, &check).unwrap().wrong_pages, 0);
        fake.pages.get_mut(&0x4000_2000).unwrap()[70] ^= 1;
        let outcome = run(&mut fake, 0, &check).unwrap();
        assert_eq!((outcome.wrong_pages, outcome.wrong_gpa), (1, 0x4000_2000 + 560));
        assert_eq!(outcome.wrong_expected ^ outcome.wrong_found, 1);
    }

    #[test]
    fn an_order_without_end_ends_when_told_and_a_fault_ends_it_at_once() {
        let mut fake = Fake { stop_after: Some(1_000), ..Fake::default() };
        let outcome = run(&mut fake, 0, &order(7, Walk::Sequential, touch(Access::Read, None))).unwrap();
        assert_eq!(outcome.visits, 1_000);
        let mut outside = order(2, Walk::Sequential, touch(Access::Read, None));
        outside.start = 0x8000_0000;
        assert_eq!(run(&mut Fake::default(), 0, &outside), Err(()));
    }
}
