//! The protocol by which a fault learns that the page it looked up may be gone: `mmu_invalidate_seq`.
//!
//! ```text
//!   invalidation                                fault
//!   ────────────                                ─────
//!   lock mmu_lock                               snapshot  = mmu_invalidate_seq        (then smp_rmb)
//!     invalidate_begin      in_progress += 1    look the page up in the primary MMU: sleeps, holds no lock
//!     invalidate_range_add  hull grows          retry_unsafe(snapshot, gfn)?  a pre-check, spares the lock
//!     zap                                       lock mmu_lock
//!   unlock                                        retry_locked(snapshot, gfn)?  begin again
//!   ... the primary MMU changes ...               install
//!   lock mmu_lock                               unlock
//!     invalidate_end        seq += 1
//!                           smp_wmb
//!                           in_progress -= 1
//!   unlock
//! ```
//!
//! A fault that looked the page up before the change meets one of the two: the range still in progress, or
//! a sequence that moved. Names, order and rules are those of `virt/kvm/kvm_main.c`
//! (`kvm_mmu_invalidate_begin`, `_range_add`, `_end`) and `include/linux/kvm_host.h`
//! (`mmu_invalidate_retry*`) of Linux 6.12.
//!
//! Ranges in progress at the same time are merged into their min/max hull, which only grows until the count
//! is back at zero: a gfn between two ranges waits without need (false positive), a gfn inside one is never
//! missed (no false negative).
//!
//! The two orders everything rests on, the stores of `invalidate_end` and the loads of a reader without the
//! lock, are behind [`BarrierOrder`], so that a model checker can swap them and watch the protocol fail
//! (`tests/loom.rs`).

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use guest_mem::{Address, Gfn, GfnRange};

use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering, lock};

/// `mmu_invalidate_seq` as it was before the primary MMU was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot(u64);

/// The two words whose order matters.
///
/// Every store is a release and every load an acquire: neither can be moved before an earlier one of its
/// kind, which is what `smp_wmb` and `smp_rmb` are for, and on x86-64 that costs nothing.
#[derive(Debug)]
pub struct Words {
    mmu_invalidate_seq: AtomicU64,
    mmu_invalidate_in_progress: AtomicU64,
}

impl Words {
    /// `mmu_invalidate_seq++`, under the lock.
    pub fn raise_seq(&self) {
        let seq = self.mmu_invalidate_seq.load(Ordering::Relaxed);
        self.mmu_invalidate_seq.store(seq.wrapping_add(1), Ordering::Release);
    }
    /// `mmu_invalidate_in_progress--`, under the lock.
    pub fn lower_in_progress(&self) {
        let count = self.mmu_invalidate_in_progress.load(Ordering::Relaxed);
        self.mmu_invalidate_in_progress.store(count - 1, Ordering::Release);
    }
    /// The sequence.
    pub fn load_seq(&self) -> u64 {
        self.mmu_invalidate_seq.load(Ordering::Acquire)
    }
    /// The count of invalidations in progress.
    pub fn load_in_progress(&self) -> u64 {
        self.mmu_invalidate_in_progress.load(Ordering::Acquire)
    }
}

/// In which order the writer stores and the reader without the lock loads the two [`Words`].
pub trait BarrierOrder {
    /// `kvm_mmu_invalidate_end`. Its other half is [`BarrierOrder::read`].
    fn end(words: &Words);
    /// `mmu_invalidate_retry`: the count and the sequence. Its other half is [`BarrierOrder::end`].
    fn read(words: &Words) -> (u64, u64);
}

/// The kernel's order, and the only right one.
#[derive(Clone, Copy, Debug)]
pub enum KernelOrder {}

impl BarrierOrder for KernelOrder {
    /// The sequence rises before the count falls: a reader that sees the count at zero again sees the new sequence.
    fn end(words: &Words) {
        words.raise_seq();
        words.lower_in_progress();
    }
    /// The count is loaded before the sequence, so that a count already lowered forbids an old sequence.
    fn read(words: &Words) -> (u64, u64) {
        let in_progress = words.load_in_progress();
        (in_progress, words.load_seq())
    }
}

/// The sequence, the count, the hull, and the `mmu_lock` over them and over `T`, the rest of what it guards.
#[derive(Debug)]
pub struct Sequence<T, B = KernelOrder> {
    mmu_lock: Mutex<T>,
    words: Words,
    mmu_invalidate_range_start: AtomicU64,
    mmu_invalidate_range_end: AtomicU64,
    order: PhantomData<fn() -> B>,
}

/// "No range yet": the hull of a bracket that has begun and added nothing.
const INVALID_GFN: u64 = u64::MAX;

impl<T, B: BarrierOrder> Sequence<T, B> {
    /// A sequence with nothing in progress.
    pub fn new(guarded: T) -> Self {
        Self {
            mmu_lock: Mutex::new(guarded),
            words: Words {
                mmu_invalidate_seq: AtomicU64::new(0),
                mmu_invalidate_in_progress: AtomicU64::new(0),
            },
            mmu_invalidate_range_start: AtomicU64::new(INVALID_GFN),
            mmu_invalidate_range_end: AtomicU64::new(INVALID_GFN),
            order: PhantomData,
        }
    }

