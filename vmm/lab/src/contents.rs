//! The content that each page of the arena must have when it is verified.

use std::ops::Range;

use guest_mem::Remains;

/// The content of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The pattern of the fill.
    Pattern = 0,
    /// Zeros: it was discarded.
    Zeros = 1,
    /// One or the other: it was given to the kernel to discard when it likes.
    Either = 2,
}

/// The content of all pages.
#[derive(Debug)]
pub struct Contents(Vec<Page>);

/// One page, in one byte: its content, and [`TAKEN`] if a step took it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Page(u8);

const TAKEN: u8 = 1 << 7;

impl Page {
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

impl Contents {
    /// An arena of `pages` pages that were never written.
    pub fn new(pages: u64) -> Self {
        Self(vec![Page::kept(Content::Zeros); pages as usize])
    }

    /// Every page was filled, and nothing is taken any more.
    pub fn filled(&mut self) {
        self.0.fill(Page::kept(Content::Pattern));
    }

    /// A step took these pages.
    pub fn take(&mut self, pages: Range<u64>, remains: Remains) {
        for page in &mut self.0[pages.start as usize..pages.end as usize] {
            *page = Page::taken(match (page.content(), remains) {
                (Content::Zeros, _) | (_, Remains::Zeros) => Content::Zeros,
                (_, Remains::Either) => Content::Either,
                (held, Remains::Content) => held,
            });
        }
    }

    /// Whether a step took the page.
    pub fn is_taken(&self, page: u64) -> bool {
        self.0.get(page as usize).is_some_and(|page| page.is_taken())
    }

    /// The pages with this content, lowest first.
    pub fn with(&self, content: Content) -> impl Iterator<Item = u64> {
        self.indices(move |page| page.content() == content)
    }

    /// The pages that no step took, lowest first.
    pub fn others(&self) -> impl Iterator<Item = u64> {
        self.indices(|page| !page.is_taken())
    }

    fn indices(&self, wanted: impl Fn(Page) -> bool) -> impl Iterator<Item = u64> {
        (0u64..).zip(&self.0).filter(move |(_, page)| wanted(**page)).map(|(page, _)| page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_told_apart_by_their_content_and_by_whether_they_were_taken() {
        let mut contents = Contents::new(4);
        contents.filled();
        contents.take(1..2, Remains::Content);
        contents.take(2..3, Remains::Zeros);
        assert_eq!(contents.others().collect::<Vec<_>>(), [0, 3]);
        assert_eq!(contents.with(Content::Zeros).collect::<Vec<_>>(), [2]);
        assert_eq!(contents.with(Content::Pattern).count(), 3);
        assert!(contents.is_taken(1) && !contents.is_taken(3) && !contents.is_taken(99));
        contents.take(2..3, Remains::Either);
        assert_eq!(contents.with(Content::Zeros).count(), 1, "what is gone cannot come back");
    }
}
