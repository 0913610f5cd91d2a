//! The file store against a model, under threads, at its limit, and on a file that goes bad.

use proptest::prelude::*;

use super::ledger::{CHUNK, SPARE};
use super::*;
use crate::store::testing::{
    foreign_slots_are_refused, get_one, page, put_one, run_model, steps, threads_do_not_disturb_each_other,
};

fn store(limit: u64) -> FileStore {
    FileStore::new(&std::env::temp_dir(), limit).unwrap()
}

fn numbered(pages: std::ops::Range<u64>) -> Vec<Page> {
    pages.map(|seed| page(seed, 64)).collect()
}

fn put(store: &FileStore, pages: &[Page]) -> Vec<Slot> {
    let mut slots = vec![Slot::default(); pages.len()];
    store.put(pages, &mut slots).unwrap();
    slots
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn it_agrees_with_a_map(steps in steps(), limit in prop_oneof![Just(16 << 20), 0u64..60 * 4096]) {
        run_model(&store(limit), steps)?;
    }
}

#[test]
fn slots_of_others_are_refused() {
    foreign_slots_are_refused(&store(16 << 20));
}

#[test]
fn threads_share_a_store() {
    let store = store(16 << 20);
    threads_do_not_disturb_each_other(&store, 60);
    assert_eq!(store.usage(), Usage::default());
}

#[test]
fn a_batch_is_one_extent_and_comes_back_in_any_order() {
    let store = store(4 << 20);
    let pages = numbered(0..600);
    let slots = put(&store, &pages);
    assert!(slots.windows(2).all(|pair| pair[0].raw() + 1 == pair[1].raw()));
    // Backwards, with gaps, and one page twice.
    let picks: Vec<usize> = (0..600).rev().filter(|at| at % 5 != 0).chain([3, 3]).collect();
    let wanted: Vec<Slot> = picks.iter().map(|&at| slots[at]).collect();
    let mut back = vec![Page::ZERO; wanted.len()];
    store.get(&wanted, &mut back).unwrap();
    assert!(picks.iter().zip(&back).all(|(&at, back)| *back == pages[at]));
    // Neighbours merge: five pieces of a permuted batch are two runs of the file.
    let permuted: Vec<Slot> = [8, 2, 3, 4, 1, 9].iter().map(|&at| slots[at]).collect();
    let mut back = vec![Page::ZERO; 6];
    let mut cut = pieces(&permuted, &mut back);
    let shape: Vec<_> =
        cut.iter().map(|piece| (piece.first.number(), piece.index, piece.pages.len())).collect();
    assert_eq!(shape, [(8, 0, 1), (2, 1, 3), (1, 4, 1), (9, 5, 1)]);
    cut.sort_unstable_by_key(|piece| piece.first);
    assert_eq!((index_after(&cut, 0), index_after(&cut, 1), index_after(&cut, 3)), (4, 1, 3));
}

#[test]
fn a_batch_takes_scattered_room_if_there_is_no_other() {
    let store = store(64 * 4096);
    let slots = put(&store, &numbered(0..64));
    let (odd, even): (Vec<Slot>, Vec<Slot>) = slots.iter().partition(|slot| slot.raw() % 2 == 1);
    store.free(&odd);
    let pages = numbered(100..132);
    let again = put(&store, &pages);
    let mut back = vec![Page::ZERO; 32];
    store.get(&again, &mut back).unwrap();
    assert!(back == pages);
    assert!(matches!(put_one(&store, &Page::ZERO), Err(StoreError::Full { limit: 262_144, .. })));
    store.get(&even, &mut back).unwrap();
    assert!(back.iter().enumerate().all(|(at, back)| *back == page(2 * at as u64 + 1, 64)));
}

#[test]
fn disk_is_given_back() {
    let store = store(64 << 20);
    let chunks = SPARE as u64 + 8;
    let slots = put(&store, &numbered(0..chunks * CHUNK));
    let full = store.usage();
    assert_eq!(full.stored_bytes, chunks << 20);
    assert!(
        full.held_bytes >= full.stored_bytes && full.held_bytes < full.stored_bytes + (1 << 20),
        "{full:?}"
    );
    store.free(&slots[CHUNK as usize..]);
    let less = store.usage();
    let most = (SPARE as u64 + 1) * (1 << 20) + (1 << 16);
    assert!(less.held_bytes <= most, "{less:?}: more than the spare chunks are held");
    assert!(get_one(&store, slots[9]).unwrap() == page(9, 64));
    store.free(&slots[..CHUNK as usize]);
    assert_eq!(store.usage(), Usage::default());
}

#[test]
fn a_file_cut_short_is_an_error_that_names_the_page() {
    let store = store(4 << 20);
    let slots = put(&store, &numbered(0..8));
    rustix::fs::ftruncate(store.disk.file(), 5 * PAGE_SIZE).unwrap();
    let mut back = vec![Page::ZERO; 8];
    let error = store.get(&slots, &mut back).unwrap_err();
    assert!(
        matches!(error, StoreError::Short { index: 5, offset: 20480, wanted: 12288, done: 0, .. }),
        "{error}"
    );
    let backwards: Vec<Slot> = slots.iter().rev().copied().collect();
    let error = store.get(&backwards, &mut back).unwrap_err();
    assert!(matches!(error, StoreError::Short { index: 2, .. }), "{error}");
}

#[test]
fn a_directory_that_takes_no_file_is_refused() {
    let error = FileStore::new(Path::new("/proc/self"), 1 << 20).unwrap_err();
    assert_eq!(error.attempt, "making");
    assert!(error.to_string().contains("/proc/self"), "{error}");
    let error = FileStore::new(&std::env::temp_dir(), u64::MAX).unwrap_err();
    assert_eq!(error.source, Errno::FBIG);
}