    /// Takes `mmu_lock`, waiting for it.
    pub fn lock(&self) -> Locked<'_, T, B> {
        Locked { guarded: lock(&self.mmu_lock), sequence: self }
    }

    /// The sequence before a look-up. No load of the look-up moves before it (`smp_rmb` in
    /// `kvm_faultin_pfn`).
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.words.load_seq())
    }
    /// Invalidations in progress now.
    pub fn in_progress(&self) -> u64 {
        self.words.load_in_progress()
    }

    /// Whether a look-up made after `snapshot` may be stale, asked without `mmu_lock`:
    /// `mmu_invalidate_retry`.
    ///
    /// Never wrong about an invalidation known to have begun, for instance because installing and zapping
    /// one page share a lock of that page (as PowerPC does). It knows no ranges: anything in progress is a
    /// reason to retry.
    pub fn retry(&self, snapshot: Snapshot) -> bool {
        let (in_progress, seq) = B::read(&self.words);
        in_progress != 0 || seq != snapshot.0
    }

    /// The pre-check of one gfn without `mmu_lock`: `mmu_invalidate_retry_gfn_unsafe`.
    ///
    /// It spares a fault the lock while its range is in progress. It may be wrong both ways, since the hull
    /// is read word by word while it moves, and **must** be followed by [`Locked::retry_locked`].
    pub fn retry_unsafe(&self, snapshot: Snapshot, gfn: Gfn) -> bool {
        let (in_progress, seq) = B::read(&self.words);
        let covered = in_progress != 0
            && gfn.raw() >= self.mmu_invalidate_range_start.load(Ordering::Relaxed)
            && gfn.raw() < self.mmu_invalidate_range_end.load(Ordering::Relaxed);
        covered || seq != snapshot.0
    }
}

/// A held `mmu_lock`, with the operations that require it.
pub struct Locked<'a, T, B = KernelOrder> {
    guarded: MutexGuard<'a, T>,
    sequence: &'a Sequence<T, B>,
}

impl<T, B: BarrierOrder> Locked<'_, T, B> {
    /// Begins an invalidation: `kvm_mmu_invalidate_begin`. At least one
    /// [`invalidate_range_add`](Self::invalidate_range_add) must follow before the lock is dropped. Its other
    /// half is [`invalidate_end`](Self::invalidate_end).
    pub fn invalidate_begin(&mut self) {
        let count = self.sequence.words.load_in_progress() + 1;
        if count == 1 {
            self.set_hull(INVALID_GFN, INVALID_GFN);
        }
        self.sequence.words.mmu_invalidate_in_progress.store(count, Ordering::Release);
    }

    /// Adds a range to the hull of what is in progress: `kvm_mmu_invalidate_range_add`.
    ///
    /// "Fully tracking multiple concurrent ranges has diminishing returns": a range cannot be taken out of
    /// a hull again, so all of them stay in it until all of them have ended.
    pub fn invalidate_range_add(&mut self, range: GfnRange) {
        debug_assert_ne!(self.sequence.in_progress(), 0, "a range is added between begin and end");
        let (start, end) = (range.start().raw(), range.end().raw());
        match self.hull_words() {
            (INVALID_GFN, _) => self.set_hull(start, end),
            (low, high) => self.set_hull(low.min(start), high.max(end)),
        }
    }

    /// Ends an invalidation: `kvm_mmu_invalidate_end`. Its other half is
    /// [`invalidate_begin`](Self::invalidate_begin).
    ///
    /// # Panics
    /// If none was begun.
    pub fn invalidate_end(&mut self) {
        assert_ne!(self.sequence.in_progress(), 0, "an invalidation ends that never began");
        B::end(&self.sequence.words);
    }

    /// Whether a look-up of `gfn` made after `snapshot` may be stale: `mmu_invalidate_retry_gfn`. The answer
    /// holds for as long as the lock is held.
    pub fn retry_locked(&self, snapshot: Snapshot, gfn: Gfn) -> bool {
        let one = GfnRange::with_len(gfn, 1).unwrap_or(GfnRange::empty(gfn));
        self.overlaps_in_progress(one) || self.sequence.words.load_seq() != snapshot.0
    }

    /// Whether any of `range` lies in the hull of what is in progress. One gfn asks through
    /// [`retry_locked`](Self::retry_locked); this is for an entry that maps more than the gfn that faulted.
    ///
    /// A begun invalidation without a range covers everything: the kernel warns of it and retries.
    pub fn overlaps_in_progress(&self, range: GfnRange) -> bool {
        self.sequence.in_progress() != 0 && self.hull().is_none_or(|hull| hull.overlaps(range))
    }

    /// The hull of the ranges in progress, or of those that were last. `None` if there is none.
    pub fn hull(&self) -> Option<GfnRange> {
        match self.hull_words() {
            (INVALID_GFN, _) => None,
            (start, end) => GfnRange::new(Gfn::new(start), Gfn::new(end)),
        }
    }

    fn hull_words(&self) -> (u64, u64) {
        (
            self.sequence.mmu_invalidate_range_start.load(Ordering::Relaxed),
            self.sequence.mmu_invalidate_range_end.load(Ordering::Relaxed),
        )
    }

    fn set_hull(&mut self, start: u64, end: u64) {
        self.sequence.mmu_invalidate_range_start.store(start, Ordering::Relaxed);
        self.sequence.mmu_invalidate_range_end.store(end, Ordering::Relaxed);
    }
}

impl<T, B> Deref for Locked<'_, T, B> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guarded
    }
}

impl<T, B> DerefMut for Locked<'_, T, B> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guarded
    }
}

#[cfg(test)]
mod tests;
