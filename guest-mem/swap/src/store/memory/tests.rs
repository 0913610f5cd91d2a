//! The compressed stores against a model, under threads, at their limit, and held to their overhead.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::classes::COUNT;
use super::segment::SEGMENT_BYTES;
use super::*;
use crate::store::testing::{
    Random, foreign_slots_are_refused, get_one, page, put_one, run_model, steps,
    threads_do_not_disturb_each_other,
};

const SEGMENT: u64 = SEGMENT_BYTES as u64;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn lz4_agrees_with_a_map(steps in steps(), limit in prop_oneof![Just(64 << 20), 0u64..24 * SEGMENT]) {
        run_model(&CompressedStore::new(Codec::Lz4, limit).unwrap(), steps)?;
    }
    #[test]
    fn zstd_agrees_with_a_map(steps in steps(), limit in prop_oneof![Just(64 << 20), 0u64..24 * SEGMENT]) {
        run_model(&CompressedStore::new(Codec::Zstd, limit).unwrap(), steps)?;
    }

    #[test]
    fn damage_is_an_error_or_a_page_and_never_a_panic(
        seed in any::<u64>(), random in 0usize..4096, at in any::<usize>(), bits in 1u8.., cut in any::<usize>(),
    ) {
        for codec in [Codec::Lz4, Codec::Zstd] {
            let mut packer = Packer::new(codec).unwrap();
            let mut unpacker = Unpacker::new(codec).unwrap();
            let original = page(seed, random);
            let mut bytes = packer.pack(&original).to_vec();
            let mut back = Page::ZERO;
            prop_assert!(unpacker.unpack(&bytes, &mut back) && back == original);
            let at = at % bytes.len();
            bytes[at] ^= bits;
            unpacker.unpack(&bytes, &mut back);
            bytes.truncate(cut % bytes.len());
            prop_assert!(!unpacker.unpack(&bytes, &mut back), "what is cut short is no whole page");
            // And the context is as good as new.
            let bytes = packer.pack(&original).to_vec();
            prop_assert!(unpacker.unpack(&bytes, &mut back) && back == original);
        }
    }
}

#[test]
fn slots_of_others_are_refused() {
    for codec in [Codec::Lz4, Codec::Zstd] {
        foreign_slots_are_refused(&CompressedStore::new(codec, 16 << 20).unwrap());
    }
}

#[test]
fn threads_share_a_store() {
    let store = CompressedStore::new(Codec::Lz4, 64 << 20).unwrap();
    threads_do_not_disturb_each_other(&store, 400);
    assert_eq!(store.usage(), Usage::default());
}

