//! What is read without a lock, under every interleaving and every reordering the memory model allows: the
//! sequence, and the epoch by which an invalidation waits for accesses. Each right order stands beside
//! mutants of it, so that the models are seen to be sharp enough to fail.
//!
//! # The sequence
//!
//! The model is that of PowerPC, for whose sake `mmu_invalidate_retry` works without `mmu_lock`: installing
//! and zapping one page share a lock of that page, and nothing else.
//!
//! ```text
//!   invalidation                              fault
//!   mmu_lock { begin }                        snapshot
//!   page lock { entry = none }                frame = what the primary MMU says
//!   the primary MMU: old -> new               page lock { retry(snapshot)? else entry = frame }
//!   mmu_lock { end: seq + 1, count - 1 }
//! ```
//!
//! Whatever the interleaving, the entry must not be the old frame in the end. A fault that comes to the page
//! lock after the zap knows that the invalidation has begun; it must then find either the count raised or the
//! sequence moved. With the two stores of the end swapped, or the two loads of the reader, there is an
//! interleaving in which it finds neither, and the two mutants below show that the model is sharp enough to
//! say so.
//!
//! # The epoch
//!
//! A worker uses a frame it found in an entry; an invalidation clears the entry, waits for the worker, then
//! frees the frame. Without the full barrier on both sides each can miss the other.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p notifier-bridge --release --test loom`.
#![cfg(loom)]

use guest_mem::{Gfn, GfnRange};
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Arc, Mutex};
use notifier_bridge::sequence::{BarrierOrder, KernelOrder, Sequence, Words};
use notifier_bridge::soft_mmu::epoch::{Barrier, Epoch, SmpMb};

const OLD: u64 = 1;
const NEW: u64 = 2;
const GFN: Gfn = Gfn::new(7);

fn one_gfn() -> GfnRange {
    GfnRange::with_len(GFN, 1).expect("no overflow")
}

/// One page of one VM.
struct Page<B> {
    sequence: Sequence<(), B>,
    primary: AtomicU64,
    /// The entry, and the lock of the page.
    entry: Mutex<Option<u64>>,
}

impl<B: BarrierOrder> Page<B> {
    fn new() -> Arc<Self> {
        let primary = AtomicU64::new(OLD);
        Arc::new(Self { sequence: Sequence::new(()), primary, entry: Mutex::new(None) })
    }

    fn begin(&self) {
        let mut locked = self.sequence.lock();
        locked.invalidate_begin();
        locked.invalidate_range_add(one_gfn());
    }

    fn invalidate(&self) {
        self.begin();
        *self.entry.lock().expect("no panic") = None;
        self.primary.store(NEW, Ordering::Relaxed);
        self.sequence.lock().invalidate_end();
    }

    /// A fault that installs under the page lock, after the lockless question.
    fn fault_lockless(&self) {
        let snapshot = self.sequence.snapshot();
        let frame = self.primary.load(Ordering::Relaxed);
        let mut entry = self.entry.lock().expect("no panic");
        if !self.sequence.retry(snapshot) {
            *entry = Some(frame);
        }
    }

    /// A fault as x86 has it: the pre-check, then the question again with `mmu_lock` held.
    fn fault_locked(&self) {
        let snapshot = self.sequence.snapshot();
        let frame = self.primary.load(Ordering::Relaxed);
        if self.sequence.retry_unsafe(snapshot, GFN) {
            return;
        }
        let locked = self.sequence.lock();
        if !locked.retry_locked(snapshot, GFN) {
            *self.entry.lock().expect("no panic") = Some(frame);
        }
    }

    fn assert_not_stale(&self) {
        let entry = *self.entry.lock().expect("no panic");
        assert_ne!(entry, Some(OLD), "a translation survived its invalidation");
        assert_eq!(self.sequence.in_progress(), 0);
    }
}

fn lockless_fault_against_invalidation<B: BarrierOrder + 'static>() {
    loom::model(|| {
        let page = Page::<B>::new();
        let same = Arc::clone(&page);
        let fault = loom::thread::spawn(move || same.fault_lockless());
        page.invalidate();
        fault.join().expect("no panic");
        page.assert_not_stale();
    });
}

#[test]
fn the_lockless_reader_never_installs_a_stale_frame() {
    lockless_fault_against_invalidation::<KernelOrder>();
}

