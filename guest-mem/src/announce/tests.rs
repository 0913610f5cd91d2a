//! Announcements against an oracle that looks at each page by itself.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::address::PAGES_PER_PMD;
use crate::backing::Backing;

const BLOCKS: u64 = 3;
const PAGES: u64 = BLOCKS * PAGES_PER_PMD;

/// The state of a page, for the oracle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Absent,
    Swapped,
    Base,
    /// A page of the folio that begins at this page, of that many pages; whole or not.
    Large {
        head: u64,
        pages: u64,
        whole: bool,
    },
    /// Under a PMD entry.
    Huge,
}

/// A region's memory as a list of pages, with a real region for its address and its seams.
struct World {
    region: Region,
    pages: Vec<Page>,
    seamed: Vec<bool>,
    range: (u64, u64),
}

/// Fills 3 blocks from a list of (kind, size) draws; seams go where there is no PMD mapping.
fn world(backing: Backing, draws: &[(u8, u8)], huge: [bool; 3], seams: [bool; 3], ends: (u64, u64)) -> World {
    let region = Region::map(BLOCKS * PMD_SIZE, backing).unwrap();
    let mut pages = vec![Page::Absent; PAGES as usize];
    let mut draws = draws.iter().cycle();
    let mut seamed = Vec::new();
    for block in 0..BLOCKS {
        let (first, end) = (block * PAGES_PER_PMD, (block + 1) * PAGES_PER_PMD);
        if huge[block as usize] {
            pages[first as usize..end as usize].fill(Page::Huge);
            seamed.push(false);
            continue;
        }
        let seam = seams[block as usize];
        if seam {
            region.seam(region.slice(block * PMD_SIZE, PMD_SIZE).unwrap()).unwrap();
        }
        seamed.push(seam);
        let mut at = first;
        while at < end {
            let (kind, size) = draws.next().unwrap();
            at += draw(&mut pages, at, *kind, 1 << (size % 6), first + u64::from(seam)).min(end - at);
        }
    }
    World { region, pages, seamed, range: (ends.0.min(ends.1), ends.0.max(ends.1)) }
}

/// Writes one stretch of pages at `at`; returns how many. Folios are aligned and not cut by a seam.
fn draw(pages: &mut [Page], at: u64, kind: u8, size: u64, lowest: u64) -> u64 {
    let fits = at.is_multiple_of(size) && at >= lowest && size > 1;
    for page in at..(at + size).min(pages.len() as u64) {
        pages[page as usize] = match kind % 5 {
            0 => Page::Absent,
            1 => Page::Swapped,
            2 if fits => Page::Large { head: at, pages: size, whole: true },
            // The folio's second page is gone.
            3 if fits && size > 2 && page == at + 1 => Page::Absent,
            3 if fits && size > 2 => Page::Large { head: at, pages: size, whole: false },
            _ => Page::Base,
        };
    }
    size
}

impl World {
    fn hva(&self, page: u64) -> Hva {
        Hva::new(self.region.range().start().get() + page * PAGE_SIZE)
    }
    fn span(&self, from: u64, to: u64) -> HvaRange {
        HvaRange::new(self.hva(from), self.hva(to)).unwrap()
    }

    fn runs(&self) -> Vec<PageRun> {
        let file = self.region.backing().is_shared();
        let mut runs = Vec::new();
        for (index, page) in self.pages.iter().enumerate() {
            let state = match page {
                Page::Absent => PageState::Absent,
                Page::Swapped => PageState::Swapped,
                Page::Base | Page::Large { .. } => PageState::Mapped { level: MapLevel::Pte, file },
                Page::Huge => PageState::Mapped { level: MapLevel::Pmd, file },
            };
            crate::state::push_run(&mut runs, self.span(index as u64, index as u64 + 1), state);
        }
        runs
    }

