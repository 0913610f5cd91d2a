//! A model of a guest's memory: the host's mapping, the secondary MMU's translations, the hot loops.
//!
//! ```text
//!   host     mapped, zero, PMD ── bits ──┐
//!   sptes    small, large ───────────────┼── fault(page): as the kernel's fault paths install
//!   loops    where each is ──────────────┘
//! ```
//!
//! A fault installs:
//! - where the host maps the page by a PMD entry, and guest and memslot allow it, an entry of 2 MiB;
//! - else one of 4 KiB; and with KVM's shadow MMU those of the neighbours in the aligned group of eight
//!   (`__direct_pte_prefetch`): of each stretch without entries as many pages as `get_user_pages_fast` finds mapped and
//!   writable from its begin on, and if it finds none, no further stretch either.
//!
//! Left out: that KVM brings no neighbours while any range is being invalidated, and begins a fault again that such a
//! range covers.

use std::ops::Range;

use super::hot::HotLoop;
use super::sptes::{BLOCK, Bits, Sptes};
use experiment::events::{HostState, LayoutRun, Leaves, SecondaryMmu};

/// Pages that the shadow MMU looks at around a fault.
const GROUP: u64 = 8;

/// Faults, by the page they were on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Pages that had been taken.
    pub taken: u64,
    /// Others.
    pub others: u64,
}

impl std::ops::AddAssign for Faults {
    fn add_assign(&mut self, other: Self) {
        self.taken = self.taken.saturating_add(other.taken);
        self.others = self.others.saturating_add(other.others);
    }
}

impl Faults {
    /// All of them.
    pub fn all(self) -> u64 {
        self.taken.saturating_add(self.others)
    }
}

/// The time of a touch and of a fault, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// A touch by one loop that meets no fault.
    pub touch: f64,
    /// A fault.
    pub fault: f64,
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Machine {
    pages: u64,
    /// Whether a fault brings neighbours.
    prefetches: bool,
    /// Pages of a memslot: no neighbours come from the next.
    slot_pages: u64,
    /// Blocks that an entry of 2 MiB may translate.
    large_allowed: Bits,
    sptes: Sptes,
    mapped: Bits,
    zero: Bits,
    by_pmd: Bits,
    taken: Bits,
    /// The hot loops that run.
    pub loops: Vec<HotLoop>,
}

impl Machine {
    /// Memory of which nothing is mapped, under slots of `slot_pages`. 2 MiB entries need `large_slots`: slots that hold
    /// whole blocks, aligned.
    pub fn new(pages: u64, mmu: SecondaryMmu, slot_pages: u64, large_slots: bool) -> Self {
        let blocks = pages.div_ceil(BLOCK);
        let mut large_allowed = Bits::none(blocks);
        large_allowed.set_range(0..blocks, large_slots && slot_pages >= BLOCK);
        Self {
            pages,
            prefetches: mmu == SecondaryMmu::Shadow,
            slot_pages: slot_pages.max(1),
            large_allowed,
            sptes: Sptes::none(pages),
            mapped: Bits::none(blocks * BLOCK),
            zero: Bits::none(blocks * BLOCK),
            by_pmd: Bits::none(blocks),
            taken: Bits::none(blocks * BLOCK),
            loops: Vec::new(),
        }
    }

    /// Sets the host's mapping. `touched` if the guest has touched all of it since it was mapped so.
    pub fn lay_out(&mut self, runs: &[LayoutRun], touched: bool) {
        let mut first = 0;
        for run in runs {
            let range = first..(first + run.pages).min(self.pages);
            first = range.end;
            let (mapped, zero, by_pmd) = match run.state {
                HostState::Absent | HostState::Cached | HostState::Swapped => (false, false, false),
                HostState::ZeroByPte => (true, true, false),
                HostState::ZeroByPmd => (true, true, true),
                HostState::MappedByPte => (true, false, false),
                HostState::MappedByPmd => (true, false, true),
            };
            self.mapped.set_range(range.clone(), mapped);
            self.zero.set_range(range.clone(), zero);
            let whole = range.start.div_ceil(BLOCK)..range.end / BLOCK;
            self.by_pmd.set_range(range.start / BLOCK..range.end.div_ceil(BLOCK), false);
            self.by_pmd.set_range(whole, by_pmd);
        }
        if touched {
            (0..self.pages.div_ceil(BLOCK)).for_each(|block| self.translate_block(block));
        }
    }

    /// Installs what a guest that touched every mapped page of a block has.
    fn translate_block(&mut self, block: u64) {
        if self.by_pmd.has(block) && self.large_allowed.has(block) {
            self.install_large(block);
            return;
        }
        for word in (block * BLOCK / 64) as usize..((block + 1) * BLOCK / 64) as usize {
            self.install_small(word, self.mapped.0[word]);
        }
    }

    /// Drops translations, and nothing else.
    pub fn zap(&mut self, pages: Range<u64>) -> Leaves {
        let loops = &mut self.loops;
        let pages = pages.start..pages.end.min(self.pages);
        self.sptes.drop_range(pages, |word, gone| loops.iter_mut().for_each(|hot| hot.lose(word, gone)))
    }

