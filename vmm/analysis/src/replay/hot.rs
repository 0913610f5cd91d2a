//! A hot loop: pages visited over and over, of which only those that lost their translation cost anything.
//!
//! ```text
//!   order      p0 p1 p2 p3 p4 p5 …          where the loop is: `at`
//!   missing     .  x  .  .  x  .             a zap sets bits, a fault of any loop clears them
//!                        ^at ───> the next bit is the next fault; the touches in between are one multiplication
//! ```

use super::sptes::Bits;

/// The pages and their order.
#[derive(Clone, Debug)]
enum Order {
    /// These, of which each stands once; the words' first positions in `by_page`, the positions in order of their pages.
    Listed { pages: Vec<u32>, first: Box<[u32]>, by_page: Box<[u32]> },
    /// Every so many pages of the arena.
    Strided { stride: u64 },
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct HotLoop {
    order: Order,
    /// Visits of a pass.
    pub visits: u64,
    /// Whether it only reads.
    pub reads: bool,
    /// The pages it visits.
    pages: Bits,
    /// The positions that will fault.
    missing: Bits,
    missing_count: u64,
    at: u64,
}

impl HotLoop {
    /// A loop over a list. A page that stands twice is visited at the later place only.
    pub fn listed(list: &[u32], arena_pages: u64) -> Self {
        let mut pages = Bits::none(arena_pages);
        let mut sorted: Vec<(u32, u32)> =
            (0u32..).zip(list).map(|(position, &page)| (page, position)).collect();
        sorted.sort_unstable();
        sorted.dedup_by(|later, earlier| {
            let twin = later.0 == earlier.0;
            if twin {
                earlier.1 = later.1;
            }
            twin
        });
        let mut first = vec![0u32; arena_pages.div_ceil(64) as usize + 1];
        for &(page, _) in &sorted {
            pages.set(u64::from(page), true);
            first[page as usize / 64 + 1] += 1;
        }
        for word in 1..first.len() {
            first[word] += first[word - 1];
        }
        let by_page = sorted.iter().map(|&(_, position)| position).collect();
        let order = Order::Listed { pages: list.to_vec(), first: first.into(), by_page };
        Self::new(order, list.len() as u64, pages)
    }

    /// A loop over every `stride`-th page of the arena; the stride is not 0.
    pub fn strided(stride: u64, arena_pages: u64) -> Self {
        let visits = arena_pages.div_ceil(stride.max(1));
        let mut pages = Bits::none(arena_pages);
        (0..visits).for_each(|visit| pages.set(visit * stride, true));
        Self::new(Order::Strided { stride }, visits, pages)
    }

    fn new(order: Order, visits: u64, pages: Bits) -> Self {
        Self { order, visits, reads: true, pages, missing: Bits::none(visits), missing_count: 0, at: 0 }
    }

    /// These pages of a word lost their translation.
    pub fn lose(&mut self, word: usize, gone: u64) {
        self.mark(word, gone, true);
    }

    /// These pages of a word have one again.
    pub fn gain(&mut self, word: usize, back: u64) {
        if self.missing_count > 0 {
            self.mark(word, back, false);
        }
    }

    fn mark(&mut self, word: usize, pages: u64, missing: bool) {
        let mine = self.pages.0[word];
        let mut rest = mine & pages;
        while rest != 0 {
            let bit = rest.trailing_zeros();
            rest &= rest - 1;
            let position = match &self.order {
                Order::Listed { first, by_page, .. } => {
                    let below = (mine & ((1 << bit) - 1)).count_ones();
                    u64::from(by_page[(first[word] + below) as usize])
                }
                Order::Strided { stride } => (word as u64 * 64 + u64::from(bit)) / stride,
            };
            if self.missing.has(position) != missing {
                self.missing.set(position, missing);
                if missing { self.missing_count += 1 } else { self.missing_count -= 1 }
            }
        }
    }

    /// Touches until the next fault, and its page; `None` if there is none.
    pub fn next_fault(&self) -> Option<(u64, u64)> {
        if self.missing_count == 0 {
            return None;
        }
        let position = self.missing_from(self.at).or_else(|| self.missing_from(0))?;
        let touches = if position >= self.at { position - self.at } else { self.visits - self.at + position };
        let page = match &self.order {
            Order::Listed { pages, .. } => u64::from(pages[position as usize]),
            Order::Strided { stride } => position * stride,
        };
        Some((touches, page))
    }

    /// The first missing position from `start` on.
    fn missing_from(&self, start: u64) -> Option<u64> {
        let first = (start / 64) as usize;
        let mut word = self.missing.0.get(first)? & u64::MAX << (start % 64);
        for index in first.. {
            if word != 0 {
                return Some(index as u64 * 64 + u64::from(word.trailing_zeros()));
            }
            word = *self.missing.0.get(index + 1)?;
        }
        None
    }

    /// Goes on by so many touches.
    pub fn advance(&mut self, touches: u64) {
        self.at = if self.visits == 0 { 0 } else { (self.at + touches % self.visits) % self.visits };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Against a loop that looks at every page.
        #[test]
        fn the_next_fault_is_the_first_page_without_translation(
            seed: u64, stride in 0u64..4, zaps in prop::collection::vec((0usize..8, any::<u64>(), any::<bool>()), 1..30),
        ) {
            let pages: Vec<u32> = vmm_list(seed);
            let (mut hot, order): (HotLoop, Vec<u64>) = match stride {
                0 => (HotLoop::listed(&pages, 512), pages.iter().map(|&page| u64::from(page)).collect()),
                stride => (HotLoop::strided(stride, 512), (0..512).step_by(stride as usize).collect()),
            };
            let (mut lost, mut at) = (BTreeSet::new(), 0usize);
            for (word, mask, loses) in zaps {
                let touched = (0..64).filter(|bit| mask >> bit & 1 != 0).map(|bit| word as u64 * 64 + bit);
                if loses {
                    hot.lose(word, mask);
                    lost.extend(touched);
                } else {
                    hot.gain(word, mask);
                    touched.for_each(|page| { lost.remove(&page); });
                }
                let naive = (0..order.len())
                    .map(|ahead| (ahead as u64, order[(at + ahead) % order.len()]))
                    .find(|(_, page)| lost.contains(page));
                prop_assert_eq!(hot.next_fault(), naive);
                let step = naive.map_or(5, |(ahead, _)| ahead + 1);
                hot.advance(step);
                at = (at + step as usize) % order.len();
            }
        }
    }

    fn vmm_list(seed: u64) -> Vec<u32> {
        experiment::scenario::select::sparse_victims(seed, 512, 100)
            .into_iter()
            .map(|page| page as u32)
            .collect()
    }

    #[test]
    fn a_list_that_names_a_page_twice_does_no_harm() {
        let mut hot = HotLoop::listed(&[5, 9, 5], 64);
        hot.lose(0, u64::MAX);
        assert_eq!(hot.next_fault(), Some((1, 9)));
        hot.gain(0, 1 << 9);
        assert_eq!(hot.next_fault(), Some((2, 5)));
    }
}