/// `kvm_mmu_invalidate_end` the wrong way round: the count falls before the sequence rises.
enum StoresSwapped {}

impl BarrierOrder for StoresSwapped {
    fn end(words: &Words) {
        words.lower_in_progress();
        words.raise_seq();
    }
    fn read(words: &Words) -> (u64, u64) {
        KernelOrder::read(words)
    }
}

#[test]
#[should_panic(expected = "a translation survived its invalidation")]
fn mutant_with_the_stores_swapped_is_caught() {
    lockless_fault_against_invalidation::<StoresSwapped>();
}

/// `mmu_invalidate_retry` the wrong way round: the sequence is loaded before the count.
enum LoadsSwapped {}

impl BarrierOrder for LoadsSwapped {
    fn end(words: &Words) {
        KernelOrder::end(words);
    }
    fn read(words: &Words) -> (u64, u64) {
        let seq = words.load_seq();
        (words.load_in_progress(), seq)
    }
}

#[test]
#[should_panic(expected = "a translation survived its invalidation")]
fn mutant_with_the_loads_swapped_is_caught() {
    lockless_fault_against_invalidation::<LoadsSwapped>();
}

#[test]
fn with_mmu_lock_held_no_stale_frame_is_installed() {
    loom::model(|| {
        let page = Page::<KernelOrder>::new();
        let same = Arc::clone(&page);
        let fault = loom::thread::spawn(move || same.fault_locked());
        // Here the zap shares mmu_lock with the installation, as on x86.
        {
            let mut locked = page.sequence.lock();
            locked.invalidate_begin();
            locked.invalidate_range_add(one_gfn());
            *page.entry.lock().expect("no panic") = None;
        }
        page.primary.store(NEW, Ordering::Relaxed);
        page.sequence.lock().invalidate_end();
        fault.join().expect("no panic");
        page.assert_not_stale();
    });
}

#[test]
fn two_invalidations_at_once_hide_nothing_from_a_lockless_reader() {
    loom::model(|| {
        let page = Page::<KernelOrder>::new();
        let (first, second) = (Arc::clone(&page), Arc::clone(&page));
        let fault = loom::thread::spawn(move || first.fault_lockless());
        let other = loom::thread::spawn(move || {
            second.begin();
            second.sequence.lock().invalidate_end();
        });
        page.invalidate();
        fault.join().expect("no panic");
        other.join().expect("no panic");
        page.assert_not_stale();
    });
}

#[test]
#[should_panic(expected = "a translation survived its invalidation")]
fn without_any_question_the_model_does_find_a_stale_frame() {
    loom::model(|| {
        let page = Page::<KernelOrder>::new();
        let same = Arc::clone(&page);
        let fault = loom::thread::spawn(move || {
            let frame = same.primary.load(Ordering::Relaxed);
            *same.entry.lock().expect("no panic") = Some(frame);
        });
        page.invalidate();
        fault.join().expect("no panic");
        page.assert_not_stale();
    });
}

/// A worker's access against an invalidation of the same page.
fn access_against_invalidation<B: Barrier + 'static>() {
    loom::model(|| {
        let epoch = Arc::new(Epoch::<B>::default());
        let entry = Arc::new(AtomicU64::new(1));
        let freed = Arc::new(AtomicU64::new(0));
        let worker = {
            let (epoch, entry, freed) = (Arc::clone(&epoch), Arc::clone(&entry), Arc::clone(&freed));
            loom::thread::spawn(move || {
                let inside = epoch.enter();
                if entry.load(Ordering::Acquire) != 0 {
                    assert_eq!(freed.load(Ordering::Relaxed), 0, "a frame was pulled from under an access");
                }
                drop(inside);
            })
        };
        entry.store(0, Ordering::Release);
        if epoch.wait_outside() {
            freed.store(1, Ordering::Relaxed);
        }
        worker.join().expect("no panic");
    });
}

#[test]
fn no_frame_is_pulled_from_under_an_access() {
    access_against_invalidation::<SmpMb>();
}

/// The full barriers left out.
enum NoBarrier {}

impl Barrier for NoBarrier {
    fn full() {}
}

#[test]
#[should_panic(expected = "a frame was pulled from under an access")]
fn mutant_without_the_full_barrier_is_caught() {
    access_against_invalidation::<NoBarrier>();
}
