//! Writing a section's body, as the trial goes along.

use guest_mem::PageRun;
use notifier_bridge::Cause;

use super::header::StepEvent;
use super::layout::LayoutRun;
use super::varint::{put, put_difference};
use super::{Announcement, OperationEvent};
use guest_mem::MapLevel;

/// What a trial leaves for the log.
#[derive(Clone, Debug, Default)]
pub struct TrialEvents {
    /// What happened, in order.
    pub steps: Vec<StepEvent>,
    /// When the first operation began.
    pub began_ns: u64,
    /// The body, in its three parts.
    pub body: BodyWriter,
    /// Announcements that found the notebook full.
    pub lost: u64,
}

/// Writes the parts of a body side by side: they are known in another order than they stand in.
#[derive(Clone, Debug, Default)]
pub struct BodyWriter {
    lists: Vec<u8>,
    layouts: Vec<u8>,
    operations: Vec<u8>,
    counts: [u32; 3],
    causes: Vec<Cause>,
    last_began_ns: u64,
    last_page: u64,
}

impl BodyWriter {
    /// Adds a list of pages and returns its number.
    pub fn list(&mut self, pages: impl ExactSizeIterator<Item = u64>) -> u32 {
        put(&mut self.lists, pages.len() as u64);
        let mut before = 0;
        for page in pages {
            put_difference(&mut self.lists, page, before);
            before = page;
        }
        self.counts[0] += 1;
        self.counts[0] - 1
    }

    /// Adds a layout and returns its number.
    pub fn layout(&mut self, runs: &[PageRun]) -> u32 {
        put(&mut self.layouts, runs.len() as u64);
        for run in runs.iter().map(LayoutRun::from) {
            put(&mut self.layouts, run.pages);
            put(&mut self.layouts, run.state as u64);
        }
        self.counts[1] += 1;
        self.counts[1] - 1
    }

    /// Adds an operation with what it announced; its own `announcements` is taken from there.
    pub fn operation(
        &mut self,
        event: &OperationEvent,
        announced: impl ExactSizeIterator<Item = Announcement>,
    ) {
        let out = &mut self.operations;
        put(out, event.began_ns.saturating_sub(self.last_began_ns));
        self.last_began_ns = event.began_ns.max(self.last_began_ns);
        for number in [event.touches, event.first_page, event.pages, event.evicted, announced.len() as u64] {
            put(out, number);
        }
        for one in announced {
            put_difference(out, one.first_page, self.last_page);
            self.last_page = one.first_page;
            let by_pmd = u64::from(one.level == MapLevel::Pmd);
            let flags = by_pmd | u64::from(one.anonymous) << 1 | u64::from(one.order.get()) << 2;
            let cause = match self.causes.iter().position(|known| *known == one.cause) {
                Some(place) => place,
                None => {
                    self.causes.push(one.cause);
                    self.causes.len() - 1
                }
            };
            for number in [one.pages, flags, cause as u64, one.zap_ns, one.operation_ns, one.end_ns] {
                put(out, number);
            }
        }
        self.counts[2] += 1;
    }

    /// Lists, layouts and operations so far.
    pub fn counts(&self) -> [u32; 3] {
        self.counts
    }
    /// The causes that announcements have by number.
    pub fn causes(&self) -> &[Cause] {
        &self.causes
    }
    /// The parts, in the order of the file.
    pub(super) fn parts(&self) -> [&[u8]; 3] {
        [&self.lists, &self.layouts, &self.operations]
    }
}
