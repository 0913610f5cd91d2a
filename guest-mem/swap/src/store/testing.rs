//! Shared by the tests of all stores: pages of several kinds, and a model to hold a store against.

use std::collections::HashMap;

use guest_mem::Page;
use proptest::prelude::*;

use super::{Slot, Store, StoreError};

/// A generator good enough to fill pages.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// A page that is its seed's own and of which `random` bytes in 4096 do not compress.
pub(super) fn page(seed: u64, random: usize) -> Page {
    let mut page = Page::ZERO;
    let mut source = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for word in page[..random / 8 * 8].chunks_exact_mut(8) {
        word.copy_from_slice(&source.next().to_le_bytes());
    }
    for word in page[random / 8 * 8..].chunks_exact_mut(8) {
        word.copy_from_slice(&seed.to_le_bytes());
    }
    page
}

pub(super) fn put_one(store: &dyn Store, page: &Page) -> Result<Slot, StoreError> {
    let mut slots = [Slot::default()];
    store.put(std::slice::from_ref(page), &mut slots).map(|()| slots[0])
}

pub(super) fn get_one(store: &dyn Store, slot: Slot) -> Result<Page, StoreError> {
    let mut pages = [Page::ZERO];
    store.get(&[slot], &mut pages).map(|()| pages[0])
}

/// One step of a random life of a store.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Store so many new pages at once, of which so many bytes each do not compress.
    Put { pages: usize, random: usize },
    /// Read so many back at once, chosen by these numbers.
    Get { picks: Vec<usize> },
    /// Free so many at once.
    Free { picks: Vec<usize> },
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let picks = || prop::collection::vec(any::<usize>(), 0..24);
    let random = prop_oneof![Just(0), Just(4096), 0usize..4096];
    let step = prop_oneof![
        3 => (0usize..40, random).prop_map(|(pages, random)| Step::Put { pages, random }),
        2 => picks().prop_map(|picks| Step::Get { picks }),
        2 => picks().prop_map(|picks| Step::Free { picks }),
    ];
    prop::collection::vec(step, 1..40)
}

/// Lives through the steps with a store and a map side by side: every page is what the map says, no slot is given
/// twice, a freed one keeps nothing, a full store keeps nothing of the batch; and at the end nothing is left.
pub(super) fn run_model(store: &dyn Store, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut model: HashMap<Slot, Page> = HashMap::new();
    let mut order: Vec<Slot> = Vec::new();
    let mut seed = 0;
    for step in steps {
        match step {
            Step::Put { pages: count, random } => {
                let pages: Vec<Page> = (0..count as u64).map(|page_| page(seed + page_, random)).collect();
                seed += count as u64;
                let mut slots = vec![Slot::default(); count];
                match store.put(&pages, &mut slots) {
                    Ok(()) => {
                        for (&slot, page) in slots.iter().zip(pages) {
                            prop_assert!(slot.raw() >> Slot::BITS == 0);
                            prop_assert!(model.insert(slot, page).is_none(), "{} was given twice", slot);
                        }
                        order.extend(slots);
                    }
                    Err(StoreError::Full { .. }) => {}
                    Err(other) => return Err(TestCaseError::fail(other.to_string())),
                }
            }
            Step::Get { picks } if !order.is_empty() => {
                let slots: Vec<Slot> = picks.iter().map(|&pick| order[pick % order.len()]).collect();
                let mut pages = vec![Page::ZERO; slots.len()];
                store.get(&slots, &mut pages).map_err(|error| TestCaseError::fail(error.to_string()))?;
                for (slot, page) in slots.iter().zip(&pages) {
                    prop_assert!(*page == model[slot], "{}", slot);
                }
            }
            Step::Free { picks } => {
                let mut slots = Vec::new();
                for pick in picks {
                    if !order.is_empty() {
                        slots.push(order.swap_remove(pick % order.len()));
                    }
                }
                store.free(&slots);
                for slot in slots {
                    model.remove(&slot);
                    let gone = matches!(get_one(store, slot), Err(StoreError::NoSuchPage { index: 0, .. }));
                    prop_assert!(gone, "{} after it was freed", slot);
                    store.free(&[slot]);
                }
            }
            Step::Get { .. } => {}
        }
        prop_assert_eq!(store.usage().pages, model.len() as u64);
    }
    for (&slot, page) in &model {
        prop_assert!(get_one(store, slot).is_ok_and(|back| back == *page), "{}", slot);
    }
    store.free(&order);
    let usage = store.usage();
    prop_assert_eq!((usage.pages, usage.stored_bytes, usage.held_bytes), (0, 0, 0));
    Ok(())
}

/// No slot that a store did not give out is followed.
pub(super) fn foreign_slots_are_refused(store: &dyn Store) {
    let own: Vec<Slot> = (0..40).map(|seed| put_one(store, &page(seed, 1000)).unwrap()).collect();
    let mut random = Random(77);
    let mut tried = 0;
    while tried < 20_000 {
        // Half of them near its own slots, half anywhere.
        let near = own[tried % own.len()].raw() ^ 1 << (random.next() % 56);
        let raw = if tried % 2 == 0 { near } else { random.next() >> (8 + random.next() % 48) };
        let slot = Slot::from_raw(raw).unwrap();
        if own.contains(&slot) {
            tried += 1;
            continue;
        }
        let error = get_one(store, slot).unwrap_err();
        assert!(matches!(error, StoreError::NoSuchPage { index: 0, slot: named, .. } if named == slot));
        store.free(&[slot]);
        tried += 1;
    }
    assert_eq!(store.usage().pages, 40);
    let mut pages = vec![Page::ZERO; 3];
    let batch = [own[0], own[1], Slot::default()];
    assert!(matches!(store.get(&batch, &mut pages), Err(StoreError::NoSuchPage { index: 2, .. })));
    for (seed, &slot) in own.iter().enumerate() {
        assert!(get_one(store, slot).unwrap() == page(seed as u64, 1000));
    }
    store.free(&own);
}

/// Threads that put, get and free at once, each its own pages, and each checks every one it gets.
pub(super) fn threads_do_not_disturb_each_other(store: &dyn Store, rounds: u64) {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let mut random = Random(thread + 1);
                let mut kept: Vec<(Slot, u64, usize)> = Vec::new();
                for round in 0..rounds {
                    let (seed, shape) = (thread << 32 | round, (random.next() % 4096) as usize);
                    let batch: Vec<Page> = (0..8).map(|i| page(seed << 3 | i, shape)).collect();
                    let mut slots = [Slot::default(); 8];
                    store.put(&batch, &mut slots).unwrap();
                    kept.extend(slots.iter().zip(0..8).map(|(&slot, i)| (slot, seed << 3 | i, shape)));
                    while kept.len() > 100 {
                        let (slot, seed, shape) = kept.swap_remove(random.next() as usize % kept.len());
                        assert!(
                            get_one(store, slot).unwrap() == page(seed, shape),
                            "thread {thread}, {slot}"
                        );
                        store.free(&[slot]);
                    }
                }
                for (slot, seed, shape) in kept {
                    assert!(get_one(store, slot).unwrap() == page(seed, shape), "thread {thread}, {slot}");
                    store.free(&[slot]);
                }
            });
        }
    });
    assert_eq!(store.usage().pages, 0);
}