    fn folios(&self) -> Vec<LargeFolio> {
        let heads: BTreeSet<(u64, u64, bool)> = self
            .pages
            .iter()
            .filter_map(|page| match *page {
                Page::Large { head, pages, whole } => Some((head, pages, whole)),
                _ => None,
            })
            .collect();
        let folio = |(head, pages, whole): (u64, u64, bool)| LargeFolio {
            pages: self.span(head, head + pages),
            mapped: pages - u64::from(!whole),
            order: Order::of_bytes(pages * PAGE_SIZE).unwrap(),
        };
        heads.into_iter().map(folio).collect()
    }

    fn announced(&self, operation: Operation) -> Vec<Planned> {
        let (runs, folios) = (self.runs(), self.folios());
        let layout = Layout { runs: &runs, folios: &folios, region: &self.region };
        let mut out = Vec::new();
        announce(&layout, self.span(self.range.0, self.range.1), operation, &mut out);
        out
    }

    /// Which VMA has a page, by the number of seams' edges below it.
    fn vma(&self, page: u64) -> usize {
        let cuts =
            (0..BLOCKS).filter(|&block| self.seamed[block as usize]).flat_map(|b| [b * 512, b * 512 + 1]);
        cuts.filter(|&cut| cut <= page).count()
    }

    /// Whether all of `first..end` lies in the range and in one VMA.
    fn together(&self, first: u64, end: u64) -> bool {
        (first..end)
            .all(|page| (self.range.0..self.range.1).contains(&page) && self.vma(page) == self.vma(first))
    }

    /// The oracle for pageout: page by page, and for the pages of one VMA and one block the splits first.
    fn naive_page_out(&self) -> Vec<Planned> {
        let anonymous = self.region.backing().is_anonymous();
        let victim = |from, to, order, level| {
            Planned::Take(Victim { pages: self.span(from, to), order, level, anonymous })
        };
        let (mut out, mut takes) = (Vec::new(), Vec::new());
        let mut split = BTreeSet::new();
        let mut batch = None;
        for page in self.range.0..self.range.1 {
            if batch.replace((self.vma(page), page / 512)) != Some((self.vma(page), page / 512)) {
                out.append(&mut takes);
            }
            let (head, size, level, whole) = match self.pages[page as usize] {
                Page::Absent | Page::Swapped => continue,
                Page::Base => (page, 1, MapLevel::Pte, true),
                Page::Large { head, pages, whole } => (head, pages, MapLevel::Pte, whole),
                Page::Huge => (page / 512 * 512, 512, MapLevel::Pmd, true),
            };
            let end = head + size;
            if whole && self.together(head, end) {
                if page == head {
                    takes.push(victim(head, end, Order::of_bytes(size * PAGE_SIZE).unwrap(), level));
                }
                continue;
            }
            if split.insert(head) {
                out.push(match level {
                    MapLevel::Pmd => Planned::SplitPmd(self.span(head, end)),
                    MapLevel::Pte => Planned::SplitFolio(self.span(head, end)),
                });
            }
            if anonymous {
                takes.push(victim(page, page + 1, Order::BASE, MapLevel::Pte));
            }
        }
        out.append(&mut takes);
        out
    }

