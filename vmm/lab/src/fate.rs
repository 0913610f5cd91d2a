//! What has become of each page of the arena, and so what a verify must find there.

use std::ops::Range;

use guest_mem::{Backing, Operation, Remains};

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The pattern of the fill.
    Pattern = 0,
    /// Zeros: it was discarded.
    Zeros = 1,
    /// One or the other: it was given to the kernel to discard when it likes.
    Either = 2,
}

/// All pages.
#[derive(Debug)]
pub struct Fates(Vec<Fate>);

/// One page in one byte: there is one for each page of the arena. The content, and [`TAKEN`] if a step named the
/// page as a victim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fate(u8);

const TAKEN: u8 = 1 << 7;

impl Fate {
    const fn kept(content: Content) -> Self {
        Self(content as u8)
    }
    const fn taken(content: Content) -> Self {
        Self(content as u8 | TAKEN)
    }
    const fn content(self) -> Content {
        match self.0 & !TAKEN {
            0 => Content::Pattern,
            1 => Content::Zeros,
            _ => Content::Either,
        }
    }
    const fn is_taken(self) -> bool {
        self.0 & TAKEN != 0
    }
}

impl Fates {
    /// An arena of `pages` pages that nobody has written.
    pub fn new(pages: u64) -> Self {
        Self(vec![Fate::kept(Content::Zeros); pages as usize])
    }

    /// Every page was filled, and nothing is taken any more.
    pub fn filled(&mut self) {
        self.0.fill(Fate::kept(Content::Pattern));
    }

    /// A step took these pages; `left` says what that leaves in them, `None` what they held.
    pub fn take(&mut self, pages: Range<u64>, left: Option<Content>) {
        for fate in &mut self.0[pages.start as usize..pages.end as usize] {
            *fate = Fate::taken(match fate.content() {
                Content::Zeros => Content::Zeros,
                held => left.unwrap_or(held),
            });
        }
    }

    /// Whether a step took the page.
    pub fn is_taken(&self, page: u64) -> bool {
        self.0.get(page as usize).is_some_and(|fate| fate.is_taken())
    }

    /// The pages with this content, lowest first.
    pub fn with(&self, content: Content) -> impl Iterator<Item = u64> {
        self.indices(move |fate| fate.content() == content)
    }

    /// The pages that no step took, lowest first.
    pub fn others(&self) -> impl Iterator<Item = u64> {
        self.indices(|fate| !fate.is_taken())
    }

    fn indices(&self, wanted: impl Fn(Fate) -> bool) -> impl Iterator<Item = u64> {
        (0u64..).zip(&self.0).filter(move |(_, fate)| wanted(**fate)).map(|(page, _)| page)
    }
}

/// What an operation leaves in the pages it takes; `None` if their content stays.
pub fn left_by(operation: Operation, backing: Backing) -> Option<Content> {
    match operation.remains(backing) {
        Remains::Content => None,
        Remains::Zeros => Some(Content::Zeros),
        Remains::Either => Some(Content::Either),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_and_what_is_left_are_told_apart() {
        let mut fates = Fates::new(4);
        fates.filled();
        fates.take(1..2, left_by(Operation::PageOut, Backing::Thp));
        fates.take(2..3, left_by(Operation::DontNeed, Backing::Thp));
        assert_eq!(fates.others().collect::<Vec<_>>(), [0, 3]);
        assert_eq!(fates.with(Content::Zeros).collect::<Vec<_>>(), [2]);
        assert_eq!(fates.with(Content::Pattern).count(), 3);
        assert!(fates.is_taken(1) && !fates.is_taken(3) && !fates.is_taken(99));
        fates.take(2..3, left_by(Operation::Free, Backing::Thp));
        assert_eq!(fates.with(Content::Zeros).count(), 1, "what is gone cannot come back");
    }

    #[test]
    fn shared_memory_keeps_its_content_unless_a_hole_is_punched() {
        assert_eq!(left_by(Operation::DontNeed, Backing::Memfd), None);
        assert_eq!(left_by(Operation::PunchHole, Backing::Memfd), Some(Content::Zeros));
    }
}
