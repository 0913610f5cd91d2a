//! A store around a store, in which a plan of faults comes true.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_mem::Page;
use rustix::io::Errno;
use swap::{Slot, Store, StoreError, Usage};

use super::check_shape;
use super::plan::{Fault, FaultKind, FaultPlan, StoreCall};

/// Passes every call on to another store, except those that its plan strikes. Calls are counted whether or not
/// they work; threads that call at the same time are counted in the order in which they come.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    plan: FaultPlan,
    course: Mutex<Course>,
}

#[derive(Debug, Default)]
struct Course {
    puts: u64,
    gets: u64,
    dead: bool,
    struck: Vec<Fault>,
}

/// What becomes of a batch before or after the inner store has it.
#[derive(Debug, Default)]
struct Strike {
    /// Ends the call at once.
    error: Option<FaultKind>,
    /// Bits to flip.
    flips: Vec<u64>,
}

impl FaultyStore {
    /// `inner`, with the faults of `plan`.
    pub fn new(inner: Arc<dyn Store>, plan: FaultPlan) -> Self {
        Self { inner, plan, course: Mutex::default() }
    }

    /// The faults that have struck so far, in order.
    pub fn struck(&self) -> Vec<Fault> {
        self.course().struck.clone()
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

    /// Counts a call, and says what strikes it. A slow answer has been waited for when this returns.
    fn count(&self, call: StoreCall) -> Result<Strike, StoreError> {
        let mut course = self.course();
        let count = match call {
            StoreCall::Put => &mut course.puts,
            StoreCall::Get => &mut course.gets,
        };
        *count += 1;
        let nth = *count;
        if course.dead {
            return Err(self.dead());
        }
        let mut strike = Strike::default();
        let mut delay = None;
        for fault in self.plan.of(call, nth) {
            course.struck.push(fault);
            match fault.kind {
                FaultKind::Flip(bit) => strike.flips.push(bit),
                FaultKind::Slow(more) => delay = Some(delay.unwrap_or_default() + more),
                FaultKind::Die => {
                    course.dead = true;
                    strike.error = Some(fault.kind);
                }
                FaultKind::Io | FaultKind::NoSpace | FaultKind::Short => strike.error = Some(fault.kind),
            }
            if strike.error.is_some() {
                break;
            }
        }
        drop(course);
        if let Some(delay) = delay {
            std::thread::sleep(delay);
        }
        Ok(strike)
    }

    fn dead(&self) -> StoreError {
        StoreError::Dead { store: self.name() }
    }

    /// The error of a struck call on a batch of `pages`.
    fn error(&self, kind: FaultKind, attempt: &'static str, pages: usize) -> StoreError {
        let (store, offset) = (self.name(), 0);
        let io = |source| StoreError::Io { store, attempt, index: 0, offset, source };
        match kind {
            FaultKind::NoSpace => io(Errno::NOSPC),
            FaultKind::Short => {
                let (wanted, index) = (pages * size_of::<Page>(), pages / 2);
                StoreError::Short { store, attempt, index, offset, wanted, done: wanted / 2 }
            }
            FaultKind::Die => self.dead(),
            FaultKind::Io | FaultKind::Flip(_) | FaultKind::Slow(_) => io(Errno::IO),
        }
    }
}

/// Flips bits of a batch; a number beyond its end begins again at its start.
fn flip(pages: &mut [Page], flips: &[u64]) {
    let bytes = Page::bytes_mut(pages);
    let bits = bytes.len() as u64 * 8;
    for bit in flips.iter().filter_map(|bit| bit.checked_rem(bits)) {
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    }
}

impl Store for FaultyStore {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn put(&self, pages: &[Page], slots: &mut [Slot]) -> Result<(), StoreError> {
        check_shape(pages.len(), slots.len())?;
        let strike = self.count(StoreCall::Put)?;
        if let Some(kind) = strike.error {
            return Err(self.error(kind, "writing at", pages.len()));
        }
        if strike.flips.is_empty() {
            return self.inner.put(pages, slots);
        }
        let mut wrong = pages.to_vec();
        flip(&mut wrong, &strike.flips);
        self.inner.put(&wrong, slots)
    }

    fn get(&self, slots: &[Slot], pages: &mut [Page]) -> Result<(), StoreError> {
        check_shape(pages.len(), slots.len())?;
        let strike = self.count(StoreCall::Get)?;
        if let Some(kind) = strike.error {
            if kind == FaultKind::Short {
                // As a short read leaves it: the first half is there.
                let half = pages.len() / 2;
                self.inner.get(&slots[..half], &mut pages[..half])?;
            }
            return Err(self.error(kind, "reading at", pages.len()));
        }
        self.inner.get(slots, pages)?;
        flip(pages, &strike.flips);
        Ok(())
    }

