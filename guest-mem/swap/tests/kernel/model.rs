//! The states of a few pages against a table of what each holds.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use guest_mem::{Backing, Operation, perform};
use proptest::prelude::*;
use swap::{Evictor, FaultAround, LostWhy, Packed, SwapState};

use crate::support::{Rig, Spoiler, assert_lost, lz4, rig};

test_memory::tests! {
    private_pages_are_what_the_table_says: [Userfault],
    private_pages_with_events_are_what_the_table_says: [Userfault],
    shared_pages_are_what_the_table_says: [Userfault],
    shared_pages_with_events_are_what_the_table_says: [Userfault],
}

const PAGES: u64 = 6;

#[derive(Clone, Debug)]
enum Step {
    Write {
        page: u64,
        value: u64,
    },
    Read {
        page: u64,
    },
    Evict {
        first: u64,
        pages: u64,
    },
    /// An eviction that is begun, and one that is brought to its end, or given up.
    Begin {
        first: u64,
        pages: u64,
    },
    Finish {
        which: usize,
        drop: bool,
    },
    Discard {
        first: u64,
        pages: u64,
    },
    /// Wanted while the store gives back something else.
    Spoil {
        page: u64,
    },
    /// By a thread that does not tell the swapper.
    DontNeed {
        first: u64,
        pages: u64,
    },
    /// Away and back.
    Move {
        first: u64,
        pages: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || (0..PAGES).prop_flat_map(|first| (Just(first), 1..=PAGES - first));
    let step = prop_oneof![
        // One write in three is of zeros.
        4 => (0..PAGES, 0u64..6).prop_map(|(page, value)| Step::Write { page, value: value.saturating_sub(2) }),
        3 => (0..PAGES).prop_map(|page| Step::Read { page }),
        3 => range().prop_map(|(first, pages)| Step::Evict { first, pages }),
        3 => range().prop_map(|(first, pages)| Step::Begin { first, pages }),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(which, drop)| Step::Finish { which, drop }),
        1 => range().prop_map(|(first, pages)| Step::Discard { first, pages }),
        1 => (0..PAGES).prop_map(|page| Step::Spoil { page }),
        1 => range().prop_map(|(first, pages)| Step::DontNeed { first, pages }),
        1 => range().prop_map(|(first, pages)| Step::Move { first, pages }),
    ];
    proptest::collection::vec(step, 1..40)
}

fn run(backing: Backing, events: bool, around: FaultAround, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let store = Spoiler::new(lz4());
    let rig = rig(1, backing, store.clone(), around, events);
    let region = rig.region();
    let hole = if backing.is_shared() { Operation::Fallocate } else { Operation::DontNeed };
    let mut holds: HashMap<u64, u64> = HashMap::new();
    let begins = steps.iter().filter(|step| matches!(step, Step::Begin { .. })).count();
    let mut evictors: Vec<_> = (0..begins).map(|_| Evictor::new(&rig.swapper).unwrap()).collect();
    let (mut evictors, mut begun) = (evictors.iter_mut(), Vec::<Packed<'_, '_>>::new());
    for step in steps {
        match step {
            Step::Write { page, value } => {
                rig.write(page, value);
                holds.insert(page, value);
            }
            Step::Read { page } => prop_assert_eq!(rig.read(page), holds.get(&page).copied().unwrap_or(0)),
            Step::Evict { first, pages } => drop(rig.evict(first, pages)),
            Step::Begin { first, pages } => {
                let evictor = evictors.next().unwrap();
                begun.push(evictor.claim(rig.range(first, pages)).unwrap().store().unwrap());
            }
            Step::Finish { which, drop } if !begun.is_empty() => {
                let packed = begun.swap_remove(which % begun.len());
                if drop {
                    packed.drop_pages().unwrap();
                }
            }
            Step::Finish { .. } => {}
            Step::Discard { first, pages } => {
                rig.swapper.discard(rig.range(first, pages)).unwrap();
                perform(region, hole, rig.range(first, pages)).unwrap();
                (first..first + pages).for_each(|page| holds.retain(|held, _| *held != page));
            }
            Step::Spoil { page } => {
                if spoil(&rig, &store, page)? {
                    holds.remove(&page);
                }
            }
            // Of private memory it takes the content, and has to be told by an event.
            Step::DontNeed { .. } if !backing.is_shared() && !events => {}
            Step::DontNeed { first, pages } => {
                perform(region, Operation::DontNeed, rig.range(first, pages)).unwrap();
                if !backing.is_shared() {
                    (first..first + pages).for_each(|page| holds.retain(|held, _| *held != page));
                }
            }
            // Without its event a mapping that moves is no longer registered.
            Step::Move { .. } if backing.is_shared() || !events => {}
            Step::Move { first, pages } => {
                // Of pages that are on their way out none may be elsewhere.
                begun.clear();
                perform(region, Operation::Remap, rig.range(first, pages)).unwrap();
            }
        }
        nothing_is_stored_twice(&rig, begun.len() as u64)?;
    }
    begun.clear();
    every_page_holds(&rig, &holds)
}

/// The store holds no more than the pages whose state says so, and those on their way out.
fn nothing_is_stored_twice(rig: &Rig, on_their_way: u64) -> Result<(), TestCaseError> {
    // An operation of another goes on when the handler has read its event: pages may be forgotten between these lines.
    let before = rig.stored();
    let known = rig.swapper.count(|state| matches!(state, SwapState::Stored(_)));
    prop_assert!(on_their_way * PAGES + known >= rig.stored(), "the store holds pages that no state names");
    prop_assert!(before >= known);
    Ok(())
}

/// Reads a page back from a store that spoils it: it is lost. False if the page is not stored.
fn spoil(rig: &Rig, store: &Spoiler, page: u64) -> Result<bool, TestCaseError> {
    if !matches!(rig.swapper.state(rig.range(page, 1).start()), Some(SwapState::Stored(_))) {
        return Ok(false);
    }
    store.spoils.store(true, Ordering::SeqCst);
    let why = assert_lost(rig, page);
    store.spoils.store(false, Ordering::SeqCst);
    prop_assert!(matches!(why, LostWhy::Checksum { .. }), "{}", why);
    Ok(true)
}

/// Every page holds what was written to it; and again after all were evicted.
fn every_page_holds(rig: &Rig, holds: &HashMap<u64, u64>) -> Result<(), TestCaseError> {
    for _ in 0..2 {
        for page in 0..PAGES {
            prop_assert_eq!(rig.read(page), holds.get(&page).copied().unwrap_or(0), "page {}", page);
        }
        prop_assert_eq!(rig.stored(), 0);
        prop_assert_eq!(rig.evict(0, PAGES), PAGES);
    }
    Ok(())
}

fn check(backing: Backing, events: bool) {
    let around =
        prop_oneof![Just(FaultAround::Fixed(1)), Just(FaultAround::Fixed(4)), Just(FaultAround::Adaptive)];
    // Proptest keeps no record: what fails here is said with its steps.
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in steps(), around in around)| run(backing, events, around, steps)?);
}

fn private_pages_are_what_the_table_says() {
    check(Backing::Base4k, false);
}

fn private_pages_with_events_are_what_the_table_says() {
    check(Backing::Base4k, true);
}

fn shared_pages_are_what_the_table_says() {
    check(Backing::Memfd, false);
}

fn shared_pages_with_events_are_what_the_table_says() {
    check(Backing::Memfd, true);
}