    /// The host's PMD entry over a block is no more; what was under it is mapped by PTEs. Returns whether there was one.
    pub fn map_by_ptes(&mut self, block: u64) -> bool {
        let there = block * BLOCK < self.pages && self.by_pmd.has(block);
        if there {
            self.by_pmd.set(block, false);
        }
        there
    }

    /// The same, and the secondary MMU is told.
    pub fn split(&mut self, block: u64) -> Leaves {
        self.map_by_ptes(block);
        self.zap(block * BLOCK..(block + 1) * BLOCK)
    }

    /// The block is mapped by a PMD entry from now on.
    pub fn collapse(&mut self, block: u64) {
        if block * BLOCK < self.pages {
            self.mapped.set_range(block * BLOCK..(block + 1) * BLOCK, true);
            self.by_pmd.set(block, true);
        }
    }

    /// A step asked for these pages.
    pub fn take(&mut self, pages: Range<u64>) {
        self.taken.set_range(pages.start..pages.end.min(self.pages), true);
    }

    /// The host maps these pages no more.
    pub fn unmap(&mut self, pages: Range<u64>) {
        let pages = pages.start..pages.end.min(self.pages);
        self.mapped.set_range(pages.clone(), false);
        self.zero.set_range(pages.clone(), false);
        self.by_pmd.set_range(pages.start / BLOCK..pages.end.div_ceil(BLOCK), false);
    }

    /// A read of a page.
    pub fn touch(&mut self, page: u64) -> Faults {
        if self.sptes.has(page) {
            return Faults::default();
        }
        self.fault(page);
        if self.taken.has(page) { Faults { taken: 1, others: 0 } } else { Faults { taken: 0, others: 1 } }
    }

    /// A read of each page that was taken, or of each that was not, lowest first.
    pub fn touch_all(&mut self, taken: bool) -> Faults {
        let mut faults = Faults::default();
        for word in 0..self.taken.0.len() {
            let mut wanted = if taken { self.taken.0[word] } else { !self.taken.0[word] };
            while wanted != 0 {
                let page = word as u64 * 64 + u64::from(wanted.trailing_zeros());
                wanted &= wanted - 1;
                if page < self.pages {
                    faults += self.touch(page);
                }
            }
        }
        faults
    }

    /// Everything is filled again: nothing is taken.
    pub fn fill(&mut self) {
        self.taken = Bits::none(self.pages.div_ceil(BLOCK) * BLOCK);
    }

    /// Lets every loop run for so many nanoseconds; without a pace, or for ever, until none of its pages is missing.
    pub fn run_loops(&mut self, ns: Option<f64>, pace: Option<Pace>) -> Faults {
        let mut faults = Faults::default();
        for index in 0..self.loops.len() {
            faults += match (ns, pace) {
                (Some(ns), Some(pace)) => self.run_loop(index, ns, pace),
                _ => self.run_loop_around(index),
            };
        }
        faults
    }

    /// Lets every loop that only reads go on to its next fault, if there is one.
    pub fn read_once(&mut self) -> Faults {
        let mut faults = Faults::default();
        for index in 0..self.loops.len() {
            if self.loops[index].reads {
                faults += self.go_on(index).unwrap_or_default();
            }
        }
        faults
    }

    /// A loop's next fault; `None` where none of its pages is missing.
    fn go_on(&mut self, index: usize) -> Option<Faults> {
        let (touches, page) = self.loops[index].next_fault()?;
        self.loops[index].advance(touches + 1);
        Some(self.touch(page))
    }

    fn run_loop_around(&mut self, index: usize) -> Faults {
        let mut faults = Faults::default();
        while let Some(more) = self.go_on(index) {
            faults += more;
        }
        faults
    }

    fn run_loop(&mut self, index: usize, mut left: f64, pace: Pace) -> Faults {
        let mut faults = Faults::default();
        while let Some((touches, page)) = self.loops[index].next_fault() {
            let way = touches as f64 * pace.touch;
            if left < way + pace.fault {
                break;
            }
            left -= way + pace.fault;
            self.loops[index].advance(touches + 1);
            faults += self.touch(page);
        }
        // The rest of the time goes into touches, up to the next fault.
        let next = self.loops[index].next_fault().map_or(u64::MAX, |(touches, _)| touches);
        self.loops[index].advance(next.min((left.max(0.0) / pace.touch) as u64));
        faults
    }

    fn fault(&mut self, page: u64) {
        let block = page / BLOCK;
        if !self.mapped.has(page) {
            self.mapped.set(page, true);
        }
        if self.by_pmd.has(block) && self.large_allowed.has(block) {
            self.install_large(block);
            return;
        }
        let word = (page / 64) as usize;
        self.install_small(word, 1 << (page % 64));
        if self.prefetches {
            let neighbours = self.neighbours(page);
            self.install_small(word, neighbours);
        }
    }

