//! Batches of pages on their way to the LRU lists.

use guest_mem::drain_lru;

test_memory::tests! {
    draining_is_repeatable: [Collapse],
}

fn draining_is_repeatable() {
    for _ in 0..3 {
        drain_lru().unwrap();
    }
}
