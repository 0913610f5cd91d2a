//! A store around a store, of which calls fail as a plan says.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guest_mem::Page;
use rustix::io::Errno;
use swap::{Slot, Store, StoreError, Usage};

/// Which calls a plan counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreCall {
    /// Calls of [`Store::put`].
    Put,
    /// Calls of [`Store::get`].
    Get,
}

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreFault {
    /// The medium answers with this errno.
    Io(Errno),
    /// The call stops half-way through the batch.
    Short,
    /// This bit of the batch is flipped.
    Flip(u64),
    /// The answer comes so much later.
    Slow(Duration),
    /// This call and every later one of either kind fails with `EIO`.
    Die,
}

/// Passes every call on to another store, except those that its plan names. Calls are counted whether or not they work;
/// threads that call at the same time are counted in the order in which they come.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    /// The kind of call, its number from 1, and what happens to it.
    plan: Vec<(StoreCall, u64, StoreFault)>,
    course: Mutex<Course>,
}

#[derive(Debug, Default)]
struct Course {
    puts: u64,
    gets: u64,
    dead: bool,
    /// Faults that have come true.
    struck: usize,
}

impl FaultyStore {
    /// `inner`, with the faults of `plan`: the kind of call, its number from 1, and what happens to it.
    pub fn new(inner: Arc<dyn Store>, plan: &[(StoreCall, u64, StoreFault)]) -> Self {
        Self { inner, plan: plan.to_vec(), course: Mutex::default() }
    }

    /// How many faults of the plan have come true.
    pub fn struck(&self) -> usize {
        self.course().struck
    }

    /// How many calls of a kind there were.
    pub fn calls(&self, call: StoreCall) -> u64 {
        match call {
            StoreCall::Put => self.course().puts,
            StoreCall::Get => self.course().gets,
        }
    }

    fn course(&self) -> MutexGuard<'_, Course> {
        // Every change is one assignment.
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call, and returns what the plan has for it. A slow answer has been waited for when this returns.
    fn count(&self, call: StoreCall) -> Option<StoreFault> {
        let mut course = self.course();
        let count = match call {
            StoreCall::Put => &mut course.puts,
            StoreCall::Get => &mut course.gets,
        };
        *count += 1;
        let nth = *count;
        if course.dead {
            return Some(StoreFault::Die);
        }
        let &(.., fault) = self.plan.iter().find(|(of, number, _)| *of == call && *number == nth)?;
        course.struck += 1;
        course.dead = fault == StoreFault::Die;
        drop(course);
        if let StoreFault::Slow(delay) = fault {
            std::thread::sleep(delay);
        }
        Some(fault)
    }

    /// The error of a call on a batch of `pages`; `None` if the fault lets it go on.
    fn error(&self, fault: StoreFault, attempt: &'static str, pages: usize) -> Option<StoreError> {
        let (store, offset) = (self.name(), 0);
        let io = |source| StoreError::Io { store, attempt, index: 0, offset, source };
        match fault {
            StoreFault::Io(errno) => Some(io(errno)),
            StoreFault::Die => Some(io(Errno::IO)),
            StoreFault::Short => {
                let (wanted, index) = (pages * size_of::<Page>(), pages / 2);
                Some(StoreError::Short { store, attempt, index, offset, wanted, done: wanted / 2 })
            }
            StoreFault::Flip(_) | StoreFault::Slow(_) => None,
        }
    }
}

fn flip(pages: &mut [Page], fault: Option<StoreFault>) {
    if let Some(StoreFault::Flip(bit)) = fault {
        Page::bytes_mut(pages)[(bit / 8) as usize] ^= 1 << (bit % 8);
    }
}

impl Store for FaultyStore {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn put(&self, pages: &[Page], slots: &mut [Slot]) -> Result<(), StoreError> {
        let fault = self.count(StoreCall::Put);
        if let Some(error) = fault.and_then(|fault| self.error(fault, "writing at", pages.len())) {
            return Err(error);
        }
        let mut pages = pages.to_vec();
        flip(&mut pages, fault);
        self.inner.put(&pages, slots)
    }

    fn get(&self, slots: &[Slot], pages: &mut [Page]) -> Result<(), StoreError> {
        let fault = self.count(StoreCall::Get);
        if let Some(error) = fault.and_then(|fault| self.error(fault, "reading at", pages.len())) {
            if fault == Some(StoreFault::Short) {
                // As a short read leaves it: the first half is there.
                let half = pages.len() / 2;
                self.inner.get(&slots[..half], &mut pages[..half])?;
            }
            return Err(error);
        }
        self.inner.get(slots, pages)?;
        flip(pages, fault);
        Ok(())
    }