    /// Those of the group that come along, as bits of the page's word.
    fn neighbours(&self, page: u64) -> u64 {
        let word = (page / 64) as usize;
        let shift = page % 64 / GROUP * GROUP;
        let entries = self.sptes.small_word(word) >> shift & 0xff;
        let to_be_had = (self.mapped.0[word] & !self.zero.0[word]) >> shift & 0xff;
        let mut brought = 0;
        let mut bit = 0;
        while bit < GROUP {
            if entries >> bit & 1 != 0 {
                bit += 1;
                continue;
            }
            // A stretch without entries, up to the next entry or the end of the group.
            let len = u64::from((entries >> bit).trailing_zeros()).min(GROUP - bit);
            let first = page / GROUP * GROUP + bit;
            let one_slot = first / self.slot_pages == (first + len - 1) / self.slot_pages;
            let found = u64::from((!(to_be_had >> bit)).trailing_zeros()).min(len);
            if !one_slot || found == 0 {
                break;
            }
            brought |= ((1u64 << found) - 1) << bit;
            bit += len;
        }
        brought << shift
    }

    fn install_small(&mut self, word: usize, mask: u64) {
        if mask != 0 {
            self.sptes.install_small(word, mask);
            self.loops.iter_mut().for_each(|hot| hot.gain(word, mask));
        }
    }

    fn install_large(&mut self, block: u64) {
        self.sptes.install_large(block);
        for word in (block * BLOCK / 64) as usize..((block + 1) * BLOCK / 64) as usize {
            self.loops.iter_mut().for_each(|hot| hot.gain(word, u64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(mmu: SecondaryMmu, state: HostState) -> Machine {
        let mut machine = Machine::new(1024, mmu, 512, true);
        machine.lay_out(&[LayoutRun { pages: 1024, state }], true);
        machine
    }

    #[test]
    fn the_shadow_mmu_brings_neighbours_and_the_tdp_mmu_none() {
        for (mmu, faults) in
            [(SecondaryMmu::Shadow, 512 / 8), (SecondaryMmu::Tdp, 512), (SecondaryMmu::Soft, 512)]
        {
            let mut machine = machine(mmu, HostState::MappedByPte);
            assert_eq!(machine.touch_all(false).all(), 0);
            assert_eq!(machine.zap(0..512), Leaves { small: 512, large: 0 });
            assert_eq!(machine.touch_all(false).others, faults, "{mmu:?}");
        }
    }

    #[test]
    fn a_page_that_is_gone_stops_the_stretch_it_stands_in() {
        let mut machine = machine(SecondaryMmu::Shadow, HostState::MappedByPte);
        machine.take(3..4);
        machine.unmap(3..4);
        machine.zap(0..8);
        // 0 brings 1 and 2. For each of 4 to 7 the first stretch is the page that is gone, and none comes after it.
        assert_eq!(machine.touch_all(false).others, 5);
        assert_eq!(machine.touch_all(true), Faults { taken: 1, others: 0 });
        assert_eq!(machine.touch_all(true).all(), 0, "it is back");
    }

    #[test]
    fn neighbours_do_not_come_from_another_slot() {
        let mut machine = Machine::new(512, SecondaryMmu::Shadow, 4, true);
        machine.lay_out(&[LayoutRun { pages: 512, state: HostState::MappedByPte }], true);
        machine.zap(0..8);
        // A stretch over two slots brings nothing: 0, 1, 2 and 3 come alone, and with 3 what is left is of one slot.
        assert_eq!(machine.touch_all(false).others, 4);
    }

    #[test]
    fn a_huge_page_goes_whole_and_comes_back_as_the_host_maps_it() {
        let mut machine = machine(SecondaryMmu::Shadow, HostState::MappedByPmd);
        assert_eq!(machine.zap(7..8), Leaves { small: 0, large: 1 });
        assert_eq!(machine.touch_all(false).others, 1);
        assert_eq!(machine.split(0), Leaves { small: 0, large: 1 });
        assert_eq!(machine.touch_all(false).others, 64);
        assert_eq!(machine.zap(7..8), Leaves { small: 1, large: 0 });
        let mut small_slots = Machine::new(512, SecondaryMmu::Tdp, 256, true);
        small_slots.lay_out(&[LayoutRun { pages: 512, state: HostState::MappedByPmd }], true);
        assert_eq!(small_slots.zap(7..8), Leaves { small: 1, large: 0 }, "no entry is wider than its slot");
    }

    #[test]
    fn a_loop_comes_as_far_as_its_time_allows() {
        let mut machine = machine(SecondaryMmu::Tdp, HostState::MappedByPte);
        machine.loops.push(HotLoop::listed(&[0, 100, 200, 300], 1024));
        let pace = Some(Pace { touch: 10.0, fault: 1_000.0 });
        machine.zap(0..1024);
        assert_eq!(machine.run_loops(Some(999.0), pace).all(), 0);
        assert_eq!(machine.run_loops(Some(2_500.0), pace).all(), 2);
        assert_eq!(machine.run_loops(None, pace).all(), 2);
        assert_eq!(machine.run_loops(None, None).all(), 0);
    }
}
