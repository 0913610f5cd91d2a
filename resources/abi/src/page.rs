//! What a page of the arena contains: a header of counters, then a pattern that no other page has.
//!
//! | words (of 8 bytes) | content |
//! | --- | --- |
//! | 0 | the *locked* counter: every vCPU adds to it by `lock add` |
//! | 1 to 63 | one *lane* a vCPU, which only that vCPU increments, with plain loads and stores |
//! | 64 to 511 | the pattern, a function of the word's guest physical address and the page's generation |
//!
//! Generation 0 is the page that was never written, or was discarded: all zeros.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::layout::{MAX_VCPUS, PAGE_SIZE};

/// 8-byte words in a page.
pub const WORDS: usize = (PAGE_SIZE / 8) as usize;
/// Words before the pattern begins.
pub const HEADER_WORDS: usize = 64;
/// The word that all vCPUs add to with a locked instruction.
pub const LOCKED_WORD: usize = 0;

const _: () = assert!((MAX_VCPUS as usize) < HEADER_WORDS, "a lane for each vCPU");

/// The word that only this vCPU increments.
pub const fn lane_word(vcpu: u32) -> usize {
    1 + (vcpu % (HEADER_WORDS as u32 - 1)) as usize
}

/// The increment of SplitMix64.
pub(crate) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijection.
pub(crate) const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The pattern word at guest physical address `gpa` in a page of generation `generation`.
///
/// A bijection for a fixed generation, so a page that turns up at another address, or an older copy of the same page,
/// differs in every word.
pub const fn pattern(gpa: u64, generation: u64) -> u64 {
    if generation == 0 { 0 } else { mix(gpa ^ generation.wrapping_mul(GOLDEN)) }
}

/// A page of the arena as the running side can reach it right now.
///
/// All access is volatile or atomic: the other side, and other vCPUs, write at the same time.
#[derive(Clone, Copy, Debug)]
pub struct PagePtr(*mut u64);

impl PagePtr {
    /// # Safety
    /// `page` is 4 KiB aligned and 4 KiB from it are mapped readable, and writable if anything is stored,
    /// for as long as the value is used.
    pub const unsafe fn new(page: *mut u64) -> Self {
        Self(page)
    }

    fn word(self, index: usize) -> *mut u64 {
        assert!(index < WORDS);
        self.0.wrapping_add(index)
    }

    /// Reads a word.
    pub fn load(self, index: usize) -> u64 {
        // SAFETY: the word lies in the page that `new` was promised, and volatile access tolerates writers.
        unsafe { self.word(index).read_volatile() }
    }

    /// Writes a word.
    pub fn store(self, index: usize, value: u64) {
        // SAFETY: as in `load`; `new` was promised a writable page.
        unsafe { self.word(index).write_volatile(value) }
    }

    /// Adds 1 to a word by a locked read-modify-write.
    pub fn locked_increment(self, index: usize) {
        // SAFETY: the word is aligned, lies in the promised page, and everyone who shares it uses atomics.
        unsafe { AtomicU64::from_ptr(self.word(index)) }.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds 1 to a word that only the caller writes, by a plain load and a plain store.
    pub fn plain_increment(self, index: usize) {
        self.store(index, self.load(index).wrapping_add(1));
    }

    /// Makes the page one of `generation` at `gpa`: counters 0, pattern fresh.
    pub fn fill(self, gpa: u64, generation: u64) {
        (0..HEADER_WORDS).for_each(|word| self.store(word, 0));
        (HEADER_WORDS..WORDS).for_each(|word| self.store(word, pattern(gpa + 8 * word as u64, generation)));
    }

    /// The first pattern word that is not what `generation` at `gpa` should hold, and how many there are.
    pub fn check(self, gpa: u64, generation: u64) -> Option<Mismatch> {
        let mut found: Option<Mismatch> = None;
        for word in HEADER_WORDS..WORDS {
            let (at, value) = (gpa + 8 * word as u64, self.load(word));
            let expected = pattern(at, generation);
            if value == expected {
                continue;
            }
            match &mut found {
                Some(first) => first.words += 1,
                None => found = Some(Mismatch { gpa: at, expected, found: value, words: 1 }),
            }
        }
        found
    }
}

/// A page that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Guest physical address of the first wrong word.
    pub gpa: u64,
    /// What it should hold.
    pub expected: u64,
    /// What it holds.
    pub found: u64,
    /// How many words of the page are wrong.
    pub words: u64,
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::boxed::Box;

    #[repr(align(4096))]
    struct Page([u64; WORDS]);

    fn page() -> (Box<Page>, PagePtr) {
        let mut page = Box::new(Page([0; WORDS]));
        // SAFETY: the box is a whole aligned page and outlives the pointer in each test.
        let pointer = unsafe { PagePtr::new(page.0.as_mut_ptr()) };
        (page, pointer)
    }

    #[test]
    fn a_filled_page_checks_and_a_changed_one_does_not() {
        let (_page, p) = page();
        p.fill(0x4000_0000, 3);
        assert_eq!(p.check(0x4000_0000, 3), None);
        assert_eq!(p.check(0x4000_0000, 2).map(|m| m.words), Some((WORDS - HEADER_WORDS) as u64));
        assert_eq!(p.check(0x4000_1000, 3).map(|m| m.gpa), Some(0x4000_1000 + 8 * 64));
        p.store(100, 1);
        let mismatch = p.check(0x4000_0000, 3).unwrap();
        assert_eq!((mismatch.gpa, mismatch.found, mismatch.words), (0x4000_0000 + 800, 1, 1));
    }

    #[test]
    fn generation_zero_is_a_page_of_zeros() {
        let (_page, p) = page();
        assert_eq!(p.check(0x4000_0000, 0), None);
        p.locked_increment(LOCKED_WORD);
        p.plain_increment(lane_word(31));
        assert_eq!(p.check(0x4000_0000, 0), None, "counters are not part of the pattern");
        assert_eq!((p.load(0), p.load(32)), (1, 1));
    }
}