    fn free(&self, slots: &[Slot]) {
        // Dead or not, its owner may free what it stored there.
        self.inner.free(slots);
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }
}

#[cfg(test)]
mod tests {
    use super::StoreCall::{Get, Put};
    use super::StoreFault::{Die, Flip, Io, Short, Slow};
    use super::*;
    use swap::{Codec, CompressedStore, checksum};

    fn faulty(plan: &[(StoreCall, u64, StoreFault)]) -> FaultyStore {
        FaultyStore::new(Arc::new(CompressedStore::new(Codec::Lz4, 16 << 20).unwrap()), plan)
    }

    fn batch() -> Vec<Page> {
        (1..7).map(|byte| Page::new([byte; 4096])).collect()
    }

    #[test]
    fn each_fault_strikes_its_call_and_no_other() {
        let (eio, enospc) = (Io(Errno::IO), Io(Errno::NOSPC));
        let store = faulty(&[
            (Put, 2, eio),
            (Put, 3, enospc),
            (Put, 4, Short),
            (Get, 1, eio),
            (Get, 3, Short),
            (Get, 4, Flip(40_000)),
        ]);
        let (pages, mut slots, mut back) = (batch(), [Slot::default(); 6], vec![Page::ZERO; 6]);
        store.put(&pages, &mut slots).unwrap();
        let held = store.usage();
        let error = |error: StoreError| match error {
            StoreError::Io { index, source, .. } => (index, Some(source)),
            StoreError::Short { index, wanted: 24576, done: 12288, .. } => (index, None),
            other => panic!("{other}"),
        };
        let refused = || error(store.put(&pages, &mut [Slot::default(); 6]).unwrap_err());
        assert_eq!(
            [refused(), refused(), refused()],
            [(0, Some(Errno::IO)), (0, Some(Errno::NOSPC)), (3, None)]
        );
        assert_eq!(store.usage(), held, "nothing of a failed batch is kept");

        assert_eq!(error(store.get(&slots, &mut back).unwrap_err()), (0, Some(Errno::IO)));
        store.get(&slots, &mut back).unwrap();
        assert!(back == pages);
        back.fill(Page::ZERO);
        assert_eq!(error(store.get(&slots, &mut back).unwrap_err()), (3, None));
        assert!(back[..3] == pages[..3] && back[3..] == [Page::ZERO; 3], "half of it was read");
        store.get(&slots, &mut back).unwrap();
        let wrong: Vec<usize> = (0..6).filter(|&at| back[at] != pages[at]).collect();
        assert_eq!(wrong, [1], "bit 40000 is in page 1");
        assert_ne!(checksum(&back[1], 1), checksum(&pages[1], 1));
        store.get(&slots, &mut back).unwrap();
        assert!(back == pages, "what is stored was not touched");
        assert_eq!((store.struck(), store.calls(Put), store.calls(Get)), (6, 4, 5));
    }

    #[test]
    fn a_bit_flipped_on_the_way_in_stays_flipped() {
        let store = faulty(&[(Put, 1, Flip(7))]);
        let (pages, mut slots, mut back) = (batch(), [Slot::default(); 6], vec![Page::ZERO; 6]);
        store.put(&pages, &mut slots).unwrap();
        for _ in 0..2 {
            store.get(&slots, &mut back).unwrap();
            assert_eq!(back[0][0] ^ pages[0][0], 0x80);
            assert!(back[1..] == pages[1..]);
        }
    }

    #[test]
    fn a_dead_store_answers_nothing_and_frees() {
        let store = faulty(&[(Get, 2, Die)]);
        let (pages, mut slots, mut back) = (batch(), [Slot::default(); 6], vec![Page::ZERO; 6]);
        store.put(&pages, &mut slots).unwrap();
        store.get(&slots, &mut back).unwrap();
        for _ in 0..2 {
            store.get(&slots, &mut back).unwrap_err();
            store.put(&pages, &mut slots).unwrap_err();
        }
        store.free(&slots);
        assert_eq!(store.usage(), Usage::default());
    }

    #[test]
    fn a_slow_answer_is_right_and_comes_after_its_delay() {
        let store = faulty(&[(Get, 1, Slow(Duration::from_millis(30)))]);
        let (pages, mut slots, mut back) = (batch(), [Slot::default(); 6], vec![Page::ZERO; 6]);
        store.put(&pages, &mut slots).unwrap();
        let start = std::time::Instant::now();
        store.get(&slots, &mut back).unwrap();
        // A sleep is never shorter than it was told to be.
        assert!(start.elapsed().as_millis() >= 30 && back == pages);
    }
}
