//! One thread, every interleaving: faults are cut into their phases, brackets into start, change and end.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::bridge::Bridge;
use crate::doubles::folio_at;
use crate::event::Invalidation;
use crate::policy::Policy;
use crate::soft_mmu::fault::{Resolved, Snapshotted};

/// Pages where something happens: both ends of the regions and of the slots.
const PLACES: [u64; 10] = [0, 1, 2, 510, 511, 512, 513, 767, 768, 1023];

#[derive(Clone, Copy, Debug)]
enum Step {
    Snapshot { fault: usize, page: u64 },
    Resolve { fault: usize },
    Install { fault: usize },
    Start { page: u64, pages: u64 },
    Change { bracket: usize },
    End { bracket: usize },
    Collapse { region: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let fault = 0usize..3;
    prop_oneof![
        3 => (fault.clone(), select(&PLACES[..])).prop_map(|(fault, page)| Step::Snapshot { fault, page }),
        3 => fault.clone().prop_map(|fault| Step::Resolve { fault }),
        3 => fault.prop_map(|fault| Step::Install { fault }),
        2 => (select(&PLACES[..]), select(vec![1, 2, 16, 512]))
            .prop_map(|(page, pages)| Step::Start { page, pages: pages.min(PAGES - page) }),
        2 => any::<usize>().prop_map(|bracket| Step::Change { bracket }),
        2 => any::<usize>().prop_map(|bracket| Step::End { bracket }),
        1 => (0u64..2).prop_map(|region| Step::Collapse { region }),
    ]
}

/// Where a fault stands.
#[derive(Default)]
enum Phase<'m> {
    #[default]
    Idle,
    Snapshotted(Snapshotted<'m, FakePrimary>),
    Resolved(Resolved<'m, FakePrimary>),
}

/// The system, and what the test knows of it.
struct Model<'m> {
    mmu: &'m Mmu,
    faults: [Phase<'m>; 3],
    brackets: Vec<HvaRange>,
    ended: u64,
}

impl<'m> Model<'m> {
    fn take(&mut self, step: Step) {
        match step {
            Step::Snapshot { fault: which, page } => {
                self.faults[which] = Phase::Snapshotted(fault(self.mmu, page).snapshot());
            }
            Step::Resolve { fault } => self.advance(fault, |phase| match phase {
                Phase::Snapshotted(snapshotted) => Phase::Resolved(snapshotted.resolve().unwrap()),
                other => other,
            }),
            Step::Install { fault } => self.advance(fault, |phase| match phase {
                Phase::Resolved(resolved) => {
                    resolved.install();
                    Phase::Idle
                }
                other => other,
            }),
            Step::Start { page, pages } => self.start(memory(page, pages)),
            Step::Change { bracket } if !self.brackets.is_empty() => {
                self.mmu.primary.change(self.brackets[bracket % self.brackets.len()]);
            }
            Step::End { bracket } if !self.brackets.is_empty() => self.end(bracket % self.brackets.len()),
            Step::Change { .. } | Step::End { .. } => {}
            Step::Collapse { region } => {
                self.start(memory(region * 512, 512));
                self.mmu.primary.collapse(region);
                self.end(self.brackets.len() - 1);
            }
        }
    }

    fn advance(&mut self, fault: usize, step: impl FnOnce(Phase<'m>) -> Phase<'m>) {
        self.faults[fault] = step(std::mem::take(&mut self.faults[fault]));
    }

    fn start(&mut self, range: HvaRange) {
        self.mmu.invalidate_range_start(range);
        self.brackets.push(range);
    }

    fn end(&mut self, bracket: usize) {
        self.mmu.invalidate_range_end(self.brackets.swap_remove(bracket));
        self.ended += 1;
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let stale = stale_pages(self.mmu);
        prop_assert!(stale.is_empty(), "pages {stale:?} kept a translation that is gone");
        for range in &self.brackets {
            for page in range.pages() {
                let page = (page.start().get() - BASE) / PAGE_SIZE;
                prop_assert_eq!(shadow_of(self.mmu, page), None, "page {} is in progress", page);
            }
        }
        let (stats, counted) = (self.mmu.stats(), self.mmu.table.count());
        prop_assert_eq!((stats.pages_4k, stats.pages_2m), (counted.pte, counted.pmd));
        prop_assert_eq!(self.mmu.sequence.in_progress(), self.brackets.len() as u64);
        Ok(())
    }
}

proptest! {
    #[test]
    fn no_translation_survives_its_invalidation_and_none_is_made_inside_one(
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mmu = mmu();
        let before = mmu.sequence.snapshot();
        let mut model = Model { mmu: &mmu, faults: Default::default(), brackets: Vec::new(), ended: 0 };
        for step in steps {
            model.take(step);
            model.check()?;
        }
        while !model.brackets.is_empty() {
            model.end(0);
            model.check()?;
        }
        prop_assert_eq!(mmu.sequence.retry(before), model.ended > 0);
        // Everything comes back.
        let mut worker = mmu.worker();
        for page in PLACES {
            prop_assert_eq!(frame_of(&mut worker, page), mmu.primary.current(memory(page, 1).start()));
        }
    }

    #[test]
    fn under_every_policy_the_bridge_leaves_nothing_stale_and_the_records_agree_with_the_mmu(
        policy in select(Policy::ALL),
        victims in prop::collection::vec((select(&PLACES[..]), 0u8..=4, any::<bool>()), 1..20),
    ) {
        let mmu = mmu();
        let bridge = Bridge::new(policy, layout()).shadowing(mmu.clone());
        let mut records = Vec::new();
        let mut worker = mmu.worker();
        for (page, order, warm) in victims {
            if warm {
                PLACES.iter().for_each(|&page| { frame_of(&mut worker, page); });
            }
            // Naturally aligned, as a folio is that mremap has not moved.
            let victim = folio_at(BASE + ((page >> order) << order) * PAGE_SIZE, order);
            let out = Invalidation { cause: Cause::PageOut, victim, vma: memory(0, PAGES) };
            bridge.invalidate(&mut records, &out, || mmu.primary.change(victim.pages));
            prop_assert_eq!(stale_pages(&mmu), Vec::<u64>::new(), "{} {:?}", policy, victim);
        }
        let (mut zapped, stats) = (crate::Zapped::NOTHING, mmu.stats());
        records.iter().for_each(|record| zapped += record.zapped);
        prop_assert_eq!(zapped.sptes_4k, Count::of(stats.sptes_zapped_4k));
        prop_assert_eq!(zapped.sptes_2m, Count::of(stats.sptes_zapped_2m));
        prop_assert_eq!(zapped.bytes, stats.sptes_zapped_4k * PAGE_SIZE + stats.sptes_zapped_2m * 2 * MIB);
        prop_assert_eq!(mmu.sequence.in_progress(), 0);
    }
}