/// A caller's mistake: a page is read while another thread frees its slot, and fills it anew. It gets an error, or a
/// page that was stored there, whole.
#[test]
fn a_slot_freed_under_a_reader_gives_an_error_or_a_whole_page() {
    let store = CompressedStore::new(Codec::Lz4, 4 << 20).unwrap();
    let stored: Vec<Page> = (0..32).map(|seed| page(seed, 500)).collect();
    let current = Mutex::new(put_one(&store, &stored[0]).unwrap());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut found = 0;
            while !done.load(Ordering::Relaxed) || found == 0 {
                let slot = *current.lock().unwrap();
                match get_one(&store, slot) {
                    Ok(back) => {
                        assert!(stored.contains(&back), "{slot}");
                        found += 1;
                    }
                    Err(StoreError::NoSuchPage { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            found
        });
        for round in 0..20_000 {
            let slot = *current.lock().unwrap();
            store.free(&[slot]);
            *current.lock().unwrap() = put_one(&store, &stored[round % 32]).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
    assert_eq!(store.usage().pages, 1);
}

#[test]
fn what_does_not_shrink_is_stored_as_it_is() {
    for codec in [Codec::Lz4, Codec::Zstd] {
        let store = CompressedStore::new(codec, 1 << 20).unwrap();
        let noise = page(1, 4096);
        let slot = put_one(&store, &noise).unwrap();
        assert_eq!(store.usage().stored_bytes, 4096);
        assert!(get_one(&store, slot).unwrap() == noise);
        let zeros = put_one(&store, &Page::ZERO).unwrap();
        assert!(store.usage().stored_bytes < 4096 + 64);
        assert!(get_one(&store, zeros).unwrap() == Page::ZERO);
    }
}

/// For pages of every size, and for all of them mixed.
#[test]
fn overhead_is_below_a_quarter() {
    let constant = |classes: u64| (classes + 16) * (SEGMENT + 4096);
    for codec in [Codec::Lz4, Codec::Zstd] {
        let mixed = CompressedStore::new(codec, 1 << 30).unwrap();
        for random in (0..4096).step_by(128).chain([4096]) {
            let store = CompressedStore::new(codec, 1 << 30).unwrap();
            // 4 MiB compressed is enough to see past the constant; a page of few bytes takes many for that.
            let pages = if random < 256 { 20_000 } else { 2_000 };
            for seed in 0..pages {
                let page = page(seed, random);
                put_one(&store, &page).unwrap();
                if seed % 8 == 0 {
                    put_one(&mixed, &page).unwrap();
                }
            }
            let usage = store.usage();
            let bound = usage.stored_bytes * 5 / 4 + constant(3);
            assert!(usage.held_bytes <= bound, "{codec:?}, {random} random bytes: {usage:?}, bound {bound}");
        }
        let usage = mixed.usage();
        let bound = usage.stored_bytes * 5 / 4 + constant(COUNT as u64);
        assert!(usage.held_bytes <= bound, "{codec:?}, mixed: {usage:?}, bound {bound}");
    }
}

#[test]
fn a_full_store_says_so_keeps_nothing_of_the_batch_and_takes_pages_again() {
    let limit = 20 * SEGMENT + 1000;
    let store = CompressedStore::new(Codec::Lz4, limit).unwrap();
    let mut slots = Vec::new();
    let error = loop {
        match put_one(&store, &page(slots.len() as u64, 4096)) {
            Ok(slot) => slots.push(slot),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Full { limit: named, .. } if named == limit), "{error}");
    assert!(error.to_string().contains("and 320 pages (1.2 MiB) take "), "{error}");
    assert!(error.to_string().contains("do not compress"), "{error}");
    assert_eq!(slots.len(), 20 * 16, "every segment that the limit has room for is filled");
    assert!(store.usage().held_bytes <= limit);

    // Room for 16, and a batch of 17.
    store.free(&slots.split_off(slots.len() - 16));
    let before = store.usage();
    let batch: Vec<Page> = (0..17).map(|seed| page(1000 + seed, 4096)).collect();
    assert!(matches!(store.put(&batch, &mut [Slot::default(); 17]), Err(StoreError::Full { .. })));
    assert_eq!(store.usage(), before);
    let mut again = [Slot::default(); 16];
    store.put(&batch[..16], &mut again).unwrap();
    for (seed, &slot) in slots.iter().enumerate() {
        assert!(get_one(&store, slot).unwrap() == page(seed as u64, 4096));
    }
    store.free(&slots);
    store.free(&again);
    assert_eq!(store.usage(), Usage::default());
}

#[test]
fn a_limit_below_one_segment_keeps_nothing() {
    let store = CompressedStore::new(Codec::Lz4, 1000).unwrap();
    assert!(matches!(put_one(&store, &Page::ZERO), Err(StoreError::Full { limit: 1000, .. })));
    assert_eq!(store.usage(), Usage::default());
}

/// Resident pages behind the store's mapping, as the kernel counts them.
fn resident(store: &CompressedStore) -> u64 {
    crate::sys::resident(store.pool.arena().range()) as u64 * 4096
}

#[test]
fn memory_is_held_while_it_is_used_and_no_longer() {
    let store = CompressedStore::new(Codec::Lz4, 64 << 20).unwrap();
    assert_eq!(resident(&store), 0);
    for _ in 0..3 {
        let mut slots: Vec<Slot> =
            (0..4000).map(|seed| put_one(&store, &page(seed, 2000)).unwrap()).collect();
        let held = store.usage().held_bytes;
        assert!(resident(&store) <= held && resident(&store) > 4000 * 2000);
        // In no order, as guests do.
        let mut random = Random(5);
        while !slots.is_empty() {
            let slot = slots.swap_remove(random.next() as usize % slots.len());
            store.free(&[slot]);
            if slots.len() == 2000 {
                assert_eq!(store.usage().pages, 2000);
                assert!(store.usage().held_bytes <= held);
            }
        }
        assert_eq!((resident(&store), store.usage()), (0, Usage::default()));
    }
}

#[test]
fn freed_room_is_used_again_before_more_is_taken() {
    let store = CompressedStore::new(Codec::Lz4, 64 << 20).unwrap();
    let mut slots: Vec<Slot> = (0..1000).map(|seed| put_one(&store, &page(seed, 3000)).unwrap()).collect();
    let held = store.usage().held_bytes;
    for round in 1..20 {
        for at in (round % 7..1000).step_by(3) {
            store.free(&[slots[at]]);
        }
        for at in (round % 7..1000).step_by(3) {
            slots[at] = put_one(&store, &page(at as u64, 3000)).unwrap();
        }
        assert!(store.usage().held_bytes <= held, "round {round}");
    }
}