    fn free(&self, slots: &[Slot]) {
        // Dead or not, its owner may let go of what it had there.
        self.inner.free(slots);
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn keeps_content(&self) -> bool {
        self.inner.keeps_content()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swap::{Codec, CompressedStore, checksum};

    use super::super::testing::{page, run_model, steps, threads_do_not_disturb_each_other};
    use crate::stores::DiscardStore;

    fn lz4() -> Arc<dyn Store> {
        Arc::new(CompressedStore::new(Codec::Lz4, 16 << 20).unwrap())
    }

    fn faulty(plan: &str) -> FaultyStore {
        FaultyStore::new(lz4(), plan.parse().unwrap())
    }

    fn batch() -> Vec<Page> {
        (0..6).map(|seed| page(seed, 100)).collect()
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(16))]
        #[test]
        fn without_faults_it_is_the_store_within(steps in steps()) {
            run_model(&faulty(""), steps)?;
        }
    }

    #[test]
    fn each_fault_strikes_its_call_and_no_other() {
        let store =
            faulty("put 2: eio; put 3: enospc; put 4: short; get 1: eio; get 3: short; get 4: flip 40000");
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
        assert_eq!(back[1][5000 - 4096] ^ pages[1][5000 - 4096], 1);
        assert_ne!(checksum(&back[1], 1), checksum(&pages[1], 1));
        store.get(&slots, &mut back).unwrap();
        assert!(back == pages, "what is stored was not touched");
        let struck: Vec<String> = store.struck().iter().map(Fault::to_string).collect();
        assert_eq!(
            struck,
            [
                "put 2: eio",
                "put 3: enospc",
                "put 4: short",
                "get 1: eio",
                "get 3: short",
                "get 4: flip 40000"
            ]
        );
        assert_eq!((store.calls(StoreCall::Put), store.calls(StoreCall::Get)), (4, 5));
    }

    #[test]
    fn a_bit_flipped_on_the_way_in_stays_flipped() {
        let store = faulty("put 1: flip 7; put 1: flip 196608");
        let (pages, mut slots, mut back) = (batch(), [Slot::default(); 6], vec![Page::ZERO; 6]);
        store.put(&pages, &mut slots).unwrap();
        for _ in 0..2 {
            store.get(&slots, &mut back).unwrap();
            assert_eq!(back[0][0] ^ pages[0][0], 0x81, "196608 bits on is the first again");
            assert!(back[1..] == pages[1..]);
        }
    }

    #[test]
    fn a_dead_store_answers_nothing_and_lets_go() {
        let store = faulty("get 2: die");
        let (pages, mut slots, mut back) = (batch(), [Slot::default(); 6], vec![Page::ZERO; 6]);
        store.put(&pages, &mut slots).unwrap();
        store.get(&slots, &mut back).unwrap();
        for _ in 0..2 {
            assert!(matches!(store.get(&slots, &mut back), Err(StoreError::Dead { store: "lz4" })));
            assert!(matches!(store.put(&pages, &mut slots), Err(StoreError::Dead { .. })));
        }
        assert_eq!(store.struck().len(), 1);
        store.free(&slots);
        assert_eq!(store.usage(), Usage::default());
    }

    #[test]
    fn a_slow_answer_is_right_and_comes_after_its_delay() {
        let store = faulty("get 1: slow 30ms; get 2: slow 1ms; get 2: eio");
        let (pages, mut slots, mut back) = (batch(), [Slot::default(); 6], vec![Page::ZERO; 6]);
        store.put(&pages, &mut slots).unwrap();
        let start = std::time::Instant::now();
        store.get(&slots, &mut back).unwrap();
        // Not a matter of speed: a sleep is never shorter than it was told to be.
        assert!(start.elapsed().as_millis() >= 30);
        assert!(back == pages);
        assert!(matches!(store.get(&slots, &mut back), Err(StoreError::Io { source: Errno::IO, .. })));
        assert_eq!(store.struck().len(), 3);
    }

    #[test]
    fn an_empty_batch_has_no_bit_to_flip() {
        let store = faulty("put 1: flip 3; get 1: flip 3");
        store.put(&[], &mut []).unwrap();
        store.get(&[], &mut []).unwrap();
        assert_eq!(store.struck().len(), 2);
        let nothing = FaultyStore::new(Arc::new(DiscardStore::default()), FaultPlan::default());
        assert_eq!((nothing.name(), nothing.keeps_content()), ("none", false));
    }

    #[test]
    fn threads_share_a_store() {
        threads_do_not_disturb_each_other(&faulty(""), 50);
    }
}