    /// The oracle for dontneed: stretches of one VMA, each with the blocks it breaks.
    fn naive_dontneed(&self) -> Vec<Planned> {
        let mut out = Vec::new();
        let mut split = BTreeSet::new();
        let mut from = self.range.0;
        while from < self.range.1 {
            let same = |page: &u64| self.vma(*page) == self.vma(from);
            let to = (from..self.range.1).take_while(same).last().unwrap() + 1;
            out.push(Planned::Exact(self.span(from, to)));
            for block in
                (0..BLOCKS).filter(|block| self.pages[(block * 512) as usize] == Page::Huge && *block < 3)
            {
                let (first, end) = (block * 512, block * 512 + 512);
                let touched = from < end && first < to;
                if touched && !(from <= first && end <= to) && split.insert(block) {
                    out.push(Planned::SplitPmd(self.span(first, end)));
                }
            }
            from = to;
        }
        out
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn pageout_agrees_with_looking_at_each_page(
        shared: bool, draws in proptest::collection::vec((0u8..5, 0u8..6), 1..40),
        huge: [bool; 3], seams: [bool; 3], a in 0..=PAGES, b in 0..=PAGES,
    ) {
        let backing = if shared { Backing::MemfdThp } else { Backing::Thp };
        let world = world(backing, &draws, huge, seams, (a, b));
        prop_assert_eq!(world.announced(Operation::PageOut), world.naive_page_out());
    }

    #[test]
    fn cold_is_pageout_without_the_taking(
        draws in proptest::collection::vec((0u8..5, 0u8..6), 1..40),
        huge: [bool; 3], seams: [bool; 3], a in 0..=PAGES, b in 0..=PAGES,
    ) {
        let world = world(Backing::Thp, &draws, huge, seams, (a, b));
        let mut splits = world.naive_page_out();
        splits.retain(|planned| !matches!(planned, Planned::Take(_)));
        prop_assert_eq!(world.announced(Operation::Cold), splits);
    }

    #[test]
    fn dontneed_agrees_with_looking_at_each_page(
        draws in proptest::collection::vec((0u8..5, 0u8..6), 1..40),
        huge: [bool; 3], seams: [bool; 3], a in 0..=PAGES, b in 0..=PAGES,
    ) {
        let world = world(Backing::Thp, &draws, huge, seams, (a, b));
        prop_assert_eq!(world.announced(Operation::DontNeed), world.naive_dontneed());
    }

    #[test]
    fn pageout_takes_each_mapped_page_once(
        draws in proptest::collection::vec((0u8..5, 0u8..6), 1..40),
        huge: [bool; 3], a in 0..=PAGES, b in 0..=PAGES,
    ) {
        let world = world(Backing::Thp, &draws, huge, [false; 3], (a, b));
        let mut taken = Vec::new();
        for planned in world.announced(Operation::PageOut) {
            if let Planned::Take(victim) = planned {
                prop_assert_eq!(victim.pages.len(), victim.order.bytes());
                taken.extend(victim.pages.pages().map(|page| page.start()));
            }
        }
        let mapped = |page: &u64| !matches!(world.pages[*page as usize], Page::Absent | Page::Swapped);
        let expected: Vec<Hva> =
            (world.range.0..world.range.1).filter(mapped).map(|page| world.hva(page)).collect();
        prop_assert_eq!(taken, expected);
    }
}

#[test]
fn one_page_of_a_huge_page_is_a_split_and_a_page_and_the_next_only_a_page() {
    let world = world(Backing::Thp, &[(4, 0)], [true; 3], [false; 3], (3, 5));
    let take = |page| {
        Planned::Take(Victim {
            pages: world.span(page, page + 1),
            order: Order::BASE,
            level: MapLevel::Pte,
            anonymous: true,
        })
    };
    let expected = [Planned::SplitPmd(world.span(0, 512)), take(3), take(4)];
    assert_eq!(world.announced(Operation::PageOut), expected);
}

#[test]
fn protect_and_remap_split_the_vma_where_no_seam_is() {
    let bare = world(Backing::Base4k, &[(4, 0)], [false; 3], [false; 3], (515, 516));
    let (block, page) = (bare.span(512, 1024), Planned::Exact(bare.span(515, 516)));
    assert_eq!(bare.announced(Operation::Protect), [Planned::SplitPmd(block), page, page]);
    assert_eq!(bare.announced(Operation::Remap), [page, Planned::SplitPmd(block), page]);
    let seamed = world(Backing::Base4k, &[(4, 0)], [false; 3], [true; 3], (515, 516));
    let page = Planned::Exact(seamed.span(515, 516));
    assert_eq!(seamed.announced(Operation::Protect), [page, page]);
}

#[test]
fn collapse_announces_blocks_that_are_not_huge_yet() {
    let world = world(Backing::Thp, &[(4, 0)], [true, false, true], [false; 3], (0, PAGES));
    let expected = [Planned::Exact(world.span(512, 1024))];
    assert_eq!(world.announced(Operation::Collapse), expected);
}
